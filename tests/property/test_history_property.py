"""History against the oracle: random sources, asked by event and by time, cut in buckets or not."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.features.compiler import compile_pipeline
from headrace.lake.history import event_vectors
from tests.oracle import Event, run

TIME = {"type": "long", "logicalType": "timestamp-millis"}


def record(name, **fields):
    columns = [{"name": column, "type": kind} for column, kind in fields.items()]
    return {"type": "record", "name": name, "fields": columns}


purchases = hr.Source(
    "purchases",
    key="who",
    event_time="at",
    event_id="id",
    schema=record(
        "Purchase",
        id="long",
        who=["null", "string"],
        shop=["null", "long"],
        at=TIME,
        price=["null", "double"],
    ),
)
claims = hr.Source(
    "claims",
    key="who",
    event_time="at",
    known_at="seen",
    schema=record(
        "Claim", who=["null", "string"], shop=["null", "long"], at=TIME, seen=TIME, cost="double"
    ),
)
person = hr.Entity("person", key="who")
shop = hr.Entity("shop", key="shop")
habits = hr.FeatureView(
    "person",
    entity=person,
    source=purchases,
    features=[
        hr.count(over=["10s", "40s"]),
        hr.mean("price", over="40s"),
        hr.last("price", over="40s"),
        hr.max("cost", over="60s", source=claims),
    ],
)
trouble = hr.FeatureView(
    "shop",
    entity=shop,
    source=purchases,
    delay="20s",
    features=[
        hr.ratio(hr.count(source=claims), hr.count(), name="rate", over="30s", default=0.0),
        hr.sum("price", over="30s", grain="5s", delay="20s"),
    ],
)
pipeline = hr.Pipeline(
    "trade",
    source=purchases,
    views=[habits, trouble],
    request={"price": hr.col("price")},
    derived={"against_mean": hr.col("price") / hr.feature("person__price_mean_40s")},
)
PLAN = compile_pipeline(pipeline)
NAMES = [feature.name for stage in PLAN.stages for feature in stage.features]
START_MS = 1_700_000_000_000

seconds = st.integers(0, 120)
prices = st.none() | st.sampled_from([0.1, 0.2, 0.3, 1e9, -1e9]) | st.floats(-100, 100)
people = st.sampled_from(["ann", "ann", "bob", None])
shops = st.sampled_from([1, 1, 2, None])
purchase_rows = st.lists(st.tuples(people, shops, seconds, prices), max_size=40)
claim_rows = st.lists(
    st.tuples(people, shops, seconds, st.sampled_from([0, 0, 20, 30]), st.floats(0, 9)), max_size=20
)


def tables(bought, claimed):
    at = [START_MS + 1_000 * row[2] for row in bought]
    stamp = pa.timestamp("ms", tz="UTC")
    return {
        "purchases": pa.table(
            {
                "id": pa.array([1_000 + row for row in range(len(bought))], pa.int64()),
                "who": pa.array([row[0] for row in bought], pa.string()),
                "shop": pa.array([row[1] for row in bought], pa.int64()),
                "at": pa.array(at, pa.int64()).cast(stamp),
                "price": pa.array([row[3] for row in bought], pa.float64()),
            }
        ),
        "claims": pa.table(
            {
                "who": pa.array([row[0] for row in claimed], pa.string()),
                "shop": pa.array([row[1] for row in claimed], pa.int64()),
                "at": pa.array([START_MS + 1_000 * row[2] for row in claimed], pa.int64()),
                "seen": pa.array(
                    [START_MS + 1_000 * (row[2] + row[3]) for row in claimed], pa.int64()
                ),
                "cost": pa.array([row[4] for row in claimed], pa.float64()),
            }
        ),
    }


def stage_log(stage, given, asks):
    """The stage's events in canonical order, with bare asks behind the events of their time."""
    rows = []
    for rank, entry in enumerate(stage.inputs):
        columns = given[entry.source].to_pydict()
        times = given[entry.source]["at"].cast(pa.int64()).to_pylist()
        known = columns.get("seen", times)
        for row, time in enumerate(times):
            values = tuple(
                columns[value.expression.name][row] if value.source == entry.source else None
                for value in stage.values
            )
            event = Event(columns[entry.key][row], rank, time, known[row], values, entry.scored)
            rows.append(((time, rank, row), entry.scored, row, event))
    scored = next(rank for rank, entry in enumerate(stage.inputs) if entry.scored)
    nothing = (None,) * len(stage.values)
    for row, (key, time) in enumerate(asks):
        event = Event(key, scored, time, time, nothing, scored=True, insert=False)
        rows.append(((time, 99, row), False, row, event))
    rows.sort(key=lambda item: item[0])
    return rows


