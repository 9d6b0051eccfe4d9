"""Stops a stack when the process that borrowed it is gone, however that one ended.

``python -m headrace.runtime.dev.guard FOLDER`` waits for the end of its standard input: the other
end of that pipe is held by the borrower alone, and closes with it even if it is killed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from headrace.runtime.dev.stack import Stack


def main() -> None:
    """Wait, then stop what runs below the folder."""
    sys.stdin.buffer.read()
    Stack(Path(sys.argv[1])).down()


if __name__ == "__main__":
    main()
