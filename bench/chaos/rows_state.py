"""Rows of the fault matrix about what a worker's state comes from: the log, and checkpoints."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from confluent_kafka import TopicPartition
from structlog.testing import capture_logs

from bench.chaos.reader import OUTPUTS
from bench.chaos.rows import Outcome, Row, Size
from bench.chaos.scene import WAIT_S, Scene, ended, wait
from bench.chaos.spoil import SPOIL, KeptFolder, content, newest, spoil_each
from bench.chaos.verdict import Oracle, Outputs, inversions
from headrace.runtime.kafka import admin
from headrace.streams.checkpoint_files import Place
from headrace.streams.processors import build
from headrace.streams.restore import restore
from headrace.streams.stage import DirectStageProcessor
from headrace.streams.testing import Driver

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

    from bench.chaos.rows import Lab
    from bench.chaos.verdict import Verdict
    from bench.live import LiveWorker
    from headrace.streams.batch import Processor

FEW = 40
#: How a worker may go on whose log has lost rows.
WAYS = ("skip", "replay")
NO_CHECKPOINTS = {"HEADRACE__STREAM__CHECKPOINTS__ENABLED": "false"}
OFTEN = {"checkpoints": {"interval": "200ms"}}


# --- What is on the disk ---------------------------------------------------------------------


def folders(scene: Scene) -> list[KeptFolder]:
    """Return where checkpoints of the scene's project lie, one folder a partition."""
    return folders_below(checkpoints(scene))


def folders_below(root: Path) -> list[KeptFolder]:
    """Return the folders below a root that hold checkpoints."""
    found = {path.parent for path in root.rglob("manifest-*.json")}
    return [KeptFolder(path) for path in sorted(found)]


def checkpoints(scene: Scene) -> Path:
    """Return the root of all checkpoints of the scene's workers that share their folder."""
    return scene.folder / ".headrace" / "checkpoints"


def kept_all(scene: Scene, at_least: int = 1) -> bool:
    """Whether there are so many checkpoints of each partition."""
    found = folders(scene)
    return len(found) == scene.project.partitions and all(
        len(folder.names()) >= at_least for folder in found
    )


# --- A log that has lost its beginning --------------------------------------------------------


def cut_log(scene: Scene, first: Sequence[int]) -> None:
    """Let the broker delete what lies below an offset, partition by partition."""
    topic = scene.project.topic("payments")
    wanted = [TopicPartition(topic, place, offset) for place, offset in enumerate(first)]
    # Without a name it would be gone before it has an answer.
    client = admin(scene.project.environment.client)
    for future in client.delete_records(wanted).values():
        future.result(30)


@dataclasses.dataclass(frozen=True, slots=True)
class Stretch:
    """Outputs of a worker whose state began at ``first``: of the offsets ``begin`` to ``end``.

    Each by partition.
    """

    first: Sequence[int]
    begin: Sequence[int]
    end: Sequence[int]


def expected(scene: Scene, stretches: Sequence[Stretch]) -> Oracle:
    """Return what should come of workers whose state began where a log began, one after another."""
    tables: dict[str, list[pa.Table]] = {name: [] for name in OUTPUTS}
    plan = scene.project.plan
    for one in stretches:
        driver = Driver(plan, partitions=scene.project.partitions, output_partitions=1)
        for partition, first in enumerate(one.first):
            driver.send(plan.source, scene.sent_to(partition)[first:], partition)
        driver.run()
        tables["predictions"].append(_part(driver.predictions(), one))
        tables["snapshots"].append(_part(driver.snapshots(), one))
    key = f"{plan.stages[-1].entity}_key"
    outputs = {name: Outputs.of(pa.concat_tables(found), key) for name, found in tables.items()}
    return Oracle(outputs, frozenset(), None)


