"""The row of the fault matrix that takes long: all the time something fails, and nothing grows.

Of several workers one is never ended: its memory, file descriptors and threads are watched. What
would end it by design, a network that is gone for longer than its session, is spared to it; all
else happens to it too.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import psutil
from scipy.stats import theilslopes

from bench.chaos.rows import Outcome, Row, Size
from bench.chaos.rows_disk import full_disk
from bench.chaos.scene import Scene
from bench.measure import BenchError
from bench.redis_scene import FaultyRedis
from headrace.runtime.dev.proxy import KafkaFaultProxy

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

    from bench.chaos.rows import Lab
    from bench.chaos.verdict import Verdict
    from bench.live import LiveWorker

EVERY_S = 20.0
FROZEN_S = 12.0
#: The worker that stays, and the one that comes and goes.
STAYS, MORE = 0, 2
MEND_EVERY_S = 0.2
SAMPLE_EVERY_S = 1.0
#: What comes before is not looked at: caches fill, windows too, and buffers find their size.
WARM_S_MAX, WARM_SHARE = 600.0, 1 / 3
GROWTH_MB_H_MAX, MORE_MAX = 1.0, 2
# What the row's ``known`` excuses: of memory so much, of anything else nothing.
KNOWN_MB_H_MAX = 10.0
#: Over less than this a MB an hour is not to be told from noise; it is shown, and not judged.
DECIDES_S = 1_800.0
#: No fault lasts so long, nor what follows of it.
STOP_S_MAX = 60.0
MB = 1 << 20
#: A state that stands still once its windows are full: 660 s of event time, ten events a second.
DEFINITIONS = """
import headrace as hr

payments = hr.Source(
    "payments",
    key="customer_id",
    event_time="event_time",
    event_id="payment_id",
    partitioner="murmur2",
    lateness="1m",
)
customer = hr.Entity("customer", key="customer_id")
spending = hr.FeatureView(
    "customer",
    entity=customer,
    source=payments,
    features=[hr.count(over=["1m", "10m"]), hr.mean("amount", over=["1m", "10m"])],
)
spend = hr.Pipeline(
    "spend", source=payments, views=[spending], request={"amount": hr.col("amount")}
)
"""


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault: when, which, and for how long if it lasts."""

    at_s: float
    kind: str
    lasts_s: float


