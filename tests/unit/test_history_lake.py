"""History over the lake: rows in no order, several topics of a name, pruned and cut, told apart."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from lake_files import lake_project
from visits import DAY_MS, NAMES, START_MS, habits, stay, world, write_world

import headrace as hr
from headrace.lake.errors import HistoryError
from headrace.lake.events import Span
from headrace.lake.stored import open_stored
from headrace.lake.tables import Lake


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lake")
    write_world(folder, *world())
    return lake_project(folder, pipelines=(stay,))


def in_order(table, partition, offset):
    """Return a source's rows as a file in the canonical order of ties."""
    return table.take(pa.array(np.lexsort((offset, partition, table["at"].cast(pa.int64())))))


@pytest.fixture(scope="module")
def from_files():
    """Return what history says over files that are in the lake's canonical order."""
    table, partition, offset, claimed = world()
    sources = {"visits": in_order(table, partition, offset), "claims": claimed}
    return hr.history(None, stay, sources=sources)


def same(left, right):
    """Whether the features are equal bit for bit, row after row."""
    assert left["visit_id"].to_pylist() == right["visit_id"].to_pylist()
    for name in (column for column in right.schema.names if "__" in column or column in NAMES):
        assert left[name].combine_chunks().equals(right[name].combine_chunks()), name


@pytest.mark.parametrize("rows_in_memory", [4_000_000, 150, 7])
def test_events_of_the_lake_come_in_canonical_order_with_the_numbers_of_files(
    lake, from_files, rows_in_memory
):
    table = hr.history(None, stay, project=lake, rows_in_memory=rows_in_memory)

    same(table, from_files)
    assert table.schema.field("at").type == pa.timestamp("us", "UTC")
    assert table.schema.metadata[b"headrace.unanswered"] == b"0"


@pytest.mark.parametrize("rows_in_memory", [4_000_000, 60])
def test_a_period_reads_what_its_windows_reach_and_gives_the_same(lake, from_files, rows_in_memory):
    start, end = START_MS + 6 * DAY_MS, START_MS + 8 * DAY_MS

    table = hr.history(
        None, stay, project=lake, start=start, end=end, rows_in_memory=rows_in_memory
    )

    at = from_files["at"].cast(pa.int64()).to_numpy()
    same(table, from_files.filter(pa.array((at >= start) & (at < end))))
    reader = open_stored(lake_of(lake).table("visits"), "visits", "at")
    assert 0 < reader.narrow(Span(start - 3 * DAY_MS, end)).row_count < reader.row_count


def lake_of(project):
    return Lake(project.settings.lake.folder)


def test_a_spine_of_ids_and_one_of_keys_are_answered_from_the_lake(lake, from_files):
    ids = [5, 599, 5, 0]
    row_of = {i: row for row, i in enumerate(from_files["visit_id"].to_pylist())}

    by_id = hr.history(pa.table({"visit_id": ids}), stay, project=lake)
    bare = hr.history(
        from_files.select(["guest", "at"]).slice(100, 50), [habits], project=lake, event_id=False
    )

    same(by_id, from_files.take(pa.array([row_of[i] for i in ids])))
    table, partition, offset, claimed = world()
    sources = {"visits": in_order(table, partition, offset), "claims": claimed}
    spine = from_files.select(["guest", "at"]).slice(100, 50)
    wanted = hr.history(spine, [habits], sources=sources, event_id=False)
    assert bare["guest__count_1d"].to_pylist() == wanted["guest__count_1d"].to_pylist()


def test_compaction_and_other_files_change_nothing(tmp_path, from_files):
    write_world(tmp_path, *world())
    DeltaTable(str(tmp_path / "visits")).optimize.compact()

    same(hr.history(None, stay, project=lake_project(tmp_path)), from_files)


def test_a_topic_that_was_made_again_hides_the_older_one_unless_told(tmp_path):
    table, partition, offset, claimed = world(200)
    write_world(tmp_path, table, partition, offset, claimed, topic_id="zz-old")
    newer, partition, offset, claimed = world(150, seed=2)
    write_world(
        tmp_path, newer, partition, offset, claimed.slice(0, 0), topic_id="new", late_ms=30 * DAY_MS
    )
    project = lake_project(tmp_path)

    current = hr.history(None, [habits], project=project)
    everything = hr.history(None, [habits], project=project, topics="all")

    assert sorted(current["visit_id"].to_pylist()) == list(range(150))
    assert everything.num_rows == 350
    # Both topics have an event 7; ties go to the smaller topic id.
    spine = pa.table({"visit_id": [7]})
    (row,) = hr.history(spine, [habits], project=project, topics="all").to_pylist()
    (same_id,) = hr.history(spine, [habits], project=project).to_pylist()
    assert row["guest__count_1d"] >= same_id["guest__count_1d"]


