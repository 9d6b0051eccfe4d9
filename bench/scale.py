"""``./dev bench scale``: two workers on this machine against one, in turn, on evenly spread keys.

All events are one transaction: the workers, ready and idle, see them at one moment, and neither
their start nor the feeder is in the figure. Broker and Redis share the cores with the workers, so
the table says what each used, and what the machine could give if its cores did nothing else.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from confluent_kafka import Consumer, ConsumerGroupState, Producer
from rich.console import Console
from rich.table import Table

from bench.card import ours, topics
from bench.card.job import (
    CUSTOMER_COUNT,
    PARTITION_COUNT,
    Events,
    customer_name,
    encode,
    make_events,
    train_model,
)
from bench.card.reference import reference_rows
from bench.latency import GUARANTEES, WORK
from bench.measure import (
    CLOCK,
    BenchError,
    TreeSampler,
    end_offset_sums,
    read_topic,
    stop_process,
)
from bench.project import fresh_stack
from bench.publish import send
from bench.report import Bound, exit_code, print_bounds, spread, write_json
from headrace.runtime.kafka import admin
from headrace.schemas.registry import SchemaRegistry

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bench.card.ours import Check
    from bench.project import Project
    from headrace.runtime.dev.stack import Stack

EVENT_COUNT = 2_000_000
SCALE_MIN = 1.4
READY_TIMEOUT_S = 180.0
STALL_S = 60.0
POLL_S = 0.2
ANSWER_S = 10.0
# The events must be in before the broker gives their transaction up.
FEED_TIMEOUT_MS = 300_000
SERVICES = ("kafka", "redis")
# Where others took more than this of the machine, a ratio of two runs says nothing.
OTHERS_CORES_MAX = 0.25


@dataclass(frozen=True, slots=True)
class ScaleRun:
    """What workers did between the first output and the last, by the broker's stamps.

    ``cores`` is what each process used meanwhile, ``bench_cores`` what looking on took, and
    ``idle_cores`` what nobody used. ``ends_s`` tells for each partition of the predictions how long
    before the last output its own last one came.
    """

    workers: int
    outputs: int
    seconds: float
    rate: float
    cores: dict[str, float]
    idle_cores: float
    bench_cores: float
    ends_s: list[float]
    check: Check

    @property
    def others_cores(self) -> float:
        """What of the machine went to processes that have no part in it."""
        used = self.idle_cores + self.bench_cores + sum(self.cores.values())
        return (os.cpu_count() or 1) - used

    @property
    def cpu_s_per_million(self) -> float:
        """CPU seconds of all that takes part."""
        return sum(self.cores.values()) * self.seconds * 1e6 / self.outputs


def even_events(count: int) -> Events:
    """Return the card job's events with every customer as likely as any other."""
    drawn = make_events(count)
    customer = np.random.default_rng(count).integers(0, CUSTOMER_COUNT, count)
    return Events(drawn.ts_ms, customer, drawn.terminal, drawn.amount, drawn.country)


