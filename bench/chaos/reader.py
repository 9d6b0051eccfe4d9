"""Readers of what a pipeline wrote: one looks on all the time, one at the end."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, Self

from confluent_kafka import Consumer, KafkaError, TopicPartition

from bench.measure import BenchError, read_topic
from bench.outputs import OutputDecoder, event_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.live import LiveProject

OUTPUTS = ("predictions", "snapshots")
TICK_S = 0.005
#: Trouble that ends with the fault that is tried.
_PASSING = frozenset({KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT})


class Seen(NamedTuple):
    """A committed record of an output topic.

    ``appended_ms`` is the broker's clock, ``seen_s`` is ``time.monotonic()`` or 0.
    """

    partition: int
    offset: int
    value: bytes
    appended_ms: int
    seen_s: float = 0.0


class Reader:
    """Reads committed outputs from the start, on a thread, and keeps all that it sees."""

    def __init__(self, project: LiveProject, isolation: str = "read_committed") -> None:
        """Begin to read.

        Args:
            project: Whose outputs.
            isolation: Or ``read_uncommitted``.

        """
        self._names = {project.topic(name): name for name in OUTPUTS}
        self._seen: dict[str, list[Seen]] = {name: [] for name in OUTPUTS}
        self._decoder = OutputDecoder(project.environment.endpoints.registry_url)
        self._decoded = 0
        self._ids: set[int] = set()
        self.error: str | None = None
        self._consumer = Consumer(
            {
                "bootstrap.servers": project.bootstrap_servers,
                "group.id": "chaos.reader",
                "enable.auto.commit": False,
                "isolation.level": isolation,
                "fetch.wait.max.ms": 20,
                "fetch.queue.backoff.ms": 5,
                "reconnect.backoff.ms": 20,
                "reconnect.backoff.max.ms": 500,
                "fetch.message.max.bytes": 64 << 20,
            }
        )
        self._consumer.assign(
            [
                TopicPartition(topic, partition, 0)
                for topic in self._names
                for partition in range(project.partitions)
            ]
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Read no more."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._thread.join()
            self._consumer.close()

    def records(self, name: str) -> list[Seen]:
        """Return what was seen of ``predictions`` or ``snapshots``, in the order of seeing."""
        return list(self._seen[name])

    def count(self) -> int:
        """Return how many predictions were seen."""
        return len(self._seen["predictions"])

    def distinct(self) -> int:
        """Return of how many events a prediction was seen."""
        new = self._seen["predictions"][self._decoded :]
        if new:
            self._decoded += len(new)
            self._ids.update(event_ids(self._decoder.decode([one.value for one in new])).tolist())
        return len(self._ids)

    def first_after(self, epoch_ms: int) -> Seen | None:
        """Return the prediction seen first of those that the broker got after an instant."""
        found = (one for one in self.records("predictions") if one.appended_ms > epoch_ms)
        return min(found, key=lambda one: one.seen_s, default=None)

    def rate(self, begin_s: float, end_s: float) -> float:
        """Return how many predictions a second were seen between two instants."""
        seen = sum(begin_s <= one.seen_s < end_s for one in self.records("predictions"))
        return seen / (end_s - begin_s)

    def longest_gap_s(self, begin_s: float, end_s: float) -> float:
        """Return the longest time between two instants in which no prediction was seen."""
        times = sorted(
            one.seen_s for one in self.records("predictions") if begin_s <= one.seen_s <= end_s
        )
        edges = [begin_s, *times, end_s]
        return max(later - sooner for sooner, later in itertools.pairwise(edges))

    def wait(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        """Return whether something came true within a time."""
        deadline_s = time.monotonic() + timeout_s
        while not reached():
            if self.error is not None:
                raise BenchError(self.error)
            if time.monotonic() > deadline_s:
                return False
            time.sleep(TICK_S)
        return True

    def _run(self) -> None:
        while not self._stopping.is_set():
            first = self._consumer.poll(0.05)
            if first is None:
                continue
            now_s = time.monotonic()
            for message in (first, *self._consumer.consume(10_000, 0)):
                error = message.error()
                if error is not None:
                    if error.code() not in _PASSING and not error.retriable():
                        self.error = f"the reader must go on: {error.str()}"
                    continue
                topic, partition, offset = message.topic(), message.partition(), message.offset()
                assert topic is not None
                assert partition is not None
                assert offset is not None
                self._seen[self._names[topic]].append(
                    Seen(partition, offset, message.value() or b"", message.timestamp()[1], now_s)
                )


def read_at_end(project: LiveProject, name: str) -> list[Seen]:
    """Return the committed records of ``predictions`` or ``snapshots``, in order per partition."""
    return [
        Seen(one.partition(), one.offset(), one.value() or b"", one.timestamp()[1])
        for one in read_topic(project.bootstrap_servers, project.topic(name), project.partitions)
    ]
