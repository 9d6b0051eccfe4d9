"""Read predictions and feature snapshots as any consumer would, and keep what the demo shows."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from confluent_kafka import Consumer, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from headrace.schemas.codec import SchemaDecoder

HEADER_BYTES = 5
MESSAGES_PER_STEP = 5_000
RECENT_S = 5.0


class WatchError(Exception):
    """A topic could not be read, or holds what nobody wrote."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The figures of a moment. Rate and latencies are those of the last five seconds."""

    scored: int
    unscored: int
    rate: float
    p50_ms: float
    p99_ms: float


class Watcher:
    """Follows one pipeline's outputs for the transactions first_id … first_id + count - 1.

    Args:
        consumer_properties: librdkafka's properties.
        topics: The predictions' and the snapshots' topic.
        decoders: By topic, how to read a message.
        names: The vector's columns, in the model's order.
        first_id: Id of the first transaction of interest; earlier ones are passed over.
        count: How many transactions there are.

    """

    def __init__(
        self,
        consumer_properties: Mapping[str, Any],
        topics: tuple[str, str],
        decoders: Mapping[str, SchemaDecoder],
        names: Sequence[str],
        first_id: int,
        count: int,
    ) -> None:
        self.score = np.full(count, np.nan)
        self.received_s = np.full(count, np.nan)
        self.vectors = np.full((count, len(names)), np.nan)
        self.unscored = 0
        self.order: deque[int] = deque()
        self._names = tuple(names)
        self._first_id = first_id
        self._predictions, self._snapshots = topics
        self._decoders = decoders
        self._consumer = Consumer(dict(consumer_properties))
        self._assign(topics)
        self._stopping = threading.Event()

    def _assign(self, topics: tuple[str, str]) -> None:
        """Begin at the end of each partition: what came before is not this watcher's."""
        metadata = self._consumer.list_topics(timeout=15).topics
        partitions = []
        for topic in topics:
            for partition in metadata[topic].partitions:
                place = TopicPartition(topic, partition)
                place.offset = self._consumer.get_watermark_offsets(place, timeout=15)[1]
                partitions.append(place)
        self._consumer.assign(partitions)

    def stop(self) -> None:
        """Let ``run`` return."""
        self._stopping.set()

    def run(self) -> None:
        """Read until told to stop; for a thread.

        Raises:
            WatchError: If a topic cannot be read.

        """
        try:
            while not self._stopping.is_set():
                self._step()
        finally:
            self._consumer.close()

    def reading(self, sent_s: NDArray[np.float64]) -> Reading:
        """Return the figures as of now.

        Args:
            sent_s: When each transaction was sent; NaN for those that were not.

        """
        now_s = time.perf_counter()
        arrived = np.isfinite(self.received_s)
        recent = arrived & (self.received_s > now_s - RECENT_S)
        latency_ms = (self.received_s[recent] - sent_s[recent]) * 1000
        latency_ms = latency_ms[np.isfinite(latency_ms)]
        p50, p99 = np.percentile(latency_ms, [50, 99]) if len(latency_ms) else (np.nan, np.nan)
        scored = int(np.isfinite(self.score).sum())
        return Reading(scored, self.unscored, recent.sum() / RECENT_S, float(p50), float(p99))

    def _step(self) -> None:
        # `consume(n, timeout)` waits for n messages; one first, then what else is there.
        first = self._consumer.poll(0.05)
        if first is None:
            return
        messages = [first, *self._consumer.consume(MESSAGES_PER_STEP, 0)]
        now_s = time.perf_counter()
        by_topic: dict[str, list[bytes]] = {self._predictions: [], self._snapshots: []}
        for message in messages:
            if message.error():
                msg = f"topic {message.topic()} cannot be read: {message.error()}"
                raise WatchError(msg)
            by_topic[str(message.topic())].append(message.value() or b"")
        if by_topic[self._predictions]:
            self._take_predictions(by_topic[self._predictions], now_s)
        if by_topic[self._snapshots]:
            self._take_snapshots(by_topic[self._snapshots])

    def _decode(self, topic: str, values: list[bytes]) -> tuple[pa.RecordBatch, NDArray[np.int64]]:
        decoded = self._decoders[topic].decode([value[HEADER_BYTES:] for value in values])
        if decoded.rejected:
            msg = f"topic {topic} holds a record that cannot be read: {decoded.rejected[0]}"
            raise WatchError(msg)
        ids = decoded.batch["event_id"].cast("int64").to_numpy(zero_copy_only=False)
        return decoded.batch, ids - self._first_id

    def _take_predictions(self, values: list[bytes], now_s: float) -> None:
        batch, rows = self._decode(self._predictions, values)
        mine = (rows >= 0) & (rows < len(self.score))
        score = batch["score"].to_numpy(zero_copy_only=False).astype(np.float64)
        self.received_s[rows[mine]] = now_s
        self.score[rows[mine]] = score[mine]
        self.unscored += int(np.isnan(score[mine]).sum())
        self.order.extend(rows[mine].tolist())

    def _take_snapshots(self, values: list[bytes]) -> None:
        batch, rows = self._decode(self._snapshots, values)
        mine = (rows >= 0) & (rows < len(self.score))
        columns = [batch[name].to_numpy(zero_copy_only=False) for name in self._names]
        vectors = np.column_stack([column.astype(np.float64) for column in columns])
        self.vectors[rows[mine]] = vectors[mine]
