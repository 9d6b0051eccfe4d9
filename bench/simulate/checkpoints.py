"""Real checkpoints in a simulated life: the real feed and files, and a writer without a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.scoring.engine import engine_version
from headrace.streams.checkpoint_feed import CheckpointFeed
from headrace.streams.checkpoint_writer import CheckpointWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.simulate.process import Process
    from headrace.features.plan import PipelinePlan

WRITE_S = 0.05


class SimulatedClock:
    """The virtual time of a world, and its time of day."""

    def __init__(self, process: Process, epoch_ms: int) -> None:
        self._world = process.world
        self._epoch_ms = epoch_ms

    def now_ms(self) -> int:
        """Return the time of day."""
        return self._epoch_ms + int(self._world.now_s * 1000)

    def monotonic_ms(self) -> float:
        """Return the virtual clock."""
        return self._world.now_s * 1000


class _Jobs:
    """Stands in for the writer's queue and thread: each job is done a while later, in order."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._free_s = 0.0

    def put(self, job: Callable[[], None]) -> None:
        """Do a job, unless the process is dead by then."""
        world = self._process.world
        self._free_s = max(self._free_s, world.now_s) + world.draw.random() * WRITE_S

        def work() -> None:
            if not self._process.dead:
                job()

        world.after(self._free_s - world.now_s, work)


class SimulatedWriter(CheckpointWriter):
    """Writes real files, as events of the simulation."""

    def __init__(self, root: Path, clock: SimulatedClock, process: Process) -> None:
        super().__init__(root, engine_version(), clock, _Watcher(process))
        self._name = process.name
        self._jobs = _Jobs(process)  # type: ignore[assignment]


class _Watcher:
    """Writes down what becomes of checkpoints."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def checkpoint_written(self, manifest: Any) -> None:
        """Take note of one."""
        self._note("checkpoint", manifest)

    def checkpoint_restored(self, manifest: Any, seconds: float) -> None:
        """Take note of one that a partition began with."""
        del seconds
        self._note("restored", manifest)

    def checkpoint_failed(self) -> None:
        """Take note of one that could not be written."""
        self._process.world.note(self._process.name, "checkpoint failed")

    def _note(self, what: str, manifest: Any) -> None:
        where = f"{manifest.topic}[{manifest.partition}]<{manifest.offset}"
        self._process.world.note(self._process.name, what, where)


def checkpoint_feed(
    process: Process, root: Path, group: str, plan: PipelinePlan, epoch_ms: int, interval_ms: int
) -> CheckpointFeed:
    """Return what keeps and restores the partitions of a life."""
    clock = SimulatedClock(process, epoch_ms)
    writer = SimulatedWriter(root, clock, process)
    return CheckpointFeed(
        root, group, plan.fingerprint, writer, clock, interval_ms, _Watcher(process)
    )
