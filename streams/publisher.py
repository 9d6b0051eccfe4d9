"""Events from Parquet files to their topics, at a chosen speed: what `headrace send` does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.features.kernels.keys import crc32_partitions, murmur2_partitions
from headrace.runtime.errors import explain
from headrace.streams.errors import PublishError
from headrace.streams.partitioning import as_text
from headrace.streams.publish_order import Chunk, Pace, due_times, merge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from headrace.features.plan import SourcePlan
    from headrace.streams.commit import CheckedProducer

UpdatesOrder = Literal["known_at", "first"]

ROWS_PER_CHUNK = 10_000
TICK_S = 0.002
FLUSH_SLICE_S = 0.5


class Encoder(Protocol):
    """What ``headrace.schemas.codec.RecordEncoder`` does."""

    @property
    def arrow_schema(self) -> pa.Schema:
        """The columns that it takes."""
        ...

    def encode(self, batch: pa.RecordBatch) -> list[bytes]:
        """Return one message value per row."""
        ...


@dataclass(frozen=True, slots=True)
class Feed:
    """A source's file and how its rows become messages of ``partitions`` partitions."""

    source: SourcePlan
    path: Path
    encoder: Encoder
    partitions: int
    scored: bool


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What was published: events by topic, and how long it took with every delivery, seconds."""

    events: dict[str, int]
    seconds: float

    @property
    def rate(self) -> float:
        """Events per second."""
        return sum(self.events.values()) / self.seconds if self.seconds else 0.0


def count_rows(path: Path) -> int:
    """Return the number of rows of a Parquet file."""
    with pq.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


def chunks(feed: Feed, rows_max: int | None = None) -> Iterator[Chunk]:
    """Yield a feed's rows as messages, in the file's order.

    Raises:
        PublishError: If the file cannot be read as what the source's schema says.

    """
    left, newest_ms = rows_max, -(1 << 62)
    try:
        with pq.ParquetFile(feed.path) as file:
            for batch in file.iter_batches(ROWS_PER_CHUNK):
                part = batch if left is None else batch.slice(0, left)
                if not len(part):
                    return
                left = None if left is None else left - len(part)
                time_ms = due_times(_due_column(feed, part), newest_ms)
                newest_ms = int(time_ms[-1])
                yield Chunk(
                    feed.source.topic,
                    time_ms,
                    messages(feed.source, feed.encoder, feed.partitions, part),
                )
    except (OSError, pa.ArrowException) as error:
        message = explain(
            f"the data of source {feed.source.name!r}",
            "be Parquet with the columns of its schema",
            str(error),
            str(feed.path),
        )
        raise PublishError(message) from error


def publish(
    producer: CheckedProducer,
    feeds: list[Feed],
    *,
    updates: UpdatesOrder = "known_at",
    pace: Pace | None = None,
    scored_max: int | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> PublishReport:
    """Publish all feeds and wait for every delivery.

    Args:
        producer: Takes the messages; belongs to the caller's thread.
        feeds: The files. Those that only update go by their known time beside the scored ones, or
            all first: a row counts only from its known time on, so early is harmless.
        updates: Which of the two.
        pace: How fast; None is as fast as it goes.
        scored_max: At most so many rows of each scored source.
        on_progress: Told how many events were sent just now.

    Raises:
        PublishError: If a file cannot be read.
        DeliveryError: If the broker refused an event.

    """
    started_s = time.perf_counter()
    events: dict[str, int] = {}
    for chunk in _ordered(feeds, updates, scored_max):
        _send(producer, chunk, pace, started_s, on_progress)
        events[chunk.topic] = events.get(chunk.topic, 0) + len(chunk)
    while not producer.flush(FLUSH_SLICE_S):
        on_progress(0)
    return PublishReport(events, time.perf_counter() - started_s)


def _ordered(feeds: list[Feed], updates: UpdatesOrder, scored_max: int | None) -> Iterable[Chunk]:
    scored = [chunks(feed, scored_max) for feed in feeds if feed.scored]
    others = [chunks(feed) for feed in feeds if not feed.scored]
    if updates == "first":
        yield from merge([*others])
        yield from merge([*scored])
    else:
        yield from merge([*others, *scored])


def _send(
    producer: CheckedProducer,
    chunk: Chunk,
    pace: Pace | None,
    started_s: float,
    on_progress: Callable[[int], None],
) -> None:
    if pace is None:
        producer.send_bulk(chunk.topic, chunk.messages)
        on_progress(len(chunk))
        return
    at = 0
    while at < len(chunk):
        count = pace.allowed(chunk.time_ms[at:], time.perf_counter() - started_s)
        if count:
            producer.send_bulk(chunk.topic, chunk.messages[at : at + count])
            pace.went(count)
            on_progress(count)
            at += count
        else:
            time.sleep(TICK_S)


def _due_column(feed: Feed, batch: pa.RecordBatch) -> np.ndarray:
    source = feed.source
    name = source.event_time if feed.scored else source.known_at or source.event_time
    column = _column(batch, name)
    if pa.types.is_timestamp(column.type):
        column = pc.cast(column, pa.timestamp("ms", column.type.tz), safe=False)
    filled = pc.fill_null(pc.cast(column, pa.int64()), -(1 << 62))
    return np.asarray(filled.to_numpy(zero_copy_only=False), dtype=np.int64)


def messages(
    source: SourcePlan, encoder: Encoder, partitions: int, batch: pa.RecordBatch
) -> list[dict[str, Any]]:
    """Return a source's rows as messages: value, key, and in which of its partitions they lie.

    Raises:
        pa.ArrowException: If a column is missing, or not what the schema says.
        EncodeError: If it holds what the schema does not.

    """
    key = as_text(_column(batch, source.key))
    crc32 = source.partitioner == "crc32"
    places = (crc32_partitions if crc32 else murmur2_partitions)(key, partitions)
    # A row without a key may lie anywhere.
    loose = np.flatnonzero(places < 0)
    places[loose] = loose % partitions
    values = encoder.encode(_fitted(batch, encoder.arrow_schema))
    rows = zip(values, key.to_pylist(), places.tolist(), strict=True)
    return [{"value": value, "key": raw, "partition": place} for value, raw, place in rows]


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    if name not in batch.schema.names:
        msg = f"no column {name!r}; there are {batch.schema.names}"
        raise pa.ArrowInvalid(msg)
    return batch.column(name)


def _fitted(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return the schema's columns in its types; a nullable one that the file lacks is null."""
    columns = []
    for field in schema:
        if field.nullable and field.name not in batch.schema.names:
            columns.append(pa.nulls(len(batch), field.type))
            continue
        column = _column(batch, field.name)
        # Times may be finer than milliseconds; any other loss is an error.
        safe = not pa.types.is_timestamp(field.type)
        columns.append(column if column.type == field.type else pc.cast(column, field.type, safe))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
