"""Rows of the fault matrix about coming back with a large state."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bench import restore as bench_restore
from bench.chaos.rows import Outcome, Row, Size
from bench.chaos.rows_state import all_committed, ends, folders, kept_all
from bench.chaos.scene import START_MS, Instant, Scene, wait, wait_said
from bench.chaos.spoil import KeptFolder, newest
from bench.chaos.verdict import Oracle, Outputs
from bench.measure import BenchError
from headrace.features.kernels.keys import murmur2_partitions
from headrace.streams.batch import Keep
from headrace.streams.checkpoint_files import CaptureFiles, Manifest
from headrace.streams.stage import DirectStageProcessor
from headrace.streams.testing import Driver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.chaos.rows import Lab
    from bench.live import LiveWorker

BATCH_ROWS = 50_000
FEW = 400
#: A worker that restores gets so little time that another one can start meanwhile.
RUN_S, STOP_S = 0.01, 1.0
WAIT_S = 120.0
ASSIGNED, RESTORED = "partitions_assigned", "checkpoint_restored"


def rebalanced_while_restoring(lab: Lab, size: Size) -> Outcome:
    """Row 14: a second worker comes while the first restores ``events`` keys.

    Every second time the first one is killed then, so that the second restores all.
    """
    recovery_s: list[float] = []
    faults: list[str] = []
    with Scene(lab, "s") as scene:
        driver = _with_keys(scene, size.events)
        draw = lab.random
        for number in range(size.runs):
            scene.send_rows(_of_any_key(scene, size.events, draw.getrandbits(31)))
            first, second, left = _meet(scene)
            if not 0 < left <= scene.project.partitions:
                faults.append("the second came when all was restored")
            kills = number % 2 == 1
            since = Instant.now()
            if kills:
                first.kill()
            first.process.send_signal(signal.SIGCONT)
            scene.feed(FEW, 2.0).join()
            all_committed(scene, WAIT_S)
            found = scene.recovery_s(since)
            assert found is not None, "all is committed"
            recovery_s.append(found)
            faults += _sound([second] if kills else [first, second])
            scene.stop_workers()
            lab.advance(number + 1)
        verdict = scene.judged(_outputs(scene, driver))
    note = f"{size.events:,} keys; nobody ended, and each partition was restored"
    return Outcome.of(
        size.runs, [verdict], max(recovery_s), met=not faults, note="; ".join(faults) or note
    )


def _meet(scene: Scene) -> tuple[LiveWorker, LiveWorker, int]:
    """Start a worker, and another that joins while it restores.

    Returns both, and how many partitions the first had yet to restore then.
    """
    first = scene.start(ordinal=0)
    wait_said(first, "warmed_up")
    _crawl(first, lambda: ASSIGNED in first.output(), stop_s=RUN_S)
    second = scene.start(ordinal=1)
    partitions = scene.project.partitions

    def met() -> bool:
        return ASSIGNED in second.output() or first.output().count(RESTORED) == partitions

    _crawl(first, met, stop_s=STOP_S)
    return first, second, partitions - first.output().count(RESTORED)


def _crawl(worker: LiveWorker, reached: Callable[[], bool], stop_s: float) -> None:
    """Let a worker run for moments only, until something is true; it stands still then."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        worker.process.send_signal(signal.SIGSTOP)
        end_s = time.monotonic() + stop_s
        while not (done := reached()) and time.monotonic() < end_s:
            time.sleep(RUN_S)
        if done:
            return
        if time.monotonic() > deadline_s or worker.process.poll() is not None:
            msg = f"something must happen to {worker.log} within {WAIT_S:.0f} s"
            raise BenchError(msg)
        worker.process.send_signal(signal.SIGCONT)
        time.sleep(RUN_S)


def _sound(workers: Sequence[LiveWorker]) -> list[str]:
    """Return who has ended, or has begun a partition without its checkpoint."""
    faults = [f"{one.log} ended" for one in workers if one.process.poll() is not None]
    for one in workers:
        one.wait_ready()
        if "checkpoint_not_us" in one.output() or RESTORED not in one.output():
            faults.append(f"{one.log} did not restore")
    return faults


# --- Keys ---------------------------------------------------------------------------------------


def _of_any_key(scene: Scene, keys: int, seed: int) -> list[tuple[object, ...]]:
    """Draw events of any of the keys, and note them as the scene's."""
    draw = np.random.default_rng(seed)
    first = len(scene.events.rows)
    rows: list[tuple[object, ...]] = [
        (first + n, START_MS + 100 * (first + n), f"c{key}", float(amount))
        for n, (key, amount) in enumerate(
            zip(draw.integers(0, keys, FEW), np.round(draw.gamma(2.0, 20.0, FEW), 2), strict=True)
        )
    ]
    scene.events.rows += rows
    return rows