class Scene:
    """A running stack, the events and what must come of them."""

    def __init__(self, stack: Stack, work: Path, count: int, guarantee: str) -> None:
        """Make the events and the reference, which are kept in ``work``."""
        self._stack = stack
        self._endpoints = stack.up()
        self._work = work
        self._guarantee = guarantee
        self._events = even_events(count)
        bodies = encode(self._events, work / f"scale-events-{count}.arrow")
        self._model = train_model(work / "card-model.txt")
        reference = work / f"scale-reference-{count}.npy"
        self._reference = reference_rows(self._events, self._model, reference)
        ours.prepare(work / "scale", "scale_first", self._endpoints)
        with SchemaRegistry(self._endpoints.registry_url) as registry:
            latest = registry.latest(f"{ours.SOURCE}-value")
        assert latest is not None, ours.SOURCE
        self._values = topics.framed(bodies, latest[0])

    def run(self, number: int, workers: int) -> ScaleRun:
        """Let so many workers do all events.

        Raises:
            BenchError: If they do not get ready, or an output does not come.

        """
        servers = self._endpoints.bootstrap_servers
        topics.delete(servers, ours.SOURCE, ours.PREDICTIONS, ours.SNAPSHOTS)
        name = f"scale_{number}_{workers}"
        project = ours.prepare(self._work / "scale", name, self._endpoints, self._guarantee)
        ours.deploy(project, self._model, self._reference[:16, 1:])
        with ExitStack() as ends:
            processes: list[subprocess.Popen[bytes]] = []
            for index in range(workers):
                log = self._work / f"worker-scale-{workers}-{index}.log"
                log.unlink(missing_ok=True)
                processes.append(project.start_worker(log))
                ends.callback(stop_process, processes[-1])
            _wait_until_shared(project, f"{name}.{ours.PIPELINE}", processes)
            pids = {f"worker {n}": one.pid for n, one in enumerate(processes, 1)}
            pids |= {one.name: one.pid or 0 for one in self._stack.status() if one.name in SERVICES}
            samplers = {name: TreeSampler(pid) for name, pid in pids.items()}
            for sampler in samplers.values():
                ends.callback(sampler.stop)
            self._feed()
            looks = _wait_for_outputs(project, len(self._events), processes)
        return self._result(project, workers, samplers, looks)

    def _feed(self) -> None:
        """Send all events so that they can be read at one moment."""
        producer = Producer(
            {
                "bootstrap.servers": self._endpoints.bootstrap_servers,
                "linger.ms": 20,
                "batch.size": 1 << 20,
                "compression.type": "lz4",
                "queue.buffering.max.messages": 2_000_000,
                "queue.buffering.max.kbytes": 1 << 20,
                "partitioner": "murmur2_random",
                "transactional.id": "bench.scale",
                "transaction.timeout.ms": FEED_TIMEOUT_MS,
            }
        )
        producer.init_transactions(30)
        producer.begin_transaction()
        keys = (customer_name(number).encode() for number in self._events.customer.tolist())
        send(producer, ours.SOURCE, zip(keys, self._values, strict=True))
        producer.commit_transaction(60)

    def _result(
        self,
        project: Project,
        workers: int,
        samplers: dict[str, TreeSampler],
        looks: NDArray[np.float64],
    ) -> ScaleRun:
        stamps = [_stamps_s(project, topic) for topic in (ours.PREDICTIONS, ours.SNAPSHOTS)]
        first_s = min(float(part.min()) for parts in stamps for part in parts)
        last_s = max(float(part.max()) for parts in stamps for part in parts)
        seconds = max(1e-3, last_s - first_s)
        used = {name: one.cpu_s_between(first_s, last_s) for name, one in samplers.items()}
        at_s, *counted = looks.T
        idle_s, own_s = (float(np.diff(np.interp([first_s, last_s], at_s, c))[0]) for c in counted)
        return ScaleRun(
            workers,
            len(self._events),
            seconds,
            len(self._events) / seconds,
            {name: cpu_s / seconds for name, cpu_s in used.items()},
            idle_s / seconds,
            own_s / seconds,
            [last_s - float(part.max()) for part in stamps[0]],
            ours.check(project, self._reference),
        )


def _stamps_s(project: Project, topic: str) -> list[NDArray[np.float64]]:
    """Return the broker's stamps of a topic's messages by partition, epoch s."""
    stamps: list[list[int]] = [[] for _ in range(PARTITION_COUNT)]
    for message in read_topic(project.endpoints.bootstrap_servers, topic, PARTITION_COUNT):
        stamps[message.partition()].append(message.timestamp()[1])
    if not all(stamps):
        msg = f"every partition of {topic} must hold outputs; got {[len(one) for one in stamps]}"
        raise BenchError(msg)
    return [np.array(one, np.float64) / 1000 for one in stamps]


def _wait_until_shared(
    project: Project, group: str, processes: Sequence[subprocess.Popen[bytes]]
) -> None:
    """Wait until the group is at rest and every worker has as many partitions as any other."""
    client = admin({"bootstrap.servers": project.endpoints.bootstrap_servers})
    share = PARTITION_COUNT // len(processes)
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while True:
        asked = client.describe_consumer_groups([group], request_timeout=ANSWER_S)
        told = asked[group].result(2 * ANSWER_S)
        owned = [len(member.assignment.topic_partitions) for member in told.members]
        if owned == [share] * len(processes) and told.state == ConsumerGroupState.STABLE:
            return
        _check(processes)
        if time.monotonic() > deadline_s:
            msg = f"each of {len(processes)} workers must own {share} partitions; got {owned}"
            raise BenchError(msg)
        time.sleep(POLL_S)