def _part(table: pa.Table, stretch: Stretch) -> pa.Table:
    """Take a stretch's rows of a driver's outputs, with the offsets that they have in the log."""
    partition = table.column("source_partition").to_numpy()
    place = table.column("source_offset").to_numpy() + np.asarray(stretch.first)[partition]
    chosen = (place >= np.asarray(stretch.begin)[partition]) & (
        place < np.asarray(stretch.end)[partition]
    )
    index = table.schema.get_field_index("source_offset")
    kind = table.schema.field(index)
    return table.set_column(index, kind, pa.array(place, kind.type)).filter(pa.array(chosen))


def ends(scene: Scene) -> list[int]:
    """Return how many records each partition has been sent."""
    return [len(scene.sent_to(partition)) for partition in range(scene.project.partitions)]


def all_committed(scene: Scene, timeout_s: float = WAIT_S) -> None:
    """Wait until the workers have committed all that was sent."""
    wait(
        lambda: scene.project.committed() >= sum(ends(scene)),
        f"an end in {scene.folder}",
        timeout_s,
    )


#: What a refusal tells a person to choose from, where rows were not read and where state is lost.
COMMANDS = ("--on-mismatch replay", "--on-mismatch skip")
LOST = ("put the checkpoint folder back", "--on-mismatch skip", "replay")


def refused(scene: Scene, offsets: Sequence[int], *phrases: str) -> list[str]:
    """Start a worker that must not go on, and say what its refusal lacks; nothing if it is fine.

    ``offsets`` are those that it must name, by partition.
    """
    return unsaid(scene, scene.start(), offsets, *phrases)


def unsaid(scene: Scene, worker: LiveWorker, offsets: Sequence[int], *phrases: str) -> list[str]:
    """Wait until a worker ends, and say what lacks: its code, partition and offset, the phrases."""
    code, topic = ended(worker), scene.project.topic("payments")
    if code != 1:
        return [f"exit {code}"]
    named = [
        line
        for line in worker.output().splitlines()
        for partition, offset in enumerate(offsets)
        if " must " in line and f"{topic}[{partition}]" in line and str(offset) in line
    ]
    if not named:
        return [f"no partition with its offset in {worker.log}"]
    return [f"nothing of {one!r} in {worker.log}" for one in phrases if one not in named[-1]]


# --- Rows -------------------------------------------------------------------------------------


