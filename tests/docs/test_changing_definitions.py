"""The page on changing definitions runs: its shell blocks, in order, in one shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXPECTED = (
    "drained: pipeline traffic",
    "unchanged (keeps its numbers): visitor__count_1h, page__count_1h",
    "new (whole from its first event: the log is replayed): visitor__count_1d",
    "3000 rows of the sources are read again in silence",
    "is finished, and may be deleted",
    "false,3000",
    "true,500",
)


@pytest.mark.timeout(420)
def test_a_pipeline_of_two_entities_gets_a_feature(repository: Path, tmp_path: Path) -> None:
    page = (repository / "docs" / "changing-definitions.md").read_text(encoding="utf-8")
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
    assert [word for word in EXPECTED if word not in said] == [], said[-4000:]