def schedule(draw: random.Random, seconds: float) -> list[Strike]:
    """Draw what fails in so many seconds; nothing but ``draw`` decides it.

    Each kind comes before any comes again.
    """
    count = max(1, int(seconds // EVERY_S))
    kinds: list[str] = []
    while len(kinds) < count:
        kinds += draw.sample(list(ACTS), len(ACTS))
    return [
        Strike(EVERY_S * number + draw.uniform(0, EVERY_S / 4), kind, draw.uniform(1.0, 5.0))
        for number, kind in enumerate(kinds[:count])
    ]


@dataclass(slots=True)
class Field:
    """Who can be struck. ``unwanted`` are ends of workers that no fault explains."""

    scene: Scene
    redis: FaultyRedis
    stays_by: KafkaFaultProxy
    workers: dict[int, LiveWorker] = field(default_factory=dict)
    allowed: dict[int, set[int]] = field(default_factory=dict)
    unwanted: list[str] = field(default_factory=list)
    restarts: int = 0

    def start(self, ordinal: int) -> None:
        """Start a worker."""
        own = {}
        if ordinal == STAYS:
            own["HEADRACE__KAFKA__BOOTSTRAP_SERVERS"] = f"127.0.0.1:{self.stays_by.port}"
        self.workers[ordinal] = self.scene.start(ordinal=ordinal, environment=own)
        self.allowed[ordinal] = set()

    @property
    def proxies(self) -> list[KafkaFaultProxy]:
        """What stands between the workers and Kafka: of the one that stays, its own."""
        assert self.scene.proxy is not None
        return [self.scene.proxy, self.stays_by]

    def mend(self) -> None:
        """Start anew who has ended."""
        for ordinal, worker in list(self.workers.items()):
            code = worker.process.poll()
            if code is None:
                continue
            # Who was frozen, or cut off for longer than its session, is fenced.
            fenced = code == 1 and "must belong to one worker" in worker.output()
            if code not in self.allowed[ordinal] and (ordinal == STAYS or not fenced):
                self.unwanted.append(f"worker {ordinal} ended with {code}; see {worker.log}")
            if ordinal == MORE and code in self.allowed[ordinal]:
                del self.workers[ordinal]
                continue
            self.start(ordinal)
            self.restarts += 1

    def all_ready(self) -> None:
        """Mend until every worker is at work."""
        self.mend()
        while starting := [one for one in self.workers.values() if not one.url]:
            # Who ends while it starts is started anew.
            with contextlib.suppress(AssertionError):
                starting[0].wait_ready()
            self.mend()

    def wait_until(self, end_s: float) -> None:
        """Mend until an instant."""
        while time.monotonic() < end_s:
            self.mend()
            time.sleep(MEND_EVERY_S)


def _kill(at: Field, _lasts_s: float) -> None:
    at.allowed[1].add(-signal.SIGKILL)
    at.workers[1].process.kill()


def _stop(at: Field, _lasts_s: float) -> None:
    # One that has not come up yet ends by the signal itself.
    at.allowed[1] |= {0, -signal.SIGTERM}
    at.workers[1].process.send_signal(signal.SIGTERM)


def _freeze(at: Field, _lasts_s: float) -> None:
    process = at.workers[1].process
    process.send_signal(signal.SIGSTOP)
    time.sleep(FROZEN_S)
    process.send_signal(signal.SIGCONT)


def _more_or_less(at: Field, lasts_s: float) -> None:
    if MORE in at.workers:
        at.allowed[MORE] |= {0, -signal.SIGTERM}
        at.workers[MORE].process.send_signal(signal.SIGTERM)
    else:
        at.start(MORE)
    time.sleep(lasts_s)


def _half_open(at: Field, _lasts_s: float) -> None:
    at.proxies[0].dead_before_s = time.monotonic()


def _cut(at: Field, lasts_s: float) -> None:
    for proxy in at.proxies:
        proxy.refuses = True
    time.sleep(lasts_s / 2)
    for proxy in at.proxies:
        proxy.refuses = False


def _slow(at: Field, lasts_s: float) -> None:
    for proxy in at.proxies:
        proxy.delay_s, proxy.jitter_s, proxy.stall_odds = 0.2, 0.1, 0.01
    time.sleep(2 * lasts_s)
    for proxy in at.proxies:
        proxy.delay_s = proxy.jitter_s = proxy.stall_odds = 0.0


def _lose(what: str) -> Callable[[Field, float], None]:
    def act(at: Field, lasts_s: float) -> None:
        for proxy in at.proxies:
            setattr(proxy, what, 2)
        time.sleep(lasts_s)
        for proxy in at.proxies:
            setattr(proxy, what, 0)

    return act


def _redis_killed(at: Field, lasts_s: float) -> None:
    at.redis.end(signal.SIGKILL)
    time.sleep(lasts_s)
    at.redis.start()


def _redis_silent(at: Field, lasts_s: float) -> None:
    at.redis.proxy.silent = True
    time.sleep(2 * lasts_s)
    at.redis.proxy.silent = False


def _no_space(at: Field, lasts_s: float) -> None:
    with full_disk(at.workers[STAYS].process.pid, 0):
        time.sleep(lasts_s)


ACTS: dict[str, Callable[[Field, float], None]] = {
    "kill -9 of a worker": _kill,
    "SIGTERM of a worker": _stop,
    "a worker frozen for 12 s": _freeze,
    "a worker more or less": _more_or_less,
    "half-open connections": _half_open,
    "connections cut": _cut,
    "a slow network": _slow,
    "answers of commits lost": _lose("lose_answers"),
    "requests to commit lost": _lose("lose_requests"),
    "requests to commit late": _lose("hold_requests"),
    "Redis killed": _redis_killed,
    "Redis silent": _redis_silent,
    "no space for a worker's files": _no_space,
}


class Sample(NamedTuple):
    """A process at an instant, ``time.monotonic()``."""

    at_s: float
    rss_mb: float
    fds: int
    threads: int


class ProcessWatch:
    """Samples a process on a thread, until stopped or it has ended."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._stopping = threading.Event()
        self.samples: list[Sample] = []
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> list[Sample]:
        """Return the samples."""
        self._stopping.set()
        self._thread.join()
        return self.samples

    def _run(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while not self._stopping.wait(SAMPLE_EVERY_S):
                one = self._process
                rss_mb = one.memory_info().rss / MB
                now_s = time.monotonic()
                self.samples.append(Sample(now_s, rss_mb, one.num_fds(), one.num_threads()))


@dataclass(frozen=True, slots=True)
class Growth:
    """What became more after the warm-up: MB an hour, with the ends of an interval; and counts.

    The slope is the median of those between any two medians of ``EVERY_S`` (Theil and Sen), the
    interval that of 95 % if these were independent; they are not quite, so it is a little narrow.
    ``mb`` and the counts are medians of the last quarter less those of the first.
    """

    mb_h: float
    low_mb_h: float
    high_mb_h: float
    mb: float
    fds: float
    threads: float

    @classmethod
    def of(cls, samples: Sequence[Sample], warm_s: float) -> Growth | None:
        """Return it; None where too little is left after the warm-up to say anything."""
        looked = [one for one in samples if one.at_s >= samples[0].at_s + warm_s]
        blocks = [
            list(block)
            for _, block in itertools.groupby(looked, lambda one: int(one.at_s // EVERY_S))
        ]
        if len(blocks) < 2:
            return None
        at_h = [float(np.median([one.at_s for one in block])) / 3600 for block in blocks]
        rss_mb = [float(np.median([one.rss_mb for one in block])) for block in blocks]
        slope = theilslopes(rss_mb, at_h)
        quarter = max(1, len(looked) // 4)
        first, last = np.array(looked[:quarter]), np.array(looked[-quarter:])
        _, mb, fds, threads = np.median(last, axis=0) - np.median(first, axis=0)
        return cls(
            float(slope.slope),
            float(slope.low_slope),
            float(slope.high_slope),
            float(mb),
            float(fds),
            float(threads),
        )

    def too_much(self, seconds: float) -> bool:
        """Whether it is more than is asked; of memory, only a long run can tell."""
        grows = seconds >= DECIDES_S and self.mb_h >= GROWTH_MB_H_MAX
        return grows or max(self.fds, self.threads) > MORE_MAX

    def beyond_known(self, seconds: float) -> bool:
        """Whether it is more than what is known to be missed."""
        grows = seconds >= DECIDES_S and self.mb_h > KNOWN_MB_H_MAX
        return grows or max(self.fds, self.threads) > MORE_MAX

    def __str__(self) -> str:
        """Return it in words."""
        return (
            f"RSS {self.mb_h:+.1f} MB/h ({self.low_mb_h:+.1f} to {self.high_mb_h:+.1f}),"
            f" {self.mb:+.1f} MB from first to last quarter,"
            f" descriptors {self.fds:+.0f}, threads {self.threads:+.0f}"
        )


@contextlib.contextmanager
def _field(lab: Lab) -> Iterator[Field]:
    redis = FaultyRedis(lab.folder / "redis")
    port = int(lab.endpoints.bootstrap_servers.rpartition(":")[2])
    stays_by = KafkaFaultProxy(port, lab.seed)
    settings = {"redis": {"url": redis.proxied_url}}
    try:
        with Scene(lab, "s", definitions=DEFINITIONS, settings=settings, proxied=True) as scene:
            yield Field(scene, redis, stays_by)
    finally:
        stays_by.close()
        redis.close()


def soak(lab: Lab, size: Size) -> Outcome:
    """Row 48: for ``seconds`` something else fails every 20 s, drawn by the seed."""
    strikes = schedule(lab.random, size.seconds)
    with _field(lab) as at:
        scene = at.scene
        for ordinal in (STAYS, 1):
            at.start(ordinal)
        for worker in at.workers.values():
            worker.wait_ready()
        stays = at.workers[STAYS]
        watch = ProcessWatch(stays.process.pid)
        scene.feed(size.events, size.seconds)
        begin_s = time.monotonic()
        for number, one in enumerate(strikes):
            at.wait_until(begin_s + one.at_s)
            passed_s = time.monotonic() - begin_s
            lab.say(f"{passed_s:7.1f} s  {one.kind} ({one.lasts_s:.1f} s)")
            ACTS[one.kind](at, one.lasts_s)
            lab.advance(number + 1)
        at.wait_until(begin_s + size.seconds)
        samples = watch.stop()
        lines = [",".join(Sample._fields), *(",".join(map(str, one)) for one in samples)]
        (lab.folder / "samples.csv").write_text("\n".join(lines), encoding="utf-8")
        end_s = time.monotonic()
        verdict = _end(at)
        longest_s = _longest_stop_s(scene, begin_s, end_s)
    growth = Growth.of(samples, min(WARM_S_MAX, size.seconds * WARM_SHARE))
    note = (
        f"{size.seconds / 60:.0f} min; {at.restarts} workers started anew; a partition stood still"
        f" for {longest_s:.1f} s at most; {growth or 'too short for growth'}"
    )
    grew = growth is not None and growth.too_much(size.seconds)
    beyond = growth is not None and growth.beyond_known(size.seconds)
    if beyond or at.unwanted or longest_s > STOP_S_MAX:
        raise BenchError("; ".join([note, *at.unwanted]))
    return Outcome.of(len(strikes), [verdict], met=not grew, note=note)


def _end(at: Field) -> Verdict:
    """Let all workers come back, finish, and end; return the verdict."""
    at.all_ready()
    while not at.scene.drained(MEND_EVERY_S) and not at.unwanted:
        at.mend()
    # One that is told to end while it starts does not end by itself.
    at.all_ready()
    return at.scene.verdict()


def _longest_stop_s(scene: Scene, begin_s: float, end_s: float) -> float:
    """Return the longest time in which a partition gave nothing."""
    seen_s: dict[int, list[float]] = {p: [begin_s] for p in range(scene.project.partitions)}
    for one in scene.reader.records("predictions"):
        if begin_s < one.seen_s < end_s:
            seen_s[one.partition].append(one.seen_s)
    return max(
        later - sooner
        for times in seen_s.values()
        for sooner, later in itertools.pairwise(sorted([*times, end_s]))
    )


ROWS = (
    Row(
        48,
        "soak: another fault every 20 s",
        "exact; RSS below 1 MB/h, descriptors and threads flat",
        soak,
        full=Size(runs=180, events=180_000, seconds=3_600.0),
        known=("memory, below 10 MB/h: see docs/figures.md; descriptors and threads are flat"),
    ),
)
