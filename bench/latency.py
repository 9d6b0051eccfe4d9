"""``./dev bench latency``: produce to readable prediction at 1,000 events/s, over one or two hops.

The guarantees are measured in turn in one run, so that what else the machine does meets them alike.
The broker has all of Java's compilers, which need a while: a first run of all is not counted.
"""

from __future__ import annotations

import argparse
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from rich.console import Console
from rich.table import Table

from bench.measure import CLOCK, SAMPLE_EVERY_S, BenchError, TreeSampler, stop_process
from bench.outputs import OutputDecoder, event_ids
from bench.project import fresh_stack
from bench.report import Bound, exit_code, print_bounds, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.project import Project
    from headrace.runtime.dev.stack import Endpoints, Stack

RATE_PER_S = 1_000
WARM_S = 5
MEASURED_S = 20
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 15.0
GUARANTEES = ("at_least_once", "exactly_once")
# By pipeline and guarantee; what the two-entity pipeline may take at least once was never fixed.
P99_MS_MAX = {
    ("card", "at_least_once"): 10.0,
    ("card", "exactly_once"): 30.0,
    ("fraud", "exactly_once"): 60.0,
}
WORK = Path(__file__).parents[1] / ".bench"


@dataclass(frozen=True, slots=True)
class Playable:
    """A project whose topics are empty, and the events to play; an event's id is its number."""

    project: Project
    partitions: int
    source: str
    predictions: str
    keys: Sequence[bytes]
    values: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class LatencyRun:
    """Milliseconds from the call of produce to the prediction in a consumer's hands.

    The cores are what the worker's and the broker's processes used while it was measured.
    """

    measured: int
    missing: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    worker_cores: float
    broker_cores: float


class Events(Protocol):
    """What can be played, again and again, on a running stack."""

    def playable(self, guarantee: str, number: int) -> Playable:
        """Make topics and a project anew; ``number`` tells runs of a guarantee apart."""
        ...


