"""One contender under kill -9 at random instants while events come, then left to drain."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from bench.chaos.peers.contenders import PARTITION_COUNT, Contender
from bench.chaos.peers.judge import Seen, Verdict, judge, recoveries_s
from bench.chaos.peers.readers import Along, read_to_end
from bench.measure import CLOCK, BenchError

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_S = 0.02
TICK_S = 0.01
# How long a program that runs may show no output before it counts as silent, and is killed.
SILENT_S = 90.0
# A program that ends by itself is started again, as a supervisor would.
STARTS_MAX = 60
# Both above the 60 s after which the broker ends what a dead producer left open.
STALL_S = 120.0
SETTLE_S = 75.0
STOP_PATIENCE_S = 30.0
# How long the reader that reads along may lag behind the one at the end.
CATCH_UP_S = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How hard the test is. Kills come up to ``kill_within_s`` after a start's first output."""

    events: int
    keys: int
    rate_per_s: int
    kills: int
    kill_within_s: float
    seed: int


@dataclass(slots=True)
class Outcome:
    """What one run showed. ``exits`` are ends of the program that nobody caused."""

    contender: str
    version: str
    conditions: str
    plan: Plan
    kills: int = 0
    exits: list[int] = field(default_factory=list)
    silent_starts: int = 0
    drained: bool = False
    stopped_with: int | None = None
    seconds: float = 0.0
    recoveries_s: list[float] = field(default_factory=list)
    longest_wait_s: float = 0.0
    outputs: int = 0
    verdict: Verdict | None = None


class Feed:
    """Sends the events at the plan's rate, in a thread of its own; each key's in order."""

    def __init__(self, contender: Contender, bootstrap_servers: str, plan: Plan) -> None:
        draw = np.random.default_rng(plan.seed)
        self._keys = [f"k{number}" for number in draw.integers(0, plan.keys, plan.events).tolist()]
        self._contender = contender
        self._rate_per_s = plan.rate_per_s
        self._failed: list[str] = []
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "linger.ms": 5,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
            }
        )
        self.expected: Counter[str] = Counter(self._keys)
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._stopping = threading.Event()

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def join(self) -> None:
        """Wait until all is sent.

        Raises:
            BenchError: If the broker did not take all events.

        """
        self._thread.join()
        if self._failed or len(self._producer):
            message = f"the events did not get into the topic: {self._failed[:1]}"
            raise BenchError(message)

    def stop(self) -> None:
        """Send no more."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        numbers: Counter[str] = Counter()
        encode, topic = self._contender.encode, self._contender.topic_in
        begun_s, sent = time.monotonic(), 0
        while sent < len(self._keys) and not self._stopping.is_set():
            due = min(len(self._keys), int((time.monotonic() - begun_s) * self._rate_per_s) + 1)
            for number in range(sent, due):
                key = self._keys[number]
                numbers[key] += 1
                value = encode(key, numbers[key], number)
                self._producer.produce(topic, value, key.encode(), on_delivery=self._delivered)
            sent = due
            self._producer.poll(0)
            time.sleep(TICK_S)
        self._producer.flush(30)

    def _delivered(self, error: object, _message: object) -> None:
        if error is not None:
            self._failed.append(str(error))


class Program:
    """The contender's process, started again when it ends by itself."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._log = contender.folder / "output.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        """Start it."""
        self.starts += 1
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._contender.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._contender.folder,
                env=self._contender.environment,
                start_new_session=True,
            )

    def ended(self) -> int | None:
        """Return its exit code if it ended by itself."""
        assert self._process is not None
        return self._process.poll()

    def kill(self) -> int:
        """Kill it, and what it started, with SIGKILL; return when, epoch ms."""
        assert self._process is not None
        at_ms = CLOCK.now_ms()
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        return at_ms

    def terminate(self) -> int | None:
        """Ask it to stop; return its exit code, None if it had to be killed."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.kill()
                return None
        return self._process.returncode


def run(
    contender: Contender, bootstrap_servers: str, plan: Plan, tell: Callable[[str], None]
) -> Outcome:
    """Put a contender through the test.

    Raises:
        BenchError: If the test itself cannot be done.

    """
    make_topics(bootstrap_servers, contender)
    outcome = Outcome(contender.name, contender.version, contender.conditions, plan)
    begun_s = time.monotonic()
    feed = Feed(contender, bootstrap_servers, plan)
    where = bootstrap_servers, contender.topic_out, contender.decode
    along, written = Along(*where), Along(*where, isolation="read_uncommitted")
    program = Program(contender)
    kills_ms: list[int] = []
    try:
        feed.start()
        draw = random.Random(plan.seed)
        for number in range(plan.kills):
            after_s = draw.uniform(0.1, plan.kill_within_s)
            _run_until_killed(program, written, after_s, outcome)
            kills_ms.append(program.kill())
            outcome.kills += 1
            tell(f"kill {number + 1} of {plan.kills}: {len(along):,} outputs committed")
        program.start()
        _drain(program, along, plan.events, outcome, tell)
        feed.join()
        outcome.stopped_with = program.terminate()
        seen = _read_when_settled(where, along, plan.events)
    finally:
        feed.stop()
        program.kill()
        along.stop()
        written.stop()
    outcome.seconds = time.monotonic() - begun_s
    outcome.recoveries_s = recoveries_s(kills_ms, along.seen)
    reads_ms = np.unique([one.read_ms for one in along.seen])
    outcome.longest_wait_s = float(np.diff(reads_ms).max(initial=0)) / 1000
    outcome.outputs = len(seen)
    outcome.verdict = judge(feed.expected, seen, along.seen)
    return outcome


def make_topics(bootstrap_servers: str, contender: Contender) -> None:
    """Make the contender's two topics, where they are not there; the broker stamps the outputs."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    there = admin.list_topics(timeout=15).topics
    config = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}
    wanted = [
        NewTopic(topic, PARTITION_COUNT, 1, config=config)
        for topic in (contender.topic_in, contender.topic_out)
        if topic not in there
    ]
    for future in (admin.create_topics(wanted) if wanted else {}).values():
        future.result()


