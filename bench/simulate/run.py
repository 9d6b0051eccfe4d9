"""One run of the simulation: everything that happens in it is drawn from its seed."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.simulate.broker import Broker, Entry, Log
from bench.simulate.cases import CASES, KINDS, case
from bench.simulate.chaos import AWAY_S, FREEZE_S, Chaos
from bench.simulate.checkpoints import checkpoint_feed
from bench.simulate.checks import Finding, Reader, check_outputs
from bench.simulate.group import Group
from bench.simulate.process import Process
from bench.simulate.worker import Worker
from bench.simulate.world import StuckError, World
from headrace.runtime.errors import HeadraceError
from headrace.streams.flow import feeds_of
from headrace.streams.processors import input_topics
from headrace.streams.source_options import Route, SourceOptions

if TYPE_CHECKING:
    from bench.simulate.cases import Case

GROUP = "headrace.spend"
EPOCH_MS = 1_790_000_000_000
# Files are real, but need not last.
MEMORY = Path("/dev/shm")  # noqa: S108 -- a folder of an own name is made in it
YEAR_MS = 365 * 24 * 3_600_000
DEADLINE_S = 900.0
# After the last fault everything must be over by then.
PRODUCING_S = 4.0
READING_S = 0.25
SETTLED_S = 20.0
WORKERS_MAX = 3
FAULTS_MAX = 6
TWIN_ODDS = 0.4


@dataclass(frozen=True, slots=True)
class Result:
    """How a run went; ``finding`` is empty where all is right."""

    seed: int
    finding: str
    trace: list[str]
    faults: list[str]
    virtual_s: float
    outputs: list[tuple[object, ...]]


def simulate(seed: int, *, trace: bool = False, later_ms: int = 0) -> Result:
    """Run a seed; with ``later_ms`` on a wall clock that is so much later."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        return _simulate(World(seed, trace=trace), seed, EPOCH_MS + later_ms, Path(folder))


def _simulate(world: World, seed: int, epoch_ms: int, folder: Path) -> Result:
    run = Run(world, epoch_ms, folder)
    finding = ""
    try:
        run.play()
    except (AssertionError, KeyError, IndexError, ValueError, HeadraceError) as error:
        finding = f"{type(error).__name__}: {error}"
        if not isinstance(error, Finding | StuckError):
            finding += _place(error)
    finally:
        run.end()
    return Result(seed, finding, world.trace, run.chaos.happened, world.now_s, run.outputs())


def _place(error: BaseException) -> str:
    frames, at = [], error.__traceback__
    while at is not None:
        frames.append(f"{at.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{at.tb_lineno}")
        at = at.tb_next
    return f" at {' '.join(frames[-4:])}"


