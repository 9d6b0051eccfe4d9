"""Play simulated events into Kafka: all at once, or each at its simulated time, sped up."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from confluent_kafka import Producer

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from headrace.schemas.codec import RecordEncoder

ROWS_PER_STEP = 20_000
STEP_S = 0.001


class DeliveryError(Exception):
    """The broker did not take everything that was played."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A topic with what it takes to write a table's rows into it."""

    topic: str
    key: str
    time: str
    encoder: RecordEncoder

    def messages(self, table: pa.Table) -> tuple[list[bytes], list[bytes]]:
        """Return the rows' keys and encoded values."""
        keys = [text.encode() for text in table[self.key].cast(pa.string()).to_pylist()]
        values: list[bytes] = []
        for batch in table.to_batches(max_chunksize=ROWS_PER_STEP):
            values += self.encoder.encode(batch)
        return keys, values


def make_producer(bootstrap_servers: str, linger_ms: float) -> Producer:
    """Return a producer that partitions by key as a Java producer does."""
    return Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "linger.ms": linger_ms,
            "enable.idempotence": True,
            "compression.type": "lz4",
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 500_000,
        }
    )


def play_at_once(
    producer: Producer,
    channel: Channel,
    table: pa.Table,
    progress: Callable[[int], None],
) -> None:
    """Send all rows in order, as fast as the broker takes them.

    Raises:
        DeliveryError: If some did not arrive within a minute.

    """
    for start in range(0, table.num_rows, ROWS_PER_STEP):
        part = table.slice(start, ROWS_PER_STEP)
        for key, value in zip(*channel.messages(part), strict=True):
            _produce(producer, channel.topic, key, value)
        producer.poll(0)
        progress(part.num_rows)
    _finish(producer)


@dataclass(frozen=True, slots=True)
class Timeline:
    """Messages of several topics in the order of their simulated time.

    ``transaction`` is the row of a scored event among the week's transactions, -1 for others.
    """

    at_ms: NDArray[np.int64]
    topic: list[str]
    key: list[bytes]
    value: list[bytes]
    transaction: NDArray[np.int64]

    @staticmethod
    def merge(transactions: tuple[Channel, pa.Table], others: tuple[Channel, pa.Table]) -> Timeline:
        """Merge scored events with others; at the same time the others go first."""
        topics: list[str] = []
        keys: list[bytes] = []
        values: list[bytes] = []
        for channel, table in (others, transactions):
            some_keys, some_values = channel.messages(table)
            topics += [channel.topic] * table.num_rows
            keys += some_keys
            values += some_values
        at_ms = np.concatenate(
            [
                table[channel.time].cast("int64").to_numpy()
                for channel, table in (others, transactions)
            ]
        )
        count = transactions[1].num_rows
        row = np.concatenate([np.full(others[1].num_rows, -1), np.arange(count)])
        order = np.argsort(at_ms, kind="stable")
        return Timeline(
            at_ms[order],
            [topics[index] for index in order],
            [keys[index] for index in order],
            [values[index] for index in order],
            row[order],
        )


class Playback:
    """Plays a timeline at ``speed`` times life, from ``start_ms`` on; ``run`` is for a thread.

    ``sent_s`` holds, per transaction, when it was handed to the producer (``time.perf_counter``),
    NaN before.
    """

    def __init__(
        self, producer: Producer, timeline: Timeline, start_ms: int, speed: float, scored: int
    ) -> None:
        self.sent_s = np.full(scored, np.nan)
        self.sent = 0
        self.now_ms = start_ms
        self._ended_s: float | None = None
        self._producer = producer
        self._timeline = timeline
        self._start_ms = start_ms
        self._speed = speed
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Let ``run`` return before everything is played."""
        self._stopping.set()

    def check_drained(self, patience_s: float) -> None:
        """Make sure that what was played is awaited no longer than ``patience_s``.

        Raises:
            DeliveryError: If the last message was sent longer ago.

        """
        if self._ended_s is not None and time.monotonic() - self._ended_s > patience_s:
            msg = f"not all predictions came within {patience_s:.0f} s of the last event"
            raise DeliveryError(msg)

    def run(self) -> None:
        """Play to the end, or until told to stop."""
        self._play()
        _finish(self._producer)
        self._ended_s = time.monotonic()

    def _play(self) -> None:
        timeline, position, started_s = self._timeline, 0, time.perf_counter()
        while position < len(timeline.at_ms) and not self._stopping.wait(STEP_S):
            elapsed_ms = (time.perf_counter() - started_s) * 1000
            self.now_ms = self._start_ms + int(elapsed_ms * self._speed)
            end = int(np.searchsorted(timeline.at_ms, self.now_ms, side="right"))
            for index in range(position, end):
                row = int(timeline.transaction[index])
                if row >= 0:
                    self.sent_s[row] = time.perf_counter()
                    self.sent += 1
                key, value = timeline.key[index], timeline.value[index]
                _produce(self._producer, timeline.topic[index], key, value)
            self._producer.poll(0)
            position = end


def _produce(producer: Producer, topic: str, key: bytes, value: bytes) -> None:
    while True:
        try:
            producer.produce(topic, value, key)
        except BufferError:
            producer.poll(0.05)
        else:
            return


def _finish(producer: Producer) -> None:
    missing = producer.flush(60)
    if missing:
        msg = f"{missing} messages did not reach Kafka within a minute"
        raise DeliveryError(msg)
