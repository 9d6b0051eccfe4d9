"""``./dev bench lake``: how fast topics come into the lake, kills on the way, and queries over it.

Rows are raw events, predictions and snapshots of the fraud example, as its worker writes them.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from rich.console import Console

import headrace as hr
from bench.card.run import ROOT, WORK
from bench.lake_kills import run_kills
from bench.measure import BenchError, TreeSampler, stop_process
from bench.project import environment, fresh_stack, make_project
from bench.publish import finish, producer
from bench.report import Bound, exit_code, print_bounds, write_json
from headrace.features.output_schemas import output_schemas
from headrace.lake.maintenance import maintain
from headrace.lake.storable import stored_batch
from headrace.lake.tables import RECORD_FIELDS, Lake, snapshots_table
from headrace.lake.writer import Advance, TableWriter, record_columns
from headrace.runtime import topics
from headrace.runtime.clock import SystemClock
from headrace.runtime.kafka import admin, end_offsets, topic_ids
from headrace.runtime.settings import load_settings
from headrace.schemas.codec import RecordEncoder, SchemaDecoder
from headrace.schemas.registry import SchemaRegistry

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

    from bench.project import Project
    from headrace.features.plan import PipelinePlan

PIPELINE, SOURCE = "fraud", "transactions"
PARTITIONS = 4
START_MS = 1_767_225_600_000  # 2026-01-01
CUSTOMERS, TERMINALS = 50_000, 10_000
CHUNK = 50_000
# While it is killed, rows come in small pieces over about as long as all lives take.
LIFE_S, PIECES_A_KILL = 4.0, 20
QUERY_CHUNK = 500_000
RATE_MIN, QUERY_S_MAX = 150_000.0, 5.0
QUERIES = {
    "count and mean by hour": (
        "select date_trunc('hour', event_time) as hour, count(*), avg(amount), "
        "max(customer__count_1d) from fraud_snapshots group by 1 order by 1"
    ),
    "one customer": "select * from fraud_snapshots where customer_key = $key order by event_time",
    "ten minutes": (
        "select * from fraud_snapshots where event_time >= make_timestamp($start) "
        "and event_time < make_timestamp($start) + interval 10 minute"
    ),
    "rows": "select count(*) from fraud_snapshots",
}


CLOCK = SystemClock()


def main(arguments: Sequence[str]) -> int:
    """Run the bench and return 0 if nothing was lost or doubled and the bounds hold."""
    parser = argparse.ArgumentParser(prog="bench lake", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each of the three kinds")
    parser.add_argument("--kills", type=int, default=20, help="0: none")
    parser.add_argument("--kill-rows", type=int, default=1_000_000)
    parser.add_argument("--query-rows", type=int, default=10_000_000, help="0: no queries")
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args(arguments)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    console = Console()
    stack = fresh_stack(work / "stack")
    figures: dict[str, Any] = {"rows": options.rows}
    bounds: list[Bound] = []
    try:
        settings = {"project": "lake_bench", "topics": {"partitions": PARTITIONS}}
        template = ROOT / "examples" / "fraud"
        project = make_project(work / "lake", template, stack.up(), settings)
        project.run("apply")
        if options.rows:
            figures["append"] = _append(console, project, options.rows)
            bounds += [
                Bound("rows/s", figures["append"]["rate"], RATE_MIN, at_least=True),
            ]
        if options.kills:
            project = make_project(work / "lake_kills", template, project.endpoints, _killed())
            project.run("apply")
            figures["kills"] = _kills(console, project, options.kills, options.kill_rows)
    finally:
        stack.down()
    if options.query_rows:
        figures["queries"] = _queries(console, project, options.query_rows)
        slowest = max(figures["queries"]["seconds"].values())
        bounds.append(Bound("slowest query, s", slowest, QUERY_S_MAX, at_least=False))
    print_bounds(console, bounds)
    write_json(work / "lake.json", "lake", figures, bounds)
    return exit_code(bounds)


# --- Rows -----------------------------------------------------------------------------------------


def columns(schema: pa.Schema, first: int, count: int) -> pa.RecordBatch:
    """Return rows as that schema wants them: ids, keys and numbers such as a worker writes."""
    random = np.random.default_rng(first)
    number = np.arange(first, first + count)
    customer = number * 7919 % CUSTOMERS
    made: dict[str, pa.Array] = {
        "event_time": pa.array(START_MS + number * 50, pa.timestamp("ms", "UTC")),
        "customer_key": pa.array(customer).cast(pa.string()),
        "terminal_key": pa.array(number * 31 % TERMINALS).cast(pa.string()),
        "prediction_id": pa.array([f"7rDqNPhUT3mEbYz4tUZbvA-{n % 4}-{n // 4}" for n in number]),
        "source_topic_id": pa.array(["7rDqNPhUT3mEbYz4tUZbvA"] * count),
        "fingerprint": pa.array(["b0cf0ec41d9be9a3"] * count),
        "status": pa.array(["ok"] * count),
    }
    arrays = [
        made[field.name].cast(field.type) if field.name in made else _values(field, number, random)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _values(field: pa.Field, number: np.ndarray, random: np.random.Generator) -> pa.Array:
    if pa.types.is_floating(field.type):
        return pa.array(np.round(random.gamma(2.0, 30.0, len(number)), 2), field.type)
    if pa.types.is_integer(field.type):
        return pa.array(number % 1_000, field.type)
    if pa.types.is_boolean(field.type):
        return pa.array(random.random(len(number)) < 0.01)
    return pa.array(number).cast(pa.string()).cast(field.type)


def _published(plan: PipelinePlan) -> dict[str, str]:
    """Return the topics that are filled, with the schemas of their records."""
    source = next(one for one in plan.sources if one.name == SOURCE)
    return {source.topic: source.schema, **output_schemas(plan)}


class Filler:
    """Publishes rows to one topic, each piece to the next partition."""

    def __init__(self, project: Project, topic: str) -> None:
        self._topic = topic
        schema = _published(project.plan(PIPELINE))[topic]
        with SchemaRegistry(project.endpoints.registry_url) as registry:
            self._encoder = RecordEncoder(schema, registry.register(f"{topic}-value", schema))
        self._schema = SchemaDecoder(schema).arrow_schema
        self._client = producer(project.endpoints.bootstrap_servers)

    def fill(self, rows: int, first: int = 0, piece: int = CHUNK) -> None:
        """Publish rows and wait until the broker has them."""
        for begin in range(first, first + rows, piece):
            batch = columns(self._schema, begin, min(piece, first + rows - begin))
            partition = begin // piece % PARTITIONS
            messages = [{"value": value, "key": b"k"} for value in self._encoder.encode(batch)]
            while messages:
                sent = self._client.produce_batch(self._topic, messages, partition=partition)
                self._client.poll(0.05 if sent < len(messages) else 0)
                messages = [one for one in messages if "_error" in one]
        finish(self._client, self._topic)


# --- Appending ------------------------------------------------------------------------------------


def _append(console: Console, project: Project, rows: int) -> dict[str, Any]:
    """Measure ``headrace lake --once`` over full topics, less what a start with no rows takes."""
    console.print(f"filling three topics with {rows:,} rows each")
    for topic in _published(project.plan(PIPELINE)):
        Filler(project, topic).fill(rows)
    console.print("appending them")
    whole = _timed(project)
    lake = Lake(load_settings(project.folder).lake.folder)
    total = sum(lake.table(name).count_rows() for name in lake.names())
    if total != 3 * rows:
        msg = f"the lake holds {total:,} rows of {3 * rows:,}"
        raise BenchError(msg)
    start = _timed(project)
    seconds = max(1e-3, whole["seconds"] - start["seconds"])
    return {
        "rows": total,
        "seconds": seconds,
        "rate": total / seconds,
        "cpu_s_per_million": (whole["cpu_s"] - start["cpu_s"]) * 1e6 / total,
        "rss_mib_max": whole["rss_mib"],
        "start_seconds": start["seconds"],
        "bytes_per_row": _bytes(project) / total,
    }


def _bytes(project: Project) -> int:
    folder = load_settings(project.folder).lake.folder
    return sum(file.stat().st_size for file in folder.rglob("*.parquet"))


def _timed(project: Project) -> dict[str, float]:
    begin_s = CLOCK.now_ms() / 1000
    with (project.folder / "lake.log").open("ab") as log:
        process = subprocess.Popen(
            project.command("lake", "--once"), stdout=log, stderr=log, env=environment()
        )
        sampler = TreeSampler(process.pid)
        try:
            code = process.wait(600)
        finally:
            stop_process(process)
            sampler.stop()
    if code:
        msg = f"headrace lake failed with {code}; see {log.name}"
        raise BenchError(msg)
    end_s = CLOCK.now_ms() / 1000
    return {
        "seconds": end_s - begin_s,
        "cpu_s": sampler.cpu_s_between(begin_s, end_s),
        "rss_mib": sampler.rss_mib_max,
    }


# --- Kills ----------------------------------------------------------------------------------------


def _killed() -> dict[str, Any]:
    """Return settings with many small appends, so that kills meet all of their parts."""
    return {
        "project": "lake_kills",
        "topics": {"partitions": PARTITIONS},
        "lake": {"flush_interval_ms": 100, "flush_rows": 20_000},
    }


def _kills(console: Console, project: Project, kills: int, rows: int) -> dict[str, Any]:
    topic = topics.snapshots(PIPELINE)
    servers = project.endpoints.bootstrap_servers
    topic_id = topic_ids(admin({"bootstrap.servers": servers}), [topic])[topic]
    console.print(f"killing it {kills} times while {rows:,} rows come in")
    begin = _end_offset(servers, topic)

    filler = Filler(project, topic)
    piece = max(100, rows // (kills * PIECES_A_KILL))

    def publish(stopping: threading.Event) -> int:
        sent = 0
        while sent < rows and not stopping.is_set():
            count = min(piece, rows - sent)
            filler.fill(count, begin + sent, piece)
            sent += count
            stopping.wait(LIFE_S / PIECES_A_KILL)
        return begin + sent

    run = run_kills(
        project.command("lake"),
        load_settings(project.folder).lake.folder,
        snapshots_table(PIPELINE),
        topic_id,
        PARTITIONS,
        kills,
        publish,
        project.folder / "lake.log",
    )
    console.print(f"{run.kills} kills, {run.versions_read} versions read: 0 lost, 0 doubled")
    return asdict(run)


def _end_offset(servers: str, topic: str) -> int:
    places = [(topic, partition) for partition in range(PARTITIONS)]
    return sum(end_offsets({"bootstrap.servers": servers}, places).values())


# --- Queries --------------------------------------------------------------------------------------


def _chunks(arrow: pa.Schema, rows: int) -> Iterator[pa.Table]:
    for begin in range(0, rows, QUERY_CHUNK):
        count = min(QUERY_CHUNK, rows - begin)
        table = stored_batch(columns(arrow, begin, count))
        record = record_columns(
            "7rDqNPhUT3mEbYz4tUZbvA",
            0,
            np.arange(begin, begin + count),
            START_MS + np.arange(begin, begin + count) * 50,
        )
        for name in RECORD_FIELDS.names:
            table = table.append_column(RECORD_FIELDS.field(name), record.column(name))
        yield table


def _queries(console: Console, project: Project, rows: int) -> dict[str, Any]:
    """Write snapshots straight into a table of a fresh lake, and time queries over it."""
    folder = project.folder.parent / "lake_query"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "headrace.yaml").write_text("project: lake_query\n")
    plan = project.plan(PIPELINE)
    arrow = SchemaDecoder(output_schemas(plan)[topics.snapshots(PIPELINE)]).arrow_schema
    lake_folder = load_settings(folder).lake.folder
    writer = TableWriter(lake_folder, snapshots_table(PIPELINE))
    console.print(f"writing {rows:,} snapshots")
    done = 0
    for table in _chunks(arrow, rows):
        advance = Advance("t", 0, done or None, done + table.num_rows)
        writer.append(writer.aligned(table)[0], [advance])
        done += table.num_rows
    maintain(lake_folder, writer.name, retention_ms=None, now_ms=0, wipe=False)
    seconds: dict[str, float] = {}
    for name, query in QUERIES.items():
        parameters: dict[str, Any] = {}
        if "$key" in query:
            parameters["key"] = "4711"
        if "$start" in query:
            parameters["start"] = (START_MS + rows // 2 * 50) * 1_000
        begin_s = time.perf_counter()
        found = hr.sql(query, project=folder, **parameters)
        seconds[name] = time.perf_counter() - begin_s
        console.print(f"{name:<25}{seconds[name]:8.3f} s {found.num_rows:>10,} rows")
    return {
        "rows": rows,
        "seconds": seconds,
        "files": len(Lake(lake_folder).table(writer.name).files()),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