class Run:
    """The broker, the workers and the faults of one run."""

    def __init__(self, world: World, epoch_ms: int, folder: Path) -> None:
        draw = world.draw
        self._world = world
        self._epoch_ms = epoch_ms
        self._exactly_once = draw.random() < 0.75
        kind = draw.choice(KINDS)
        self._case: Case = case(kind, draw.randrange(CASES))
        self._broker = Broker(world, epoch_ms)
        self.chaos = Chaos(world, FAULTS_MAX)
        self.chaos.strike = self._strike
        self._places()
        self._group = Group(world, self._inputs)
        self._options = draw.choice((1, 3, 10, 50)), draw.choice((10, 50, 300))
        # How often state is kept, and whether all workers see what one of them has kept.
        self._keep_ms = draw.choice((0, 0, 100, 1_000))
        self._shared = draw.random() < 0.5
        self._folder = folder
        # A fifth of it is what a revoke may take.
        self._poll_interval_ms = draw.choice((5_000, 300_000))
        self._workers: list[Worker] = []
        self._lives = itertools.count()
        self._backlog = kind != "one"
        outputs = [place for place in self._broker.logs if place[0] in self._case.output_topics]
        self._reader = Reader(self._broker, outputs)
        self._settled_s = 0.0
        self._left = sum(len(log) for log in self._case.logs)

    def play(self) -> None:
        """Let it happen, and check it.

        Raises:
            Finding: If something does not hold.
            StuckError: If it does not come to an end.

        """
        self._produce()
        self._read()
        for ordinal in range(self._world.draw.randint(1, 2)):
            self._world.after(self._world.draw.random() * 2, lambda n=ordinal: self._start(n))  # type: ignore[misc]
        self._world.run(self._is_over, DEADLINE_S)
        self._reader.read()
        self._reader.check()
        check_outputs(self._case, self._broker, exactly_once=self._exactly_once)

    def end(self) -> None:
        """End all that still runs."""
        for worker in self._workers:
            worker.process.dead = True
        self._world.close()

    def outputs(self) -> list[tuple[object, ...]]:
        """Return the committed outputs, to compare runs."""
        return [
            (place, entry.key, entry.value, entry.headers)
            for place, log in sorted(self._broker.logs.items())
            if place[0] in self._case.output_topics
            for _, entry in log.committed()
        ]

    # --- Inside -------------------------------------------------------------------------------

    def _places(self) -> None:
        context = self._case.context
        inputs = input_topics(self._case.plan)
        for topic in dict.fromkeys([*inputs, *self._case.output_topics]):
            for partition in range(context.partition_counts[topic]):
                self._broker.logs[topic, partition] = Log()
        self._inputs = [place for place in self._broker.logs if place[0] in inputs]
        staged = {stage.topic for stage in self._case.plan.stages}
        self._routes = {
            topic: Route("stage" if topic in staged else "router", rank)
            for rank, topic in enumerate(inputs)
        }

    def _produce(self) -> None:
        """Let the events come: at once where the order across partitions decides, else by time."""
        draw, broker, source = self._world.draw, self._broker, self._case.source
        for partition, log in enumerate(self._case.logs):
            at_s = 0.0
            for message in log:
                entry = Entry(message.key, message.value, message.headers, message.timestamp_ms)

                def arrive(partition: int = partition, entry: Entry = entry) -> None:
                    broker.append((source, partition), entry)
                    self._left -= 1

                if self._backlog:
                    arrive()
                    continue
                at_s += draw.random() ** 3 * 2 * PRODUCING_S / len(log)
                self._world.after(at_s, arrive)

    def _read(self) -> None:
        self._reader.read()
        self._world.after(READING_S, self._read)

    def _start(self, ordinal: int) -> None:
        """Start a life of the worker of an ordinal."""
        one = Process(f"w{ordinal}.{next(self._lives)}", self._world, self.chaos)
        rows, interval_ms = self._options
        options = SourceOptions(
            group=GROUP,
            routes=self._routes,
            topic_ids={topic: f"id-of-{topic}" for topic in self._routes},
            consumer={"max.poll.interval.ms": self._poll_interval_ms},
            producer={},
            commit_interval_ms=interval_ms,
            batch_budget_ms=100,
            batch_rows_max=rows,
            feeds=feeds_of(self._case.plan),
            worker=f"{GROUP}.{ordinal}" if self._exactly_once else None,
        )
        case = self._case
        feed = None
        if self._keep_ms:
            folder = self._folder if self._shared else self._folder / str(ordinal)
            feed = checkpoint_feed(one, folder, GROUP, case.plan, self._epoch_ms, self._keep_ms)
        worker = Worker(one, self._broker, self._of, options, case.plan, case.context, feed)
        worker.ordinal = ordinal
        self._workers.append(worker)

        def live() -> None:
            worker.run()
            self._after_life(worker)

        self._world.spawn(live)

    def _of(self, name: str) -> Group:
        assert name == GROUP
        return self._group

    def _after_life(self, worker: Worker) -> None:
        """Let a worker come back, if nobody else has its name."""
        worker.miss()
        if worker.replaced:
            return
        draw = self._world.draw
        delay_s = draw.choice((0.05, 1.0, 9.0)) * draw.random()
        self._world.after(delay_s, lambda: self._start(worker.ordinal))

    def _strike(self, fault: str, process: Process) -> None:
        """Let a fault fall on a process, or on what is around it."""
        draw, world = self._world.draw, self._world
        worker = next(one for one in self._workers if one.process is process)
        if fault == "kill":
            process.dead = True
        elif fault == "freeze":
            frozen_s = draw.uniform(*FREEZE_S)
            process.frozen_until_s = world.now_s + frozen_s
            # A zombie is given the time to do harm.
            world.later(frozen_s + 1.0, world.tell)
            worker.miss()
            if draw.random() < TWIN_ODDS and not worker.replaced:
                worker.replaced = True
                world.after(draw.random() * 8.0, lambda: self._start(worker.ordinal))
        elif fault == "away":
            self._broker.away_until_s = world.now_s + draw.uniform(*AWAY_S)
            world.after(self._broker.away_until_s - world.now_s, world.tell)
        elif fault == "join":
            ordinals = {one.ordinal for one in self._workers if not one.process.dead}
            free = sorted(set(range(WORKERS_MAX)) - ordinals)
            if free:
                self._start(free[0])
        else:
            assert fault == "stop", fault
            worker.stop()

    def _is_over(self) -> bool:
        """Whether all was read, all is decided, and nothing more will come."""
        if self._left or self._world.now_s < self._world.horizon_s:
            return False
        if not self._broker.quiet or not self._is_committed():
            self._settled_s = self._world.now_s
            return False
        # What is missing has its time to come, such as rows that wait for other lanes.
        self._reader.read()
        complete = self._reader.distinct >= len(self._case.outputs)
        return complete or self._world.now_s > self._settled_s + SETTLED_S

    def _is_committed(self) -> bool:
        known = self._broker.committed.get(GROUP, {})
        return all(
            place in known and known[place].offset >= self._end(place) for place in self._inputs
        )

    def _end(self, place: tuple[str, int]) -> int:
        """Return the offset after the last message of a partition."""
        entries = self._broker.logs[place].entries
        return next(
            (
                offset + 1
                for offset in range(len(entries) - 1, -1, -1)
                if not entries[offset].control and not entries[offset].aborted
            ),
            0,
        )
