"""What the demo runs on: a project in a folder of its own, its infrastructure, its commands.

Everything that is started here is stopped here, and the folder goes with it.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import yaml

from headrace.runtime.dev.stack import stack_of
from headrace.runtime.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

EXAMPLE = Path(__file__).parents[1]
STOP_PATIENCE_S = 20.0


class SceneError(Exception):
    """A part of the demo failed; the message says which and what it printed."""


class Scene:
    """The example's project in a temporary folder. As a context manager: nothing stays behind.

    Args:
        partitions: Of every topic.

    """

    def __init__(self, partitions: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="headrace-demo-"))
        self._children: list[subprocess.Popen[bytes]] = []
        # Commands are started by several threads, and none once all are being stopped.
        self._starting = threading.Lock()
        self._closed = False
        self._metrics_port = _free_port()
        shutil.copy(EXAMPLE / "definitions.py", self.folder)
        shutil.copytree(EXAMPLE / "schemas", self.folder / "schemas")
        settings: dict[str, Any] = yaml.safe_load((EXAMPLE / "headrace.yaml").read_text())
        settings["topics"] = {"partitions": partitions}
        # The week to come lies ahead of the broker's clock; with --forever there is no end to it.
        settings["stream"] = {"max_ahead": "36500d", "metrics_port": self._metrics_port}
        (self.folder / "headrace.yaml").write_text(yaml.safe_dump(settings))
        self._stack = stack_of(load_settings(self.folder), self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A second Ctrl-C must not leave a broker behind.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with self._starting:
                self._closed = True
            for child in reversed(self._children):
                _stop(child)
            self._stack.down()
            shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            signal.signal(signal.SIGINT, before)

    def up(self, progress: Callable[[str, int, int], None]) -> None:
        """Start Kafka, Redis, the schema registry and the lake's process."""
        self._stack.up(progress)

    def run(self, *arguments: str) -> str:
        """Run a ``headrace`` command to its end and return what it printed.

        Raises:
            SceneError: If it fails.

        """
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            child = self._start(arguments, output.fileno(), errors.fileno())
            code = child.wait()
            self._children.remove(child)
            texts = [_text_of(file) for file in (output, errors)]
        if code != 0:
            msg = f"headrace {' '.join(arguments)} ended with {code}:\n{''.join(texts)[-3000:]}"
            raise SceneError(msg)
        return texts[0]

    def start_worker(self) -> None:
        """Start the worker; its output goes to a file."""
        with self._worker_log.open("wb") as output:
            self._worker = self._start(("worker",), output.fileno(), subprocess.STDOUT)

    def check_worker(self) -> None:
        """Make sure that the worker still runs.

        Raises:
            SceneError: If it does not.

        """
        code = self._worker.poll()
        if code is not None:
            text = self._worker_log.read_text(errors="replace")[-3000:]
            msg = f"the worker ended with {code}:\n{text}"
            raise SceneError(msg)

    def check_lake(self) -> None:
        """Make sure that the lake's process still runs.

        Raises:
            SceneError: If it does not.

        """
        for status in self._stack.status():
            if status.name == "lake" and status.state == "stopped":
                msg = f"the lake ended:\n{self.lake_log()}"
                raise SceneError(msg)

    def lake_log(self) -> str:
        """Return the end of what the lake's process printed."""
        return self._stack.log_of("lake").read_text(errors="replace")[-3000:]

    def live_model(self) -> bool:
        """Whether the worker says that it has a model."""
        url = f"http://127.0.0.1:{self._metrics_port}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, TimeoutError):
            return False
        return any(line.startswith("headrace_model_info{") for line in text.splitlines())

    @property
    def _worker_log(self) -> Path:
        return self.folder / "worker.log"

    def _start(
        self, arguments: tuple[str, ...], output: int, errors: int
    ) -> subprocess.Popen[bytes]:
        name, *rest = arguments
        command = [sys.executable, "-m", "headrace.cli.main", name, "--project", str(self.folder)]
        with self._starting:
            if self._closed:
                msg = f"headrace {name} was not started: the demo ends"
                raise SceneError(msg)
            child = subprocess.Popen(
                [*command, *rest],
                # Faust makes a folder where a worker is started; here it goes with the rest.
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                # Ctrl-C in the terminal is for the demo, which then stops its children in order.
                start_new_session=True,
            )
            self._children.append(child)
        return child


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
