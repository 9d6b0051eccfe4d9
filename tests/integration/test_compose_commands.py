"""Each command of ours in docker-compose.yml, with the file's settings, run without Docker."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest
from compose_file import REPOSITORY, Service, load

from headrace.runtime.dev.processes import free_ports
from headrace.runtime.dev.stack import Stack

if TYPE_CHECKING:
    from pathlib import Path

EVENTS = 2_000
START_S = 240.0  # A first run compiles the kernels.


@pytest.fixture(scope="module")
def infrastructure(tmp_path_factory):
    """Return a Kafka and a Redis of this module's own: a second registry would only read."""
    folder = tmp_path_factory.mktemp("compose")
    with Stack(folder, services=("kafka", "redis")) as endpoints:
        yield endpoints
    shutil.rmtree(folder / "kafka" / "data")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Return the example as a user has it, with data of three days."""
    folder = tmp_path_factory.mktemp("project") / "fraud"
    shutil.copytree(
        REPOSITORY / "examples" / "fraud",
        folder,
        ignore=shutil.ignore_patterns("data", "models", ".headrace", "__pycache__"),
    )
    options = ["--days", "3", "--customers", "400", "--terminals", "800"]
    subprocess.run(
        [sys.executable, "generate.py", *options, "--output", "data"], cwd=folder, check=True
    )
    return folder


@pytest.fixture(scope="module")
def places(infrastructure, project, tmp_path_factory):
    """Return what the file's addresses, ports and folders are here."""
    registry, worker, lake = map(str, free_ports(3))
    state = tmp_path_factory.mktemp("state")
    return {
        "http://registry:8081": f"http://127.0.0.1:{registry}",
        "redis://redis:6379": infrastructure.redis_url,
        "kafka:9092": infrastructure.bootstrap_servers,
        "0.0.0.0": "127.0.0.1",  # noqa: S104 - what stands in the file.
        "8081": registry,
        "9100": worker,
        "9101": lake,
        "/project": str(project),
        "/var/lib/headrace": str(state),
    }


@pytest.fixture
def service(places, tmp_path):
    """Return a function that makes a service of the file, or another command in its place."""

    def make(name, command=None):
        return Service(name, tmp_path, places, command)

    return make


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def metrics(port: str) -> dict[str, float]:
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text.splitlines()
    samples = [line.rpartition(" ") for line in lines if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in samples}


def total(port: str, prefix: str) -> float:
    return sum(value for name, value in metrics(port).items() if name.startswith(prefix))


def ours() -> set[str]:
    return {name for name, one in load()["services"].items() if one["image"].startswith("headrace")}


@pytest.mark.timeout(420)
def test_the_file_s_commands_bring_events_to_scores_and_into_the_lake(
    service, places, project, wait_until
):
    before = files_below(project)
    run = set()

    def started(name, command=None):
        run.add(name)
        return service(name, command)

    with started("registry") as registry:
        wait_until(registry.is_healthy, 60)
        with started("apply") as apply:
            assert apply.wait(120) == 0, apply.output()
        with started("worker") as worker, started("lake") as lake:
            assert not worker.is_healthy()
            wait_until(worker.is_healthy, START_S)
            wait_until(lake.is_healthy)
            send = ["headrace", "send", "--max", str(EVENTS), "--reports", "first"]
            with started("tools", send) as tools:
                assert tools.wait(120) == 0, tools.output()
            wait_until(lambda: total(places["9100"], "headrace_scored_total") >= EVENTS)
            rows = 'headrace_lake_rows_total{table="fraud_predictions"}'
            wait_until(lambda: total(places["9101"], rows) >= EVENTS)

            assert worker.is_healthy()
            assert lake.is_healthy()
            assert lake.stop() == 0, lake.output()
            assert worker.stop() == 0, worker.output()
        # uvicorn, when it has closed all, ends by the signal that it got.
        assert registry.stop() in {0, -signal.SIGTERM}, registry.output()

    # Their file system is read-only, and the project is mounted so.
    assert files_below(project) == before
    assert run == ours()
