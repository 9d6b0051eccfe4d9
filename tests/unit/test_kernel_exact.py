"""Sums by limbs against fractions and math.fsum."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.features.kernels.compiled import entry
from headrace.features.kernels.exact import float_of, limbs_of
from tests.oracle import exact_sum


def _make_total(stamp):
    def total(added, removed):
        whole, middle, low = stamp * 0, 0, 0
        for x in added:
            a, b, c = limbs_of(x)
            whole, middle, low = whole + a, middle + b, low + c
        for x in removed:
            a, b, c = limbs_of(x)
            whole, middle, low = whole - a, middle - b, low - c
        return float_of(whole, middle, low)

    return total


_total = entry(_make_total)
NOTHING = np.zeros(0)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.floats(-(2.0**39), 2.0**39), max_size=30))
def test_a_sum_is_the_nearest_float_of_the_exact_sum(numbers):
    assert _total(np.array(numbers, dtype=float), NOTHING) == exact_sum(numbers)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-(2**52), 2**52).map(lambda n: math.ldexp(n, -40)), max_size=30))
def test_a_sum_of_numbers_on_the_grid_equals_fsum(numbers):
    assert _total(np.array(numbers, dtype=float), NOTHING) == math.fsum(numbers)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1e12, 1e12), max_size=20),
    st.lists(st.floats(-1e12, 1e12), max_size=20),
    st.randoms(use_true_random=False),
)
def test_what_was_added_and_removed_leaves_no_trace_in_any_order(kept, gone, random):
    added = kept + gone
    random.shuffle(added)

    both = _total(np.array(added, dtype=float), np.array(gone, dtype=float))

    assert both == _total(np.array(kept, dtype=float), NOTHING)


@pytest.mark.parametrize(
    "number",
    [0.0, 0.1, -0.1, 1 / 3, 2.0**40 - 2.0**-12, -(2.0**40) + 1, 2.0**-64, -(2.0**-64), 5e-20],
)
def test_one_number_on_the_grid_comes_back_as_it_was(number):
    cut = float(Fraction(math.trunc(Fraction(number) * 2**64), 2**64))

    assert _total(np.array([number]), NOTHING) == cut


def test_halfway_sums_round_to_even():
    # 2**53 + 1 lies between two floats; a bit far below decides which one is nearer.
    parts = [2.0**39] * 2**14
    low = _total(np.array([*parts, 1.0]), NOTHING)
    high = _total(np.array([*parts, 1.0, 2.0**-64]), NOTHING)

    assert low == 2.0**53
    assert high == 2.0**53 + 2
