"""``python -m headrace.features.feast_repo.apply FOLDER``: ``feast apply`` as its CLI runs it.

A process of its own, started in the repository's folder: the import of Feast costs 5 s of CPU, and
Feast imports the repository's ``definitions`` by a bare name.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Apply the repository in ``folder``; what is wrong is Feast's own exception."""
    from feast.repo_config import load_repo_config
    from feast.repo_operations import apply_total

    config = load_repo_config(folder, folder / "feature_store.yaml")
    # Offline tables are ours: there, and with the columns that the definitions say.
    apply_total(config, folder, skip_source_validation=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
