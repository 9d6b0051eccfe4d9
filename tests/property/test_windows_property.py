"""The kernel against the oracle on random stages and logs: equal to the last bit.

time  ──────────────────────────────────────────────►
            (           length           ]<- delay ->t
counted:     cells in here, known_at <= t, that stand before the row in the log
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.features.state import EntityState
from tests.oracle import run
from tests.window_logs import feed, logs, stages

VALUES = 3


def expected_aggregates(stage, log):
    empty = [np.nan] * len(stage.aggregates)
    rows = [empty if row is None else row for row in run(stage, log)]
    return np.array(rows).reshape(len(log), len(stage.aggregates))


def bits(array):
    return (array + 0.0).tobytes()


@settings(max_examples=300, deadline=None)
@given(stages(), logs())
def test_each_aggregate_equals_the_oracle_on_any_log(stage, log):
    applied = feed(EntityState(stage), log, VALUES)

    np.testing.assert_array_equal(applied.aggregates, expected_aggregates(stage, log))
    assert not applied.incomplete.any()


@settings(max_examples=150, deadline=None)
@given(stages(), logs(), st.lists(st.integers(0, 60), max_size=6), st.booleans())
def test_cutting_a_log_into_batches_changes_no_bit(stage, log, cuts, transactions):
    whole = feed(EntityState(stage), log, VALUES)

    state = EntityState(stage)
    edges = sorted({0, len(log), *(min(cut, len(log)) for cut in cuts)})
    parts = []
    for start, end in itertools.pairwise(edges):
        if transactions:
            state.begin()
        parts.append(feed(state, log[start:end], VALUES).aggregates)
        if transactions:
            state.commit()

    assert not parts or bits(np.concatenate(parts)) == bits(whole.aggregates)


@settings(max_examples=300, deadline=None)
@given(stages(), logs(), logs(), logs(max_size=20), st.integers(0, 3))
def test_an_abort_leaves_no_trace(stage, before, aborted, after, retries):
    kept = EntityState(stage)
    feed(kept, before, VALUES)
    state = EntityState(stage)
    feed(state, before, VALUES)
    for retry in range(retries + 1):
        state.begin()
        feed(state, aborted[retry:], VALUES)
        state.abort()

    assert state.key_count == kept.key_count
    assert bits(feed(state, after, VALUES).aggregates) == bits(feed(kept, after, VALUES).aggregates)


@settings(max_examples=150, deadline=None)
@given(stages(), logs(), st.randoms(use_true_random=False))
def test_what_is_asked_at_the_end_does_not_depend_on_the_order_of_arrival(stage, log, random):
    orderless = [a for a in stage.aggregates if a.kind != "last"]
    stage = dataclasses.replace(stage, aggregates=tuple(orderless))
    asks = [
        dataclasses.replace(event, event_time_ms=time, scored=True, insert=False)
        for event in log[:3]
        for time in (1_000, 1_050, 1_130)
    ]
    shuffled = log.copy()
    random.shuffle(shuffled)

    straight = feed(EntityState(stage), log + asks, VALUES).aggregates[len(log) :]
    mixed = feed(EntityState(stage), shuffled + asks, VALUES).aggregates[len(log) :]

    assert bits(mixed) == bits(straight)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(90, 200))
def test_a_row_is_right_or_says_that_it_is_incomplete(data, retention_ms):
    stage = data.draw(stages(retention_ms=retention_ms))
    log = data.draw(logs(max_size=80, span_ms=600))

    applied = feed(EntityState(stage), log, VALUES)

    complete = ~applied.incomplete
    np.testing.assert_array_equal(
        applied.aggregates[complete], expected_aggregates(stage, log)[complete]
    )
    assert not applied.incomplete[[not event.scored for event in log]].any()
