"""Readers of a contender's outputs: one that reads along, one at the end, one that only counts."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaError, TopicPartition

from bench.chaos.peers.contenders import PARTITION_COUNT
from bench.chaos.peers.judge import Seen
from bench.measure import CLOCK, BenchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import Message

SLICE_S = 0.05
END_TIMEOUT_S = 30.0


def consumer(bootstrap_servers: str, topic: str, isolation: str) -> Consumer:
    """Return a consumer of all of a topic from its beginning."""
    client = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "bench.chaos.reader",
            "enable.auto.commit": False,
            "isolation.level": isolation,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 20,
        }
    )
    client.assign([TopicPartition(topic, place, 0) for place in range(PARTITION_COUNT)])
    return client


class Along:
    """Reads a topic in a thread of its own; ``seen`` grows in the order in which outputs came."""

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        decode: Callable[[bytes], tuple[str, int, int]],
        isolation: str = "read_committed",
    ) -> None:
        self._consumer = consumer(bootstrap_servers, topic, isolation)
        self._decode = decode
        self._stopping = threading.Event()
        self.seen: list[Seen] = []
        self.distinct: set[tuple[str, int]] = set()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"reader {isolation}", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return how many outputs came so far.

        Raises:
            BenchError: If the reader cannot go on.

        """
        if self._error is not None:
            message = f"a reader of the outputs stopped: {self._error!r}"
            raise BenchError(message) from self._error
        return len(self.seen)

    def stop(self) -> None:
        """Read no more."""
        self._stopping.set()
        self._thread.join()
        self._consumer.close()
        len(self)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                first = self._consumer.poll(SLICE_S)
                if first is not None:
                    self._take([first, *self._consumer.consume(10_000, 0)])
        except Exception as error:  # noqa: BLE001 -- raised again where the outputs are asked for
            self._error = error

    def _take(self, messages: list[Message]) -> None:
        now_ms = CLOCK.now_ms()
        for message in messages:
            one = as_seen(message, self._decode, now_ms)
            if one is not None:
                self.seen.append(one)
                self.distinct.add((one.key, one.seq))


def as_seen(
    message: Message, decode: Callable[[bytes], tuple[str, int, int]], now_ms: int
) -> Seen | None:
    """Return what a message tells; None for the end of a partition.

    Raises:
        BenchError: If the consumer tells of anything else.

    """
    error = message.error()
    if error is not None:
        if error.code() == KafkaError._PARTITION_EOF or error.retriable():
            return None
        raise BenchError(str(error))
    value, partition, offset = message.value(), message.partition(), message.offset()
    assert value is not None
    assert partition is not None
    assert offset is not None
    key, seq, total = decode(value)
    return Seen(partition, offset, key, seq, total, message.timestamp()[1], now_ms)


def read_to_end(
    bootstrap_servers: str, topic: str, decode: Callable[[bytes], tuple[str, int, int]]
) -> list[Seen]:
    """Return all that a read_committed reader gets now, in order per partition.

    Raises:
        BenchError: If the end does not come.

    """
    client = consumer(bootstrap_servers, topic, "read_committed")
    seen: list[Seen] = []
    open_places = set(range(PARTITION_COUNT))
    deadline_ms = CLOCK.now_ms() + END_TIMEOUT_S * 1000
    try:
        while open_places:
            if CLOCK.now_ms() > deadline_ms:
                message = f"{topic} must end within {END_TIMEOUT_S:g} s"
                raise BenchError(message)
            for one in client.consume(10_000, SLICE_S):
                error = one.error()
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    open_places.discard(one.partition())
                    continue
                told = as_seen(one, decode, CLOCK.now_ms())
                if told is not None:
                    seen.append(told)
                    open_places.add(told.partition)
    finally:
        client.close()
    return seen
