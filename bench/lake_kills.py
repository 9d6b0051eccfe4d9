"""kill -9 of the lake's process, again and again while rows come in, beside a reader that looks.

The integration tests use it at a small size, ``./dev bench lake --kills`` at the full one.
"""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from deltalake.exceptions import DeltaError

from bench.measure import BenchError
from headrace.lake.tables import OFFSET, PARTITION, Lake, rejected_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from headrace.lake.tables import LakeTable

POLL_S = 0.05


@dataclass(slots=True)
class Held:
    """What one version of a topic's tables holds, checked: offsets by partition."""

    version: int
    rows: int
    positions: dict[int, int]


def held(lake: Lake, name: str, topic_id: str, partitions: int) -> Held:
    """Read a table whole and see that nothing is twice in it, and below its positions all is there.

    The topic must have no gaps: its records stand at 0, 1, 2, … of each partition.

    Raises:
        BenchError: If that does not hold, or a file cannot be read.

    """
    table = lake.table(name)
    # Opened after: the rejected ones of what the first holds are never written later.
    rejected = lake.table(rejected_table(name)) if lake.has(rejected_table(name)) else None
    rows = _offsets(table)
    aside = {} if rejected is None else _offsets(rejected)
    positions = {}
    for partition in range(partitions):
        position = table.next_offset(topic_id, partition) or 0
        mine = rows.get(partition, np.zeros(0, np.int64))
        theirs = aside.get(partition, np.zeros(0, np.int64))
        both = np.sort(np.concatenate([mine, theirs[theirs < position]]))
        if not np.array_equal(both, np.arange(position)):
            twice = len(both) - len(np.unique(both))
            msg = f"{name}/{partition} at {position}: {len(both)} records, {twice} of them twice"
            raise BenchError(msg)
        positions[partition] = position
    return Held(table.version, sum(map(len, rows.values())), positions)


def _offsets(table: LakeTable) -> dict[int, np.ndarray]:
    try:
        found = table.delta.to_pyarrow_dataset().to_table(columns=[PARTITION, OFFSET])
    except (OSError, DeltaError) as error:
        msg = f"{table.name} at version {table.version} cannot be read: {error}"
        raise BenchError(msg) from error
    partition = found[PARTITION].to_numpy()
    offset = found[OFFSET].to_numpy()
    return {int(one): offset[partition == one] for one in np.unique(partition)}


class WatchingReader:
    """Checks every version of a table that it sees, on a thread, until stopped."""

    def __init__(self, folder: Path, name: str, topic_id: str, partitions: int) -> None:
        self._lake = Lake(folder)
        self._about = name, topic_id, partitions
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self.versions = 0
        self.fault: Exception | None = None
        self._thread.start()

    def stop(self) -> None:
        """Stop looking.

        Raises:
            BenchError: If a version was not as it must be.

        """
        self._stopping.set()
        self._thread.join()
        if self.fault is not None:
            raise self.fault

    def _run(self) -> None:
        last = Held(-1, 0, {})
        while not self._stopping.wait(POLL_S):
            try:
                last = self._next(last)
            except (BenchError, DeltaError, OSError) as error:
                self.fault = error
                return

    def _next(self, last: Held) -> Held:
        if not self._lake.has(self._about[0]):
            return last
        found = held(self._lake, *self._about)
        if found.version == last.version:
            return last
        fewer = [p for p, position in last.positions.items() if found.positions[p] < position]
        if found.version < last.version or found.rows < last.rows or fewer:
            msg = f"{self._about[0]} went back: {last} was followed by {found}"
            raise BenchError(msg)
        self.versions += 1
        return found


@dataclass(slots=True)
class KillRun:
    """What a run of kills did. ``kills_while_writing`` came when the tables had moved."""

    kills: int = 0
    kills_while_writing: int = 0
    versions_read: int = 0
    rows: int = 0
    seconds: float = 0.0


def run_kills(
    command: Sequence[str],
    folder: Path,
    name: str,
    topic_id: str,
    partitions: int,
    kills: int,
    publish: Callable[[threading.Event], int],
    log: Path,
    seed: int = 1,
    life_s: tuple[float, float] = (0.0, 1.5),
) -> KillRun:
    """Kill the lake's process at random instants while rows come in, then let it finish.

    Args:
        command: Starts the process.
        folder: The lake's.
        name: The table to watch.
        topic_id: The id of its topic.
        partitions: Of the topic.
        kills: How many.
        publish: Publishes rows on a thread of its own until done, or the event is set; returns
            how many the topic has then.
        log: Where the process's output goes.
        seed: Of the instants.
        life_s: The least and the most that a process lives after its first append.

    Raises:
        BenchError: If a record was lost or doubled, or a reader saw what it must not see.

    """
    instants = random.Random(seed)
    stopping = threading.Event()
    published: list[int] = []
    sender = threading.Thread(target=lambda: published.append(publish(stopping)), daemon=True)
    reader = WatchingReader(folder, name, topic_id, partitions)
    begin_s = time.monotonic()
    run = KillRun()
    sender.start()
    try:
        for _ in range(kills):
            run.kills += 1
            run.kills_while_writing += _one_life(
                command, folder, name, instants.uniform(*life_s), log, sender.is_alive
            )
        sender.join()
        _finish(command, log)
    finally:
        stopping.set()
        sender.join()
        reader.stop()
    last = held(Lake(folder), name, topic_id, partitions)
    if sum(last.positions.values()) != published[0]:
        msg = f"{published[0]} records were published, {last} are in the table"
        raise BenchError(msg)
    run.rows, run.versions_read = last.rows, reader.versions
    run.seconds = time.monotonic() - begin_s
    return run


def _one_life(
    command: Sequence[str],
    folder: Path,
    name: str,
    life_s: float,
    log: Path,
    more: Callable[[], bool],
) -> bool:
    """Start the process, kill it some time after its first append; return whether there was one.

    When no more rows come there may be none: then it lives as long.
    """
    lake = Lake(folder)
    before = lake.table(name).version if lake.has(name) else -1
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline_s = time.monotonic() + 30.0
        wrote = False
        while not wrote and more() and time.monotonic() < deadline_s:
            if process.poll() is not None:
                msg = f"the lake's process ended with {process.returncode}; see {log}"
                raise BenchError(msg)
            time.sleep(POLL_S)
            wrote = lake.has(name) and lake.table(name).version > before
        time.sleep(life_s)
        return wrote
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _finish(command: Sequence[str], log: Path) -> None:
    with log.open("ab") as output:
        done = subprocess.run(
            [*command, "--once"], stdout=output, stderr=subprocess.STDOUT, timeout=300, check=False
        )
    if done.returncode:
        msg = f"the lake's process failed with {done.returncode}; see {log}"
        raise BenchError(msg)
