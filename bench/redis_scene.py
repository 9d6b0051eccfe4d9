"""A worker under steady traffic, its Redis that may fail, and those who look on."""

from __future__ import annotations

import io
import os
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import fastavro
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Consumer, Producer, TopicPartition

from bench.card import ours
from bench.card.job import PARTITION_COUNT, SCHEMA, customer_name
from bench.measure import CLOCK, BenchError
from bench.outputs import OutputDecoder, event_ids
from bench.redis_judge import Judge, Seen
from headrace.features.store.connection import RedisConnection
from headrace.features.store.errors import StoreUnavailableError
from headrace.features.store.freshness import FRESH, STATUSES
from headrace.features.store.resp import command
from headrace.runtime.dev.processes import free_ports, stop
from headrace.runtime.dev.proxy import FaultProxy
from headrace.runtime.dev.redis import RedisServer

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from bench.project import Project
    from headrace.features.store.reader import OnlineReader
    from headrace.runtime.dev.stack import Endpoints

TICK_S = 0.002
_FIRST_EVENTS = 65_536
READ_EVERY_S, READ_KEYS = 0.05, 50
CHECK_KEYS, PROBED_KEYS = 5_000, 1_000
METRICS_TIMEOUT_S = 10.0
STALL_S = 120.0
#: FLUSHALL frees a million keys, and saves.
COMMAND_TIMEOUT_S = 60.0


class FaultyRedis:
    """A redis-server of the bench's own. The worker speaks to it through ``proxy`` alone."""

    def __init__(self, folder: Path) -> None:
        self._server = RedisServer(folder)
        self._port = free_ports(1)[0]
        self.direct_url = f"redis://127.0.0.1:{self._port}"
        self.start()
        self.proxy = FaultProxy(self._port)
        self.proxied_url = f"redis://127.0.0.1:{self.proxy.port}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._record = self._server.start(self._port)
        self._server.wait_ready(self._record, self._port)

    def end(self, number: signal.Signals) -> None:
        """End the server: SIGTERM lets it save, SIGKILL does not."""
        os.kill(self._record.pid, number)
        stop(self._record, 30.0)

    def run(self, *arguments: bytes) -> Any:
        """Run a command, past the proxy, and return its reply."""
        connection = RedisConnection(self.direct_url, COMMAND_TIMEOUT_S)
        try:
            (reply,) = connection.run([command(arguments)], 1)
        finally:
            connection.close()
        return reply

    def used_bytes(self) -> int:
        """Return the memory that counts against maxmemory."""
        found = re.search(rb"used_memory:(\d+)", self.run(b"INFO", b"memory"))
        assert found is not None, "INFO memory always says it"
        return int(found[1])

    def close(self) -> None:
        """End proxy and server."""
        self.proxy.close()
        stop(self._record, 10.0)


