"""A project as a user has it, run through its command line: what the benches and parity measure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from bench.measure import BenchError
from headrace.runtime.dev.stack import Stack
from headrace.runtime.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headrace.features.plan import PipelinePlan
    from headrace.runtime.dev.stack import Endpoints

COMMAND_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Project:
    """A project folder that uses a running stack."""

    folder: Path
    endpoints: Endpoints

    def run(self, *arguments: str) -> str:
        """Run a ``headrace`` command to its end and return what it printed.

        Raises:
            BenchError: If it fails.

        """
        finished = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            cwd=self.folder,
            env=environment(),
        )
        if finished.returncode != 0:
            output = (finished.stdout + finished.stderr)[-2000:]
            msg = f"headrace {' '.join(arguments)} failed with {finished.returncode}: {output}"
            raise BenchError(msg)
        return finished.stdout

    def command(self, *arguments: str) -> list[str]:
        """Return how to start a ``headrace`` command on this project."""
        name, *rest = arguments
        base = [sys.executable, "-m", "headrace.cli.main", name]
        return [*base, "--project", str(self.folder), *rest]

    def start_worker(self, log: Path) -> subprocess.Popen[bytes]:
        """Start a worker; its output goes to the end of ``log``."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command("worker"),
                stdout=output,
                stderr=subprocess.STDOUT,
                # Faust makes a folder where a worker is started.
                cwd=self.folder,
                env=environment(),
            )

    def plan(self, pipeline: str) -> PipelinePlan:
        """Return what a pipeline compiles to."""
        from headrace.features.compiler import compile_project
        from headrace.features.project import load_project

        settings = load_settings(self.folder)
        plan = compile_project(load_project(self.folder), settings.topics.partitions)
        (found,) = [one for one in plan.pipelines if one.name == pipeline]
        return found


def environment() -> dict[str, str]:
    """Return ours without what would make a child write its output late."""
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def fresh_stack(folder: Path, *, compiled: bool = False) -> Stack:
    """Return a stack over an empty folder; one that an earlier run left running is stopped.

    ``compiled``: its broker has all of Java's compilers, for what is measured at light load.
    """
    stack = Stack(folder, kafka_compiled=compiled)
    stack.down()
    shutil.rmtree(folder, ignore_errors=True)
    return stack


def make_project(
    folder: Path, template: Path, endpoints: Endpoints, settings: Mapping[str, Any]
) -> Project:
    """Copy a project's definitions and schemas to a new folder, with settings of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(template / "definitions.py", folder)
    shutil.copytree(template / "schemas", folder / "schemas")
    content = {
        **settings,
        "kafka": {"bootstrap_servers": endpoints.bootstrap_servers},
        "redis": {"url": endpoints.redis_url},
        "registry": {"url": endpoints.registry_url},
    }
    (folder / "headrace.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return Project(folder, endpoints)
