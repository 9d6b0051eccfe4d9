"""`headrace lake` on the real broker: what comes in, from where, and what may go wrong."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
import yaml
from confluent_kafka import Producer, TopicPartition
from lakes import LiveLake, command, places, run_once, wire
from live import apply, make_project, payments

from bench.lake_kills import held, run_kills
from headrace.cli.applied import Applied, write_applied
from headrace.features.output_schemas import output_schemas
from headrace.lake.tables import ARRIVAL_TIME, Lake, predictions_table, snapshots_table
from headrace.runtime.dev.processes import free_ports
from headrace.runtime.kafka import admin, delete_topics, topic_ids
from headrace.runtime.settings import load_settings
from headrace.streams.environment import open_environment

START_MS = 1_700_000_000_000
QUICK = """
lake:
  flush_interval_ms: 50
"""


@pytest.fixture
def project(project_folder):
    made = make_project(project_folder, QUICK)
    yield made
    made.close()


def lake_of(project) -> Lake:
    return Lake(load_settings(project.folder).lake.folder)


def produce(project, topic, values, **properties):
    producer = Producer({"bootstrap.servers": project.bootstrap_servers, **properties})
    for number, value in enumerate(values):
        producer.produce(topic, value, b"k", partition=number % project.partitions)
        producer.poll(0)
    assert producer.flush(60) == 0


def output_row(schema, number):
    row = {}
    for field in json.loads(schema)["fields"]:
        kind = field["type"]
        nullable = isinstance(kind, list)
        plain = "long" if isinstance(kind, dict) else kind
        row[field["name"]] = None if nullable else str(number) if plain == "string" else number
    return row


def test_every_topic_comes_into_its_table_and_once_more_changes_nothing(project):
    keyed, sent = payments(project, 500, START_MS, seed=1)
    project.send([*keyed, (b"k", b"junk"), (None, None)])
    for topic, schema in output_schemas(project.plan).items():
        number = project.environment.registry.register(f"{topic}-value", schema)
        produce(project, topic, [wire(schema, number, output_row(schema, i)) for i in range(40)])

    source = project.plan.source
    wanted = {
        source: 500,
        f"{source}_rejected": 2,
        predictions_table(project.plan.name): 40,
        snapshots_table(project.plan.name): 40,
    }
    assert run_once(project.folder) == wanted
    lake = lake_of(project)
    versions = {name: lake.table(name).version for name in wanted}
    assert run_once(project.folder) == wanted

    assert {name: lake.table(name).version for name in wanted} == versions
    rows = sorted(lake.table(source).delta.to_pyarrow_table().to_pylist(), key=by_id)
    assert [(r["payment_id"], r["customer_id"], r["amount"]) for r in rows] == [
        (one[0], one[2], one[3]) for one in sent
    ]
    assert rows[0]["event_time"].timestamp() * 1000 == START_MS
    assert all(row[ARRIVAL_TIME].year > 2024 for row in rows)
    topic = project.topic("payments")
    topic_id = topic_ids(admin(project.environment.client), [topic])[topic]
    held(lake, source, topic_id, project.partitions)


def by_id(row):
    return row["payment_id"]


def test_a_stop_appends_what_was_read_and_a_start_goes_on_from_there(project, wait_until):
    settings = project.folder / "headrace.yaml"
    settings.write_text(settings.read_text().replace("ms: 50", "ms: 600000"))
    keyed, _ = payments(project, 300, START_MS, seed=2)
    table = project.plan.source
    with LiveLake(project.folder) as lake:
        project.send(keyed[:200])
        wait_until(lambda: lake.metrics().get("headrace_lake_gathered_bytes", 0) > 200 * 160)
        assert lake.rows(table) == 0

        assert lake.terminate() == 0
        assert lake.rows(table) == 200

    project.send(keyed[200:])
    assert run_once(project.folder)[table] == 300
    stood = places(lake_of(project), table)
    assert len(set(stood)) == len(stood) == 300


def test_transactions_aborted_ones_and_their_markers_neither_show_nor_stall(project, wait_until):
    topic, table = project.topic("payments"), project.plan.source
    producer = Producer(
        {"bootstrap.servers": project.bootstrap_servers, "transactional.id": f"{topic}.test"}
    )
    producer.init_transactions(30)
    keyed, _ = payments(project, 40, START_MS, seed=3)
    for number, (_, value) in enumerate(keyed):
        producer.begin_transaction()
        producer.produce(topic, value, b"k", partition=0)
        producer.flush(30)
        if number % 2:
            producer.abort_transaction(30)
        else:
            producer.commit_transaction(30)

    with LiveLake(project.folder) as lake:
        wait_until(lambda: lake.rows(table) == 20)
        lag = f'headrace_lake_lag_records{{partition="0",topic="{topic}"}}'
        wait_until(lambda: lag in lake.metrics())
        assert lake.terminate() == 0

    # 40 records and 40 markers: the last ones are passed though no row comes after them.
    topic_id = topic_ids(admin(project.environment.client), [topic])[topic]
    assert lake_of(project).table(table).next_offset(topic_id, 0) == 80
    assert [offset for _, _, offset in places(lake_of(project), table)] == list(range(0, 80, 4))


def test_a_field_and_a_pipeline_that_come_while_it_runs_are_taken_in(project, wait_until):
    folder, plan = project.folder, project.plan
    snapshots = f"{plan.name}.snapshots"
    schema = output_schemas(plan)[snapshots]
    registry = project.environment.registry
    old = registry.register(f"{snapshots}-value", schema)
    grown = json.loads(schema)
    grown["fields"].append({"name": "night", "type": ["null", "double"], "default": None})
    table = snapshots_table(plan.name)
    with LiveLake(folder) as lake:
        produce(project, snapshots, [wire(schema, old, output_row(schema, 1))])
        wait_until(lambda: lake.rows(table) == 1)

        new = registry.register(f"{snapshots}-value", json.dumps(grown))
        row = {**output_row(schema, 2), "night": 0.5}
        produce(project, snapshots, [wire(json.dumps(grown), new, row)])
        wait_until(lambda: lake.rows(table) == 2)
        produce(project, snapshots, [wire(schema, old, output_row(schema, 3))])
        wait_until(lambda: lake.rows(table) == 3)

        _add_pipeline(project)
        second = open_environment(folder)
        apply(second)
        (other,) = [one for one in second.plan.pipelines if one.name != plan.name]
        topic, schema = next(iter(output_schemas(other).items()))
        number = second.registry.register(f"{topic}-value", schema)
        produce(project, topic, [wire(schema, number, output_row(schema, 7))])
        write_applied(second.project.settings, Applied(second.plan))
        second.registry.close()
        wait_until(lambda: lake.rows(predictions_table(other.name)) == 1)

    found = lake_of(project).table(table).delta.to_pyarrow_table().to_pylist()
    assert sorted((row["source_offset"], row["night"]) for row in found) == [
        (1, None),
        (2, 0.5),
        (3, None),
    ]


def _add_pipeline(project):
    definitions = project.folder / "definitions.py"
    definitions.write_text(
        definitions.read_text()
        + f'\nmore = hr.Pipeline("more_{project.plan.name}", source=payments, views=[spending])\n'
    )


def test_a_topic_that_is_made_anew_is_another_progress(project, wait_until):
    topic, table = project.topic("payments"), project.plan.source
    client = admin(project.environment.client)
    keyed, _ = payments(project, 60, START_MS, seed=4)
    with LiveLake(project.folder) as lake:
        project.send(keyed)
        wait_until(lambda: lake.rows(table) == 60)
        first = topic_ids(client, [topic])[topic]
        delete_topics(client, [topic])
        wait_until(lambda: "topic_gone" in lake.output())
        apply(project.environment)
        project.send(keyed[:25])
        wait_until(lambda: lake.rows(table) == 85)

    stood = places(lake_of(project), table)
    assert len(set(stood)) == 85
    assert len([one for one in stood if one[0] == first]) == 60


class Forwarder:
    """A port that leads to another address once it is opened; nothing answers there before."""

    def __init__(self, port: int, target: str) -> None:
        self._port, self._target = port, target
        self._listening = socket.socket()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.url = f"http://127.0.0.1:{port}"

    def open(self) -> None:
        self._listening.bind(("127.0.0.1", self._port))
        self._listening.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _serve(self) -> None:
        host, _, port = self._target.removeprefix("http://").partition(":")
        while True:
            try:
                ours, _ = self._listening.accept()
            except OSError:
                return
            theirs = socket.create_connection((host, int(port)))
            for source, sink in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with source, sink:
        try:
            while data := source.recv(65_536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


def test_without_the_registry_records_wait_and_none_is_rejected(project, wait_until):
    (port,) = free_ports(1)
    way = Forwarder(port, project.environment.endpoints.registry_url)
    settings = project.folder / "headrace.yaml"
    content = yaml.safe_load(settings.read_text())
    content["registry"]["url"] = way.url
    settings.write_text(yaml.safe_dump(content))
    table = project.plan.source
    keyed, _ = payments(project, 50, START_MS, seed=5)
    project.send(keyed)
    with LiveLake(project.folder) as lake:
        retries = 'headrace_lake_retries_total{reason="registry"}'
        wait_until(lambda: lake.metrics().get(retries, 0) >= 2)
        assert not lake.is_ready()
        assert lake_of(project).names() == []

        way.open()
        wait_until(lambda: lake.rows(table) == 50)
        wait_until(lake.is_ready)
    way.close()
    assert not lake_of(project).has(f"{table}_rejected")


def test_a_full_disk_shows_no_half_file_and_goes_on_when_there_is_space(project, wait_until):
    """A limit on the size of files stands for the full disk: writes fail inside a file."""
    table = project.plan.source
    keyed, _ = payments(project, 12_000, START_MS, seed=6)
    with LiveLake(project.folder) as lake:
        project.send(keyed[:100])
        wait_until(lambda: lake.rows(table) == 100)
        version = lake.lake.table(table).version

        limit = resource.prlimit(lake.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(lake.process.pid, resource.RLIMIT_FSIZE, (40_000, limit[1]))
        project.send(keyed[100:])
        retries = 'headrace_lake_retries_total{reason="table"}'
        wait_until(lambda: lake.metrics().get(retries, 0) >= 2)
        assert not lake.is_ready()
        assert lake.lake.table(table).delta.to_pyarrow_table().num_rows >= 100
        assert lake.lake.table(table).version >= version

        resource.prlimit(lake.process.pid, resource.RLIMIT_FSIZE, limit)
        wait_until(lambda: lake.rows(table) == 12_000)
        wait_until(lake.is_ready)
        assert lake.terminate() == 0

    stood = places(lake_of(project), table)
    assert len(set(stood)) == len(stood) == 12_000


def test_a_second_process_on_the_folder_is_refused(project):
    with LiveLake(project.folder) as lake:
        done = subprocess.run(
            command(project.folder), capture_output=True, text=True, check=False, timeout=60
        )

        assert done.returncode == 1
        assert f"the lake must have one writer; got 'process {lake.process.pid}'" in done.stderr
        assert "Traceback" not in done.stderr
        assert httpx.get(lake.url, timeout=10).status_code == 200
        # Compaction by hand is a commit of its own: it may run beside.
        by_hand = subprocess.run(
            command(project.folder, "--compact", "--json"),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert by_hand.returncode == 0, by_hand.stderr


def test_kill_9_at_random_instants_loses_and_doubles_nothing(project):
    """Five kills while rows come in; ``./dev bench lake`` makes it twenty and a million rows."""
    settings = project.folder / "headrace.yaml"
    settings.write_text(settings.read_text().replace("ms: 50", "ms: 20\n  flush_rows: 2000"))
    topic, table = project.topic("payments"), project.plan.source
    topic_id = topic_ids(admin(project.environment.client), [topic])[topic]
    keyed, _ = payments(project, 60_000, START_MS, seed=7)
    for number in range(0, len(keyed), 997):
        keyed[number] = (b"k", b"junk")

    def publish(stopping):
        sent = 0
        while sent < len(keyed) and not stopping.is_set():
            project.send(keyed[sent : sent + 600])
            sent += len(keyed[sent : sent + 600])
            stopping.wait(0.1)
        return sent

    run = run_kills(
        command(project.folder),
        lake_of(project).folder,
        table,
        topic_id,
        project.partitions,
        kills=5,
        publish=publish,
        log=project.folder / "killed.log",
        seed=int(time.monotonic_ns()),
        life_s=(0.0, 0.7),
    )

    assert run.kills == 5
    assert run.versions_read > 0
    assert run.rows + len(places(lake_of(project), f"{table}_rejected")) == 60_000


def test_it_starts_before_anything_is_applied_and_waits(project_folder, wait_until):
    """As under `headrace up`, which comes before `headrace apply`."""
    with LiveLake(project_folder) as lake:
        wait_until(lambda: "nothing_to_read_yet" in lake.output())
        assert lake.process.poll() is None
        assert lake.terminate() == 0


def test_records_that_kafka_deleted_unread_are_counted_and_what_is_left_is_read(
    project, wait_until
):
    topic, table = project.topic("payments"), project.plan.source
    keyed, _ = payments(project, 400, START_MS, seed=8)
    project.send(keyed[:200])
    before = run_once(project.folder)[table]
    project.send(keyed[200:])
    client = admin(project.environment.client)
    deleted = client.delete_records(
        [TopicPartition(topic, p, 70) for p in range(project.partitions)]
    )
    low = {place.partition: done.result().low_watermark for place, done in deleted.items()}
    topic_id = topic_ids(client, [topic])[topic]
    positions = [lake_of(project).table(table).next_offset(topic_id, p) for p in low]
    gone = sum(max(0, low[p] - position) for p, position in enumerate(positions))

    with LiveLake(project.folder) as lake:
        wait_until(lambda: lake.rows(table) == 400 - gone)
        assert lake.metrics()[f'headrace_lake_missed_total{{topic="{topic}"}}'] == gone > 0
        assert "records_gone" in lake.output()

    assert before == 200


def headrace(folder, *arguments):
    program = [sys.executable, "-m", "headrace.cli.main", *arguments, "--project", str(folder)]
    return subprocess.run(program, capture_output=True, text=True, check=False, timeout=120)


def test_up_starts_the_lake_alone_where_the_rest_is_somebody_elses(project, wait_until):
    keyed, _ = payments(project, 30, START_MS, seed=9)
    project.send(keyed)
    try:
        assert headrace(project.folder, "up").returncode == 0
        services = json.loads(headrace(project.folder, "status", "--json").stdout)["services"]
        assert [(one["name"], one["state"]) for one in services] == [
            ("kafka", "external"),
            ("redis", "external"),
            ("registry", "external"),
            ("lake", "running"),
        ]
        lake = lake_of(project)
        wait_until(lambda: len(places(lake, project.plan.source)) == 30)
    finally:
        down = headrace(project.folder, "down", "--json")
    assert json.loads(down.stdout) == {"stopped": [{"service": "lake", "clean": True}]}


def test_a_project_may_do_without_the_lake(project):
    settings = project.folder / "headrace.yaml"
    settings.write_text(settings.read_text() + "  enabled: false\n")

    assert headrace(project.folder, "up").returncode == 0
    services = json.loads(headrace(project.folder, "status", "--json").stdout)["services"]
    assert [one["name"] for one in services] == ["kafka", "redis", "registry"]
