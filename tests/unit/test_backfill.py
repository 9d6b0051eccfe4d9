"""What ``backfill`` writes, replaces, leaves alone and refuses."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from datetime import UTC, datetime

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import headrace as hr
from headrace.cli.main import app
from headrace.features.feast_repo.objects import repo_objects
from headrace.features.feast_repo.repository import repository_of
from headrace.features.feast_repo.tables import EMPTY_FILE
from headrace.lake.backfill import backfill
from headrace.lake.errors import LakeError
from headrace.lake.tables import RECORD_FIELDS

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
SCHEMA = {
    "type": "record",
    "name": "Payment",
    "fields": [
        {"name": "payment_id", "type": "string"},
        {"name": "card", "type": ["null", "string"]},
        {"name": "shop", "type": ["null", "long"]},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "amount", "type": "double"},
    ],
}
DEFINITIONS = """
import headrace as hr

payments = hr.Source("payments", key="card", event_time="at"{ids}, schema="schemas/payments.avsc")
card = hr.FeatureView(
    "card",
    entity=hr.Entity("card", key="card"),
    source=payments,
    features=[hr.count(over="{over}"), hr.sum("amount", over="2d")],
)
shop = hr.FeatureView(
    "shop", entity=hr.Entity("shop", key="shop"), source=payments, features=[hr.count(over="1d")]
)
scores = hr.Pipeline("scores", source=payments, views=[card, shop])
"""
ROWS = [
    # id, card, shop, ms, amount
    ("a", "x", 1, 1_000, 1.0),
    ("b", "x", 1, 1_000, 2.0),
    ("c", None, 1, 2_000, 4.0),
    ("d", "y", 2, DAY_MS + 500, float("nan")),
    ("e", "x", None, DAY_MS + 1_000, 8.0),
    ("f", "x", 2, 3 * DAY_MS, 16.0),
]


def write_events(folder, rows):
    columns = [list(column) for column in zip(*rows, strict=True)]
    names = [field["name"] for field in SCHEMA["fields"]]
    types = [pa.string(), pa.string(), pa.int64(), pa.timestamp("ms", "UTC"), pa.float64()]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, names=names), folder / "payments.parquet")


def define(folder, *, ids=True, over="1d"):
    text = DEFINITIONS.format(ids=', event_id="payment_id"' if ids else "", over=over)
    (folder / "definitions.py").write_text(text)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "payments.avsc").write_text(json.dumps(SCHEMA))
    (tmp_path / "headrace.yaml").write_text(
        "project: shop\nhistory:\n  payments: payments.parquet\n"
    )
    define(tmp_path)
    write_events(tmp_path, ROWS)
    return tmp_path


def tables(result):
    """Return each view's rows as tuples, by event time and created time."""
    found = {}
    for item in result.views:
        table = pq.read_table(item.folder)
        times = [table.schema.names[1], table.schema.names[2]]
        rows = table.sort_by([(name, "ascending") for name in times]).to_pylist()
        found[item.view] = [tuple(row.values()) for row in rows]
    return found


def at(ms, us=0):
    return datetime.fromtimestamp(ms / 1000, UTC).replace(microsecond=us)


def days(result, view="card"):
    folder = next(item.folder for item in result.views if item.view == view)
    return sorted(path.stem for path in folder.iterdir() if path.name != EMPTY_FILE)


def contents(result):
    return {path: path.read_bytes() for item in result.views for path in item.folder.iterdir()}


def test_every_good_event_with_a_key_has_its_row_and_ties_are_in_order(folder):
    result = backfill(hr.load(folder))

    assert tables(result) == {
        "card": [
            ("x", at(1_000), at(1_000), 1, 1.0),
            ("x", at(1_000), at(1_000, 1), 2, 3.0),
            ("x", at(DAY_MS + 1_000), at(DAY_MS + 1_000), 1, 11.0),
            ("x", at(3 * DAY_MS), at(3 * DAY_MS), 1, 24.0),
        ],
        "shop": [
            (1, at(1_000), at(1_000), 1),
            (1, at(1_000), at(1_000, 1), 2),
            (1, at(2_000), at(2_000), 3),
            (2, at(3 * DAY_MS), at(3 * DAY_MS), 1),
        ],
    }
    assert [(item.view, item.rows, item.days) for item in result.views] == [
        ("card", 4, 3),
        ("shop", 4, 2),
    ]
    assert result.left_out == 1