def _with_keys(scene: Scene, keys: int) -> Driver:
    """Give each partition a checkpoint with many keys, where a worker has left it.

    Returns a driver that has the same state. The keys came in memory: what a worker restores does
    not tell it that its log never had their events.
    """
    scene.started()
    scene.send(FEW)
    all_committed(scene)
    wait(lambda: kept_all(scene), "a checkpoint of each partition")
    scene.stop_workers()
    driver = Driver(scene.project.plan, partitions=scene.project.partitions, output_partitions=1)
    _catch_up(scene, driver)
    (stage,) = scene.project.plan.stages
    names = np.array([f"c{key}".encode() for key in range(keys)], object)
    places = murmur2_partitions(list(names), scene.project.partitions)
    draw = np.random.default_rng(keys)
    for folder in folders(scene):
        partition = int(folder.folder.name)
        processor = driver.owned[stage.topic, partition].processor
        assert isinstance(processor, DirectStageProcessor)
        mine = names[np.asarray(places) == partition]
        for start in range(0, len(mine), BATCH_ROWS):
            part = mine[start : start + BATCH_ROWS]
            count = len(part)
            time_ms = START_MS + draw.integers(0, 100 * FEW, count)
            processor.state.apply(
                pa.array(part, pa.binary()),
                np.zeros(count, np.int8),
                time_ms,
                time_ms,
                np.round(draw.gamma(2.0, 20.0, (count, len(stage.values))), 2),
                np.zeros(count, bool),
            )
        _keep(folder, processor, partition, ends(scene)[partition])
    return driver


def _keep(folder: KeptFolder, processor: DirectStageProcessor, partition: int, offset: int) -> None:
    """Write a processor's state as the newest checkpoint."""
    before = newest(folder)
    files = CaptureFiles(folder.folder, offset, "filled", whole=True)
    parts, count, ended, opens = None, 0, False, True
    while not ended:
        ask = Keep(before.topic, partition, 0, 1, offset, opens=opens, whole=True)
        kept = processor.keep(ask).kept
        assert kept is not None
        assert not kept.cancelled
        for records in kept.records:
            files.add(records)
        if opens:
            parts, count = kept.parts, kept.key_count
        opens, ended = False, kept.ended
    assert parts is not None
    made = tuple(files.finish(parts))
    about = before.plan, before.engine, before.topic, before.topic_id, partition
    folder.publish(Manifest(*about, offset, count, made), alone=True)


def _catch_up(scene: Scene, driver: Driver) -> None:
    """Let a driver process what it has not had yet of what was sent."""
    plan = scene.project.plan
    topic = plan.source_plan(plan.source).topic
    for partition in range(scene.project.partitions):
        had = len(driver.logs(topic)[partition])
        driver.send(plan.source, scene.sent_to(partition)[had:], partition)
    driver.run()


def _outputs(scene: Scene, driver: Driver) -> Oracle:
    _catch_up(scene, driver)
    key = f"{scene.project.plan.stages[-1].entity}_key"
    outputs = {
        "predictions": Outputs.of(driver.predictions(), key),
        "snapshots": Outputs.of(driver.snapshots(), key),
    }
    return Oracle(outputs, frozenset(), None)


# --- Time ---------------------------------------------------------------------------------------


def restore_times(lab: Lab, size: Size) -> Outcome:
    """Row 24: a million keys of eight windows come back, from one file and from several."""
    whole_s, chain_s = [], []
    for number in range(size.runs):
        work = lab.folder / f"run{number}" / "restore"
        work.parent.mkdir()
        # It fails by itself if what comes back is not what was kept, bit by bit.
        bench_restore.main(["--keys", str(size.events), "--work", str(work)])
        figures = json.loads((work.parent / "restore.json").read_text(encoding="utf-8"))
        whole_s.append(figures["restore_base_s"])
        chain_s.append(figures["restore_chain_s"])
        lab.advance(number + 1)
    note = (
        f"{size.events:,} keys of {len(bench_restore.WINDOWS)} windows: {max(whole_s):.2f} s from a"
        f" base each, {max(chain_s):.2f} s with {bench_restore.SEGMENTS} segments over it"
    )
    met = max(whole_s) <= bench_restore.LOCAL_S_MAX and max(chain_s) <= bench_restore.CHAIN_S_MAX
    return Outcome(size.runs, None, None, None, 0, max(whole_s), met, note)


ROWS = (
    Row(
        14,
        "a worker comes while another restores a large state",
        "restoring ends, nobody crashes",
        rebalanced_while_restoring,
        full=Size(runs=4, events=1_000_000),
    ),
    Row(
        24,
        "a million keys restored",
        "3 s from one file, 30 s from a base and segments",
        restore_times,
        full=Size(runs=1, events=1_000_000),
        ci=Size(runs=1, events=200_000),
    ),
)
