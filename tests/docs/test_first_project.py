"""The tutorial runs: its shell blocks, in order, in one shell, as a newcomer would type them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXPECTED = (
    "visitor__count_5m",  # plan, online and history name the features
    "no_model",  # the predictions
    "FRESH",  # Redis
    "'count_1h': [",  # ... as Feast reads it
    "traffic_snapshots",  # the lake's tables
    "5,000 rows in set.parquet",
    "the same bytes",  # the rebuilt set
    "5,000 with a snapshot, 5,000 equal",  # the audit
    "visitor__seconds_max_1d",  # the added feature in the second plan
)


@pytest.mark.timeout(420)
def test_a_newcomer_can_type_the_tutorial(repository: Path, tmp_path: Path) -> None:
    page = (repository / "docs" / "first-project.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    # `down` also runs when a step before it fails, so that no broker is left behind.
    script = 'set -em\ntrap "headrace down >/dev/null 2>&1" EXIT\n' + "".join(blocks)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    done = subprocess.run(
        ["/bin/bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "COLUMNS": "160", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )

    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    assert [word for word in EXPECTED if word not in said] == []
