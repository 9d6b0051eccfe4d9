"""A source gets more partitions while it is read: nothing is counted under a key that has moved."""

from __future__ import annotations

import dataclasses

import pytest
from confluent_kafka.admin import NewPartitions
from live import LiveProject, LiveWorker, make_project
from switch_cases import TILL, TWO_ENTITIES, check, ended, expected_features, make_payments

from headrace.cli.applied import apply_project
from headrace.runtime.kafka import admin, partition_counts
from headrace.streams.environment import open_environment

KEPT = ["customer__count_1h", "customer__amount_mean_1h", "till__count_1h"]


@pytest.fixture
def project(project_folder):
    made = make_project(project_folder, definitions=TWO_ENTITIES, fields=(TILL,))
    yield made
    made.close()


def grow(project, count):
    topic = project.topic("payments")
    client = admin(project.environment.client)
    for future in client.create_partitions([NewPartitions(topic, count)]).values():
        future.result()
    assert partition_counts(client, [topic]) == {topic: count}


def test_the_worker_stops_and_a_new_version_of_the_pipeline_is_exact(project):
    messages, rows = make_payments(project, 900, seed=7)
    wanted = expected_features(rows)
    project.send(messages[:400])
    with LiveWorker(project.folder) as worker:
        project.read("snapshots", 400)
        grow(project, 8)
        assert worker.process.wait(60) == 1
        said = worker.output()
    for told in ("keep the 4 partitions", "got 8", "topic=", "give the pipeline another name"):
        assert told in said, said
    # Producers go on, and spread the keys anew.
    grown = dataclasses.replace(project, partitions=8)
    grown.send(messages[400:])
    code, said = ended(project.folder)
    assert code == 1
    assert "keep the 4 partitions" in said
    before = project.records("snapshots", 10_000, timeout_s=3.0)
    assert len(before) == 400
    check(before, wanted, KEPT)

    file = project.folder / "definitions.py"
    name = project.plan.name
    text = file.read_text().replace('    partitioner="murmur2",\n', "")
    file.write_text(text.replace(f'hr.Pipeline("{name}"', f'hr.Pipeline("{name}_2"'))
    apply_project(project.folder)
    environment = open_environment(project.folder)
    assert not any(stage.direct for stage in environment.plan.pipelines[0].stages)
    second = LiveProject(project.folder, environment, project.schema_id)
    with LiveWorker(project.folder) as worker:
        second.read("snapshots", 900)
        assert worker.terminate() == 0, worker.output()
    found = second.records("snapshots", 10_000, timeout_s=3.0)
    second.close()

    assert sorted(int(one["event_id"]) for one in found) == list(range(900))
    check(found, wanted, KEPT)
