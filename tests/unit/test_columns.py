"""Arrow to columns, and which rows are bad input."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.features.columns import (
    REJECT_REASONS,
    check_rows,
    event_columns,
    take,
    value_matrix,
)
from headrace.features.compiler import compile_pipeline
from headrace.features.errors import ColumnError

NOW = 1_700_000_000_000
MINUTE = 60_000
NULL = float("nan")
FIELDS = {
    "id": "long",
    "who": ["null", "string"],
    "at": {"type": "long", "logicalType": "timestamp-millis"},
    "known": ["null", {"type": "long", "logicalType": "timestamp-millis"}],
    "amount": ["null", "double"],
    "pieces": ["null", "long"],
    "gift": "boolean",
    "raw": "bytes",
}


def plan_of(features, request=None, **options):
    fields = [{"name": n, "type": t} for n, t in FIELDS.items()]
    schema = {"type": "record", "name": "R", "fields": fields}
    source = hr.Source("orders", key="who", event_time="at", schema=schema, **options)
    entity = hr.Entity("who", key="who")
    view = hr.FeatureView("buyer", entity=entity, source=source, features=features)
    return compile_pipeline(hr.Pipeline("buy", source=source, views=[view], request=request or {}))


def rows(**columns):
    given = {
        "who": pa.array(["a", "b", "c"]),
        "at": pa.array([NOW] * 3, pa.timestamp("ms", "UTC")),
        "amount": pa.array([1.0, 2.0, 3.0]),
    }
    return pa.table({**given, **columns})


MEAN = [hr.mean("amount", over="1d")]


# --- Reading


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([5, None, -1], pa.int64()), [5, None, -1]),
        (pa.array([5, None, -1], pa.timestamp("ms")), [5, None, -1]),
        (pa.array([5_999, None, -1], pa.timestamp("us", "UTC")), [5, None, -1]),
        (pa.array([5_999_999, None, -1], pa.timestamp("ns")), [5, None, -1]),
        (pa.array([5, None, -1], pa.timestamp("s")), [5_000, None, -1_000]),
        (pa.array([2, None, -1], pa.date32()), [172_800_000, None, -86_400_000]),
        (pa.array([2, None, 1], pa.int32()), [2, None, 1]),
        (pa.chunked_array([[2], [None, 1]], pa.int64()), [2, None, 1]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_a_time_is_whole_milliseconds_rounded_down(column, expected):
    events = event_columns(rows(at=column), plan_of(MEAN).sources[0])

    assert events.columns["at"].to_pylist() == expected
    assert events.event_time_ms.tolist() == [e or 0 for e in expected]
    assert events.known_at_ms is events.event_time_ms


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1.5, None, 2.5], pa.float32()), [1.5, None, 2.5]),
        (pa.array([1, None, 2], pa.int32()), [1.0, None, 2.0]),
        (pa.array([2**53 + 1, None, 2], pa.int64()), [float(2**53), None, 2.0]),
        (pa.array([Decimal("1.25"), None, Decimal("2.5")]), [1.25, None, 2.5]),
        (pa.nulls(3), [None, None, None]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_a_number_is_float64(column, expected):
    events = event_columns(rows(amount=column), plan_of(MEAN).sources[0])

    assert events.columns["amount"].type == pa.float64()
    assert events.columns["amount"].to_pylist() == expected


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None, "b"], pa.large_string()),
        pa.array(["a", None, "b"], pa.string_view()),
        pa.array(["a", None, "b"]).dictionary_encode(),
        pa.chunked_array([["a"], [None, "b"]]),
    ],
    ids=lambda value: str(value.type),
)
def test_a_text_is_a_string_in_whatever_layout_it_came(column):
    events = event_columns(rows(who=column), plan_of(MEAN).sources[0])

    assert events.columns["who"].type == pa.string()
    assert events.columns["who"].to_pylist() == ["a", None, "b"]


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("who", pa.array([1, 2, 3])),
        ("who", pa.array([b"a", b"b", b"c"])),
        ("amount", pa.array(["1", "2", "3"])),
        ("amount", pa.array([True, False, True])),
        ("at", pa.array([1.0, 2.0, 3.0])),
        ("at", pa.array([1, 2, 3], pa.duration("ms"))),
        ("at", pa.array([2**64 - 1, 2, 3], pa.uint64())),
        ("at", pa.array([2**60, 2, 3], pa.timestamp("s"))),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_a_column_of_another_meaning_is_refused_by_name(name, column):
    with pytest.raises(ColumnError, match=f"column {name} .*must hold"):
        event_columns(rows(**{name: column}), plan_of(MEAN).sources[0])


def test_a_missing_column_is_refused_with_what_was_probably_meant():
    table = rows().rename_columns(["who", "at", "amuont"])

    with pytest.raises(ColumnError, match="did you mean 'amuont'"):
        event_columns(table, plan_of(MEAN).sources[0])


def test_columns_that_nothing_reads_are_left_alone():
    events = event_columns(rows(extra=pa.array([[1], [2], [3]])), plan_of(MEAN).sources[0])

    assert list(events.columns) == ["who", "at", "amount"]


def test_taken_rows_keep_all_their_columns():
    source = plan_of(MEAN, known_at="known").sources[0]
    known = pa.array([NOW + 1, NOW + 2, NOW + 3])
    events = event_columns(rows(known=known), source)

    taken = take(events, np.array([2, 0, 2]))

    assert taken.length == 3
    assert taken.columns["who"].to_pylist() == ["c", "a", "c"]
    assert taken.event_time_ms.tolist() == [NOW] * 3
    assert taken.known_at_ms.tolist() == [NOW + 3, NOW + 1, NOW + 3]


# --- Checks


def reasons(plan, arrival=NOW, **columns):
    events = event_columns(rows(**columns), plan.sources[0])
    arrived = None if arrival is None else np.full(3, arrival)
    return [REJECT_REASONS[code] for code in check_rows(events, arrived)]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, ["", "", ""]),
        ({"at": [NOW, None, -1]}, ["", "null_time", "negative_time"]),
        (
            {"at": [NOW + 5 * MINUTE, NOW + 5 * MINUTE + 1, 2**62]},
            ["", "future_time", "future_time"],
        ),
        ({"amount": [NULL, float("inf"), float("-inf")]}, ["not_finite"] * 3),
        ({"amount": [None, None, 1.0]}, ["", "", ""]),
        ({"amount": [None, NULL, 2.0**40]}, ["", "not_finite", "out_of_range"]),
        ({"amount": [2.0**40, -(2.0**40), 2.0**40 - 1]}, ["out_of_range"] * 2 + [""]),
        (
            {"at": [None, -1, NOW], "amount": [NULL] * 3},
            ["null_time", "negative_time", "not_finite"],
        ),
        ({"who": [None, "a", None]}, ["", "", ""]),
    ],
)
def test_a_bad_row_is_refused_with_the_first_reason_that_applies(columns, expected):
    types = {"at": pa.int64(), "amount": pa.float64(), "who": pa.string()}
    arrays = {name: pa.array(values, types[name]) for name, values in columns.items()}

    assert reasons(plan_of(MEAN), **arrays) == expected


def test_without_arrival_times_only_the_impossible_future_is_refused():
    at = pa.array([NOW + 10**9, 253_402_300_799_999, 253_402_300_800_000])

    assert reasons(plan_of(MEAN), arrival=None, at=at) == ["", "", "future_time"]


def test_how_far_ahead_is_the_sources_own_matter():
    at = pa.array([NOW + 10 * MINUTE, NOW + 10 * MINUTE + 1, NOW])

    assert reasons(plan_of(MEAN, max_ahead="10m"), at=at) == ["", "future_time", ""]


def test_when_it_was_known_is_checked_like_when_it_was():
    known = pa.array([None, -5, NOW + 6 * MINUTE], pa.int64())

    assert reasons(plan_of(MEAN, known_at="known"), known=known) == [
        "null_time",
        "negative_time",
        "future_time",
    ]


def test_rows_without_a_key_are_refused_where_the_source_says_so():
    who = pa.array([None, "a", None])

    assert reasons(plan_of(MEAN, null_key="dlq"), who=who) == ["null_key", "", "null_key"]


def test_bad_numbers_are_null_where_the_source_says_so():
    plan = plan_of(MEAN, request={"amount": hr.col("amount")}, not_finite="null")
    amount = pa.array([NULL, float("inf"), 2.0**40])
    events = event_columns(rows(amount=amount), plan.sources[0])

    assert reasons(plan, amount=amount) == ["", "", "out_of_range"]
    assert events.columns["amount"].to_pylist() == [None, None, 2.0**40]
    np.testing.assert_array_equal(
        value_matrix(plan.stages[0], "orders", events)[:, 0], [NULL, NULL, 2.0**40]
    )


def test_numbers_that_no_aggregate_reads_are_not_judged():
    plan = plan_of([hr.count(over="1d")], request={"amount": hr.col("amount")})

    assert reasons(plan, amount=pa.array([NULL, float("inf"), 2.0**50])) == ["", "", ""]


def test_whole_numbers_are_judged_by_their_range_too():
    plan = plan_of([hr.mean("pieces", over="1d")])
    pieces = pa.array([2**40, None, -(2**63)])

    assert reasons(plan, pieces=pieces) == ["out_of_range", "", "out_of_range"]


def test_an_expression_is_judged_by_what_comes_out_and_its_columns_by_being_finite():
    squared = hr.sum(hr.col("amount") * hr.col("amount"), name="squared", over="1d")
    shrunk = hr.sum(hr.col("amount") / 1e9, name="shrunk", over="1d")

    amount = pa.array([2.0**20, 2.0**20 - 1, NULL])
    assert reasons(plan_of([squared]), amount=amount) == ["out_of_range", "", "not_finite"]
    amount = pa.array([2.0**45, 1e300, float("inf")])
    assert reasons(plan_of([shrunk]), amount=amount) == ["", "out_of_range", "not_finite"]


def test_no_rows_are_no_trouble():
    plan = plan_of([hr.mean("amount", over="1d"), hr.mean("pieces", over="1d")])
    table = rows(pieces=pa.array([1, 2, 3])).slice(0, 0)
    events = event_columns(table, plan.sources[0])

    assert check_rows(events, np.empty(0, np.int64)).shape == (0,)
    assert value_matrix(plan.stages[0], "orders", events).shape == (0, 2)


# --- Values


def test_values_of_another_source_are_null():
    plan = plan_of(
        [hr.mean("amount", over="1d"), hr.sum(hr.col("amount") * 2, name="x", over="1d")]
    )
    (stage,) = plan.stages
    events = event_columns(rows(amount=pa.array([1.0, None, 3.0])), plan.sources[0])

    values = value_matrix(stage, "orders", events)
    others = value_matrix(stage, "refunds", events)

    np.testing.assert_array_equal(values, [[1.0, 2.0], [NULL, NULL], [3.0, 6.0]])
    assert np.isnan(others).all()
    assert others.shape == (3, 2)


def test_values_made_of_features_are_null_beyond_the_range_of_exact_sums():
    source_plan = plan_of(MEAN)
    fields = [{"name": n, "type": t} for n, t in FIELDS.items()]
    source = hr.Source(
        "orders",
        key="who",
        event_time="at",
        schema={"type": "record", "name": "R", "fields": fields},
    )
    views = [
        hr.FeatureView("buyer", entity=hr.Entity("who", key="who"), source=source, features=MEAN),
        hr.FeatureView(
            "order",
            entity=hr.Entity("order", key="id"),
            source=source,
            features=[
                hr.sum(hr.col("amount") * hr.feature("buyer__amount_mean_1d"), name="x", over="1d")
            ],
        ),
    ]
    plan = compile_pipeline(hr.Pipeline("buy", source=source, views=views))
    events = event_columns(rows(id=pa.array([1, 2, 3])), plan.sources[0])
    means = {"buyer__amount_mean_1d": np.array([2.0, 2.0**40, NULL])}

    values = value_matrix(plan.stages[1], "orders", events, means)

    np.testing.assert_array_equal(values, [[2.0], [NULL], [NULL]])
    assert source_plan.stages[0].entity == "who"
