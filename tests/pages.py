"""Pages as a newcomer types them: their blocks, in their order, in one shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def shell_blocks(page: Path) -> str:
    """Return a page's shell blocks as one script, which leaves no broker behind if a step fails."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks, page
    return 'set -em\ntrap "headrace down >/dev/null 2>&1" EXIT\n' + "".join(blocks)


def typed(script: str, folder: Path, timeout_s: float) -> str:
    """Run a script in a folder and return all that it printed; it must not fail."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/bash", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "160", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    return said
