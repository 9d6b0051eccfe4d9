"""A set is made again from its receipt, byte for byte, whatever was appended or rewritten since."""

from __future__ import annotations

import dataclasses
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from lake_files import lake_project, send_shuffled, write_lake
from stream_cases import HOUR_MS, make_payments, one_stage
from typer.testing import CliRunner
from visits import DAY_MS, NAMES, START_MS, stay, world, write_world

import headrace as hr
from headrace.cli.main import app
from headrace.features.compiler import compile_pipeline
from headrace.lake import dataset
from headrace.lake.dataset import (
    SetRequest,
    differences,
    read_receipt,
    rebuild_set,
    receipt_path,
    write_set,
)
from headrace.lake.errors import HistoryError
from headrace.lake.history import period_span
from headrace.lake.request import as_of_from, plans_for
from headrace.lake.tables import OFFSET, Lake
from headrace.streams.testing import Driver

PLAN = compile_pipeline(stay)
PERIOD = period_span(START_MS + 3 * DAY_MS, START_MS + 8 * DAY_MS)


@pytest.fixture
def project(tmp_path):
    write_world(tmp_path / "lake", *world())
    return lake_project(tmp_path / "lake", pipelines=(stay,))


def write(project, out, **asked):
    wanted = SetRequest(PLAN, **({"span": PERIOD, "label": True} | asked))
    order = as_of_from(wanted.as_of)
    return write_set(wanted, plans_for(PLAN, project, "lake", order), out)


def rebuild(project, receipt, out, **given):
    return rebuild_set(receipt, project, Lake(project.settings.lake.folder), out, **given)


def grow(folder):
    """Append later rows of the same topics and partitions, and rewrite all files into one."""
    write_world(folder, *world(200, seed=9), first=10_000)
    for name in ("visits", "claims"):
        table = DeltaTable(str(folder / name))
        table.optimize.compact()
        table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)


def test_a_set_is_what_history_says_and_its_receipt_says_of_what(project, tmp_path):
    receipt = write(project, tmp_path / "set.parquet")

    table = pq.read_table(tmp_path / "set.parquet")
    wanted = hr.history(
        None, stay, project=project, start=PERIOD.start_ms, end=PERIOD.end_ms + 1, label=True
    )
    assert table.equals(wanted)
    assert receipt.rows == table.num_rows > 200
    assert {"label", "label_known_at", *NAMES} <= set(table.schema.names)
    told = json.loads(receipt_path(tmp_path / "set.parquet").read_text())
    assert told["id"] == receipt.id == read_receipt(tmp_path / "set.receipt.json").id
    visits = told["sources"]["visits"]
    assert visits["table"] == "visits"
    assert sum(one["rows"] for one in visits["offsets"]) == 600
    assert {one["partition"]: one["end"] - one["first"] for one in visits["offsets"]} == {
        one["partition"]: one["rows"] for one in visits["offsets"]
    }
    assert told["fingerprint"] == PLAN.fingerprint
    assert read_receipt(tmp_path / "set.receipt.json").plan == PLAN


def test_memory_and_files_change_no_byte(project, tmp_path):
    one = write(project, tmp_path / "one.parquet")
    cut = write(project, tmp_path / "cut.parquet", rows_in_memory=100)

    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "cut.parquet").read_bytes()
    assert one.id == cut.id


def test_after_appends_and_compaction_the_bytes_are_equal(project, tmp_path):
    receipt = write(project, tmp_path / "set.parquet")
    before = (tmp_path / "set.parquet").read_bytes()
    grow(tmp_path / "lake")

    again = rebuild(project, receipt, tmp_path / "again.parquet")
    anew = write(project, tmp_path / "anew.parquet")

    assert (tmp_path / "again.parquet").read_bytes() == before
    assert again.id == receipt.id
    assert anew.id != receipt.id, "the new rows are in the period too"


def test_a_spine_comes_back_too_and_must_be_the_same(project, tmp_path):
    spine = tmp_path / "spine.parquet"
    pq.write_table(pa.table({"visit_id": [5, 1, 5], "note": ["a", "b", "c"]}), spine)
    receipt = write(project, tmp_path / "set.parquet", spine=spine, span=None)
    grow(tmp_path / "lake")
    moved = spine.rename(tmp_path / "moved.parquet")

    again = rebuild(project, receipt, tmp_path / "again.parquet", spine=moved)

    assert again.sha256 == receipt.sha256
    assert pq.read_table(tmp_path / "set.parquet")["note"].to_pylist() == ["a", "b", "c"]
    with pytest.raises(HistoryError, match="the spine must be where it was"):
        rebuild(project, receipt, tmp_path / "again.parquet")
    pq.write_table(pa.table({"visit_id": [5, 1, 6]}), spine)
    with pytest.raises(HistoryError, match="the spine must have the receipt's sha256"):
        rebuild(project, receipt, tmp_path / "again.parquet")


