"""What stands in docker-compose.yml, and its services as processes outside Docker."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

REPOSITORY = Path(__file__).resolve().parent.parent
_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
_UNITS_S = {"s": 1, "m": 60}
DEFAULT_GRACE = "10s"  # Compose's own.


def interpolated(content: Any, given: Mapping[str, str]) -> Any:
    """Return ``content`` with ``${NAME:-default}`` replaced as Compose would."""
    if isinstance(content, str):
        return _VARIABLE.sub(lambda match: given.get(match[1], match[2]), content)
    if isinstance(content, list):
        return [interpolated(one, given) for one in content]
    if isinstance(content, dict):
        return {name: interpolated(one, given) for name, one in content.items()}
    return content


def load(given: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the file, with the variables' defaults or what is ``given``."""
    text = (REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8")
    return interpolated(yaml.safe_load(text), given or {})


def seconds(text: str) -> int:
    return int(text[:-1]) * _UNITS_S[text[-1]]


def image_settings() -> dict[str, str]:
    """Return what the last stage of the Dockerfile sets for every process but where to look."""
    last = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").rpartition("\nFROM ")[2]
    block = re.search(r"^ENV ((?:.*\\\n)*.*)$", last, re.MULTILINE)
    assert block is not None
    found = dict(re.findall(r"([A-Z]\w+)=(\S+)", block[1]))
    # Kernels that the tests have compiled already are those for this machine.
    return {name: text for name, text in found.items() if not name.startswith(("NUMBA", "PATH"))}


@dataclass
class Service:
    """One service's command with the file's own settings; ``places`` says what stands for what.

    Its environment is the file's and the image's, and nothing of the one that the test runs in.
    """

    name: str
    folder: Path
    places: Mapping[str, str]
    command: list[str] | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def content(self) -> dict[str, Any]:
        return load()["services"][self.name]

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def placed(self, text: str) -> str:
        for there, here in self.places.items():
            text = text.replace(there, here)
        return text

    def environment(self) -> dict[str, str]:
        scratch = self.folder / f"tmp-{self.name}"
        scratch.mkdir(exist_ok=True)
        settings = self.content.get("environment", {})
        own = {name: self.placed(str(text)) for name, text in settings.items()}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"
        return {**image_settings(), **own, "PATH": path, "HOME": str(scratch)} | {
            "TMPDIR": str(scratch)
        }

    def arguments(self, words: list[str]) -> list[str]:
        """Return a command as it is run here; the image has its programs in the path, too."""
        first = shutil.which(words[0], path=self.environment()["PATH"])
        assert first is not None, words
        return [first, *(self.placed(word) for word in words[1:])]

    def __enter__(self) -> Self:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.arguments(self.command or self.content["command"]),
                env=self.environment(),
                cwd=self.placed("/project"),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def is_healthy(self) -> bool:
        """Return what the file's own health check says."""
        assert self.process is not None
        assert self.process.poll() is None, self.output()
        check = self.content["healthcheck"]
        assert check["test"][0] == "CMD"
        done = subprocess.run(
            self.arguments(check["test"][1:]),
            env=self.environment(),
            timeout=seconds(check["timeout"]),
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    def stop(self) -> int:
        """Ask it to end as Docker does, and return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds(self.content.get("stop_grace_period", DEFAULT_GRACE)))

    def wait(self, timeout_s: float) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def output(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]