def expected(given, asks_of=None):
    """Features by name, of each purchase or of each bare ask, from the oracle."""
    features = {}
    for stage in PLAN.stages:
        asks = [] if asks_of is None else asks_of(stage.inputs[-1].key)
        log = stage_log(stage, given, asks)
        answers = run(stage, [event for *_, event in log])
        count = len(asks) if asks_of else given["purchases"].num_rows
        table = np.full((count, len(stage.aggregates)), np.nan)
        for (_, is_event, row, event), answer in zip(log, answers, strict=True):
            if (
                answer is not None
                and is_event == (asks_of is None)
                and (is_event or not event.insert)
            ):
                table[row] = answer
        for feature in stage.features:
            column = table[:, feature.aggregates[0]]
            if feature.kind == "ratio":
                below = table[:, feature.aggregates[1]]
                column = np.where(below == 0, np.nan, column / np.where(below == 0, 1, below))
            if feature.default is not None:
                column = np.where(np.isnan(column), feature.default, column)
            features[feature.name] = column
    return features


def assert_features_equal(table, wanted):
    for name, column in wanted.items():
        ours = table[name].to_numpy().astype(float)
        np.testing.assert_array_equal(ours, column, err_msg=name)


@settings(max_examples=120, deadline=None)
@given(purchase_rows, claim_rows, st.sampled_from([2, 7, 1_000]))
def test_every_event_gets_what_stood_before_it_in_canonical_order(bought, claimed, rows_in_memory):
    given_tables = tables(bought, claimed)

    table = hr.history(None, pipeline, sources=given_tables, rows_in_memory=rows_in_memory)

    assert_features_equal(table, expected(given_tables))
    assert table["price"].to_pylist() == [row[3] for row in bought]


@settings(max_examples=80, deadline=None)
@given(purchase_rows, claim_rows, st.data(), st.sampled_from([3, 1_000]))
def test_events_by_id_come_in_the_order_of_the_spine(bought, claimed, data, rows_in_memory):
    given_tables = tables(bought, claimed)
    ids = given_tables["purchases"]["id"].to_pylist()
    asked = data.draw(st.lists(st.sampled_from(ids), max_size=10)) if ids else []

    table = hr.history(
        pa.table({"id": pa.array(asked, pa.int32()), "note": [str(i) for i in asked]}),
        pipeline,
        sources=given_tables,
        rows_in_memory=rows_in_memory,
    )

    rows = np.array(asked, dtype=int) - 1_000
    assert_features_equal(table, {n: c[rows] for n, c in expected(given_tables).items()})
    assert table["note"].to_pylist() == [str(i) for i in asked]
    vectors = event_vectors(PLAN, given_tables, rows)
    for index, column in enumerate(PLAN.vector):
        np.testing.assert_array_equal(
            vectors[:, index], table[column.name].to_numpy().astype(float), err_msg=column.name
        )


@settings(max_examples=80, deadline=None)
@given(
    purchase_rows,
    claim_rows,
    st.lists(st.tuples(people, shops, seconds), max_size=12),
    st.sampled_from([3, 1_000]),
)
def test_a_bare_row_takes_all_events_up_to_its_time(bought, claimed, asks, rows_in_memory):
    given_tables = tables(bought, claimed)
    times = [START_MS + 1_000 * row[2] for row in asks]
    spine = pa.table(
        {
            "who": pa.array([row[0] for row in asks], pa.string()),
            "shop": pa.array([row[1] for row in asks], pa.int64()),
            "when": pa.array(times, pa.timestamp("ms")),
        }
    )

    table = hr.history(
        spine,
        [trouble, habits],
        sources=given_tables,
        time="when",
        rows_in_memory=rows_in_memory,
    )

    place = {"who": 0, "shop": 1}
    wanted = expected(
        given_tables, lambda key: [(row[place[key]], t) for row, t in zip(asks, times, strict=True)]
    )
    assert_features_equal(table, wanted)
    assert table.schema.names[3:] == [*(n for n in NAMES if n.startswith("shop")), *NAMES[:5]]
    assert json.loads(table.schema.metadata[b"headrace.rejected"]) == {}