def _wait_for_outputs(
    project: Project, expected: int, processes: Sequence[subprocess.Popen[bytes]]
) -> NDArray[np.float64]:
    """Wait until all outputs are there; return what each look saw.

    Shape: (looks, 3): epoch s, idle s of all cores, the bench's own CPU s.
    """
    servers = project.endpoints.bootstrap_servers
    probe = Consumer({"bootstrap.servers": servers, "group.id": "bench.scale.probe"})
    outputs = [ours.PREDICTIONS, ours.SNAPSHOTS]
    looks: list[tuple[float, float, float]] = []
    written, changed_s = [0, 0], time.monotonic()
    try:
        while min(written) < expected or time.monotonic() - changed_s < ours.QUIET_S:
            time.sleep(POLL_S)
            times = psutil.cpu_times()
            idle_s = times.idle + getattr(times, "iowait", 0.0)
            looks.append((CLOCK.now_ms() / 1000, idle_s, time.process_time()))
            now = end_offset_sums(probe, outputs, PARTITION_COUNT)
            if now != written:
                written, changed_s = now, time.monotonic()
            elif time.monotonic() - changed_s > STALL_S:
                msg = f"the workers stalled at {written} of {expected}"
                raise BenchError(msg)
            _check(processes)
    finally:
        probe.close()
    return np.array(looks)


def _check(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is not None:
            msg = f"a worker ended with {process.returncode}; see the logs"
            raise BenchError(msg)


def main(arguments: Sequence[str]) -> int:
    """Run one worker and two in turn; return 0 if all outputs are right."""
    options = _options(arguments)
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    console = Console()
    runs: dict[int, list[ScaleRun]] = {1: [], 2: []}
    stack = fresh_stack(work / "stack")
    try:
        scene = Scene(stack, work, options.events, options.guarantee)
        for number in range(options.runs):
            for workers, measured in runs.items():
                measured.append(scene.run(number, workers))
                rate = f"{measured[-1].rate:,.0f} events/s"
                console.print(f"run {number + 1} of {options.runs}, {workers} at work: {rate}")
    finally:
        stack.down()
    return _report(runs, options, work, console)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench scale", description=__doc__)
    parser.add_argument("--events", type=int, default=EVENT_COUNT)
    parser.add_argument("--runs", type=int, default=3, help="of one worker and of two, in turn")
    parser.add_argument("--guarantee", choices=GUARANTEES, default=GUARANTEES[0])
    parser.add_argument("--work", type=Path, default=WORK)
    return parser.parse_args(arguments)


def _report(
    runs: dict[int, list[ScaleRun]], options: argparse.Namespace, work: Path, console: Console
) -> int:
    columns = "cores used", "idle", "others", "CPU s per 1M", "outputs"
    table = Table("workers", "events/s", *columns)
    for run in (one for measured in runs.values() for one in measured):
        cores = ", ".join(f"{name} {used:.2f}" for name, used in run.cores.items())
        verdict = "[green]all right[/]" if run.check.holds else f"[red]{run.check}[/]"
        cells = f"{run.rate:,.0f}", cores, f"{run.idle_cores:.2f}", f"{run.others_cores:.2f}"
        table.add_row(str(run.workers), *cells, f"{run.cpu_s_per_million:.1f}", verdict)
    console.print(table)
    single = statistics.median(run.rate for run in runs[1])
    ratios = [two.rate / one.rate for one, two in zip(runs[1], runs[2], strict=True)]
    cost_us = statistics.median(run.cpu_s_per_million for run in runs[1])
    core_count = os.cpu_count() or 1
    machine = core_count * 1e6 / cost_us
    console.print(
        f"two over one, by turn: {spread(ratios)}. An event costs one worker, broker and Redis "
        f"{cost_us:.1f} CPU-us in all: {core_count} cores, wholly theirs, could do "
        f"{machine:,.0f} events/s, which is {machine / single:.2f} times what one worker does."
    )
    disturbed = [r for part in runs.values() for r in part if r.others_cores > OTHERS_CORES_MAX]
    if disturbed:
        most = max(run.others_cores for run in disturbed)
        console.print(f"[red]not measured: others took up to {most:.2f} cores meanwhile[/]")
    ratio = None if disturbed else statistics.median(ratios)
    # Which of the two limits, workers or machine, is not for the exit code to say.
    bound = Bound("two workers over one", ratio, SCALE_MIN, True, False)
    print_bounds(console, [bound])
    figures = {str(workers): [asdict(run) for run in part] for workers, part in runs.items()}
    write_json(
        work / "scale.json",
        "scale",
        {"events": options.events, "guarantee": options.guarantee, "runs": figures},
        [bound],
    )
    right = all(run.check.holds for measured in runs.values() for run in measured)
    return exit_code([bound]) if right else 1
