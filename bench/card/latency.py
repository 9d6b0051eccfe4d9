"""``./dev bench latency``: from produce to readable prediction, at 1,000 events/s for 20 s."""

from __future__ import annotations

import argparse
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from rich.console import Console

from bench.card import ours, topics
from bench.card.job import PARTITION_COUNT, customer_name, encode, make_events, train_model
from bench.card.reference import reference_rows
from bench.measure import BenchError, stop_process
from bench.outputs import OutputDecoder, event_ids
from bench.project import fresh_stack
from bench.report import Bound, exit_code, print_bounds, write_json
from headrace.schemas.registry import SchemaRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from bench.card.job import Events
    from headrace.runtime.dev.stack import Endpoints

RATE_PER_S = 1_000
WARM_S = 5
MEASURED_S = 20
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 15.0
EVENT_COUNT = RATE_PER_S * (WARM_S + MEASURED_S) + 1


@dataclass(frozen=True, slots=True)
class LatencyRun:
    """Milliseconds from the call of produce to the prediction in a consumer's hands."""

    measured: int
    missing: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class _Sink:
    """Notes when each event's prediction can first be read."""

    def __init__(self, endpoints: Endpoints, count: int) -> None:
        self.read_s = np.full(count, np.nan)
        self._decoder = OutputDecoder(endpoints.registry_url)
        self._stopping = threading.Event()
        self._consumer = Consumer(
            {
                "bootstrap.servers": endpoints.bootstrap_servers,
                "group.id": "bench.latency",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 100,
            }
        )
        places = [TopicPartition(ours.PREDICTIONS, number, 0) for number in range(PARTITION_COUNT)]
        self._consumer.assign(places)
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


def measure_latency(
    endpoints: Endpoints,
    work: Path,
    model: Path,
    canary_rows: NDArray[np.float64],
    events: Events,
    values: Sequence[bytes],
    guarantee: str = "at_least_once",
) -> LatencyRun:
    """Play the first events at a fixed rate into an empty topic that a worker reads.

    The source's topic and the outputs are made anew: whatever was in them is gone afterwards.
    """
    count = min(EVENT_COUNT, len(events))
    servers = endpoints.bootstrap_servers
    topics.delete(servers, ours.SOURCE, ours.PREDICTIONS, ours.SNAPSHOTS)
    project = ours.prepare(work / "latency", "card_latency", endpoints, guarantee)
    ours.deploy(project, model, canary_rows)
    log = work / "worker-latency.log"
    log.unlink(missing_ok=True)
    producer = Producer(
        {"bootstrap.servers": servers, "linger.ms": 0, "partitioner": "murmur2_random"}
    )
    sent_s = np.full(count, np.nan)
    keys = [customer_name(number).encode() for number in events.customer[:count].tolist()]
    worker = project.start_worker(log)
    sink = _Sink(endpoints, count)
    try:
        producer.produce(ours.SOURCE, values[0], keys[0])
        producer.flush()
        _wait_until(lambda: bool(np.isfinite(sink.read_s[0])), START_TIMEOUT_S, f"see {log}")
        start_s = time.perf_counter()
        for number in range(1, count):
            due_s = start_s + number / RATE_PER_S
            while (now_s := time.perf_counter()) < due_s:
                producer.poll(0)
                time.sleep(max(0.0, due_s - now_s))
            sent_s[number] = time.perf_counter()
            producer.produce(ours.SOURCE, values[number], keys[number])
        producer.flush()
        _wait_until(lambda: not np.isnan(sink.read_s[1:]).any(), END_TIMEOUT_S, "some never came")
    finally:
        sink.stop()
        stop_process(worker)
    measured = np.arange(min(count - 1, RATE_PER_S * WARM_S), count)
    latency_ms = (sink.read_s[measured] - sent_s[measured]) * 1000
    arrived = latency_ms[np.isfinite(latency_ms)]
    p50, p99 = np.percentile(arrived, [50, 99])
    missing = len(latency_ms) - len(arrived)
    return LatencyRun(len(arrived), missing, float(p50), float(p99), float(arrived.max()))


def _wait_until(condition: Callable[[], bool], timeout_s: float, hint: str) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            msg = f"predictions must come within {timeout_s:.0f} s; {hint}"
            raise BenchError(msg)
        time.sleep(0.02)


def main(arguments: Sequence[str]) -> int:
    """Measure the latency alone and return 0 when every prediction came."""
    from bench.card.run import GUARANTEES, P99_MS_MAX, WORK

    parser = argparse.ArgumentParser(prog="bench latency", description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--guarantee", choices=GUARANTEES, default=GUARANTEES[0])
    options = parser.parse_args(arguments)
    work: Path = options.work
    console = Console()
    work.mkdir(parents=True, exist_ok=True)
    events = make_events(100_000)
    bodies = encode(events, work / f"card-events-{len(events)}.arrow")
    model = train_model(work / "card-model.txt")
    reference = reference_rows(events, model, work / f"card-reference-{len(events)}.npy")
    stack = fresh_stack(work / "stack")
    try:
        endpoints = stack.up()
        ours.prepare(work / "latency", "card_latency", endpoints)
        with SchemaRegistry(endpoints.registry_url) as registry:
            latest = registry.latest(f"{ours.SOURCE}-value")
        assert latest is not None, ours.SOURCE
        values = topics.framed(bodies, latest[0])
        run = measure_latency(
            endpoints, work, model, reference[:16, 1:], events, values, options.guarantee
        )
    finally:
        stack.down()
    p99_ms_max = P99_MS_MAX[options.guarantee]
    bound = Bound("p99 ms at 1,000 events/s", run.p99_ms, p99_ms_max, at_least=False, decides=False)
    console.print(f"p50 {run.p50_ms:.1f} ms, p99 {run.p99_ms:.1f} ms, max {run.max_ms:.1f} ms")
    print_bounds(console, [bound])
    write_json(work / "latency.json", "latency", asdict(run), [bound])
    return exit_code([bound]) if not run.missing else 1
