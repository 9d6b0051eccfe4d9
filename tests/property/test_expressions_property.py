"""An expression's value for a row does not depend on the rows around it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.features.expressions import evaluate

_ARITHMETIC = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a * b,
    lambda a, b: a / b,
    hr.minimum,
    hr.maximum,
]
_COMPARE = [
    lambda a, b: a < b,
    lambda a, b: a <= b,
    lambda a, b: a == b,
    lambda a, b: a != b,
]

numbers = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-324, 1e-310, 1e300, -1e300, float("inf")]),
    st.floats(allow_nan=False),
    st.none(),
)
leaves = st.sampled_from(["x", "y"]).map(hr.col) | st.just("n").map(hr.col)


def _grow(inner):
    pairs = st.tuples(inner, inner)
    condition = st.builds(lambda op, ab: op(*ab), st.sampled_from(_COMPARE), pairs)
    return st.one_of(
        st.builds(lambda op, ab: op(*ab), st.sampled_from(_ARITHMETIC), pairs),
        st.builds(hr.where, condition, inner, inner),
        st.builds(lambda c, d: hr.where(~c | d, 1, 0), condition, condition),
        st.builds(lambda c, d: hr.where(c & d, 1, 0), condition, condition),
        inner.map(hr.abs),
        inner.map(hr.floor),
        inner.map(lambda a: -a),
        inner.map(lambda a: hr.where(hr.is_null(a), 0, a)),
        st.just(hr.hour("at") + hr.weekday("at")),
    )


@st.composite
def columns(draw):
    n = draw(st.integers(1, 70))
    times = st.one_of(st.none(), st.integers(-(2**40), 2**42))
    lists = {
        "x": (draw(st.lists(numbers, min_size=n, max_size=n)), pa.float64()),
        "y": (draw(st.lists(numbers, min_size=n, max_size=n)), pa.float64()),
        "n": (draw(st.lists(st.none() | st.integers(-9, 9), min_size=n, max_size=n)), pa.int64()),
        "at": (draw(st.lists(times, min_size=n, max_size=n)), pa.int64()),
    }
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=6)))
    return {name: pa.array(*one) for name, one in lists.items()}, [0, *cuts, n]


@settings(max_examples=150, deadline=None)
@given(st.recursive(leaves, _grow, max_leaves=12), columns())
def test_a_value_has_the_same_bits_however_the_log_is_cut_into_batches(formula, drawn):
    table, cuts = drawn
    whole = evaluate(formula.node, table, len(table["x"]))

    parts = [
        evaluate(formula.node, {k: c[a:b] for k, c in table.items()}, b - a)
        for a, b in pairwise(cuts)
    ]

    np.testing.assert_array_equal(whole.view(np.int64), np.concatenate(parts).view(np.int64))


@settings(max_examples=50, deadline=None)
@given(st.recursive(leaves, _grow, max_leaves=12), columns(), st.integers(0, 7))
def test_a_value_has_the_same_bits_wherever_the_row_stands_in_memory(formula, drawn, shift):
    # Vector instructions take rows by four or eight, from aligned addresses: the same rows behind
    # ``shift`` others fall on other lanes and on the scalar remainder.
    table, _ = drawn
    n = len(table["x"])
    moved = {k: pa.concat_arrays([pa.nulls(shift, c.type), c]) for k, c in table.items()}

    values = evaluate(formula.node, moved, n + shift)[shift:]

    expected = evaluate(formula.node, table, n)
    np.testing.assert_array_equal(expected.view(np.int64), values.view(np.int64))


@pytest.mark.parametrize("length", [9, 17, 33, 65])
def test_null_has_one_bit_pattern_whatever_it_was_made_of(length):
    # inf - inf gives another NaN than a null column, and which of the two a sum passes on depends
    # on the row's place in the vector instruction (measured with numpy 2.4 on x86).
    table = {"x": pa.array([float("inf")] * length), "y": pa.nulls(length, pa.float64())}
    made = (hr.col("x") - hr.col("x")) + hr.col("y")

    bits = evaluate(made.node, table, length).view(np.int64)

    assert set(bits.tolist()) == {int(np.array(np.nan).view(np.int64))}
