"""From consumed messages to batches: as little Python for each row as the client allows. Pure."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Protocol

import numpy as np

from headrace.streams.batch import EventBatch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confluent_kafka import KafkaError

    from headrace.streams.positions import OwnedPartition

# A batch of large records is cut, so that what its processing allocates stays bounded.
BATCH_BYTES_MAX = 8 * 1024 * 1024


class Row(Protocol):
    """A consumed message, or an event of the consumer, as the client's ``Message`` shows it."""

    def error(self) -> KafkaError | None:
        """Return what it reports, None for a message."""
        ...

    def topic(self) -> str:
        """Return the topic."""
        ...

    def partition(self) -> int:
        """Return the partition."""
        ...

    def offset(self) -> int:
        """Return the offset."""
        ...

    def key(self) -> bytes | None:
        """Return the key's bytes."""
        ...

    def value(self) -> bytes | None:
        """Return the value's bytes."""
        ...

    def headers(self) -> list[tuple[str, bytes]] | None:
        """Return the headers in order, None without any."""
        ...

    def timestamp(self) -> tuple[int, int]:
        """Return the kind of timestamp, and the epoch ms UTC."""
        ...


class BatchSizer:
    """How many rows to take at once, by the time and the memory that one hand-over may cost."""

    ROWS_MIN = 500

    def __init__(self, rows_max: int, budget_s: float) -> None:
        self._rows_max = rows_max
        self._budget_s = budget_s
        self._row_cost_s = 0.0
        self._by_time = min(rows_max, 4 * self.ROWS_MIN)
        self._by_bytes = rows_max

    @property
    def rows(self) -> int:
        """The number of rows to take next."""
        return min(self._by_time, self._by_bytes)

    def cut(self, rows: int, pieces: int) -> None:
        """Take note that ``rows`` had to be cut into so many batches for their size."""
        if pieces > 1:
            self._by_bytes = max(1, rows // pieces)
        else:
            self._by_bytes = min(self._rows_max, 2 * self._by_bytes)

    def worked(self, rows: int, seconds: float) -> None:
        """Take note of how long rows took; few rows say little about one."""
        if rows < self.ROWS_MIN // 5:
            return
        cost_s = seconds / rows
        self._row_cost_s = 0.8 * self._row_cost_s + 0.2 * cost_s if self._row_cost_s else cost_s
        fitting = int(self._budget_s / max(self._row_cost_s, 1e-9))
        self._by_time = min(self._rows_max, max(self.ROWS_MIN, fitting))


Rows = dict[tuple[str, int], list[Row]]


def group(messages: Iterable[Row]) -> tuple[Rows, list[Row]]:
    """Return the messages by (topic, partition), each in log order, and the events among them."""
    rows: Rows = {}
    events = []
    for message in messages:
        if message.error() is not None:
            events.append(message)
            continue
        key = (message.topic(), message.partition())
        found = rows.get(key)
        if found is None:
            rows[key] = found = []
        found.append(message)
    return rows, events


def batches(owned: OwnedPartition, rows: list[Row], high_offset: int) -> list[EventBatch]:
    """Return the rows as batches of at most ``BATCH_BYTES_MAX`` (or one row).

    Only the last one can be at the end of the partition, and is if no offset below
    ``high_offset`` is left.
    """
    values = [row.value() for row in rows]
    at_end = rows[-1].offset() + 1 >= high_offset
    if len(values) == 1 or sum([len(value) for value in values if value]) <= BATCH_BYTES_MAX:
        return [_batch(owned, rows, values, at_end)]
    cuts = _cuts(values)
    return [
        _batch(owned, rows[first:last], values[first:last], at_end and last == len(rows))
        for first, last in itertools.pairwise(cuts)
    ]


def end_batch(owned: OwnedPartition) -> EventBatch:
    """Return the batch of no rows that reports the end of the partition."""
    return _batch(owned, [], [], at_end=True)


def alive_batch(owned: OwnedPartition, mark: bytes) -> EventBatch:
    """Return the batch of no rows that says once more that the partition is at its end."""
    batch = _batch(owned, [], [], at_end=True)
    batch.alive = mark
    return batch


def backlog_batch(owned: OwnedPartition) -> EventBatch:
    """Return the batch of no rows that says: there is a backlog, wait for this partition."""
    return _batch(owned, [], [], at_end=False)


def _batch(
    owned: OwnedPartition, rows: list[Row], values: list[bytes | None], at_end: bool
) -> EventBatch:
    return EventBatch(
        topic=owned.topic,
        partition=owned.partition,
        epoch=owned.epoch,
        offsets=np.array([row.offset() for row in rows], dtype=np.int64),
        arrival_time_ms=np.array([row.timestamp()[1] for row in rows], dtype=np.int64),
        keys=[row.key() for row in rows],
        values=values,
        headers=[row.headers() for row in rows],
        emit_from=owned.emit_from,
        at_end=at_end,
        unsent=owned.unsent,
    )


def _cuts(values: list[bytes | None]) -> list[int]:
    cuts, size = [0], 0
    for index, value in enumerate(values):
        size += len(value) if value else 0
        if size > BATCH_BYTES_MAX and index > cuts[-1]:
            cuts.append(index)
            size = len(value) if value else 0
    return [*cuts, len(values)]