def test_of_an_event_id_that_comes_twice_the_first_place_counts(tmp_path):
    table, _partition, _offset, claimed = world(50)
    twice = table.set_column(0, "visit_id", pa.array([1] * 50))
    write_world(tmp_path, twice, np.zeros(50), np.arange(50)[::-1], claimed)
    project = lake_project(tmp_path)

    (row,) = hr.history(pa.table({"visit_id": [1]}), [habits], project=project).to_pylist()

    events = hr.history(None, [habits], project=project).to_pylist()
    last = table.slice(49, 1).to_pylist()[0]
    (first,) = [one for one in events if (one["at"], one["guest"]) == (last["at"], last["guest"])][
        :1
    ]
    assert row["guest__count_1d"] == first["guest__count_1d"]
    assert row["guest__spent_last_1d"] == last["spent"]


def test_labels_say_when_an_event_was_first_reported_positive(lake):
    _, _, _, claimed = world()
    told = {row["visit_id"]: row["seen"] for row in claimed.to_pylist() if row["bad"]}

    table = hr.history(None, stay, project=lake, label=True)

    for row in table.to_pylist():
        assert row["label"] == (row["visit_id"] in told)
        assert row["label_known_at"] == told.get(row["visit_id"])


def test_bad_input_is_left_out_of_the_lakes_events_and_counted(tmp_path):
    table, partition, offset, claimed = world(40)
    spent = table["spent"].to_numpy().copy()
    spent[3] = np.nan
    index = table.schema.names.index("spent")
    write_world(
        tmp_path, table.set_column(index, "spent", pa.array(spent)), partition, offset, claimed
    )

    found = hr.history(None, stay, project=lake_project(tmp_path), rows_in_memory=9)

    assert found.num_rows == 39
    assert found.schema.metadata[b"headrace.rejected"] == b'{"visits.not_finite": 1}'
    assert found.schema.metadata[b"headrace.unanswered"] == b"1"


def test_what_is_given_wins_then_the_files_then_the_lake(lake, tmp_path):
    table, _partition, _offset, claimed = world()
    few = {"visits": table.slice(0, 10), "claims": claimed}
    pq.write_table(table.slice(0, 20), tmp_path / "visits.parquet")
    settings = lake.settings.model_copy(update={"history": {"visits": tmp_path / "visits.parquet"}})
    project = lake_project(tmp_path)
    project = type(project)(
        **{name: getattr(project, name) for name in project.__slots__} | {"settings": settings}
    )

    assert hr.history(None, [habits], project=project, sources=few).num_rows == 10
    assert hr.history(None, [habits], project=project).num_rows == 20
    assert hr.history(None, [habits], project=project, sources="lake").num_rows == 600
    assert hr.history(None, [habits], project=project, as_of="1s").num_rows == 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"project": "empty"}, "history must hold source claims.*or let 'headrace lake' write it"),
        ({"as_of": "yesterday"}, "as_of must be 'event', 'served' or a lag; got 'yesterday'"),
        ({"as_of": "1s", "sources": "files"}, "a lag must hold _arrival_time"),
        ({"start": "2023-13-01"}, "a time must be a date"),
        ({"start": 5, "end": 5}, "end= must come after start="),
        ({"start": 5, "spine": pa.table({"visit_id": [1]})}, "must come without a spine"),
        ({"label": True, "features": [habits]}, "label=True must ask a pipeline"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_hint(lake, tmp_path, arguments, message):
    arguments = {"spine": None, "features": stay, "project": lake} | arguments
    if arguments["project"] == "empty":
        arguments["project"] = lake_project(tmp_path)
    if arguments.get("sources") == "files":
        table, _, _, claimed = world(20)
        arguments["sources"] = {"visits": table, "claims": claimed}

    with pytest.raises(HistoryError, match=message):
        hr.history(arguments.pop("spine"), arguments.pop("features"), **arguments)


def test_a_lag_over_replayed_rows_is_refused_unless_told(tmp_path):
    write_world(tmp_path, *world(60), late_ms=20 * DAY_MS)
    project = lake_project(tmp_path)

    with pytest.raises(HistoryError, match=r"rows that came 20d off.*say replayed=True"):
        hr.history(None, stay, project=project, as_of="1s")

    table = hr.history(None, stay, project=project, as_of="1s", replayed=True)
    assert set(table["guest__count_1d"].to_pylist()) == {0}
    assert table.schema.metadata[b"headrace.as_of"] == b"1s"