def test_a_source_without_ids_has_the_same_rows(folder):
    named = tables(backfill(hr.load(folder)))
    define(folder, ids=False)

    assert tables(backfill(hr.load(folder))) == named


def test_from_the_lake_ties_are_in_the_order_of_their_places_in_kafka(folder):
    from_files = backfill(hr.load(folder))
    expected, left_out = tables(from_files), from_files.left_out
    (folder / "headrace.yaml").write_text("project: shop\n")
    rows = pq.read_table(folder / "payments.parquet")
    places = [
        pa.array(["T"] * len(ROWS)),
        pa.array([0] * len(ROWS), pa.int32()),
        pa.array(range(len(ROWS)), pa.int64()),
        rows.column("at").cast(RECORD_FIELDS.field(3).type),
    ]
    for field, column in zip(RECORD_FIELDS, places, strict=True):
        rows = rows.append_column(field, column)
    # Files in no order, and the rows of a tie in the wrong one.
    lake = hr.load(folder).settings.lake.folder
    for index in (5, 1, 0, 4, 3, 2):
        deltalake.write_deltalake(lake / "payments", rows.slice(index, 1), mode="append")

    result = backfill(hr.load(folder), rows_at_once=2)

    assert tables(result) == expected
    assert result.left_out == left_out == 1


@pytest.mark.parametrize("rows_at_once", [1, 2, 1_000])
def test_the_parts_that_it_works_in_change_nothing(folder, rows_at_once):
    seen = []

    result = backfill(
        hr.load(folder),
        rows_at_once=rows_at_once,
        progress=lambda done, total: seen.append((done, total)),
    )

    assert tables(result) == tables(backfill(hr.load(folder)))
    assert seen[-1] == (6, 6)
    assert len(seen) == {1: 3, 2: 3, 1_000: 1}[rows_at_once]


@pytest.mark.parametrize("rows_at_once", [1, 1_000])
def test_events_in_any_order_stand_by_time_in_the_files_of_their_days(folder, rows_at_once):
    hours = [26, 3, 50, 1, 27, 2]
    write_events(folder, [(str(h), "x", 1, h * HOUR_MS, 1.0) for h in hours])

    result = backfill(hr.load(folder), ["card"], rows_at_once=rows_at_once)

    found = {
        day: pq.read_table(result.views[0].folder / f"{day}.parquet")["event_timestamp"].to_pylist()
        for day in days(result)
    }
    assert found == {
        "1970-01-01": [at(h * HOUR_MS) for h in (1, 2, 3)],
        "1970-01-02": [at(h * HOUR_MS) for h in (26, 27)],
        "1970-01-03": [at(50 * HOUR_MS)],
    }


def test_a_second_run_changes_no_byte(folder):
    first = contents(backfill(hr.load(folder)))

    assert contents(backfill(hr.load(folder))) == first


def test_a_period_is_replaced_as_a_whole_and_nothing_else(folder):
    before = backfill(hr.load(folder))
    assert days(before) == ["1970-01-01", "1970-01-02", "1970-01-04"]
    first = contents(before)
    write_events(folder, [("g", "z", 9, 2 * DAY_MS, 1.0)])

    result = backfill(hr.load(folder), start_ms=DAY_MS, end_ms=3 * DAY_MS)

    assert days(result) == ["1970-01-01", "1970-01-03", "1970-01-04"]
    kept = {path for path in first if path.stem in {"1970-01-01", "1970-01-04"}}
    assert {path: contents(result)[path] for path in kept} == {path: first[path] for path in kept}


def test_without_dates_all_days_are_written_anew(folder):
    backfill(hr.load(folder))
    write_events(folder, ROWS[:1])

    assert days(backfill(hr.load(folder))) == ["1970-01-01"]