@pytest.mark.parametrize("as_of", ["served", "10m"])
def test_served_and_lagged_sets_come_back_too(tmp_path, as_of):
    plan = one_stage()
    driver = Driver(plan, partitions=2, seed=3, batch_rows=20)
    payments = make_payments(300, seed=11, step_ms=300_000)
    send_shuffled(driver, "payments", payments[:200], 5, HOUR_MS)
    driver.run()
    folder = tmp_path / "lake"
    write_lake(folder, driver)
    project = lake_project(folder)
    request = plans_for(plan, project, "lake", as_of_from(as_of))
    receipt = write_set(SetRequest(plan, as_of=as_of), request, tmp_path / "set.parquet")
    before = (tmp_path / "set.parquet").read_bytes()
    send_shuffled(driver, "payments", payments[200:], 6, HOUR_MS)
    driver.run()
    grown = tmp_path / "grown"
    write_lake(grown, driver)

    again = rebuild(lake_project(grown), receipt, tmp_path / "again.parquet")

    assert receipt.rows > 150
    assert (tmp_path / "again.parquet").read_bytes() == before
    assert again.id == receipt.id
    assert set(receipt.content["snapshots"]) == (
        {"spend_snapshots"} if as_of == "served" else set()
    )


def test_files_are_read_again_only_if_they_are_the_same(tmp_path):
    table, _, _, claimed = world(50)
    pq.write_table(table, tmp_path / "visits.parquet")
    pq.write_table(claimed, tmp_path / "claims.parquet")
    sources = {name: tmp_path / f"{name}.parquet" for name in ("visits", "claims")}
    request = plans_for(PLAN, None, sources)
    receipt = write_set(SetRequest(PLAN), request, tmp_path / "set.parquet")
    project = lake_project(tmp_path / "none")

    again = rebuild(project, receipt, tmp_path / "again.parquet")
    assert again.id == receipt.id

    pq.write_table(table.slice(1), tmp_path / "visits.parquet")
    with pytest.raises(HistoryError, match="source visits must have the receipt's sha256"):
        rebuild(project, receipt, tmp_path / "again.parquet")


def test_rows_that_were_deleted_are_missed(project, tmp_path):
    receipt = write(project, tmp_path / "set.parquet")
    DeltaTable(str(tmp_path / "lake" / "visits")).delete(f"{OFFSET} < 3")

    with pytest.raises(HistoryError, match=r"the lake must hold the receipt's .* retention or an"):
        rebuild(project, receipt, tmp_path / "again.parquet")
    assert not (tmp_path / "again.parquet").exists()


def test_other_engines_and_definitions_are_told(project, tmp_path):
    receipt = write(project, tmp_path / "set.parquet")
    content = {**receipt.content, "engine": {**receipt.content["engine"], "pyarrow": "1.0"}}
    changed = dataclasses.replace(PLAN, fingerprint="f" * 16)

    assert differences(receipt, [PLAN]) == []
    engine, definitions = differences(dataset.Receipt(content), [changed])
    assert engine.startswith("made with pyarrow 1.0, this is ")
    assert "the project's are now ffffffffffffffff" in definitions


def test_a_receipt_that_was_changed_is_refused(project, tmp_path):
    write(project, tmp_path / "set.parquet")
    path = tmp_path / "set.receipt.json"
    path.write_text(path.read_text().replace('"as_of": "event"', '"as_of": "served"'))

    with pytest.raises(HistoryError, match="it was changed"):
        read_receipt(path)
    path.write_text("{}")
    with pytest.raises(HistoryError, match="a receipt must be a receipt that"):
        read_receipt(path)


DEFINITIONS = """
import headrace as hr

visits = hr.Source("visits", key="guest", event_time="at", event_id="visit_id")
guest = hr.Entity("guest", key="guest")
habits = hr.FeatureView(
    "guest", entity=guest, source=visits, features=[hr.count(over=["1h", "1d"])]
)
stay = hr.Pipeline("stay", source=visits, views=[habits])
"""


def headrace(folder, *arguments):
    """Run a command in this process; return its result, or the error that it ends with."""
    return CliRunner().invoke(app, ["history", "--project", str(folder), *arguments])


def test_the_command_writes_a_set_and_makes_it_again(tmp_path):
    (tmp_path / "headrace.yaml").write_text("project: hotel\n")
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "schemas").mkdir()
    schema = stay.source.schema
    (tmp_path / "schemas" / "visits.avsc").write_text(json.dumps(schema))
    lake = tmp_path / ".headrace" / "lake"
    write_world(lake, *world())
    first, again, two = (tmp_path / f"{name}.parquet" for name in ("set", "again", "two"))

    written = headrace(tmp_path, "--from", "2023-11-16", "--out", str(first), "--json")
    grow(lake)
    (tmp_path / "definitions.py").write_text(DEFINITIONS.replace('"1h", "1d"', '"2h"'))
    receipt = str(tmp_path / "set.receipt.json")
    rebuilt = headrace(tmp_path, "--rebuild", receipt, "--out", str(again))
    named = headrace(tmp_path, "--features", "guest__count_2h", "--out", str(two))
    wrong = headrace(tmp_path, "--rebuild", "no.json", "--out", "x.parquet")
    unserved = headrace(tmp_path, "--audit")
    nowhere = headrace(tmp_path)

    told = json.loads(written.stdout)
    assert first.read_bytes() == again.read_bytes()
    assert told["rows"] == pq.read_metadata(first).num_rows > 0
    assert "the same bytes" in rebuilt.stdout
    assert "the project's are now" in rebuilt.stderr
    assert "training set" in named.stdout
    assert pq.read_table(two).schema.names[-1] == "guest__count_2h"
    assert "be a receipt" in str(wrong.exception)
    assert "find snapshots" in str(unserved.exception)
    assert nowhere.exit_code == 2
