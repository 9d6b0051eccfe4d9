"""Which build computes: a receipt can be replayed bit for bit on the build that wrote it."""

from __future__ import annotations

import functools
import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

# What decides a bit of a feature or a score, besides our own sources and the processor's kind.
LIBRARIES = ("lightgbm", "llvmlite", "numba", "numpy", "pyarrow")
ROOMS = ("features", "scoring")


@functools.cache
def engine_version() -> str:
    """Return ``<headrace's version>+<digest>``.

    The digest (8 hex digits) covers the sources of features and scoring, the libraries' versions
    and the machine's architecture. Another engine need not give other bits; the same one must give
    the same.
    """
    digest = hashlib.sha256(platform.machine().encode())
    for library in LIBRARIES:
        digest.update(f"{library}=={version(library)}\n".encode())
    home = Path(__file__).parents[1]
    for room in ROOMS:
        for file in sorted((home / room).rglob("*.py")):
            digest.update(file.read_bytes())
    return f"{version('headrace')}+{digest.hexdigest()[:8]}"
