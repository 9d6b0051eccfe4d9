"""Rows of the fault matrix whose fault is a change while events come: of partitions or meaning."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import struct
import time
from typing import TYPE_CHECKING

import fastavro
import numpy as np
from confluent_kafka.admin import NewPartitions

from bench.chaos.payments import (
    SPENDING,
    WAIT_S,
    Sent,
    draw_payments,
    judged,
    kept_verdict,
    message,
    wait_predicted,
)
from bench.chaos.plain import HOUR_MS, Feature, added, expected, found, judge_plain, of_rows
from bench.chaos.reader import Reader, read_at_end
from bench.chaos.rows import Outcome, Row, Size
from bench.chaos.scene import Scene, ended, wait
from bench.chaos.verdict import Verdict, compare
from bench.live import TWO_ENTITIES, LiveProject, LiveWorker, apply
from bench.measure import BenchError
from headrace.cli.applied import apply_project
from headrace.runtime.kafka import admin
from headrace.schemas.errors import IncompatibleSchemaError
from headrace.streams.environment import open_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bench.chaos import plain
    from bench.chaos.rows import Lab
    from bench.chaos.verdict import Outputs

SHOPS_EACH = 5
TWO = (
    Feature("customer__count_1h", "count"),
    Feature("shop__count_1h", "count", "shop"),
    Feature("shop__amount_sum_1h", "sum", "shop", "amount"),
)


def with_shops(project: LiveProject, rows: Sequence[plain.Row], seed: int) -> list[plain.Row]:
    """Return rows with a shop each; a shop's customers all lie in one partition of the source.

    So the order in which a shop's rows reach its stage is that of sending, whatever else happens.
    """
    draw = np.random.default_rng([seed, 7])
    made = []
    for row in rows:
        place = project.place(str(row["customer_id"]).encode())
        made.append({**row, "shop": SHOPS_EACH * place + int(draw.integers(0, SHOPS_EACH))})
    return made


# --- Row 45 ---------------------------------------------------------------------------------------

NEW_FEATURE = (
    'hr.sum("amount", over="1h")',
    'hr.sum("amount", over="1h"), hr.mean("amount", over="2h")',
)
#: In the first stage: what travels to the second one, and its topic, are others then.
NEW_BEFORE_HOP = (
    'features=[hr.count(over="1h")]',
    'features=[hr.count(over=["1h", "2h"])]',
)
CHANGED = (
    *TWO,
    Feature("customer__count_2h", "count", window_ms=2 * HOUR_MS),
    Feature("shop__amount_mean_2h", "mean", "shop", "amount", 2 * HOUR_MS),
)


def definitions_change(lab: Lab, size: Size) -> Outcome:
    """Row 45: features are added to both entities of a pipeline whose events never cease.

    A worker is killed before the change, and another one after it. What the former definitions
    scored must stay as it was; every event is scored once; new features are whole at once.
    """
    with Scene(lab, "s", definitions=TWO_ENTITIES) as scene:
        project = scene.project
        rows = with_shops(project, draw_payments(lab.seed, size.events), lab.seed)
        third = size.events // 3
        scene.start()
        seen = scene.reader.count()
        _send(project, rows[:third])
        scene.one_more(seen)
        scene.kill_workers()
        scene.started()
        seen = scene.reader.count()
        _send(project, rows[third : 2 * third])
        scene.one_more(seen)
        former = _prepare(scene, (NEW_FEATURE, NEW_BEFORE_HOP))
        before = len(read_at_end(project, "snapshots"))
        begin_s = time.monotonic()
        worker = _switch(scene, former)
        restored = worker.output().count("checkpoint_restored")
        _send(project, rows[2 * third :])
        # Old and new snapshots have other columns: which ones an event has says who scored it.
        wait(lambda: len(_of_columns(project, CHANGED)) > 0, "an output of the new definitions")
        paused_s = time.monotonic() - begin_s
        worker.kill()
        scene.started()
        wait_predicted(scene, size.events)
        scene.stop_workers()
        there = read_at_end(project, "snapshots")
        verdict = judge_plain(project, expected(rows, TWO), TWO, scene.reader, "shop_key")
        new = _of_columns(project, CHANGED)
        ids = {str(row["event_id"]) for row in new}
        wanted = [i for i, row in enumerate(rows) if str(row["payment_id"]) in ids]
        at_all = expected(rows, CHANGED)
        whole = compare(_taken(at_all, wanted), of_rows(new, CHANGED, "customer_key"))
    old = len(there) - len(new)
    met = before <= old and len(new) >= size.events - 2 * third and restored > 0
    note = (
        f"{restored} partitions begin with a state that was prepared beside the former worker;"
        f" {old:,} events by the former definitions, {len(new):,} by the new ones, whole at once;"
        f" {paused_s:.1f} s from the drain to the first of them"
    )
    return Outcome.of(1, [added(verdict, whole)], met=met, note=note)


def _prepare(scene: Scene, changes: Sequence[tuple[str, str]]) -> str:
    """Change definitions beside a worker, have their state made ready; return the former ones."""
    file = scene.folder / "definitions.py"
    former = text = file.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    file.write_text(text, encoding="utf-8")
    environment = open_environment(scene.folder)
    apply(environment)
    environment.registry.close()
    _ends_well(scene, "--prepare")
    return former


def _switch(scene: Scene, former: str) -> LiveWorker:
    """Let other definitions take over as docs/changing-definitions.md says; return their worker."""
    scene.stop_workers()
    file = scene.folder / "definitions.py"
    new = file.read_text(encoding="utf-8")
    file.write_text(former, encoding="utf-8")
    _ends_well(scene, "--drain")
    file.write_text(new, encoding="utf-8")
    return scene.started()


def _ends_well(scene: Scene, option: str) -> None:
    worker = LiveWorker(scene.folder, option)
    with contextlib.closing(worker):
        code = ended(worker, WAIT_S)
        if code != 0:
            msg = f"a worker with {option} must end with 0; got {code}; see {worker.log}"
            raise BenchError(msg)


def _send(project: LiveProject, rows: Sequence[plain.Row]) -> None:
    project.send([message(project, row)[:2] for row in rows])


def _of_columns(project: LiveProject, features: Sequence[Feature]) -> list[dict[str, object]]:
    """Return the snapshots that have all of these features."""
    rows = found(project, read_at_end(project, "snapshots")).rows
    return [row for row in rows if all(one.name in row for one in features)]


def _taken(outputs: Outputs, places: Sequence[int]) -> Outputs:
    return dataclasses.replace(
        outputs,
        ids=[outputs.ids[i] for i in places],
        contents=[outputs.contents[i] for i in places],
        keys=[outputs.keys[i] for i in places],
    )


# --- Row 20 ---------------------------------------------------------------------------------------

PARTITIONS, GROWN = 12, 24
TOLD = (f"keep the {PARTITIONS} partitions", f"got {GROWN}", "topic=", "another name")


def more_partitions(lab: Lab, size: Size) -> Outcome:
    """Row 20: the source gets twice as many partitions while a worker reads and events come.

    It must stop and say what can be done, and so must the next one; nothing that it wrote until
    then may be counted under a key that has moved. A new version of the pipeline, which spreads
    the keys by itself, then scores all from the beginning, though a worker of it is killed.
    """
    with Scene(lab, "s", definitions=TWO_ENTITIES, partitions=PARTITIONS) as scene:
        project = scene.project
        rows = with_shops(project, draw_payments(lab.seed, size.events), lab.seed)
        half = size.events // 2
        worker = scene.started()
        seen = scene.reader.count()
        _send(project, rows[:half])
        scene.one_more(seen)
        begin_s = time.monotonic()
        topic, client = project.topic("payments"), admin(project.environment.client)
        for future in client.create_partitions([NewPartitions(topic, GROWN)]).values():
            future.result()
        grown = dataclasses.replace(project, partitions=GROWN)
        _send(grown, rows[half:])
        codes = [ended(worker)]
        stopped_s = time.monotonic() - begin_s
        again = scene.start()
        codes.append(ended(again))
        named = all(text in one.output() for one in (worker, again) for text in TOLD)
        old = found(project, read_at_end(project, "snapshots"))
        wrong = _not_as(expected(rows, TWO[:1]), of_rows(old.rows, TWO[:1], "customer_key"))
        version = _new_version(scene, grown)
        with contextlib.closing(version), Reader(version) as reader:
            scene.started()
            reader.wait(lambda: reader.count() > 0, WAIT_S)
            scene.kill_workers()
            scene.started()
            reader.wait(lambda: reader.count() >= size.events, WAIT_S)
            scene.stop_workers()
            verdict = judge_plain(version, expected(rows, TWO), TWO, reader, "shop_key")
    met = codes == [1, 1] and named and stopped_s <= WATCH_S_MAX
    note = (
        f"stopped {stopped_s:.1f} s after the change; {len(old.rows):,} events scored until then;"
        f" exits {codes}, both ways named: {named}"
    )
    return Outcome.of(1, [added(verdict, Verdict(0, 0, 0, 0, wrong))], met=met, note=note)


#: A worker asks every five seconds how many partitions there are.
WATCH_S_MAX = 10.0


def _not_as(wanted: Outputs, there: Outputs) -> int:
    """Return how many of the outputs are not among those wanted."""
    asked = wanted.by_event()
    return sum((some - asked[one]).total() for one, some in there.by_event().items())


def _new_version(scene: Scene, grown: LiveProject) -> LiveProject:
    """Give the pipeline another name and its source no partitioner, and apply that."""
    file = scene.folder / "definitions.py"
    name = grown.plan.name
    text = file.read_text(encoding="utf-8").replace('    partitioner="murmur2",\n', "")
    file.write_text(text.replace(f'"{name}"', f'"{name}_2"'), encoding="utf-8")
    apply_project(scene.folder)
    environment = open_environment(scene.folder)
    assert not any(stage.direct for stage in environment.plan.pipelines[0].stages)
    return LiveProject(scene.folder, environment, grown.schema_id, PARTITIONS)


# --- Row 44 ---------------------------------------------------------------------------------------

OLD_FIELDS: tuple[dict[str, object], ...] = (
    {"name": "channel", "type": ["null", "string"], "default": None},
    {"name": "points", "type": ["null", "long"], "default": None},
)
NEW_FIELDS: tuple[dict[str, object], ...] = (
    {"name": "medium", "type": ["null", "string"], "default": None, "aliases": ["channel"]},
    {"name": "currency", "type": "string", "default": "EUR"},
)
#: What the registry must refuse: another type, a field without a default, one renamed without one.
REFUSED: tuple[tuple[str, dict[str, object] | None], ...] = (
    ("amount", {"name": "amount", "type": "string"}),
    ("amount", {"name": "value", "type": "double", "aliases": ["amount"]}),
    ("amount", None),
    ("", {"name": "country", "type": "string"}),
)


def schema_evolves(lab: Lab, size: Size) -> Outcome:
    """Row 44: old and new producers and workers together, up and down again, with a kill between.

    The new schema adds a field with a default, removes one, and renames one by an alias.
    """
    with Scene(lab, "s", definitions=SPENDING, fields=OLD_FIELDS) as scene:
        project = scene.project
        state = {"HEADRACE__STATE_FOLDER": str(scene.folder / ".headrace")}
        old = scene.started(environment=state)
        rows = draw_payments(lab.seed, size.events)
        quarter = size.events // 4
        sent = [_by_old(project, row) for row in rows[:quarter]]
        _go_on(scene, sent)
        folder, new_id = _with_new_schema(scene, lab)
        refused = _refused(project)
        write = _new_writer(folder, new_id)

        def mixed(begin: int) -> None:
            some = rows[begin : begin + quarter]
            made = [write(row) if i % 2 else _by_old(project, row) for i, row in enumerate(some)]
            sent.extend(made)
            _go_on(scene, made)

        new = scene.started(environment=state, folder=folder)
        mixed(quarter)
        _stop(old)
        mixed(2 * quarter)
        new.kill()
        new = scene.started(environment=state, folder=folder)
        # Down again: the old one joins, the new one goes.
        old = scene.started(environment=state)
        mixed(3 * quarter)
        _stop(new)
        wait_predicted(scene, len(sent))
        scene.stop_workers()
        verdict = judged(scene, sent)
        kept, said = kept_verdict(project, sent, [])
    met = refused == len(REFUSED)
    note = (
        f"{sum(one.fate == '' for one in sent):,} events, of them"
        f" {sum(one.value[1:5] == new_id.to_bytes(4, 'big') for one in sent):,} by the new schema;"
        f" {refused} of {len(REFUSED)} incompatible schemas refused{said}"
    )
    return Outcome.of(2, [added(verdict, kept)], met=met, note=note)


def _by_old(project: LiveProject, row: plain.Row) -> Sent:
    return message(project, {**row, "channel": "web", "points": 7})


def _new_writer(folder: Path, schema_id: int) -> Callable[[plain.Row], Sent]:
    """Return how a producer of the new version sends a payment."""
    file = next(folder.glob("schemas/*.avsc"))
    parsed = fastavro.parse_schema(json.loads(file.read_text(encoding="utf-8")))

    def write(row: plain.Row) -> Sent:
        body = io.BytesIO()
        body.write(struct.pack(">bI", 0, schema_id))
        new = {**row, "medium": "app", "currency": "CHF"}
        fastavro.schemaless_writer(body, parsed, new)
        key = str(row["customer_id"]).encode()
        # As the oracle writes it, with the old schema: what differs is read by nobody.
        return Sent(key, body.getvalue(), {**row, "channel": None, "points": None})

    return write


def _go_on(scene: Scene, sent: Sequence[Sent]) -> None:
    seen = scene.reader.count()
    scene.project.send([one[:2] for one in sent])
    scene.one_more(seen)


def _stop(worker: LiveWorker) -> None:
    code = worker.terminate(WAIT_S)
    if code != 0:
        msg = f"a worker must end with 0; got {code}; see {worker.log}"
        raise BenchError(msg)


def _with_new_schema(scene: Scene, lab: Lab) -> tuple[Path, int]:
    """Make a copy of the project with the new schema, apply it; return folder and schema id."""
    folder = lab.folder / "new"
    (folder / "schemas").mkdir(parents=True)
    for name in ("headrace.yaml", "definitions.py"):
        shutil.copy(scene.folder / name, folder / name)
    file = next(scene.folder.glob("schemas/*.avsc"))
    schema = json.loads(file.read_text(encoding="utf-8"))
    gone = {field["name"] for field in OLD_FIELDS}
    schema["fields"] = [f for f in schema["fields"] if f["name"] not in gone] + [*NEW_FIELDS]
    (folder / "schemas" / file.name).write_text(json.dumps(schema), encoding="utf-8")
    environment = open_environment(folder)
    ids = apply(environment)
    environment.registry.close()
    return folder, ids[scene.project.plan.source]


def _refused(project: LiveProject) -> int:
    """Return how many of the incompatible schemas the registry refuses."""
    source = project.plan.source_plan(project.plan.source)
    count = 0
    for name, field in REFUSED:
        schema = json.loads(source.schema)
        schema["fields"] = [one for one in schema["fields"] if one["name"] != name]
        schema["fields"] += [] if field is None else [field]
        try:
            project.environment.registry.register(f"{source.topic}-value", json.dumps(schema))
        except IncompatibleSchemaError:
            count += 1
    return count


ROWS = (
    Row(
        20,
        "a source gets 24 partitions in place of 12 while a worker reads",
        "stops within 10 s and names the two ways; a new version is exact",
        more_partitions,
        full=Size(runs=1, events=40_000),
    ),
    Row(
        44,
        "fields added, removed and renamed; old and new producers and workers, up and down again",
        "none in the DLQ; an incompatible schema is refused",
        schema_evolves,
        full=Size(runs=1, events=40_000),
    ),
    Row(
        45,
        "features added to both entities under live state, workers killed before and after",
        "former outputs unchanged, new features whole at once, each event once",
        definitions_change,
        full=Size(runs=1, events=40_000),
    ),
)
