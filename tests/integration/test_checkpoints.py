"""Checkpoints on the real broker: a restart costs the delta, and nothing is made up in silence."""

from __future__ import annotations

import json
import shutil

import pytest
from confluent_kafka import TopicPartition
from live import LiveWorker, make_project, payments
from typer.testing import CliRunner

from headrace.cli.main import app
from headrace.runtime.kafka import admin
from tests.integration.test_exactly_once import assert_exact

START_MS = 1_750_000_000_000
SETTINGS = """
stream:
  guarantee: exactly_once
  commit_interval_ms: 20
  checkpoints: {interval: 200ms}
"""


@pytest.fixture
def project(project_folder):
    made = make_project(project_folder, SETTINGS)
    yield made
    made.close()


def kept_partitions(project):
    root = project.folder / ".headrace" / "checkpoints"
    return {path.parent for path in root.rglob("manifest-*.json")}


def replayed(worker):
    return sum(v for k, v in worker.metrics().items() if k.startswith("headrace_replayed_total"))


def test_killed_workers_start_from_checkpoints_and_each_row_comes_out_once(project, wait_until):
    messages, rows = payments(project, 12_000, START_MS, seed=1)
    for part in range(3):
        with LiveWorker(project.folder) as worker:
            if part:
                assert worker.metrics()["headrace_checkpoints_restored_total"] == 4
                # Without checkpoints all that came before would be replayed.
                assert replayed(worker) < 4_000 * part
            project.send(messages[4_000 * part : 4_000 * (part + 1)])
            project.read("snapshots", 4_000 * (part + 1))
            wait_until(lambda: len(kept_partitions(project)) == project.partitions)
            worker.kill()

    assert_exact(project, rows)


def test_a_history_that_is_gone_is_not_passed_over_in_silence(project):
    messages, rows = payments(project, 4_000, START_MS, seed=2)
    with LiveWorker(project.folder) as worker:
        project.send(messages[:2_000])
        project.read("snapshots", 2_000)
        assert worker.terminate() == 0, worker.output()
    topic = project.topic("payments")
    cut = [TopicPartition(topic, p, 5) for p in range(project.partitions)]
    client = admin(project.environment.client)
    for future in client.delete_records(cut).values():
        future.result(30)
    shutil.rmtree(project.folder / ".headrace" / "checkpoints", ignore_errors=True)

    refused = LiveWorker(project.folder)
    assert refused.process.wait(120) == 1
    refused.close()

    assert "the state must begin at offset 0, where the group first read" in refused.output()
    assert f"{topic}[" in refused.output()
    with LiveWorker(project.folder, "--on-mismatch", "skip") as worker:
        project.send(messages[2_000:])
        project.read("snapshots", 4_000)
        assert worker.terminate() == 0, worker.output()
    assert "history_is_missing" in worker.output()
    # And from here on it is known.
    with LiveWorker(project.folder) as worker:
        assert worker.terminate() == 0, worker.output()
    assert len(rows) == 4_000


def test_a_worker_on_another_machine_begins_with_the_copy_in_the_store(
    project_folder, tmp_path, wait_until
):
    store = tmp_path / "store"
    settings = SETTINGS.replace("200ms}", f"200ms, url: 'file://{store}'}}")
    project = make_project(project_folder, settings)
    messages, rows = payments(project, 6_000, START_MS, seed=5)
    with LiveWorker(project.folder) as worker:
        project.send(messages[:4_000])
        project.read("snapshots", 4_000)
        wait_until(lambda: len(list(store.rglob("manifest-*.json"))) >= project.partitions)
        worker.kill()
    elsewhere = {"HEADRACE__STATE_FOLDER": str(tmp_path / "elsewhere")}
    project.send(messages[4_000:])
    other = LiveWorker(project.folder, environment=elsewhere)
    other.wait_ready()
    assert other.metrics()["headrace_checkpoints_restored_total"] == project.partitions
    assert other.output().count("checkpoint_fetched") == project.partitions
    project.read("snapshots", 6_000)
    assert other.terminate() == 0, other.output()
    other.close()

    assert_exact(project, rows)
    runner = CliRunner()
    for copies in ([], ["--copies"]):
        folder = ["--project", str(project.folder), *copies]
        listed = runner.invoke(app, ["checkpoints", "list", "--json", *folder])
        kept = [json.loads(line) for line in listed.output.splitlines()]
        assert {one["partition"] for one in kept} == set(range(project.partitions))
        assert runner.invoke(app, ["checkpoints", "verify", *folder]).exit_code == 0
    for path in store.rglob("*.parts"):
        path.write_bytes(b"")
    broken = runner.invoke(
        app, ["checkpoints", "verify", "--copies", "--project", str(project.folder)]
    )
    assert broken.exit_code == 1
    assert "must have" in broken.output
    project.close()
