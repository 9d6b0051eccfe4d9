"""The first five commands of a user: init, apply, generate, send, worker; and history agrees."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, TopicPartition

import headrace as hr
from headrace.cli.init import make_project
from headrace.cli.tail import record_decoder
from headrace.runtime.clock import SystemClock
from headrace.schemas.registry import SchemaRegistry

EVENTS = 400
DEADLINE_MS = 200_000


@pytest.fixture
def site(tmp_path, stack, unique_name):
    """Return a new project that uses the run's infrastructure."""
    folder = tmp_path / unique_name
    make_project(folder, unique_name)
    settings = folder / "headrace.yaml"
    settings.write_text(
        settings.read_text()
        + f"kafka: {{bootstrap_servers: '{stack.bootstrap_servers}'}}\n"
        + f"redis: {{url: '{stack.redis_url}'}}\nregistry: {{url: '{stack.registry_url}'}}\n"
    )
    # The topics of this run are shared by all its tests.
    definitions = folder / "definitions.py"
    text = definitions.read_text().replace('"traffic"', f'"{unique_name}"')
    definitions.write_text(text.replace('"views",', f'"views", topic="{unique_name}.views",', 1))
    return folder


def headrace(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "headrace.cli.main", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def snapshots(stack, topic, partitions, count):
    """Return the first ``count`` snapshots as they come."""
    consumer = Consumer({"bootstrap.servers": stack.bootstrap_servers, "group.id": topic})
    consumer.assign([TopicPartition(topic, p, 0) for p in range(partitions)])
    clock = SystemClock()
    end_ms = clock.now_ms() + DEADLINE_MS
    rows = []
    with SchemaRegistry(stack.registry_url) as registry:
        decode = record_decoder(registry.schema)
        while len(rows) < count:
            assert clock.now_ms() < end_ms, f"{len(rows)} of {count} snapshots"
            message = consumer.poll(1.0)
            if message is not None and not message.error():
                rows.append(decode(message.value()))
    consumer.close()
    return rows


def test_a_new_project_runs_and_its_history_equals_what_the_stream_gave(site, stack, unique_name):
    headrace(site, "apply")
    assert "no changes" in headrace(site, "plan", "--exit-code")
    subprocess.run([sys.executable, "generate.py", str(EVENTS)], cwd=site, check=True)
    headrace(site, "send")
    with (site / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "headrace.cli.main", "worker"],
            cwd=site,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            rows = snapshots(stack, f"{unique_name}.snapshots", 4, EVENTS)
        finally:
            worker.terminate()
            worker.wait(60)

    project = hr.load(site)
    history = hr.history(None, project.pipeline(unique_name), project=project)
    columns = [name for name in history.column_names if name in rows[0]]
    served = sorted(rows, key=lambda row: int(row["event_id"]))
    expected = history.sort_by("view_id").to_pydict()
    for name in set(columns) - {"event_time", "visitor_id", "view_id"}:
        assert expected[name] == [row[name] for row in served], name
    assert {"visitor__count_5m", "visitor__seconds_mean_1d", "vs_usual"} <= set(columns)
    assert pa.types.is_int64(history.schema.field("visitor__count_5m").type)
    assert "no_model" in headrace(site, "tail", f"{unique_name}.predictions", "--max", "1")
