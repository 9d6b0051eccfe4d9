"""The embedded schema registry's process, started by name: ``serving`` is above this room."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.runtime.dev.processes import POLL_S, ProcessRecord, alive, died, spawn
from headrace.runtime.errors import EmbeddedError, explain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MODULE = "headrace.serving.registry"
_READY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class RegistryServer:
    """How to run the registry; the running one is a ``ProcessRecord``."""

    folder: Path

    @property
    def log(self) -> Path:
        """Return the file with the server's output."""
        return self.folder / "registry.log"

    def start(self, port: int, kafka: Mapping[str, Any]) -> ProcessRecord:
        """Start the server; it waits for Kafka by itself.

        ``-P`` keeps the folder it runs in off its import path. Client properties may hold
        passwords: they go through the environment, which other users cannot read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-P",
            "-m",
            _MODULE,
            "--port",
            str(port),
            "--instance",
            self._instance(),
        ]
        environment = {"HEADRACE_REGISTRY_KAFKA": json.dumps(dict(kafka))}
        return spawn(command, self.log, self.folder, environment)

    def _instance(self) -> str:
        """Return a name that a restart keeps and another project on the same Kafka has not."""
        place = hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]
        return f"{socket.gethostname()}-{place}"

    def wait_ready(self, record: ProcessRecord, port: int) -> None:
        """Return once the registry has read its topic and may be written to."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not answers(port):
            if not alive(record):
                raise died("the schema registry", self.log)
            if time.monotonic() > deadline:
                message = explain(
                    "schema registry", "answer", "nothing", f"127.0.0.1:{port}", f"see {self.log}"
                )
                raise EmbeddedError(message)
            time.sleep(POLL_S)


def answers(port: int) -> bool:
    """Return whether the registry on this port is ready for writes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