def _run_until_killed(program: Program, written: Along, after_s: float, outcome: Outcome) -> None:
    """Start the program and return ``after_s`` after its first output, when it is to be killed."""
    program.start()
    before, deadline_s = len(written), time.monotonic() + SILENT_S
    kill_s: float | None = None
    while kill_s is None or time.monotonic() < kill_s:
        time.sleep(POLL_S)
        if kill_s is None and len(written) > before:
            kill_s = time.monotonic() + after_s
        if kill_s is None and time.monotonic() > deadline_s:
            outcome.silent_starts += 1
            return
        _restart_if_ended(program, outcome)


def _restart_if_ended(program: Program, outcome: Outcome) -> None:
    code = program.ended()
    if code is not None:
        outcome.exits.append(code)
        if program.starts >= STARTS_MAX:
            message = f"{outcome.contender} ended {len(outcome.exits)} times by itself: {code}"
            raise BenchError(message)
        program.start()


def _drain(
    program: Program, along: Along, events: int, outcome: Outcome, tell: Callable[[str], None]
) -> None:
    """Wait until every event has a committed output, or none has come for long."""
    found, changed_s = len(along.distinct), time.monotonic()
    while len(along.distinct) < events:
        time.sleep(POLL_S)
        _restart_if_ended(program, outcome)
        if len(along.distinct) != found:
            found, changed_s = len(along.distinct), time.monotonic()
        elif time.monotonic() - changed_s > STALL_S:
            tell(f"no committed output for {STALL_S:g} s at {found:,} of {events:,} events")
            return
    outcome.drained = True


def _read_when_settled(
    where: tuple[str, str, Callable[[bytes], tuple[str, int, int]]], along: Along, events: int
) -> list[Seen]:
    """Read all outputs; where some are missing, first wait until nothing can be open any more."""
    seen = read_to_end(*where)
    if len({(one.key, one.seq) for one in seen}) < events:
        time.sleep(SETTLE_S)
        seen = read_to_end(*where)
    deadline_s = time.monotonic() + CATCH_UP_S
    while len(along) < len(seen) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    return seen