def not_retained(lab: Lab, size: Size) -> Outcome:
    """Row 19: the broker has deleted rows that no worker has read; a person says how to go on.

    Half of it happens while the worker is not there, half while it has no connection.
    """
    verdicts: list[Verdict] = []
    faults: list[str] = []
    count = size.events // size.runs
    for number in range(size.runs):
        way, alive = WAYS[number % len(WAYS)], number // len(WAYS) % 2 == 1
        with Scene(lab, f"s{number}", proxied=True) as scene:
            proxy = scene.proxy
            assert proxy is not None
            worker = scene.started()
            scene.send(count // 2)
            all_committed(scene)
            read = ends(scene)
            if alive:
                proxy.refuses = True
            else:
                scene.stop_workers()
            scene.send(count // 2)
            first = [(a + b) // 2 + 1 for a, b in zip(read, ends(scene), strict=True)]
            cut_log(scene, first)
            proxy.refuses = False
            if alive:
                faults += unsaid(scene, worker, read, *COMMANDS)
            faults += refused(scene, first, *COMMANDS)
            before = Stretch([0] * len(read), [0] * len(read), read)
            verdicts.append(_gone_on(scene, way, first, before))
        lab.advance(number + 1)
    note = "exit 1 with topic, offset and both commands; each of them then works"
    return Outcome.of(size.runs, verdicts, met=not faults, note="; ".join(faults) or note)


def _gone_on(scene: Scene, way: str, first: Sequence[int], before: Stretch) -> Verdict:
    """Go on in a way, once; then as always. Return the verdict over all that came out."""
    begin = first if way == "replay" else ends(scene)
    for options in (["--on-mismatch", way], []):
        scene.started(options=options)
        scene.send(FEW)
        all_committed(scene)
        scene.stop_workers()
    oracle = expected(scene, [before, Stretch(first, begin, ends(scene))])
    verdict = scene.judged(oracle)
    # What is emitted again on demand stands behind what came later: so often, and no oftener.
    order = {str(row[0]): place for place, row in enumerate(scene.events.rows)}
    again = sum(inversions(one, [0] * len(one.ids), order) for one in oracle.outputs.values())
    return dataclasses.replace(verdict, reordered=abs(verdict.reordered - again))


def checkpoints_gone(lab: Lab, size: Size) -> Outcome:
    """Row 21: no checkpoint is left, or none that the log still reaches back to."""
    tries = (_put_back, _refilled, _too_old_skip, _deleted, _too_old_replay)
    verdicts: list[Verdict] = []
    faults: list[str] = []
    for number in range(size.runs):
        with Scene(lab, f"s{number}", stream=OFTEN) as scene:
            scene.started()
            scene.send(size.events // size.runs)
            all_committed(scene)
            wait(lambda: kept_all(scene), "a checkpoint of each partition")
            scene.stop_workers()
            verdicts.append(tries[number % len(tries)](scene, faults))
        lab.advance(number + 1)
    note = (
        "log whole: replayed; log cut: exit 1 with the ways on, and each of them works; "
        "log cut, lake whole: made again from the lake"
    )
    return Outcome.of(size.runs, verdicts, met=not faults, note="; ".join(faults) or note)


def _goes_on(scene: Scene, event: str) -> int:
    """Start a worker, let it score a few more, and return how often it logged an event."""
    worker = scene.started()
    scene.send(FEW)
    all_committed(scene)
    return worker.output().count(event)


def _deleted(scene: Scene, faults: list[str]) -> Verdict:
    shutil.rmtree(checkpoints(scene))
    if _goes_on(scene, "checkpoint_restored"):
        faults.append("a checkpoint was restored that is not there")
    return scene.verdict()


def _refilled(scene: Scene, faults: list[str]) -> Verdict:
    """Cut what is committed away, in a project whose lake has it."""
    command = [sys.executable, "-m", "headrace.cli.main", "lake", "--once"]
    with (scene.folder / "lake.log").open("ab") as log:
        subprocess.run(
            [*command, "--project", str(scene.folder)], check=True, stdout=log, stderr=log
        )
    shutil.rmtree(checkpoints(scene))
    cut_log(scene, ends(scene))
    refilled = _goes_on(scene, "history_refilled")
    if refilled != len(ends(scene)):
        faults.append(f"{refilled} partitions were made again from the lake")
    return scene.verdict()


def _put_back(scene: Scene, faults: list[str]) -> Verdict:
    aside = scene.folder / "aside"
    checkpoints(scene).rename(aside)
    cut_log(
        scene, [max(1, min(newest(f).offset for f in folders_below(aside)) // 2)] * len(ends(scene))
    )
    faults += refused(scene, ends(scene), *LOST)
    shutil.rmtree(checkpoints(scene), ignore_errors=True)
    aside.rename(checkpoints(scene))
    restored = _goes_on(scene, "checkpoint_restored")
    if restored != len(ends(scene)):
        faults.append(f"{restored} checkpoints were restored")
    return scene.verdict()


def _too_old_skip(scene: Scene, faults: list[str]) -> Verdict:
    return _too_old(scene, faults, "skip")


def _too_old_replay(scene: Scene, faults: list[str]) -> Verdict:
    return _too_old(scene, faults, "replay")


def _too_old(scene: Scene, faults: list[str], way: str) -> Verdict:
    """Let the log begin between the newest checkpoint and what is committed."""
    # What comes now no checkpoint holds.
    scene.started(environment=NO_CHECKPOINTS)
    scene.send(scene.sent)
    all_committed(scene)
    scene.stop_workers()
    sent = ends(scene)
    first = [(newest(f).offset + s) // 2 + 1 for f, s in zip(folders(scene), sent, strict=True)]
    cut_log(scene, first)
    faults += refused(scene, first, *LOST)
    none = [0] * len(sent)
    return _gone_on(scene, way, first, Stretch(none, none, sent))


def spoilt(lab: Lab, size: Size) -> Outcome:
    """Row 23: files of checkpoints with a wrong bit, or cut; first each by itself, then a worker.

    Of one partition, every file of every checkpoint is cut at each 4 kB and gets wrong bits at
    drawn places, and each time it is restored in this process. Then the newest files of all
    partitions are spoilt in one way after another, and a worker starts over them each time.
    """
    draw = lab.random
    faults: list[str] = []
    ways = list(SPOIL)
    with Scene(lab, "s", stream=OFTEN) as scene:
        step = size.events // (size.runs + 1)
        _work(scene, step)
        tried = _each_by_itself(scene, lab.folder / "copy", draw, faults)
        for number in range(size.runs):
            way = ways[number % len(ways)]
            for folder in folders(scene):
                SPOIL[way](folder, draw)
            worker = _work(scene, step)
            said = worker.output().count("checkpoint_not_usable")
            if said < scene.project.partitions:
                faults.append(f"{way}: {said} of {scene.project.partitions} were found")
            lab.advance(number + 1)
        verdict = scene.verdict()
    note = f"{tried} spoilt files in one process, {size.runs} times 4 in a worker: all found"
    return Outcome.of(size.runs, [verdict], met=not faults, note="; ".join(faults[:3]) or note)


def _work(scene: Scene, events: int) -> LiveWorker:
    """Let a worker have some checkpoints made of each partition, and kill it."""
    before = {folder.folder: folder.names()[0] for folder in folders(scene)}

    def moved() -> bool:
        now = {folder.folder: folder.names() for folder in folders(scene)}
        return len(now) == scene.project.partitions and all(
            len(names) >= 2 and names[0] > before.get(folder, "") for folder, names in now.items()
        )

    worker = scene.started()
    scene.feed(events, 2.0).join()
    wait(moved, f"checkpoints made by {worker.log}")
    all_committed(scene)
    worker.kill()
    return worker


def _each_by_itself(scene: Scene, copy: Path, draw: random.Random, faults: list[str]) -> int:
    """Spoil each file of a partition's checkpoints in many ways; return in how many."""
    source = folders(scene)[0].folder
    shutil.copytree(checkpoints(scene), copy)
    folder = KeptFolder(copy / source.relative_to(checkpoints(scene)))
    driver = Driver(scene.project.plan, partitions=scene.project.partitions)
    first = newest(folder)
    group = source.relative_to(checkpoints(scene)).parts[0]
    place = Place(group, first.plan, first.topic, first.topic_id, first.partition)

    def restored() -> tuple[int, bytes]:
        found = restore(folder, None, lambda _manifest: None, 0, make)
        assert isinstance(found.processor, DirectStageProcessor)
        return found.offset, content(found.processor)

    def make() -> Processor:
        return build(scene.project.plan, place.topic, place.partition, driver.context)

    with capture_logs():
        return spoil_each(folder, restored, draw, faults)


ROWS = (
    Row(
        19,
        "rows deleted by the broker before they were read",
        "exit with topic, offset and the two commands to choose from",
        not_retained,
        full=Size(runs=4, events=20_000),
    ),
    Row(
        21,
        "checkpoints deleted, or older than what the log holds",
        "replayed, made from the lake, or refused with the ways on; never silently empty",
        checkpoints_gone,
        full=Size(runs=5, events=25_000),
        ci=Size(runs=1, events=1_000),
    ),
    Row(
        23,
        "files of checkpoints with wrong bits, or cut at each 4 kB",
        "found by their hash, an older one is taken, no crash loop",
        spoilt,
        full=Size(runs=12, events=120_000),
        ci=Size(runs=2, events=3_000),
    ),
)
