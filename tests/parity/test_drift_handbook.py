"""Drift on real transactions: ordinary fortnights are quiet, planted changes are found and named.

The measure is the handbook's training week, 2018-07-25 to 07-31, over its 15 published features.
"""

from __future__ import annotations

import numpy as np
import pytest

from bench.drift_power import (
    COUNTS,
    FORTNIGHT,
    NAMES,
    TRAINING,
    Change,
    measure,
    moved,
    nulled,
    plant,
    read_handbook,
    scaled,
    stuck,
    swap,
)
from headrace.drift.profile import decode_profile, encode_profile

DAYS = FORTNIGHT[1] - FORTNIGHT[0]


@pytest.fixture(scope="module")
def handbook(shared_data):
    return read_handbook(shared_data / "fraud" / "transformed.parquet")


@pytest.fixture(scope="module")
def profile(handbook):
    made = handbook.profile(*TRAINING)
    # What is compared with is what was read back.
    return decode_profile(encode_profile(made), "test")


@pytest.fixture(scope="module")
def period(handbook):
    return handbook.rows(*FORTNIGHT)


def named(comparison):
    return {(one.column, one.cause, one.severity) for one in comparison.findings}


def test_the_training_week_is_the_one_that_is_published(profile):
    assert profile.rows == 67_240


# Windows of 37 days are full from May on; before, their counts do differ from July's.
@pytest.mark.parametrize("first", [45, 59, 73, 87, 101, 129, 143, 157, 169])
def test_a_fortnight_in_which_nothing_changed_gives_no_finding(handbook, profile, first):
    comparison = measure(profile, handbook.rows(first, first + 14), 14)

    assert comparison.rows > 130_000
    assert named(comparison) == set()


@pytest.mark.parametrize("days", [1, 2, 3, 5, 7, 10, 12])
def test_single_days_and_broken_weeks_are_no_alarm(handbook, profile, days):
    for first in range(129, 143, days):
        comparison = measure(profile, handbook.rows(first, first + days), days)

        assert comparison.severity != "alarm", named(comparison)


def test_windows_that_were_not_yet_full_are_drift(handbook, profile):
    comparison = measure(profile, handbook.rows(24, 38), 14)

    assert ("terminal__count_30d", "shift", "alarm") in named(comparison)
    assert all("30d" in column for column, _, _ in named(comparison))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("amount", Change("shift", "1 dev.", "shift", moved(1.0))),
        ("amount", Change("shift", "0.25 dev.", "shift", moved(0.25))),
        ("amount", Change("unit", "cents", "unit", scaled(100))),
        ("amount", Change("unit", "euro", "unit", scaled(0.01))),
        ("amount", Change("nulls", "5 %", "nulls", nulled(5))),
        ("customer__amount_mean_7d", Change("nulls", "30 %", "nulls", nulled(30))),
        ("amount", Change("frozen", "all", "frozen", stuck(100))),
        ("terminal__risk_1d", Change("frozen", "all", "frozen", stuck(100))),
        ("customer__count_30d", Change("frozen", "all", "frozen", stuck(100))),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.kind} {value.size}",
)
def test_a_planted_change_is_found_and_named(profile, period, name, change):
    comparison = measure(profile, plant(period, profile, name, change), DAYS)

    assert named(comparison) == {(name, change.cause, "alarm")}


@pytest.mark.parametrize(("factor", "said"), [(100, 100.0), (0.01, 0.01), (3600, 3600.0)])
def test_the_factor_of_a_unit_is_said(profile, period, factor, said):
    change = Change("unit", str(factor), "unit", scaled(factor))
    (finding,) = measure(profile, plant(period, profile, "amount", change), DAYS).findings

    assert finding.factor == said


@pytest.mark.parametrize(
    "pair",
    [
        ("customer__amount_mean_1d", "customer__count_1d"),
        ("customer__count_7d", "customer__count_30d"),
        ("customer__count_1d", "terminal__count_1d"),
        ("terminal__count_1d", "terminal__count_7d"),
        ("amount", "customer__count_30d"),
    ],
)
def test_swapped_columns_are_found_and_name_each_other(profile, period, pair):
    comparison = measure(profile, swap(period, *pair), DAYS)

    assert named(comparison) == {(name, "swapped", "alarm") for name in pair}
    assert {one.column: one.others for one in comparison.findings} == {
        pair[0]: (pair[1],),
        pair[1]: (pair[0],),
    }


def test_a_swap_that_no_single_column_shows_is_not_found(profile, period):
    """Means over a week and over a month are distributed alike: the limit, written down."""
    swapped = swap(period, "customer__amount_mean_7d", "customer__amount_mean_30d")

    assert named(measure(profile, swapped, DAYS)) == set()


def test_every_count_frozen_or_in_other_units_is_named(profile, period):
    for name in COUNTS:
        for change in (
            Change("unit", "1000", "unit", scaled(1000)),
            Change("frozen", "all", "frozen", stuck(100)),
        ):
            found = measure(profile, plant(period, profile, name, change), DAYS)
            assert named(found) == {(name, change.cause, "alarm")}


def test_several_changes_at_once_are_told_apart(profile, period):
    planted = swap(period, "customer__amount_mean_1d", "customer__count_1d")
    planted[:, NAMES.index("amount")] *= 100
    planted[::3, NAMES.index("terminal__count_1d")] = np.nan
    planted[:, NAMES.index("terminal__count_7d")] = 7

    assert named(measure(profile, planted, DAYS)) == {
        ("customer__amount_mean_1d", "swapped", "alarm"),
        ("customer__count_1d", "swapped", "alarm"),
        ("amount", "unit", "alarm"),
        ("terminal__count_1d", "nulls", "alarm"),
        ("terminal__count_7d", "frozen", "alarm"),
    }
