"""The row of the fault matrix whose fault is a full disk.

A limit on the size of files stands for it, set on a process that runs: writes fail in the middle of
a file, and of everything that the process writes, its log too.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from bench.chaos.rows import Outcome, Row, Size
from bench.chaos.rows_state import OFTEN, folders, kept_all
from bench.chaos.scene import Scene, wait
from bench.lake_kills import WatchingReader, held
from bench.measure import BenchError
from headrace.lake.tables import Lake
from headrace.runtime.kafka import admin, topic_ids
from headrace.runtime.settings import load_settings
from headrace.streams.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.chaos.rows import Lab
    from bench.live import LiveWorker

#: Bytes that a file may have while the disk is full: none, or some of a checkpoint's or a table's.
LEFT_BYTES = (0, 600, 1_500, 3_000)
WRITTEN, FAILED = "headrace_checkpoints_total", "headrace_checkpoint_failures_total"
LOOK_EVERY_S = 0.02
STOP_S = 60.0


@contextlib.contextmanager
def full_disk(pid: int, left_bytes: int) -> Iterator[None]:
    """Let no file of a process grow beyond some bytes, for a while."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (left_bytes, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


class CheckpointReader:
    """Reads each checkpoint of a scene that it sees, whole, on a thread, until stopped."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._good: set[tuple[str, str]] = set()
        self.broken: list[str] = []
        self._thread.start()

    @property
    def count(self) -> int:
        """How many were read."""
        return len(self._good)

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            for folder in folders(self._scene):
                for name in folder.names():
                    if (str(folder.folder), name) not in self._good:
                        self._look(folder.folder.name, name)

    def _look(self, partition: str, name: str) -> None:
        (folder,) = (one for one in folders(self._scene) if one.folder.name == partition)
        try:
            folder.verify(folder.load(name))
        except CheckpointError as error:
            # One that has just been removed for its age was whole.
            if name in folder.names():
                self.broken.append(str(error))
        self._good.add((str(folder.folder), name))


def disk_full(lab: Lab, size: Size) -> Outcome:
    """Row 25: no space, for a worker's checkpoints and log, and for the lake, again and again."""
    draw = lab.random
    faults: list[str] = []
    again_s: list[float] = []
    with Scene(lab, "s", stream=OFTEN, settings={"lake": {"flush_interval_ms": 200}}) as scene:
        reader = CheckpointReader(scene)
        worker = scene.started()
        with _lake(scene, faults) as lake:
            for number in range(size.runs):
                left = draw.choice(LEFT_BYTES) if number else 0
                feed = scene.feed(size.events // size.runs, size.seconds)
                again_s.append(_fill(scene, worker, lake, left))
                feed.join()
                # What it kept since is what the next one starts from.
                wait(lambda: kept_all(scene), "checkpoints of all partitions")
                worker.kill()
                worker = scene.started()
                if not _total(worker, "headrace_checkpoints_restored_total"):
                    faults.append("nothing to restore after the disk was full")
                lab.advance(number + 1)
            scene.drained()
        reader.stop()
        verdict = scene.verdict()
    faults += reader.broken[:3]
    note = f"{reader.count} checkpoints were seen and whole; the lake has each record once"
    return Outcome.of(
        size.runs, [verdict], max(again_s), met=not faults, note="; ".join(faults) or note
    )


def _fill(scene: Scene, worker: LiveWorker, lake: subprocess.Popen[bytes], left: int) -> float:
    """Take all space until checkpoints have failed, and outputs came all the same.

    Returns the seconds from when there was space to the next checkpoint.
    """
    failed = _total(worker, FAILED)
    with full_disk(worker.process.pid, left), full_disk(lake.pid, left):
        wait(lambda: _total(worker, FAILED) > failed, f"a failed checkpoint of {worker.log}")
        scene.one_more()
        written = _total(worker, WRITTEN)
    since_s = time.monotonic()
    wait(lambda: _total(worker, WRITTEN) > written, f"one more checkpoint of {worker.log}")
    return time.monotonic() - since_s


def _total(worker: LiveWorker, name: str) -> float:
    return sum(value for key, value in worker.metrics().items() if key.startswith(name))


@contextlib.contextmanager
def _lake(scene: Scene, faults: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run the lake's process, and see at the end that its table of events has each one once."""
    folder = load_settings(scene.folder).lake.folder
    plan, environment = scene.project.plan, scene.project.environment
    topic = scene.project.topic("payments")
    ids = topic_ids(admin(environment.client), [topic])
    about = plan.source, ids[topic], scene.project.partitions
    command = [sys.executable, "-m", "headrace.cli.main", "lake", "--project", str(scene.folder)]
    with (scene.folder / "lake.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        reader = WatchingReader(folder, *about)
        try:
            lake = Lake(folder)
            yield process

            def whole() -> bool:
                if process.poll() is not None:
                    msg = f"the lake must go on; got exit {process.returncode} in {scene.folder}"
                    raise BenchError(msg)
                return lake.has(plan.source) and held(lake, *about).rows == scene.sent

            wait(whole, f"all events in {folder}")
            process.send_signal(signal.SIGTERM)
            if process.wait(STOP_S) != 0:
                faults.append(f"the lake ended with {process.returncode}")
            reader.stop()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


ROWS = (
    Row(
        25,
        "no space on the disk: checkpoints, logs, lake",
        "no half file for any reader; goes on, and is right when there is space",
        disk_full,
        full=Size(runs=10, events=50_000, seconds=5.0),
    ),
)