def test_one_view_is_written_alone(folder):
    result = backfill(hr.load(folder), ["shop"])

    assert [item.view for item in result.views] == ["shop"]
    assert not (repository_of(hr.load(folder).settings).offline / "card").exists()


def test_another_definition_has_a_table_of_its_own(folder):
    old = backfill(hr.load(folder), ["card"])
    define(folder, over="2d")

    new = backfill(hr.load(folder), ["card"])

    assert tables(new)["card"][2][3] == 3
    assert new.views[0].folder != old.views[0].folder
    # Feast still reads the old one: nothing is taken away from it before the next apply.
    assert not new.applied
    assert old.views[0].folder.is_dir()


def test_once_applied_the_tables_of_older_definitions_go(folder):
    old = backfill(hr.load(folder), ["card"])
    define(folder, over="2d")
    project = hr.load(folder)
    repository, objects = repository_of(project.settings), repo_objects(project)
    repository.remember(objects)
    (repository.folder / "registry.db").touch()
    repository.apply(objects, "redis://127.0.0.1:6379")

    new = backfill(project, ["card"])

    assert new.applied
    assert not old.views[0].folder.exists()
    assert new.views[0].folder.is_dir()


def test_what_a_killed_run_left_is_not_read(folder):
    first = backfill(hr.load(folder))
    before = contents(first)
    partial = first.views[0].folder.with_name(f"{first.views[0].folder.name}.partial")
    partial.mkdir()
    (partial / "1970-01-09.parquet").write_bytes(b"half")

    again = backfill(hr.load(folder))

    assert contents(again) == before
    assert not partial.exists()


def test_no_events_in_a_period_empty_it(folder):
    backfill(hr.load(folder))

    result = backfill(hr.load(folder), start_ms=0, end_ms=DAY_MS)
    assert days(result) == ["1970-01-01", "1970-01-02", "1970-01-04"]

    write_events(folder, ROWS[-1:])
    result = backfill(hr.load(folder), start_ms=0, end_ms=DAY_MS)
    assert days(result) == ["1970-01-02", "1970-01-04"]
    assert pq.read_table(result.views[0].folder).num_rows == 2


def test_an_unknown_view_is_refused_with_a_hint(folder):
    with pytest.raises(LakeError, match="did you mean 'card'"):
        backfill(hr.load(folder), ["cart"])


@pytest.mark.parametrize(("start_ms", "end_ms"), [(1, None), (None, DAY_MS + 1), (DAY_MS, DAY_MS)])
def test_a_period_that_is_not_of_days_is_refused(folder, start_ms, end_ms):
    with pytest.raises(LakeError, match=r"--(from|to)"):
        backfill(hr.load(folder), start_ms=start_ms, end_ms=end_ms)


def test_two_at_a_time_are_refused(folder):
    offline = repository_of(hr.load(folder).settings).offline
    offline.mkdir(parents=True)
    with (offline / "backfill.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)

        with pytest.raises(LakeError, match="run alone"):
            backfill(hr.load(folder))

    backfill(hr.load(folder))


def test_a_source_without_events_is_refused(folder):
    (folder / "headrace.yaml").write_text("project: shop\n")

    with pytest.raises(LakeError, match="payments"):
        backfill(hr.load(folder))


def test_the_command(folder):
    def run(*arguments):
        command = [sys.executable, "-m", "headrace.cli.main", "backfill", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    told = run("card", "--from", "1970-01-02", "--to", "1970-01-04")
    assert told.returncode == 0, told.stderr
    assert "card: 1 rows on 1 days" in told.stdout
    assert "1 events are bad input" in told.stdout
    assert "run 'headrace apply'" in told.stdout
    as_json = json.loads(run("--json").stdout)
    assert [view["rows"] for view in as_json["views"]] == [4, 4]
    assert as_json["applied"] is False


def test_a_day_that_is_none_is_wrong_use(folder):
    command = ["backfill", "--project", str(folder), "--from", "yesterday"]

    assert CliRunner().invoke(app, command).exit_code == 2
