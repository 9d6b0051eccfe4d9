"""A project, its events, its workers and who reads what they write: the scene of a fault."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import yaml
from confluent_kafka import Producer

from bench.chaos.reader import Reader
from bench.chaos.verdict import judge, without_faults
from bench.live import DEFINITIONS, SHOP, LiveProject, LiveWorker, make_project
from bench.measure import CLOCK, BenchError
from headrace.runtime.dev.proxy import KafkaFaultProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from bench.chaos.rows import Lab
    from bench.chaos.verdict import Oracle, Verdict

START_MS = 1_750_000_000_000
CUSTOMERS, SHOPS = 50, 20
EVENT_STEP_MS = 100
FEED_TICK_S = 0.01
DRAIN_S, STOP_S, WAIT_S = 120.0, 60.0, 60.0

#: Commits and checkpoints come often, so that faults fall before, between and into them.
COMMIT_INTERVAL_MS, CHECKPOINT_INTERVAL = 20, "1s"


@dataclass(slots=True)
class Events:
    """Payments of a few customers, 100 ms apart in event time; an event's id is its place."""

    seed: int
    shops: bool = False
    rows: list[tuple[object, ...]] = field(default_factory=list)
    start_ms: int = START_MS

    def more(self, count: int) -> list[tuple[object, ...]]:
        """Draw the next ``count`` events."""
        first = len(self.rows)
        draw = np.random.default_rng([self.seed, first])
        customers, shops = draw.integers(0, CUSTOMERS, count), draw.integers(0, SHOPS, count)
        amounts = np.round(draw.gamma(2.0, 20.0, count), 2)
        made: list[tuple[object, ...]] = [
            (
                first + i,
                self.start_ms + EVENT_STEP_MS * (first + i),
                f"c{customers[i]}",
                float(amounts[i]),
                *((int(shops[i]),) if self.shops else ()),
            )
            for i in range(count)
        ]
        self.rows += made
        return made


