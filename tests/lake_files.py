"""Lakes for tests: tables as `headrace lake` writes them, from a driver's topics or from rows."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from headrace.features.project import Project
from headrace.lake.tables import ARRIVAL_TIME, OFFSET, PARTITION, TOPIC_ID, snapshots_table
from headrace.runtime import topics
from headrace.runtime.settings import LakeSettings, Settings
from headrace.schemas.wire import WireDecoder

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.streams.testing import Driver

MICROS = pa.timestamp("us", "UTC")


def write_rows(
    folder: Path,
    name: str,
    rows: pa.Table,
    *,
    topic_id: str,
    partition,
    offset,
    arrival_ms,
    files: int = 3,
    seed: int = 0,
) -> None:
    """Append rows with their places in Kafka to a table, in no order, in several files."""
    for index, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type):
            rows = rows.set_column(index, field.name, rows.column(index).cast(MICROS))
    count = rows.num_rows
    rows = rows.append_column(TOPIC_ID, pa.array([topic_id] * count, pa.string()))
    rows = rows.append_column(PARTITION, pa.array(np.asarray(partition), pa.int32()))
    rows = rows.append_column(OFFSET, pa.array(np.asarray(offset), pa.int64()))
    arrival = pa.array(np.asarray(arrival_ms), pa.int64()).cast(pa.timestamp("ms", "UTC"))
    rows = rows.append_column(ARRIVAL_TIME, arrival.cast(MICROS))
    order = np.random.default_rng(seed).permutation(count)
    for part in np.array_split(order, files):
        write_deltalake(
            str(folder / name), rows.take(pa.array(part)), mode="append", schema_mode="merge"
        )


def write_topic(folder: Path, name: str, driver: Driver, topic: str, schema_id: int) -> None:
    """Append what stands in a driver's topic to a table."""
    decoder = WireDecoder(driver._schemas[schema_id], driver._schemas.__getitem__)
    batches, partition, offset, arrival = [], [], [], []
    for number, log in enumerate(driver._logs[topic]):
        decoded = decoder.decode([message.value for message in log], 1 << 20)
        batches.append(decoded.batch)
        partition += [number] * decoded.batch.num_rows
        offset += decoded.rows.tolist()
        arrival += [log[row].timestamp_ms for row in decoded.rows.tolist()]
    write_rows(
        folder,
        name,
        pa.Table.from_batches(batches),
        topic_id=f"id-of-{topic}",
        partition=partition,
        offset=offset,
        arrival_ms=arrival,
    )


def write_lake(folder: Path, driver: Driver) -> None:
    """Write a driver's sources and snapshots as a lake."""
    for source in driver.plan.sources:
        write_topic(folder, source.name, driver, source.topic, driver._schema_ids[source.name])
    snapshots = topics.snapshots(driver.plan.name)
    write_topic(folder, snapshots_table(driver.plan.name), driver, snapshots, driver._snapshot_id)


def lake_project(folder: Path, *, name: str = "shop", **definitions) -> Project:
    """Return a project that is not on disk, but its lake is."""
    settings = Settings(project=name, lake=LakeSettings(folder=folder))
    given = {"sources": (), "entities": (), "views": (), "pipelines": (), "schemas": {}}
    return Project(name=name, folder=folder, settings=settings, **(given | definitions))


def shuffled(records, seed: int, within_ms: int, stragglers: float = 0.0):
    """Return (arrival, record) pairs: each comes up to ``within_ms`` after it happened.

    A share of them comes up to five times as late.
    """
    draw = random.Random(seed)
    pairs = []
    for row in records:
        most = 5 * within_ms if draw.random() < stragglers else within_ms
        pairs.append((row["event_time"] + draw.randint(0, most), row))
    return sorted(pairs, key=lambda pair: pair[0])


def send_shuffled(
    driver: Driver, source: str, records, seed: int, within_ms: int, stragglers: float = 0.0
) -> None:
    """Send records in the order of their arrival, with it as the broker's time."""
    for arrival, row in shuffled(records, seed, within_ms, stragglers):
        driver.send(source, [row], arrival_time_ms=arrival)
