"""Logs are lines that a machine can read, unless a person looks on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CODE = """
import logging
from headrace.runtime.logging import configure, get_logger
configure(level="info")
get_logger("source").debug("too_fine")
get_logger("source").info("batch_done", rows=3)
logging.getLogger("library").warning("careful")
"""


def test_events_are_json_lines_on_stderr_where_no_terminal_is():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    event, library = done.stderr.splitlines()
    content = json.loads(event)

    assert done.stdout == ""
    assert content.pop("timestamp").endswith("Z")
    assert content == {"event": "batch_done", "level": "info", "module": "source", "rows": 3}
    assert library.endswith("WARNING library careful")


def test_a_log_that_cannot_be_written_stops_nobody():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", f"{CODE}\nprint('went on')"],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            check=False,
            # What a buffer still holds at the end must not be the exit code either.
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )

    assert (done.returncode, done.stdout) == (0, "went on\n")
