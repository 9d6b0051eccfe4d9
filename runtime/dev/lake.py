"""The lake's process beside the embedded infrastructure, started by name: ``lake`` is above."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.runtime.dev.processes import (
    POLL_S,
    ProcessRecord,
    alive,
    died,
    port_answers,
    spawn,
)
from headrace.runtime.errors import EmbeddedError, explain

if TYPE_CHECKING:
    from pathlib import Path

_MODULE = "headrace.cli.main"
_READY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class LakeServer:
    """How to run a project's lake; the running one is a ``ProcessRecord``.

    ``log`` is the file with its output.
    """

    project: Path
    log: Path

    def start(self, port: int) -> ProcessRecord:
        """Start it with its metrics page on ``port``; it waits for topics by itself."""
        command = [sys.executable, "-P", "-m", _MODULE, "lake", "--project", str(self.project)]
        return spawn([*command, "--metrics-port", str(port)], self.log, self.log.parent)

    def wait_ready(self, record: ProcessRecord, port: int) -> None:
        """Return once its metrics page answers."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not port_answers(port):
            if not alive(record):
                raise died("the lake", self.log)
            if time.monotonic() > deadline:
                message = explain(
                    "the lake", "answer", "nothing", f"127.0.0.1:{port}", f"see {self.log}"
                )
                raise EmbeddedError(message)
            time.sleep(POLL_S)
