"""Drift's figures do not depend on how a period comes in batches, nor on the order of rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.drift.compare import compare
from headrace.drift.profile import (
    DAY_MS,
    PERCENTS,
    decode_profile,
    encode_profile,
    make_profile,
    profile_column,
)
from headrace.drift.sketch import ColumnSketch, PeriodSketch

VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 2.0, np.nan, np.inf, -np.inf, 1e-300, -5e17, 1e300]),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.integers(0, 20).map(float),
)
COLUMNS = st.lists(VALUES, max_size=300).map(np.array)


def profiled(column):
    return profile_column("x", column.astype(np.float64), np.zeros(len(column), np.int64))


@given(training=COLUMNS)
@settings(deadline=None)
def test_any_column_has_a_profile_that_survives_its_json(training):
    times = np.arange(len(training)) * DAY_MS // 50
    made = make_profile(["x"], training.astype(np.float64).reshape(-1, 1), times)
    raw = encode_profile(made)

    assert encode_profile(decode_profile(raw, "test")) == raw
    assert sum(made.columns[0].counts) == made.columns[0].finite


@given(
    training=COLUMNS, period=COLUMNS, cuts=st.lists(st.integers(0, 300), max_size=5), data=st.data()
)
@settings(deadline=None)
def test_batches_and_order_do_not_change_what_is_counted(training, period, cuts, data):
    column = profiled(training)
    period = period.astype(np.float64)
    at_once, by_parts = ColumnSketch(column), ColumnSketch(column)
    at_once.add(period)
    shuffled = period[np.array(data.draw(st.permutations(range(len(period)))), np.int64)]
    for part in np.split(shuffled, sorted(min(cut, len(period)) for cut in cuts)):
        by_parts.add(part)

    for name in ("rows", "nulls", "infinite", "zeros", "outside", "novel", "minimum", "maximum"):
        assert getattr(at_once, name) == getattr(by_parts, name), name
    assert at_once.bin_counts.tolist() == by_parts.bin_counts.tolist()
    assert at_once.distribution()[1].tolist() == by_parts.distribution()[1].tolist()
    assert at_once.novel_values() == by_parts.novel_values()


@given(period=st.lists(st.floats(-1e15, 1e15), min_size=1, max_size=300).map(np.array))
@settings(deadline=None)
def test_quantiles_of_a_period_are_within_a_percent(period):
    sketch = ColumnSketch(profiled(np.array([1.0])))
    sketch.add(period)
    exact = np.quantile(period, np.array(PERCENTS) / 100, method="inverted_cdf")

    assert np.all(np.abs(sketch.quantiles(PERCENTS) - exact) <= 0.0101 * np.abs(exact) + 2e-12)


@given(training=COLUMNS, period=COLUMNS)
@settings(deadline=None)
def test_any_two_columns_can_be_compared(training, period):
    sketch = PeriodSketch([profiled(training), profiled(period)])
    doubled = np.tile(period.astype(np.float64), 40)
    sketch.add([doubled, doubled])
    comparison = compare(sketch, 1)

    for column in comparison.columns:
        assert column.severity in {"none", "notice", "alarm"}
        for shares in (column.picture.training, column.picture.period):
            assert not shares or abs(sum(shares) - 1) < 1e-9