class Traffic:
    """Sends card events: one of each new key at once, then of known keys at a steady rate.

    The number of an event is its id; its time is the wall clock's.
    """

    def __init__(self, endpoints: Endpoints, schema_id: int, rate: int, seed: int) -> None:
        self._rate = rate
        self._random = np.random.default_rng(seed)
        self._header = b"\0" + schema_id.to_bytes(4, "big")
        self._schema = fastavro.parse_schema(SCHEMA)
        self._producer = Producer(
            {
                "bootstrap.servers": endpoints.bootstrap_servers,
                "linger.ms": 0,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "queue.buffering.max.messages": 2_000_000,
            }
        )
        self._failed: list[str] = []
        self._key = np.zeros(_FIRST_EVENTS, np.int64)
        self._cents = np.zeros(_FIRST_EVENTS, np.int64)
        self._ts_ms = np.zeros(_FIRST_EVENTS, np.int64)
        self._sent_s = np.zeros(_FIRST_EVENTS)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.keys = 0
        self.count = 0

    def _see_to_room(self, count: int) -> None:
        if count > len(self._sent_s):
            more = np.zeros(count, np.int64)
            self._key = np.append(self._key, more)
            self._cents = np.append(self._cents, more)
            self._ts_ms = np.append(self._ts_ms, more)
            self._sent_s = np.append(self._sent_s, np.zeros(count))

    def judge(self) -> Judge:
        """Return who knows all events up to now."""
        count = self.count
        return Judge(self._key[:count], self._cents[:count], self._sent_s[:count])

    def events(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return amounts in cents, times in epoch ms, and when each was sent, monotonic s."""
        count = self.count
        return self._cents[:count], self._ts_ms[:count], self._sent_s[:count]

    def fill(self, keys: int, progress: Callable[[int], None]) -> None:
        """Send one event of each key up to ``keys`` that had none; no traffic may run."""
        assert self._thread is None, "traffic sends"
        first = self.keys
        for begin in range(first, keys, 1_000):
            new = np.arange(begin, min(begin + 1_000, keys))
            self._send(new)
            progress(int(new[-1]) + 1 - first)
        self.keys = keys
        self._flush()

    def start(self) -> None:
        """Send events of keys drawn evenly, on a thread."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send no more and wait until the broker has all.

        Raises:
            BenchError: If it does not take them.

        """
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.set()
            thread.join()
            self._flush()

    def _run(self) -> None:
        begin_s, sent = time.monotonic(), 0
        while not self._stopping.wait(TICK_S):
            due = int((time.monotonic() - begin_s) * self._rate) - sent
            if due > 0:
                self._send(self._random.integers(0, self.keys, due))
                sent += due

    def _send(self, keys: NDArray[np.int64]) -> None:
        first, last = self.count, self.count + len(keys)
        self._see_to_room(last)
        now_ms = CLOCK.now_ms()
        cents = np.maximum(1, np.rint(self._random.lognormal(3.5, 1, len(keys)) * 100))
        self._key[first:last], self._cents[first:last] = keys, cents
        self._ts_ms[first:last] = now_ms
        names = [customer_name(key) for key in keys.tolist()]
        rows = zip(range(first, last), names, self._cents[first:last].tolist(), strict=True)
        bodies = [self._body(number, now_ms, name, amount) for number, name, amount in rows]
        self._sent_s[first:last] = time.monotonic()
        self.count = last
        for name, body in zip(names, bodies, strict=True):
            self._produce(name.encode(), body)
        self._producer.poll(0)

    def _body(self, number: int, now_ms: int, customer: str, cents: int) -> bytes:
        buffer = io.BytesIO()
        buffer.write(self._header)
        row = {
            "transaction_id": number,
            "ts": now_ms,
            "customer_id": customer,
            "terminal_id": "T000000",
            "amount": cents / 100,
            "country": "BE",
        }
        fastavro.schemaless_writer(buffer, self._schema, row)
        return buffer.getvalue()

    def _produce(self, key: bytes, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(ours.SOURCE, value, key, on_delivery=self._delivered)
            except BufferError:
                self._producer.poll(0.1)
            else:
                return

    def _delivered(self, error: object, _message: object) -> None:
        if error is not None:
            self._failed.append(str(error))

    def _flush(self) -> None:
        left = self._producer.flush(60)
        if left or self._failed:
            msg = f"the broker must take all events; {left} are left, {self._failed[:1]}"
            raise BenchError(msg)


class Sink:
    """Consumes predictions as they come; they are decoded when somebody asks."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._decoder = OutputDecoder(endpoints.registry_url)
        self._raw: list[tuple[float, list[bytes]]] = []
        self._taken = 0
        self._ids: list[NDArray[np.int64]] = []
        self._read_s: list[NDArray[np.float64]] = []
        self._scores: list[NDArray[np.float64]] = []
        self._names: list[pa.Array] = []
        self.received = 0
        self.error: str | None = None
        self._consumer = Consumer(
            {
                "bootstrap.servers": endpoints.bootstrap_servers,
                "group.id": "bench.redis-faults",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 100,
            }
        )
        places = [TopicPartition(ours.PREDICTIONS, number, 0) for number in range(PARTITION_COUNT)]
        self._consumer.assign(places)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sink", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Consume no more."""
        self._stopping.set()
        self._thread.join()
        self._consumer.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            first = self._consumer.poll(0.1)
            if first is None:
                continue
            messages = [first, *self._consumer.consume(1_000, 0)]
            now_s = time.monotonic()
            errors = [message.error() for message in messages if message.error()]
            if errors:
                self.error = str(errors[0])
            values = [message.value() or b"" for message in messages if not message.error()]
            self._raw.append((now_s, values))
            self.received += len(values)

    def rows(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Return event id, when it was read (monotonic s) and score of each prediction so far.

        Raises:
            BenchError: If one could not be read.

        """
        if self.error is not None:
            raise BenchError(self.error)
        last = len(self._raw)
        chunk: list[bytes] = []
        times: list[float] = []
        for number in range(self._taken, last):
            now_s, values = self._raw[number]
            chunk += values
            times += [now_s] * len(values)
            self._raw[number] = (now_s, [])
            if len(chunk) >= 50_000 or number == last - 1:
                self._decode(chunk, times)
                chunk, times = [], []
        self._taken = last
        nothing = np.zeros(0)
        return (
            np.concatenate([nothing.astype(np.int64), *self._ids]),
            np.concatenate([nothing, *self._read_s]),
            np.concatenate([nothing, *self._scores]),
        )

    def distinct_ids(self) -> int:
        """Return how many prediction ids there are in what ``rows`` gave."""
        return int(pc.count_distinct(pa.chunked_array(self._names, pa.string())).as_py())

    def _decode(self, values: list[bytes], times: list[float]) -> None:
        if not values:
            return
        batch = self._decoder.decode(values)
        self._ids.append(event_ids(batch))
        self._read_s.append(np.array(times))
        score = batch["score"].cast(pa.float64())
        self._scores.append(score.to_numpy(zero_copy_only=False))
        self._names.append(batch["prediction_id"].cast(pa.string()))


class Watcher:
    """Reads random keys straight from Redis, twenty times a second, on a thread."""

    def __init__(self, reader: OnlineReader, traffic: Traffic, seed: int) -> None:
        self._reader = reader
        self._traffic = traffic
        self._random = np.random.default_rng(seed)
        self._seen: list[Seen] = []
        self._refused: list[float] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read no more."""
        self._stopping.set()
        self._thread.join()

    def between(self, begin_s: float, end_s: float) -> tuple[Seen, int]:
        """Return what was read in a time, and how many reads Redis did not answer."""
        parts = [one for one in list(self._seen) if begin_s <= one.at_s[0] < end_s]
        refused = sum(begin_s <= at_s < end_s for at_s in list(self._refused))
        return Seen.joined(parts), refused

    def _run(self) -> None:
        while not self._stopping.wait(READ_EVERY_S):
            keys = self._random.integers(0, self._traffic.keys, READ_KEYS)
            now_s = time.monotonic()
            try:
                self._seen.append(read(self._reader, keys))
            except StoreUnavailableError:
                self._refused.append(now_s)


def read(reader: OnlineReader, keys: NDArray[np.int64]) -> Seen:
    """Read keys from the store."""
    at_s = time.monotonic()
    answer = reader.read({"customer_id": [customer_name(key) for key in keys.tolist()]})
    return Seen.of(at_s, keys, dict(answer.columns))


@dataclass(slots=True)
class Scene:
    """All that plays together, from the first event to the last."""

    project: Project
    redis: FaultyRedis
    traffic: Traffic
    sink: Sink
    reader: OnlineReader
    log: Path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.traffic.stop()
        self.sink.close()
        self.reader.close()

    def fill(self, keys: int, progress: Callable[[int], None]) -> None:
        """Send an event of each new key and wait for all predictions.

        Raises:
            BenchError: If they do not come.

        """
        self.traffic.fill(keys, lambda _sent: None)
        self.wait_scored(progress)

    def wait_scored(self, progress: Callable[[int], None] = lambda _count: None) -> None:
        """Wait until there are as many predictions as events."""
        received, changed_s = -1, time.monotonic()
        while self.sink.received < self.traffic.count:
            if self.sink.received != received:
                received, changed_s = self.sink.received, time.monotonic()
                progress(received)
            if time.monotonic() - changed_s > STALL_S:
                msg = f"{received} of {self.traffic.count} predictions came; see {self.log}"
                raise BenchError(msg)
            time.sleep(0.05)

    def wait_scored_until(self, sent_s: float) -> None:
        """Wait until events sent before an instant, monotonic clock, have their predictions.

        Raises:
            BenchError: If they do not come.

        """
        _, _, times_s = self.traffic.events()
        wanted, deadline_s = int(np.searchsorted(times_s, sent_s)), time.monotonic() + STALL_S
        while np.count_nonzero(np.bincount(self.sink.rows()[0])[:wanted]) < wanted:
            if time.monotonic() > deadline_s:
                msg = f"{wanted} predictions must come; see {self.log}"
                raise BenchError(msg)
            time.sleep(0.05)

    def right_since(self, begin_s: float, until_s: float, keys: NDArray[np.int64]) -> float | None:
        """Wait until the store holds of the keys, FRESH, all that was sent before ``begin_s``.

        Returns:
            Seconds from ``begin_s`` until each of the keys was seen so; None if they were not by
            ``until_s``, monotonic clock.

        """
        while len(keys):
            if time.monotonic() > until_s:
                return None
            # A few tell of all while much is missing, and disturb less.
            few = self._wrong(keys[:PROBED_KEYS], begin_s)
            if len(few):
                keys = np.concatenate([few, keys[PROBED_KEYS:]])
                time.sleep(0.2)
            else:
                keys = self._wrong(keys[PROBED_KEYS:], begin_s)
        return time.monotonic() - begin_s

    def _wrong(self, keys: NDArray[np.int64], sent_s: float) -> NDArray[np.int64]:
        """Return which of the keys lack something that was sent before."""
        parts = []
        for first in range(0, len(keys), CHECK_KEYS):
            try:
                parts.append(read(self.reader, keys[first : first + CHECK_KEYS]))
            except StoreUnavailableError:
                return keys
        seen = Seen.joined(parts)
        if (seen.status != STATUSES.index(FRESH)).any():
            # Nothing is told of the others: to know all events costs more than to read them again.
            return keys
        return seen.key[self.traffic.judge().wrong(seen, sent_s)]

    def wrong_keys(self, progress: Callable[[int], None], patience_s: float) -> int:
        """Return how many of all keys do not come to hold their newest event; no traffic may run.

        All are read; those that lack something are read again until the patience is at its end.
        """
        judge, wrong = self.traffic.judge(), np.zeros(0, np.int64)
        for first in range(0, self.traffic.keys, CHECK_KEYS):
            keys = np.arange(first, min(first + CHECK_KEYS, self.traffic.keys))
            wrong = np.append(wrong, keys[judge.wrong(read(self.reader, keys), np.inf)])
            progress(first + len(keys))
        until_s = time.monotonic() + patience_s
        while len(wrong) and time.monotonic() < until_s:
            time.sleep(0.2)
            wrong = wrong[judge.wrong(read(self.reader, wrong), np.inf)]
        return len(wrong)

    def metrics(self) -> dict[str, float]:
        """Return the worker's samples by name with labels."""
        found = re.search(r"worker ready.*metrics (\S+)", self.log.read_text(errors="replace"))
        if found is None:
            msg = f"the worker must say where its metrics are; see {self.log}"
            raise BenchError(msg)
        text = httpx.get(found[1], timeout=METRICS_TIMEOUT_S).text
        samples = [line.rpartition(" ") for line in text.splitlines() if line[:1] not in ("", "#")]
        return {name: float(value) for name, _, value in samples}


def total(samples: dict[str, float], prefix: str) -> float:
    """Return the sum of the samples whose names begin so."""
    return sum(value for name, value in samples.items() if name.startswith(prefix))
