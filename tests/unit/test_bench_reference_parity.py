"""The parity check finds what it is there to find, in one row of many."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from bench.parity_check import COLUMNS, Collected, ParityReport, compare_bits, compare_handbook

SEED = 5
ROWS = 1_000
NAMES = tuple(column.feature for column in COLUMNS)


@pytest.fixture
def right():
    return np.random.default_rng(SEED).uniform(1, 100, (ROWS, len(NAMES)))


def collected(vectors):
    found = Collected(len(vectors), NAMES)
    ids = np.random.default_rng(SEED).permutation(len(vectors))
    found.add(ids, [b"%d" % number for number in ids], vectors[ids])
    return found


def handbook(vectors):
    return pa.table({column.handbook: vectors[:, i] for i, column in enumerate(COLUMNS)})


def test_equal_vectors_have_no_mismatch_anywhere(right):
    assert [c.mismatches for c in compare_handbook(collected(right), handbook(right))] == [0] * 14


def test_all_twelve_windows_and_both_flags_are_compared():
    assert len({column.handbook for column in COLUMNS}) == 14


def test_one_row_that_is_one_off_is_named(right):
    wrong = right.copy()
    wrong[123, NAMES.index("terminal__count_7d")] += 1

    results = compare_handbook(collected(wrong), handbook(right))

    (found,) = [result for result in results if result.mismatches]
    assert (found.feature, found.mismatches, found.first_row) == ("terminal__count_7d", 1, 123)


def test_an_average_may_differ_by_rounding_and_by_no_more(right):
    wrong = right.copy()
    column = NAMES.index("customer__amount_mean_30d")
    wrong[5, column] += 1e-12
    wrong[6, column] += 2e-9

    results = {r.feature: r for r in compare_handbook(collected(wrong), handbook(right))}

    assert results["customer__amount_mean_30d"].mismatches == 1
    assert results["customer__amount_mean_30d"].first_row == 6


def test_a_row_that_did_not_come_is_a_mismatch_everywhere(right):
    found = Collected(ROWS, NAMES)
    ids = np.arange(1, ROWS)
    found.add(ids, [b""] * len(ids), right[ids])

    assert found.rows_seen == ROWS - 1
    assert [c.mismatches for c in compare_handbook(found, handbook(right))] == [1] * 14


def test_history_must_be_equal_to_the_last_bit_and_null_where_the_stream_is_null(right):
    history = {name: right[:, i].copy() for i, name in enumerate(NAMES)}
    streamed = right.copy()
    streamed[3, 0] = np.nextafter(streamed[3, 0], 1000)
    streamed[4, 1] = np.nan
    streamed[7, 2] = np.nan
    history[NAMES[2]][7] = np.nan

    results = compare_bits(collected(streamed), history)

    assert [result.mismatches for result in results[:4]] == [1, 1, 0, 0]


@pytest.mark.parametrize("in_one_call", [True, False])
def test_a_row_may_come_twice_but_not_in_two_ways(right, in_one_call):
    found = Collected(ROWS, NAMES)
    rows = [(1, b"a"), (2, b"b"), (1, b"a"), (2, b"other")]
    calls = [rows] if in_one_call else [[row] for row in rows]
    for call in calls:
        ids = np.array([number for number, _ in call])
        found.add(ids, [value for _, value in call], right[ids])

    assert found.rows_seen == 2
    assert found.duplicates == 2
    assert found.differing == {2}


def test_a_report_without_comparisons_does_not_hold():
    assert not ParityReport().holds