class _Sink:
    """Notes when each event's prediction can first be read."""

    def __init__(self, played: Playable, count: int) -> None:
        endpoints = played.project.endpoints
        self.read_s = np.full(count, np.nan)
        self._decoder = OutputDecoder(endpoints.registry_url)
        self._stopping = threading.Event()
        self._consumer = Consumer(
            {
                "bootstrap.servers": endpoints.bootstrap_servers,
                "group.id": "bench.latency",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 100,
            }
        )
        numbers = range(played.partitions)
        self._consumer.assign([TopicPartition(played.predictions, n, 0) for n in numbers])
        self._thread = threading.Thread(target=self._run, name="sink", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._consumer.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            first = self._consumer.poll(0.1)
            if first is None:
                continue
            messages = [first, *self._consumer.consume(1_000, 0)]
            now_s = time.perf_counter()
            values = [message.value() or b"" for message in messages if not message.error()]
            if values:
                ids = event_ids(self._decoder.decode(values))
                self.read_s[ids] = np.where(np.isnan(self.read_s[ids]), now_s, self.read_s[ids])


def play(played: Playable, log: Path, broker_pid: int, measured_s: int = MEASURED_S) -> LatencyRun:
    """Play events at a fixed rate to a new worker, which starts with the first.

    Raises:
        BenchError: If the worker does not start, or predictions never come.

    """
    count = min(RATE_PER_S * (WARM_S + measured_s) + 1, len(played.values))
    if count <= RATE_PER_S * WARM_S + 1:
        msg = f"there must be more than {RATE_PER_S * WARM_S:,} events; got {count:,}"
        raise BenchError(msg)
    log.unlink(missing_ok=True)
    producer = Producer(
        {
            "bootstrap.servers": played.project.endpoints.bootstrap_servers,
            "linger.ms": 0,
            "partitioner": "murmur2_random",
        }
    )
    sent_s = np.full(count, np.nan)
    worker = played.project.start_worker(log)
    samplers = [TreeSampler(pid) for pid in (worker.pid, broker_pid)]
    sink = _Sink(played, count)
    try:
        producer.produce(played.source, played.values[0], played.keys[0])
        producer.flush()
        _wait_until(lambda: bool(np.isfinite(sink.read_s[0])), START_TIMEOUT_S, f"see {log}")
        begun_s = CLOCK.now_ms() / 1000 + WARM_S
        _send(producer, played, sent_s)
        ended_s = CLOCK.now_ms() / 1000
        _wait_until(lambda: not np.isnan(sink.read_s[1:]).any(), END_TIMEOUT_S, f"see {log}")
        time.sleep(2 * SAMPLE_EVERY_S)
    finally:
        sink.stop()
        stop_process(worker)
        for sampler in samplers:
            sampler.stop()
    latency_ms = (sink.read_s - sent_s)[RATE_PER_S * WARM_S :] * 1000
    arrived = latency_ms[np.isfinite(latency_ms)]
    p50, p90, p99 = np.percentile(arrived, [50, 90, 99])
    cores = [one.cpu_s_between(begun_s, ended_s) / (ended_s - begun_s) for one in samplers]
    return LatencyRun(
        len(arrived),
        len(latency_ms) - len(arrived),
        float(p50),
        float(p90),
        float(p99),
        float(arrived.max()),
        *cores,
    )


def _send(producer: Producer, played: Playable, sent_s: np.ndarray) -> None:
    """Send all but the first event, each when it is due, and note when it was handed over."""
    start_s = time.perf_counter()
    for number in range(1, len(sent_s)):
        due_s = start_s + number / RATE_PER_S
        while (now_s := time.perf_counter()) < due_s:
            producer.poll(0)
            time.sleep(max(0.0, due_s - now_s))
        sent_s[number] = time.perf_counter()
        producer.produce(played.source, played.values[number], played.keys[number])
    producer.flush()


def _wait_until(condition: Callable[[], bool], timeout_s: float, hint: str) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            msg = f"predictions must come within {timeout_s:.0f} s; {hint}"
            raise BenchError(msg)
        time.sleep(0.02)


def broker_pid(stack: Stack) -> int:
    """Return the process id of the stack's broker, which must run."""
    (pid,) = [status.pid for status in stack.status() if status.name == "kafka"]
    assert pid is not None
    return pid


def main(arguments: Sequence[str]) -> int:
    """Measure the latency and return 0 when every prediction came; the bounds are reported."""
    options = _options(arguments)
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    console = Console()
    count = RATE_PER_S * (WARM_S + options.seconds) + 1
    wanted = GUARANTEES if options.guarantee == "both" else (options.guarantee,)
    runs: dict[str, list[LatencyRun]] = {guarantee: [] for guarantee in wanted}
    stack = fresh_stack(work / "stack", compiled=True)
    try:
        endpoints = stack.up()
        events = _events(options.pipeline, work, endpoints, count)
        for number in range(options.runs + 1):
            for guarantee in wanted:
                played = events.playable(guarantee, number)
                log = work / f"worker-latency-{options.pipeline}-{guarantee}.log"
                run = play(played, log, broker_pid(stack), options.seconds)
                if number:
                    runs[guarantee].append(run)
                console.print(
                    f"{options.pipeline}, {guarantee}: p50 {run.p50_ms:.1f} ms, "
                    f"p99 {run.p99_ms:.1f} ms{'' if number else ' (not counted)'}"
                )
    finally:
        stack.down()
    return _report(options.pipeline, runs, console, work)


def _events(pipeline: str, work: Path, endpoints: Endpoints, count: int) -> Events:
    if pipeline == "card":
        from bench.card.latency import CardEvents

        return CardEvents(work, endpoints, count)
    from bench.fraud_latency import FraudEvents

    return FraudEvents(work, endpoints, count)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench latency", description=__doc__)
    parser.add_argument("--pipeline", choices=("card", "fraud"), default="card")
    parser.add_argument("--guarantee", choices=(*GUARANTEES, "both"), default="both")
    parser.add_argument("--runs", type=int, default=1, help="of each guarantee, in turn")
    parser.add_argument("--seconds", type=int, default=MEASURED_S, help="measured in each run")
    parser.add_argument("--work", type=Path, default=WORK)
    return parser.parse_args(arguments)


def _report(pipeline: str, runs: dict[str, list[LatencyRun]], console: Console, work: Path) -> int:
    columns = "p50", "p90", "p99", "max", "worker cores", "broker cores"
    table = Table("guarantee", *columns, title=f"{pipeline}: ms at {RATE_PER_S:,} events/s")
    bounds = []
    for guarantee, measured in runs.items():
        for run in measured:
            times = (f"{ms:.1f}" for ms in (run.p50_ms, run.p90_ms, run.p99_ms, run.max_ms))
            cores = f"{run.worker_cores:.2f}", f"{run.broker_cores:.2f}"
            table.add_row(guarantee, *times, *cores)
        limit = P99_MS_MAX.get((pipeline, guarantee))
        if limit is not None:
            p99_ms = float(np.median([run.p99_ms for run in measured]))
            name = f"{guarantee}, median p99 ms"
            bounds.append(Bound(name, p99_ms, limit, at_least=False, decides=False))
    console.print(table)
    print_bounds(console, bounds)
    figures = {name: [asdict(run) for run in measured] for name, measured in runs.items()}
    write_json(work / f"latency-{pipeline}.json", "latency", {"runs": figures}, bounds)
    missing = any(run.missing for measured in runs.values() for run in measured)
    return exit_code(bounds) if not missing else 1
