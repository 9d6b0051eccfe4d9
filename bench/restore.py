"""``./dev bench restore``: a million keys kept beside the stream, and restored from the files.

The state of four partitions is captured in slices while rows go on coming, written with its
checksums, and read back as a worker does when it starts: from one whole checkpoint, and from one
with segments over it. Every partition that comes back is compared with the one that was kept.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import track

import headrace as hr
from bench.measure import BenchError
from bench.report import Bound, exit_code, print_bounds, write_json
from headrace.features.compiler import compile_pipeline
from headrace.streams.batch import Keep
from headrace.streams.checkpoint_files import CaptureFiles, CheckpointFolder, Manifest, Place
from headrace.streams.processors import build
from headrace.streams.restore import restore
from headrace.streams.stage import DirectStageProcessor
from headrace.streams.testing import Driver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.features.plan import PipelinePlan
    from headrace.streams.batch import Kept
    from headrace.streams.checkpoint_files import DataFile

WORK = Path(__file__).parents[1] / ".bench" / "restore"
KEYS = 1_000_000
PARTITIONS = 4
BATCH_ROWS = 5_000
EVENTS_PER_KEY = 4
SEGMENTS = 3
# Of the keys, what changes from one segment to the next.
TOUCHED = 0.1
WINDOWS = ["1h", "3h", "6h", "12h", "1d", "3d", "7d", "30d"]
SPAN_MS = 30 * 24 * 3_600_000
START_MS = 1_750_000_000_000
LOCAL_S_MAX = 3.0
CHAIN_S_MAX = 30.0
SCHEMA = {
    "type": "record",
    "name": "Visit",
    "fields": [
        {"name": "visit_id", "type": "long"},
        {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "visitor", "type": "string"},
    ],
}


@dataclass(slots=True)
class Result:
    """Seconds, unless the name says otherwise."""

    keys: int
    base_mb: float = 0.0
    chain_mb: float = 0.0
    restore_base_s: float = 0.0
    restore_chain_s: float = 0.0
    write_s: float = 0.0
    slice_ms: list[float] = field(default_factory=list)
    batch_ms_alone: float = 0.0
    batch_ms_p99_alone: float = 0.0
    batch_ms_beside: float = 0.0
    batch_ms_p99_beside: float = 0.0
    peak_rss_mb: float = 0.0


def visits() -> PipelinePlan:
    """Return a pipeline whose only stage counts over eight windows."""
    source = hr.Source(
        "visits", key="visitor", event_time="event_time", event_id="visit_id", partitioner="murmur2"
    )
    visitor = hr.Entity("visitor", key="visitor")
    view = hr.FeatureView(
        "visitor", entity=visitor, source=source, features=[hr.count(over=WINDOWS)]
    )
    pipeline = hr.Pipeline("visits", source, [view])
    return compile_pipeline(pipeline, {"visits": json.dumps(SCHEMA)})


class Partition:
    """One partition's processor and its checkpoints."""

    def __init__(self, plan: PipelinePlan, driver: Driver, number: int, keys: int) -> None:
        self._plan, self._driver, self.number = plan, driver, number
        self._names = pa.array([f"visitor {number}-{key:08d}".encode() for key in range(keys)])
        self._draw = np.random.default_rng(number)
        self.processor = self.make()
        self.offset = 0
        (stage,) = plan.stages
        self.place = Place("bench", plan.fingerprint, stage.topic, "id", number)
        self._chain: tuple[DataFile, ...] = ()
        self._captures = 0

    def make(self) -> DirectStageProcessor:
        """Return an empty processor of the partition."""
        (stage,) = self._plan.stages
        made = build(self._plan, stage.topic, self.number, self._driver.context)
        assert isinstance(made, DirectStageProcessor), made
        return made

    def read(self, keys: np.ndarray, time_ms: np.ndarray) -> list[float]:
        """Apply rows in batches; return the milliseconds of each."""
        took_ms = []
        for start in range(0, len(keys), BATCH_ROWS):
            stop = min(start + BATCH_ROWS, len(keys))
            names = self._names.take(pa.array(keys[start:stop]))
            started_s = time.perf_counter()
            self._apply(names, time_ms[start:stop])
            took_ms.append(1000 * (time.perf_counter() - started_s))
        self.offset += len(keys)
        return took_ms

    def fill(self) -> None:
        """Give every key its events, in the order of time."""
        count = len(self._names) * EVENTS_PER_KEY
        keys = self._draw.permutation(np.tile(np.arange(len(self._names)), EVENTS_PER_KEY))
        self.read(keys, START_MS + np.arange(count) * SPAN_MS // count)

    def some(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw keys that change, and their times."""
        count = int(len(self._names) * TOUCHED)
        keys = self._draw.choice(len(self._names), count, replace=False)
        return keys, np.full(count, START_MS + SPAN_MS + self.offset, np.int64)

    def keep(
        self, root: Path, *, whole: bool, rows: bool
    ) -> tuple[list[float], list[float], float]:
        """Make a checkpoint, while rows come if ``rows``.

        Returns the milliseconds of each slice, of each batch between them, and the seconds that
        the writing took, which a worker's own thread does.
        """
        self._captures += 1
        at = self.offset
        folder = CheckpointFolder(self.place.folder(root))
        slices: list[float] = []
        batches: list[float] = []
        kept: list[Kept] = []
        keys, time_ms = self.some()
        if not rows:
            keys = keys[:0]
        while not kept or not kept[-1].ended:
            ask = Keep(
                self.place.topic, self.number, 0, self._captures, at, opens=not kept, whole=whole
            )
            started_s = time.perf_counter()
            found = self.processor.keep(ask).kept
            slices.append(1000 * (time.perf_counter() - started_s))
            if found is None or found.cancelled:
                msg = f"partition {self.number}: the capture came to nothing"
                raise BenchError(msg)
            kept.append(found)
            part = slice(len(batches) * BATCH_ROWS, (len(batches) + 1) * BATCH_ROWS)
            if len(keys[part]):
                batches += self.read(keys[part], time_ms[part])
        started_s = time.perf_counter()
        files = CaptureFiles(self.place.folder(root), at, f"bench{self._captures}", whole=whole)
        for one in kept:
            for records in one.records:
                files.add(records)
        assert kept[0].parts is not None
        parts, *slots = files.finish(kept[0].parts)
        self._chain = (*(() if whole else self._chain), *slots)
        folder.publish(
            Manifest(
                *(self.place.plan, "bench", self.place.topic, "id", self.number, at),
                *(kept[0].key_count, (parts, *self._chain)),
            )
        )
        return slices, batches, time.perf_counter() - started_s

    def restored(self, root: Path) -> DirectStageProcessor:
        """Return a processor from the newest checkpoint."""
        folder = CheckpointFolder(self.place.folder(root))
        found = restore(folder, None, lambda _manifest: None, 0, self.make)
        if found.manifest is None:
            msg = f"partition {self.number} has no checkpoint in {root}"
            raise BenchError(msg)
        assert isinstance(found.processor, DirectStageProcessor)
        return found.processor

    def compare(self, other: DirectStageProcessor) -> None:
        """Raise if any key's aggregates are other bits than in ``other``."""
        slots = np.arange(self.processor.state.key_count)
        mine, its = self.processor.state.probe(slots), other.state.probe(slots)
        if mine.aggregates.tobytes() != its.aggregates.tobytes():
            msg = f"partition {self.number} came back with other values"
            raise BenchError(msg)

    def _apply(self, names: pa.Array, time_ms: np.ndarray) -> None:
        count = len(names)
        self.processor.state.apply(
            names,
            np.zeros(count, np.int8),
            time_ms,
            time_ms,
            np.zeros((count, 0)),
            np.ones(count, bool),
        )


def run(keys: int, work: Path, console: Console) -> Result:
    """Keep and restore ``keys`` in all, below ``work``."""
    plan = visits()
    driver = Driver(plan, partitions=PARTITIONS)
    result = Result(keys)
    partitions = [Partition(plan, driver, n, keys // PARTITIONS) for n in range(PARTITIONS)]
    _warm(plan, driver, work / "warm")
    for one in track(partitions, "filling", console=console, transient=True):
        one.fill()
    alone = [ms for one in partitions for ms in one.read(*one.some())]
    result.batch_ms_alone, result.batch_ms_p99_alone = _middle(alone)
    beside: list[float] = []
    for number in range(1 + SEGMENTS):
        for one in partitions:
            # After the last nothing comes: what is restored must be what stands there.
            slices, batches, write_s = one.keep(
                work / "chain", whole=not number, rows=number < SEGMENTS
            )
            result.slice_ms += slices
            beside += batches
            result.write_s += write_s
    result.batch_ms_beside, result.batch_ms_p99_beside = _middle(beside)
    result.chain_mb = _megabytes(work / "chain")
    result.restore_chain_s = _restore(partitions, work / "chain")
    for one in partitions:
        one.keep(work / "base", whole=True, rows=False)
    result.base_mb = _megabytes(work / "base")
    result.restore_base_s = _restore(partitions, work / "base")
    result.peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result


def _restore(partitions: Sequence[Partition], root: Path) -> float:
    """Restore one partition after the other, as a worker does; return the seconds of it."""
    seconds = 0.0
    for one in partitions:
        started_s = time.perf_counter()
        restored = one.restored(root)
        seconds += time.perf_counter() - started_s
        one.compare(restored)
    return seconds


def _warm(plan: PipelinePlan, driver: Driver, root: Path) -> None:
    """Compile what is measured, and see once that what comes back is what was kept."""
    small = Partition(plan, driver, 0, 1_000)
    small.fill()
    small.keep(root, whole=True, rows=True)
    small.keep(root, whole=False, rows=False)
    small.compare(small.restored(root))


def _middle(values: Sequence[float]) -> tuple[float, float]:
    median, high = np.percentile(values, [50, 99])
    return float(median), float(high)


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main(arguments: Sequence[str]) -> int:
    """Measure, and return 0 if what came back is what was kept."""
    parser = argparse.ArgumentParser(prog="bench restore", description=__doc__)
    parser.add_argument("--keys", type=int, default=KEYS, help="in all four partitions")
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args(arguments)
    work: Path = options.work
    console = Console()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    result = run(options.keys, work, console)
    slowest_ms, copied_s = max(result.slice_ms), sum(result.slice_ms) / 1000
    console.print(
        f"{result.keys:,} keys x {len(WINDOWS)} windows in {PARTITIONS} partitions, all restored "
        f"bit for bit\n"
        f"restored from a whole checkpoint ({result.base_mb:,.0f} MB): "
        f"{result.restore_base_s:.2f} s; "
        f"from one with {SEGMENTS} segments over it ({result.chain_mb:,.0f} MB): "
        f"{result.restore_chain_s:.2f} s\n"
        f"copied in {len(result.slice_ms)} slices, {copied_s:.2f} s in all, the slowest "
        f"{slowest_ms:.1f} ms; written beside in {result.write_s:.2f} s\n"
        f"a batch of {BATCH_ROWS:,} rows: {result.batch_ms_alone:.2f} ms, "
        f"{result.batch_ms_beside:.2f} ms while a capture is open (p99 "
        f"{result.batch_ms_p99_alone:.2f} and {result.batch_ms_p99_beside:.2f})\n"
        f"peak memory {result.peak_rss_mb:,.0f} MB, the kept and the restored state together"
    )
    bounds = [
        Bound("s to restore from a whole one", result.restore_base_s, LOCAL_S_MAX, False, False),
        Bound("s to restore with segments", result.restore_chain_s, CHAIN_S_MAX, False, False),
    ]
    print_bounds(console, bounds)
    write_json(work.parent / "restore.json", "restore", asdict(result), bounds)
    shutil.rmtree(work, ignore_errors=True)
    return exit_code(bounds)
