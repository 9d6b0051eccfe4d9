"""Stops a stack or a cluster when the process that borrowed it is gone, however that one ended.

``python -m headrace.runtime.dev.guard stack|cluster FOLDER`` waits for the end of its standard
input: the other end of that pipe is held by the borrower alone, and closes with it even if it is
killed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from headrace.runtime.dev.cluster import Cluster
from headrace.runtime.dev.stack import Stack


def main() -> None:
    """Wait, then stop what runs below the folder."""
    what, folder = sys.argv[1], Path(sys.argv[2])
    sys.stdin.buffer.read()
    if what == "cluster":
        Cluster(folder).down()
    else:
        Stack(folder).down()


if __name__ == "__main__":
    main()
