"""``./dev demo``: the whole of Headrace on simulated card fraud, in about two minutes.

python examples/fraud/demo.py [--forever] [--fast]
"""

from __future__ import annotations

import sys
from pathlib import Path


def start() -> int:
    """Find the project's root, wherever this is started from, and run the demo."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from examples.fraud.show.director import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(start())