class Scene:
    """One project on the lab's infrastructure; a context manager that leaves no process behind.

    Attributes:
        project: Its folder, topics and plan.
        events: What was sent.
        reader: Who looks on from the start.
        proxy: Between workers and broker, if there is to be one; readers and events pass it by.

    """

    def __init__(
        self,
        lab: Lab,
        name: str,
        *,
        definitions: str = DEFINITIONS,
        fields: tuple[dict[str, object], ...] = (),
        stream: Mapping[str, object] | None = None,
        settings: Mapping[str, object] | None = None,
        partitions: int = 4,
        replication: int = 1,
        proxied: bool = False,
    ) -> None:
        """Apply a project of its own, and begin to read.

        Args:
            lab: The row's.
            name: Of letters and digits; a row's scenes have different ones.
            definitions: ``DEFINITIONS``, ``TWO_ENTITIES``, or others with a ``payments`` source.
            fields: Of the events' schema, after those that ``definitions`` of this module need.
            stream: Settings of the section ``stream``, beside exactly-once.
            settings: Other sections, by name.
            partitions: Of every topic.
            replication: Of every topic.
            proxied: Whether workers reach the broker through ``proxy``.

        """
        self._lab = lab
        self.folder = lab.folder / name
        (self.folder / "schemas").mkdir(parents=True)
        content: dict[str, Any] = {
            "project": f"{lab.folder.name.replace('-', '')}{name}",
            "kafka": {"bootstrap_servers": lab.endpoints.bootstrap_servers},
            "redis": {"url": lab.endpoints.redis_url},
            "registry": {"url": lab.endpoints.registry_url},
            "topics": {"partitions": partitions},
            **(settings or {}),
            "stream": {
                "guarantee": "exactly_once",
                "commit_interval_ms": COMMIT_INTERVAL_MS,
                "checkpoints": {"interval": CHECKPOINT_INTERVAL},
                **(stream or {}),
            },
        }
        (self.folder / "headrace.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        shops = 'hr.Entity("shop"' in definitions
        self.project: LiveProject = make_project(
            self.folder,
            definitions=definitions,
            fields=(*((SHOP,) if shops else ()), *fields),
            replication=replication,
        )
        self.events = Events(lab.seed, shops)
        self._sent: list[tuple[int, Mapping[str, object]]] = []
        self._workers: list[LiveWorker] = []
        self._feeds: list[Feed] = []
        self.proxy: KafkaFaultProxy | None = None
        if proxied:
            port = int(lab.endpoints.bootstrap_servers.rpartition(":")[2])
            self.proxy = KafkaFaultProxy(port, lab.seed)
        self.reader = Reader(self.project)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for feed in self._feeds:
            feed.stop()
        for worker in self._workers:
            worker.close()
        self.reader.close()
        if self.proxy is not None:
            self.proxy.close()
        self.project.close()

    # --- Events -------------------------------------------------------------------------------

    def send(self, count: int) -> None:
        """Send the next ``count`` events at once and wait until the broker has them."""
        self.send_rows(self.events.more(count))

    def send_rows(self, rows: Sequence[tuple[object, ...]]) -> None:
        """Send events as they are and wait until the broker has them."""
        self.project.send([self._message(row) for row in rows])

    def feed(self, count: int, seconds: float) -> Feed:
        """Send the next ``count`` events evenly over a time, on a thread."""
        feed = Feed(self, [self._message(row) for row in self.events.more(count)], seconds)
        self._feeds.append(feed)
        return feed

    def _message(self, row: tuple[object, ...]) -> tuple[bytes | None, bytes | None]:
        key = str(row[2]).encode()
        self._sent.append((self.project.place(key), self.project.record(*row)))
        return key, self.project.payment(*row)

    def sent_to(self, partition: int) -> list[Mapping[str, object]]:
        """Return the records of a partition; a record's offset is its place."""
        return [record for place, record in self._sent if place == partition]

    @property
    def sent(self) -> int:
        """How many events were sent, or are being sent."""
        return len(self._sent)

    # --- Workers ------------------------------------------------------------------------------

    def start(
        self,
        *,
        ordinal: int | None = None,
        own_state: bool = False,
        proxied: bool | None = None,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        folder: Path | None = None,
    ) -> LiveWorker:
        """Start a worker and return at once; ``wait_ready`` of it tells when it is at work.

        Args:
            ordinal: Its own; None: the lowest that is free.
            own_state: Whether it has a state folder that no other worker shares, as on another
                machine; then it needs an ordinal.
            proxied: Whether it reaches the broker through the proxy; None: if there is one.
            environment: Settings for this worker alone, as ``HEADRACE__…`` variables.
            options: Of the command line.
            folder: Another project's, with other definitions or schemas; None: the scene's.

        """
        own: dict[str, str] = {}
        if ordinal is not None:
            own["HEADRACE__STREAM__ORDINAL"] = str(ordinal)
        if own_state:
            assert ordinal is not None, "who shares no folder finds no free ordinal in it"
            own["HEADRACE__STATE_FOLDER"] = str(self.folder / f"state-{ordinal}")
        if self.proxy is not None and proxied is not False:
            own["HEADRACE__KAFKA__BOOTSTRAP_SERVERS"] = f"127.0.0.1:{self.proxy.port}"
        worker = LiveWorker(
            folder or self.folder, *options, environment={**own, **(environment or {})}
        )
        self._workers.append(worker)
        return worker

    def started(self, **options: Any) -> LiveWorker:
        """Start a worker (see ``start``) and return when it is ready."""
        worker = self.start(**options)
        worker.wait_ready()
        return worker

    def kill_workers(self) -> None:
        """Kill the workers that run."""
        for worker in [one for one in self._workers if one.process.poll() is None]:
            worker.kill()

    def uncommitted_reader(self) -> Reader:
        """Begin to read what was written, committed or not."""
        return Reader(self.project, "read_uncommitted")

    def one_more(self, than: int | None = None, timeout_s: float = WAIT_S) -> None:
        """Wait until one more output is seen than now, or than there were once.

        Who sends all at once counts before: a worker may be done before the sender is.

        Raises:
            BenchError: If none comes.

        """
        seen = self.reader.count() if than is None else than
        wait(lambda: self.reader.count() > seen, f"an output in {self.folder}", timeout_s)

    # --- The end ------------------------------------------------------------------------------

    def drained(self, timeout_s: float = DRAIN_S) -> bool:
        """Wait until every event's prediction is committed; False when that takes too long."""
        for feed in self._feeds:
            feed.join()
        return self.reader.wait(lambda: self.reader.distinct() >= self.sent, timeout_s)

    def stop_workers(self) -> None:
        """Let the workers that run finish what they have and end.

        Raises:
            BenchError: If one does not end by itself with 0.

        """
        for worker in [one for one in self._workers if one.process.poll() is None]:
            code = worker.terminate(STOP_S)
            if code != 0:
                msg = f"a worker must end with 0; got {code}; see {worker.log}"
                raise BenchError(msg)

    def verdict(self) -> Verdict:
        """Wait for all outputs, stop the workers, and compare with a run without faults.

        What does not come in time is lost.
        """
        self.drained()
        self.stop_workers()
        return self.judged(without_faults(self.project, self._sent))

    def judged(self, oracle: Oracle) -> Verdict:
        """Compare what is committed with what is expected; for rows that expect something else."""
        order = {str(row[0]): place for place, row in enumerate(self.events.rows)}
        return judge(self.project, oracle, order, self.reader)

    def recovery_s(self, since: Instant, timeout_s: float = DRAIN_S) -> float | None:
        """Return the seconds from an instant to when an output committed after it was seen.

        None: there was none within the timeout.
        """
        reader = self.reader
        if not reader.wait(lambda: reader.first_after(since.epoch_ms) is not None, timeout_s):
            return None
        first = reader.first_after(since.epoch_ms)
        assert first is not None
        return first.seen_s - since.monotonic_s


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment on both clocks: the broker stamps records with one, readers note the other."""

    epoch_ms: int
    monotonic_s: float

    @classmethod
    def now(cls) -> Self:
        """Return this moment."""
        return cls(CLOCK.now_ms(), time.monotonic())


class Feed:
    """Sends messages evenly over a time, in their order."""

    def __init__(
        self,
        scene: Scene,
        messages: Sequence[tuple[bytes | None, bytes | None]],
        seconds: float,
    ) -> None:
        """Begin to send."""
        self._project = scene.project
        self._messages = messages
        self._seconds = seconds
        self._ending = threading.Event()
        self.error: str | None = None
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the broker has all.

        Raises:
            BenchError: If it does not take them.

        """
        self._thread.join()
        if self.error is not None:
            raise BenchError(self.error)

    def stop(self) -> None:
        """Send no more."""
        self._ending.set()
        with contextlib.suppress(BenchError):
            self.join()

    def _run(self) -> None:
        producer = Producer(
            {
                "bootstrap.servers": self._project.bootstrap_servers,
                "enable.idempotence": True,
                "linger.ms": 2,
                # A broker that is away comes back; what was sent to it is not given up.
                "message.timeout.ms": 600_000,
            }
        )
        begin_s, sent = time.monotonic(), 0
        while sent < len(self._messages) and not self._ending.is_set():
            passed = (time.monotonic() - begin_s) / max(self._seconds, 1e-9)
            due = min(len(self._messages), int(passed * len(self._messages)))
            for key, value in self._messages[sent:due]:
                producer.produce(
                    self._project.topic("payments"),
                    value,
                    key,
                    self._project.place(key),
                    on_delivery=self._delivered,
                )
            sent = due
            producer.poll(FEED_TICK_S)
        while producer.flush(1.0) and not self._ending.is_set():
            pass

    def _delivered(self, error: object, _message: object) -> None:
        if error is not None:
            self.error = f"the broker must take all events; {error}"


def wait(reached: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait until something is true.

    Raises:
        BenchError: If it does not become so.

    """
    deadline_s = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline_s:
            msg = f"there must be {what} within {timeout_s:.0f} s"
            raise BenchError(msg)
        time.sleep(0.02)


def wait_said(worker: LiveWorker, text: str, times: int = 1, timeout_s: float = WAIT_S) -> None:
    """Wait until a worker has logged a text so often."""
    wait(lambda: worker.output().count(text) >= times, f"{text!r} in {worker.log}", timeout_s)


def ended(worker: LiveWorker, timeout_s: float = WAIT_S) -> int:
    """Wait until a worker ends by itself and return its exit code."""
    wait(lambda: worker.process.poll() is not None, f"an end of {worker.log}", timeout_s)
    return int(worker.process.returncode)
