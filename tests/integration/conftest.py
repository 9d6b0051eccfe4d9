"""The real infrastructure, started once per run, and project folders that use it."""

from __future__ import annotations

import gc
import hashlib
import itertools
import shutil
from typing import TYPE_CHECKING

import pytest

from headrace.runtime.dev.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from headrace.runtime.dev.stack import Endpoints

_counter = itertools.count()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    """Return where Kafka, Redis and the schema registry are; they end with the run."""
    folder = tmp_path_factory.mktemp("stack")
    with Stack(folder) as endpoints:
        yield endpoints
        # Clients that only a cycle still holds would look for the broker, loudly, when it is gone.
        gc.collect()
    # The logs stay with the run's other files; the data may be gigabytes.
    shutil.rmtree(folder / "kafka" / "data")


@pytest.fixture
def unique_name(request: pytest.FixtureRequest) -> str:
    """Return a name for topics, groups and projects that no other test of the run has."""
    digest = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:10]
    return f"t{digest}_{next(_counter)}"


@pytest.fixture
def project_folder(tmp_path: Path, stack: Endpoints, unique_name: str) -> Path:
    """Return a folder with a ``headrace.yaml`` that names the infrastructure; nothing else."""
    folder = tmp_path / "project"
    (folder / "schemas").mkdir(parents=True)
    (folder / "headrace.yaml").write_text(
        f"project: {unique_name}\n"
        f"kafka:\n  bootstrap_servers: {stack.bootstrap_servers}\n"
        f"redis:\n  url: {stack.redis_url}\n"
        f"registry:\n  url: {stack.registry_url}\n",
        encoding="utf-8",
    )
    return folder
