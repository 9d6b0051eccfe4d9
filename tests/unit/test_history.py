"""What ``hr.history`` takes, gives and refuses; the numbers are the property tests' matter."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog
from pyarrow import feather

import headrace as hr
from headrace.features.errors import ColumnError
from headrace.lake.errors import HistoryError

TIME = {"type": "long", "logicalType": "timestamp-millis"}
DAY_MS = 86_400_000

payments = hr.Source(
    "payments",
    key="card",
    event_time="at",
    event_id="payment_id",
    schema={
        "type": "record",
        "name": "Payment",
        "fields": [
            {"name": "payment_id", "type": "string"},
            {"name": "card", "type": "string"},
            {"name": "at", "type": TIME},
            {"name": "amount", "type": ["null", "double"]},
        ],
    },
)
card = hr.Entity("card", key="card")
spending = hr.FeatureView(
    "card",
    entity=card,
    source=payments,
    features=[
        hr.count(over=["1d", "7d"]),
        hr.sum("amount", over="7d"),
        hr.last("amount", over="7d"),
    ],
)
scores = hr.Pipeline(
    "scores", source=payments, views=[spending], request={"amount": hr.col("amount")}
)


def payment_table(**columns):
    rows = {
        "payment_id": ["p0", "p1", "p2", "p3"],
        "card": ["x", "x", "y", "x"],
        "at": pa.array([0, DAY_MS, DAY_MS, 2 * DAY_MS], pa.timestamp("ms", "UTC")),
        "amount": [1.0, 2.0, 4.0, 8.0],
    }
    return pa.table(rows | columns)


def counts(table):
    return table["card__count_7d"].to_pylist()


def test_a_row_with_an_event_id_gets_the_events_up_to_and_with_it():
    spine = pa.table({"payment_id": ["p3", "p0", "p3"], "mark": [1, 2, 3]})

    table = hr.history(spine, scores, sources={"payments": payment_table()})

    assert table.select(["payment_id", "mark"]).equals(spine)
    assert counts(table) == [3, 1, 3]
    assert table["amount"].to_pylist() == [8.0, 1.0, 8.0]
    assert table["card__amount_sum_7d"].to_pylist() == [11.0, 1.0, 11.0]


def test_a_bare_row_gets_all_events_up_to_its_time():
    spine = pd.DataFrame(
        {"card": ["x", "x", "z"], "when": pd.to_datetime([0, DAY_MS - 1, DAY_MS], unit="ms")}
    )

    table = hr.history(spine, spending, sources={"payments": payment_table()}, time="when")

    assert counts(table) == [1, 1, 0]
    assert table["card__amount_last_7d"].to_pylist() == [1.0, 1.0, None]
    assert table.schema.field("card__count_7d").type == pa.int64()


def test_event_id_false_takes_a_spine_with_ids_as_bare_rows():
    tied = payment_table(at=pa.array([0, 0, 0, 0], pa.timestamp("ms", "UTC")))

    by_event = hr.history(tied, spending, sources={"payments": tied})
    bare = hr.history(tied, spending, sources={"payments": tied}, event_id=False)

    assert counts(by_event) == [1, 2, 1, 3]
    assert counts(bare) == [3, 3, 1, 3]


def test_order_by_decides_between_events_of_one_time():
    tied = payment_table(at=pa.array([0, 0, 0, 0], pa.timestamp("ms", "UTC")), arrival=[9, 8, 7, 6])

    table = hr.history(None, spending, sources={"payments": tied}, order_by="arrival")

    assert counts(table) == [3, 2, 1, 1]


def test_without_a_spine_every_event_is_asked_in_the_order_of_the_source():
    shuffled = payment_table().take(pa.array([3, 1, 0, 2]))

    table = hr.history(None, scores, sources={"payments": shuffled})

    assert table["payment_id"].to_pylist() == ["p3", "p1", "p0", "p2"]
    assert counts(table) == [3, 2, 1, 1]


@pytest.mark.parametrize("form", ["parquet", "folder", "feather", "frame", "batch"])
def test_sources_may_be_files_folders_tables_and_frames(form, tmp_path):
    table = payment_table()
    if form == "folder":
        # The files' names give the order of arrival.
        pq.write_table(table.slice(2), tmp_path / "part-1.parquet")
        pq.write_table(table.slice(0, 2), tmp_path / "part-0.parquet")
    pq.write_table(table, tmp_path / "whole.pq")
    feather.write_feather(table, tmp_path / "whole.feather", compression="uncompressed")
    data = {
        "parquet": tmp_path / "whole.pq",
        "folder": tmp_path,
        "feather": str(tmp_path / "whole.feather"),
        "frame": table.to_pandas(),
        "batch": table.to_batches()[0],
    }[form]
    if form == "folder":
        (tmp_path / "whole.pq").unlink()
        (tmp_path / "whole.feather").unlink()

    found = hr.history(None, spending, sources={"payments": data})

    assert counts(found) == [1, 2, 1, 3]


def test_a_spine_may_be_a_file(tmp_path):
    pq.write_table(pa.table({"payment_id": ["p1"], "other": [b"x"]}), tmp_path / "spine.parquet")

    table = hr.history(tmp_path / "spine.parquet", spending, sources={"payments": payment_table()})

    assert table.to_pydict()["other"] == [b"x"]
    assert counts(table) == [2]


def test_features_are_asked_for_by_view_and_by_name_in_any_order():
    table = hr.history(
        None,
        [spending, "card__amount_sum_7d"],
        sources={"payments": payment_table()},
    )
    named = hr.history(
        payment_table().select(["payment_id"]),
        ["card__count_7d", "card__count_1d"],
        project=project_of(spending),
        sources={"payments": payment_table()},
    )

    assert table.schema.names[-4:] == [
        "card__count_1d",
        "card__count_7d",
        "card__amount_sum_7d",
        "card__amount_last_7d",
    ]
    assert named.schema.names == ["payment_id", "card__count_7d", "card__count_1d"]


def project_of(view):
    """A project that is not on disk."""
    from headrace.features.project import Project
    from headrace.runtime.settings import Settings

    return Project(
        name="shop",
        folder=Path(),
        settings=Settings(project="shop"),
        sources=(view.source,),
        entities=(view.entity,),
        views=(view,),
        pipelines=(scores,),
        schemas={},
    )


def test_bad_rows_are_left_out_counted_and_told():
    nan = float("nan")
    bad = payment_table(amount=[1.0, nan, 2.0**41, 8.0])

    with structlog.testing.capture_logs() as logs:
        table = hr.history(None, scores, sources={"payments": bad})

    assert counts(table) == [1, None, None, 2]
    assert table["card__amount_sum_7d"].to_pylist() == [1.0, None, None, 9.0]
    metadata = table.schema.metadata
    assert json.loads(metadata[b"headrace.rejected"]) == {
        "payments.not_finite": 1,
        "payments.out_of_range": 1,
    }
    assert metadata[b"headrace.unanswered"] == b"2"
    told = {(entry["event"], entry.get("reason"), entry["rows"]) for entry in logs}
    assert told == {
        ("history_rows_left_out", "not_finite", 1),
        ("history_rows_left_out", "out_of_range", 1),
        ("history_asked_for_bad_input", None, 2),
    }


def test_ages_say_how_old_the_newest_event_is():
    spine = pa.table({"card": ["x", "z"], "at": pa.array([3 * DAY_MS, 0], pa.timestamp("ms"))})

    table = hr.history(spine, spending, sources={"payments": payment_table()}, ages=True)

    assert table["card__age_ms"].to_pylist() == [DAY_MS, None]


def big_tables(rows=20_000):
    random = np.random.default_rng(17)
    return payment_table(
        payment_id=[f"p{row}" for row in range(rows)],
        card=[f"card-{n}" for n in random.zipf(1.3, rows) % 500],
        at=pa.array(random.integers(0, 90 * DAY_MS, rows), pa.timestamp("ms", "UTC")),
        amount=np.round(random.lognormal(3, 1, rows), 2),
    )


def test_cutting_into_files_changes_no_bit_and_leaves_none(tmp_path):
    pq.write_table(big_tables(), tmp_path / "payments.parquet", row_group_size=3_000)
    sources = {"payments": tmp_path / "payments.parquet"}
    before = set(Path(tempfile.gettempdir()).glob("headrace-history-*"))

    whole = hr.history(None, scores, sources=sources)
    cut = hr.history(None, scores, sources=sources, rows_in_memory=1_000)

    assert cut.equals(whole)
    assert set(Path(tempfile.gettempdir()).glob("headrace-history-*")) <= before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": {}}, "history must hold source payments; got .* for .*; give sources="),
        (
            {"sources": {"payments": 7}},
            "data must be an Arrow table, a pandas frame, or the path .* got 'int'",
        ),
        (
            {"sources": {"payments": "nowhere"}},
            "a path of events must be a file, or a folder with Parquet .* got 'nowhere'",
        ),
        (
            {"spine": pa.table({"payment_id": ["p1", "p77"]})},
            "must name events that its source holds; got \"1 unknown ids, such as 'p77'\"",
        ),
        (
            {"spine": pa.table({"payment_id": ["p1"]}), "event_id": "paymnt_id"},
            "column paymnt_id must be in the spine; .*did you mean 'payment_id'",
        ),
        (
            {"spine": pa.table({"card": ["x"]})},
            "column at must be there; .* name the column with time=",
        ),
        (
            {"spine": pa.table({"at": pa.array([1], pa.timestamp("ms"))})},
            "the spine must hold the key of entity card",
        ),
        (
            {"spine": pa.table({"card": ["x"], "at": pa.array([None], pa.timestamp("ms"))})},
            "column at must hold no nulls",
        ),
        (
            {"spine": pa.table({"card": ["x"], "at": pa.array([1], pa.timestamp("ms"))})},
            "the spine must hold column amount, which the pipeline's vector reads",
        ),
        ({"order_by": {"payment": "at"}}, "order_by must name sources; .*did you mean 'payments'"),
        ({"order_by": "arrival"}, "order_by column arrival must be there"),
        ({"order_by": "card"}, "order_by column card must hold whole numbers or times"),
        ({"features": []}, "features must be a pipeline, a feature view, their name, or a list"),
        ({"features": ["card__count_7d"]}, "a feature must be a view, or .* give project="),
        ({"features": [spending, "card__count_8d"]}, "did you mean 'card__count_"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_hint(arguments, message):
    arguments = {
        "spine": None,
        "features": scores,
        "sources": {"payments": payment_table()},
    } | arguments
    with pytest.raises(HistoryError, match=message):
        hr.history(arguments.pop("spine"), arguments.pop("features"), **arguments)


def test_a_source_without_a_needed_column_is_refused():
    with pytest.raises(ColumnError, match="column amount must be there"):
        hr.history(None, scores, sources={"payments": payment_table().drop(["amount"])})


@pytest.mark.parametrize("rows_in_memory", [1_000, 2])
def test_a_later_stage_may_aggregate_features_of_an_earlier_one(rows_in_memory):
    visits = hr.Source(
        "visits",
        key="guest",
        event_time="at",
        event_id="visit_id",
        schema={
            "type": "record",
            "name": "Visit",
            "fields": [
                {"name": "visit_id", "type": "long"},
                {"name": "guest", "type": "string"},
                {"name": "place", "type": "string"},
                {"name": "at", "type": TIME},
            ],
        },
    )
    guest, place = hr.Entity("guest", key="guest"), hr.Entity("place", key="place")
    loyalty = hr.FeatureView("guest", entity=guest, source=visits, features=[hr.count(over="7d")])
    crowd = hr.FeatureView(
        "place",
        entity=place,
        source=visits,
        features=[hr.sum(hr.feature("guest__count_7d") * 10, over="7d", name="loyalty")],
    )
    table = pa.table(
        {
            "visit_id": [1, 2, 3, 4],
            "guest": ["ann", "bob", "ann", "ann"],
            "place": ["inn", "inn", "bar", "inn"],
            # The file is not in the order of time: the third row comes first.
            "at": pa.array([2_000, 3_000, 1_000, 4_000], pa.timestamp("ms")),
        }
    )

    found = hr.history(
        pa.table({"visit_id": [4, 3]}),
        hr.Pipeline("stay", source=visits, views=[loyalty, crowd]),
        sources={"visits": table},
        rows_in_memory=rows_in_memory,
    )

    # Visits 1, 2 and 4 are at the inn, as each guest's second, first and third.
    assert found["guest__count_7d"].to_pylist() == [3, 1]
    assert found["place__loyalty_7d"].to_pylist() == [60.0, 10.0]
