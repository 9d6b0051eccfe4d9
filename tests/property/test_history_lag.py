"""A lag counts what had arrived: history over rows with arrivals against the naive oracle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.lake.errors import HistoryError
from headrace.lake.tables import ARRIVAL_TIME
from tests.oracle import run
from tests.property.test_history_property import (
    NAMES,
    PLAN,
    START_MS,
    assert_features_equal,
    claim_rows,
    people,
    pipeline,
    purchase_rows,
    seconds,
    shops,
    stage_log,
    tables,
)

LAGS_S = st.sampled_from([0, 1, 10, 45])
DELAYS_S = st.sampled_from([0, 0, 1, 5, 30, 90])


def with_arrivals(given_tables, delays):
    """Return the tables with arrivals: each row so much after its event time."""
    made = {}
    for name, table in given_tables.items():
        at = table["at"].cast(pa.int64()).to_numpy()
        arrived = at + 1_000 * np.array(delays[name][: len(at)], dtype=np.int64)
        stamp = pa.array(arrived, pa.int64()).cast(pa.timestamp("ms", "UTC"))
        made[name] = table.append_column(ARRIVAL_TIME, stamp)
    return made


def lagged_log(stage, given_tables, asks, lag_ms):
    """The stage's log, each row known only once it had arrived so much before."""
    rows = []
    for place, is_event, row, event in stage_log(stage, given_tables, asks):
        if event.insert:
            source = stage.inputs[event.input].source
            arrived = given_tables[source][ARRIVAL_TIME].cast(pa.int64())[row].as_py()
            known = max(event.known_at_ms, arrived - lag_ms)
            rows.append((place, is_event, row, dataclasses.replace(event, known_at_ms=known)))
        else:
            rows.append((place, is_event, row, event))
    return rows


def expected(given_tables, lag_ms, asks_of=None):
    features = {}
    for stage in PLAN.stages:
        # In every ring known-at counts, also where the source has none of its own.
        rings = tuple(dataclasses.replace(ring, known_at=True) for ring in stage.rings)
        known = dataclasses.replace(stage, rings=rings)
        asks = [] if asks_of is None else asks_of(stage.inputs[-1].key)
        log = lagged_log(stage, given_tables, asks, lag_ms)
        answers = run(known, [event for *_, event in log])
        count = len(asks) if asks_of else given_tables["purchases"].num_rows
        table = np.full((count, len(stage.aggregates)), np.nan)
        for (_, is_event, row, event), answer in zip(log, answers, strict=True):
            wanted = is_event if asks_of is None else not event.insert
            if answer is not None and wanted:
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


@settings(max_examples=80, deadline=None)
@given(
    purchase_rows,
    claim_rows,
    st.lists(DELAYS_S, min_size=40, max_size=40),
    st.lists(DELAYS_S, min_size=20, max_size=20),
    LAGS_S,
    st.sampled_from([5, 1_000]),
)
def test_with_a_lag_only_what_had_arrived_counts(
    bought, claimed, delays, claim_delays, lag_s, rows_in_memory
):
    made = with_arrivals(tables(bought, claimed), {"purchases": delays, "claims": claim_delays})

    table = hr.history(
        None, pipeline, sources=made, as_of=f"{lag_s}s", rows_in_memory=rows_in_memory
    )

    assert_features_equal(table, expected(made, 1_000 * lag_s))


@settings(max_examples=40, deadline=None)
@given(
    purchase_rows,
    claim_rows,
    st.lists(DELAYS_S, min_size=40, max_size=40),
    st.lists(st.tuples(people, shops, seconds), max_size=12),
    LAGS_S,
)
def test_a_bare_row_with_a_lag_takes_what_had_arrived(bought, claimed, delays, asks, lag_s):
    made = with_arrivals(tables(bought, claimed), {"purchases": delays, "claims": delays})
    times = [START_MS + 1_000 * row[2] for row in asks]
    spine = pa.table(
        {
            "who": pa.array([row[0] for row in asks], pa.string()),
            "shop": pa.array([row[1] for row in asks], pa.int64()),
            "at": pa.array(times, pa.timestamp("ms")),
        }
    )

    table = hr.history(spine, list(pipeline.views), sources=made, as_of=f"{lag_s}s", event_id=False)

    place = {"who": 0, "shop": 1}
    wanted = expected(
        made,
        1_000 * lag_s,
        lambda key: [(row[place[key]], t) for row, t in zip(asks, times, strict=True)],
    )
    assert set(NAMES) <= set(table.schema.names)
    assert_features_equal(table, wanted)


def test_the_events_own_row_counts_only_if_it_had_arrived():
    made = with_arrivals(
        tables([("ann", 1, 0, 1.0), ("ann", 1, 5, 2.0)], []),
        {"purchases": [0, 2], "claims": []},
    )

    def counts(as_of):
        return hr.history(None, pipeline, sources=made, as_of=as_of)[
            "person__count_10s"
        ].to_pylist()

    assert counts("event") == [1, 2]
    assert counts("2s") == [1, 2]
    assert counts("1s") == [1, 1]


def test_a_row_without_an_arrival_never_had_arrived():
    made = tables([("ann", 1, 0, 1.0), ("ann", 1, 5, 2.0)], [])
    stamp = pa.timestamp("ms", "UTC")
    arrivals = pa.array([None, START_MS + 5_000], pa.int64()).cast(stamp)
    made["purchases"] = made["purchases"].append_column(ARRIVAL_TIME, arrivals)
    made["claims"] = made["claims"].append_column(ARRIVAL_TIME, pa.array([], stamp))

    table = hr.history(None, pipeline, sources=made, as_of="1m")

    assert table["person__count_10s"].to_pylist() == [0, 1]


@pytest.mark.parametrize("lag", ["1 day", "1.5s", "-1s", ""])
def test_a_lag_that_is_no_length_of_time_is_refused(lag):
    with pytest.raises(HistoryError, match="as_of must be 'event', 'served' or a lag"):
        hr.history(None, pipeline, sources=tables([], []), as_of=lag)
