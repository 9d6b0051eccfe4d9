"""What changed is found and named; what did not change is left alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp

from headrace.drift.compare import ROWS_MIN, compare
from headrace.drift.measures import (
    ks,
    ks_by_chance,
    psi,
    psi_by_chance,
    share_distance,
    weigh,
)
from headrace.drift.profile import DAY_MS, make_profile
from headrace.drift.sketch import ColumnSketch, PeriodSketch

NAMES = ("amount", "count", "risk", "flag", "age")
TRAINING = 20_000
PERIOD = 30_000
DAYS = 10


def draw(random, rows):
    """Return what an ordinary time looks like."""
    return np.column_stack(
        [
            np.round(random.lognormal(3.5, 0.8, rows), 2),
            random.poisson(5, rows),
            np.where(random.random(rows) < 0.9, 0.0, random.beta(2, 5, rows)),
            random.random(rows) < 0.3,
            random.normal(40, 12, rows),
        ]
    ).astype(np.float64)


def at_times(rows):
    return (np.arange(rows) * DAYS // rows * DAY_MS).astype(np.int64)


@pytest.fixture(scope="module")
def profile():
    random = np.random.default_rng(1)
    vector = draw(random, TRAINING)
    return make_profile(NAMES, vector, at_times(TRAINING), random.beta(1, 30, TRAINING))


@pytest.fixture
def ordinary():
    return draw(np.random.default_rng(2), PERIOD)


def compared(profile, period, scores=None, days=DAYS):
    sketch = PeriodSketch(profile.columns)
    for rows in np.array_split(period, 3):
        sketch.add([np.ascontiguousarray(rows[:, index]) for index in range(rows.shape[1])])
    score = None
    if scores is not None:
        score = ColumnSketch(profile.score)
        score.add(scores)
    return compare(sketch, days, score)


def named(comparison):
    return {one.column: (one.cause, one.severity) for one in comparison.findings}


def test_an_ordinary_period_has_no_findings(profile, ordinary):
    comparison = compared(profile, ordinary)

    assert comparison.findings == ()
    assert comparison.severity == "none"
    assert all(column.compared for column in comparison.columns)


def test_chance_gives_no_findings_however_small_the_periods(profile):
    random = np.random.default_rng(11)
    for rows in (ROWS_MIN, 300, 500, 1_000, 5_000):
        for _ in range(40):
            assert compared(profile, draw(random, rows)).findings == (), rows


CHANGES = {
    "100 times": (0, lambda x: x * 100, "unit", "alarm"),
    "a hundredth": (0, lambda x: x / 100, "unit", "alarm"),
    "in thousands": (1, lambda x: x * 1000, "unit", "alarm"),
    "seconds to minutes": (4, lambda x: x / 60, "unit", "alarm"),
    "a share in percent, most of them zero": (2, lambda x: x * 100, "unit", "alarm"),
    "sign": (4, lambda x: -x, "unit", "alarm"),
    "triple, which no unit is": (0, lambda x: x * 3, "unit", "alarm"),
    "up by a deviation": (4, lambda x: x + 12, "shift", "alarm"),
    "down by half a deviation": (4, lambda x: x - 6, "shift", "alarm"),
    "two more": (1, lambda x: x + 2, "shift", "alarm"),
    "twice as wide": (4, lambda x: 40 + 2 * (x - 40), "spread", "alarm"),
    "half as wide": (4, lambda x: 40 + 0.5 * (x - 40), "spread", "alarm"),
    "a new category": (3, lambda x: np.where(np.arange(len(x)) % 20 == 0, 7, x), "novel", "alarm"),
    "one value": (0, lambda x: np.full(len(x), 31.0), "frozen", "alarm"),
    "one of few values": (3, np.zeros_like, "frozen", "alarm"),
    "always zero, as most": (2, np.zeros_like, "frozen", "alarm"),
    "nulls": (0, lambda x: np.where(np.arange(len(x)) % 20 == 0, np.nan, x), "nulls", "alarm"),
    "infinite": (
        4,
        lambda x: np.where(np.arange(len(x)) % 50 == 0, np.inf, x),
        "infinite",
        "alarm",
    ),
    "two groups": (4, lambda x: np.where(np.arange(len(x)) % 2, x + 14, x - 14), "spread", "alarm"),
    "upside down": (0, lambda x: np.sort(x)[-1] - x, "shift", "alarm"),
    "a little": (4, lambda x: x + 2, "shift", "notice"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_planted_change_is_found_and_named(profile, ordinary, name):
    index, change, cause, severity = CHANGES[name]
    ordinary[:, index] = change(ordinary[:, index])

    assert named(compared(profile, ordinary)) == {NAMES[index]: (cause, severity)}


@pytest.mark.parametrize(("factor", "said"), [(100, 100.0), (1 / 100, 0.01), (1 / 3600, 1 / 3600)])
def test_the_factor_of_a_unit_is_the_units_not_the_measured_one(profile, ordinary, factor, said):
    ordinary[:, 0] *= factor
    finding = compared(profile, ordinary).findings[0]

    assert finding.factor == said
    assert "times" in finding.text


@pytest.mark.parametrize("pair", [(0, 1), (1, 4), (0, 4), (2, 4), (1, 3)])
def test_swapped_columns_name_each_other(profile, ordinary, pair):
    ordinary[:, list(pair)] = ordinary[:, list(pair)[::-1]]
    comparison = compared(profile, ordinary)
    one, other = (NAMES[index] for index in pair)

    assert named(comparison) == {one: ("swapped", "alarm"), other: ("swapped", "alarm")}
    assert {finding.column: finding.others for finding in comparison.findings} == {
        one: (other,),
        other: (one,),
    }


def test_a_swap_is_preferred_to_a_unit():
    random = np.random.default_rng(5)
    small = random.gamma(3, 1, TRAINING)
    both = np.column_stack([small, random.permutation(small) * 60])
    profile = make_profile(("minutes", "seconds"), both, at_times(TRAINING))

    assert set(named(compared(profile, both[:, ::-1])).values()) == {("swapped", "alarm")}
    both[:, 0] *= 60
    assert named(compared(profile, both)) == {"minutes": ("unit", "alarm")}


def test_worst_comes_first_and_nulls_stand_beside_a_shift(profile, ordinary):
    ordinary[:, 4] += 2
    ordinary[:, 0] *= 100
    ordinary[::3, 0] = np.nan
    findings = compared(profile, ordinary).findings

    assert [(one.column, one.cause) for one in findings] == [
        ("amount", "unit"),
        ("amount", "nulls"),
        ("age", "shift"),
    ]


def test_what_is_significant_but_small_is_no_finding(profile):
    period = draw(np.random.default_rng(8), 400_000)
    period[:, 4] += 0.6
    column = compared(profile, period).columns[4]

    assert column.ks > column.ks_by_chance
    assert column.findings == ()


def test_rare_values_that_changed_their_shape_are_not_taken_for_another_unit():
    random = np.random.default_rng(6)

    def rare(values):
        return np.where(random.random(TRAINING) < 0.97, 0.0, values)[:, None]

    profile = make_profile(("rare",), rare(random.random(TRAINING)), at_times(TRAINING))
    scaled = compared(profile, rare(100 * random.random(TRAINING)))
    other = compared(profile, rare(100 * random.beta(3, 3, TRAINING)))

    assert {one.cause for one in scaled.findings} == {"unit"}
    assert other.severity == "alarm"
    assert "unit" not in {one.cause for one in other.findings}


def test_a_unit_is_seen_in_whole_numbers_that_each_have_a_bin():
    random = np.random.default_rng(6)
    often = 30 + np.round(random.normal(0, 3, TRAINING))
    counts = np.where(random.random(TRAINING) < 0.05, random.integers(0, 200, TRAINING), often)
    profile = make_profile(("count",), counts[:, None], at_times(TRAINING))
    (finding,) = compared(profile, counts[:, None] * 100).findings

    assert profile.columns[0].values == ()
    assert (finding.cause, finding.factor) == ("unit", 100.0)


def test_mean_and_deviation_of_batches_are_those_of_all():
    random = np.random.default_rng(6)
    batches = [random.normal(mean, 1, 50 * (mean + 1)) for mean in range(6)]
    column = make_profile(("x",), batches[0][:, None], at_times(50)).columns[0]
    sketch = ColumnSketch(column)
    for batch in batches:
        sketch.add(batch)
    together = np.concatenate(batches)

    assert sketch.mean == pytest.approx(together.mean(), rel=1e-12)
    assert sketch.deviation == pytest.approx(together.std(), rel=1e-12)


def test_too_few_rows_say_nothing(profile, ordinary):
    few = ordinary[: ROWS_MIN - 1] * 100
    comparison = compared(profile, few)

    assert not any(column.compared for column in comparison.columns)
    assert comparison.findings == ()


def test_a_column_of_nulls_alone_is_named_though_there_is_nothing_to_compare(profile, ordinary):
    ordinary[:, 0] = np.nan
    comparison = compared(profile, ordinary)

    assert named(comparison) == {"amount": ("nulls", "alarm")}
    assert not comparison.columns[0].compared


def test_the_score_is_compared_as_a_column_is(profile, ordinary):
    random = np.random.default_rng(3)
    same = compared(profile, ordinary, random.beta(1, 30, PERIOD))
    moved = compared(profile, ordinary, random.beta(3, 30, PERIOD))

    assert same.findings == ()
    assert [one.column for one in moved.findings] == ["score"]
    assert moved.score.severity == "alarm"


def test_a_weekend_is_no_drift_and_neither_are_ten_days():
    rows = 14_000
    day = np.arange(rows) * 14 // rows
    weekend = (day % 7 >= 5).astype(np.float64)[:, None]
    of_week = make_profile(("weekend",), weekend[day < 7], day[day < 7] * DAY_MS)

    for first, days in ((5, 1), (0, 5), (3, 10), (0, 14)):
        period = weekend[(day >= first) & (day < first + days)]
        assert compared(of_week, period, days=days).findings == (), (first, days)


def test_whole_weeks_that_differ_are_drift_where_training_had_whole_weeks():
    day = np.repeat(np.arange(28), 1_000)
    weekend = (day % 7 >= 5).astype(np.float64)[:, None]
    of_month = make_profile(("weekend",), weekend, day * DAY_MS)

    assert compared(of_month, weekend[:14_000], days=14).findings == ()
    assert named(compared(of_month, np.zeros((14_000, 1)), days=14)) == {
        "weekend": ("frozen", "alarm")
    }


def test_a_move_no_larger_than_the_days_of_training_differ_is_told_as_that(profile, ordinary):
    # A column that grew all through the training: whatever comes next lies outside of it.
    random = np.random.default_rng(9)
    day = np.arange(14_000) // 1_000
    grown = (day + random.normal(0, 0.3, 14_000))[:, None]
    of_growth = make_profile(("filling",), grown, day * DAY_MS, random.beta(1, 30, 14_000))

    (column,) = compared(of_growth, random.normal(14, 0.3, (3_000, 1)), days=3).columns
    assert column.findings == ()
    assert column.varies
    assert not any(one.varies for one in compared(profile, ordinary).columns)


def test_psi_is_the_sum_by_hand():
    before, now = np.array([500, 300, 200]), np.array([250, 300, 450])
    p, q = (before + 0.5) / 1001.5, (now + 0.5) / 1001.5

    index, groups = psi(before, now)

    assert groups == 3
    assert index == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=1e-12)


def test_ks_at_the_edges_is_within_a_percent_of_the_exact_one(profile):
    random = np.random.default_rng(1)
    before = draw(random, TRAINING)
    now = draw(np.random.default_rng(9), 5_000) * 1.2
    for index in (0, 1, 2, 4):
        column = profile.columns[index]
        sketch = ColumnSketch(column)
        sketch.add(now[:, index])
        exact = ks_2samp(before[:, index], now[:, index], method="asymp").statistic
        ours = ks(np.array(column.counts), sketch.bin_counts)

        assert exact - 0.02 < ours <= exact + 1e-12


def test_what_chance_gives_is_rarely_reached_and_not_far_above():
    random = np.random.default_rng(4)
    before, now = 20_000, 2_000
    base = random.normal(size=before)
    column = make_profile(("x",), base[:, None], at_times(before)).columns[0]
    weight = weigh(column, now, DAYS)
    found = []
    for _ in range(300):
        sketch = ColumnSketch(column)
        sketch.add(random.normal(size=now))
        counts = np.array(column.counts)
        index, groups = psi(counts, sketch.bin_counts)
        found.append((index / psi_by_chance(groups, weight), ks(counts, sketch.bin_counts)))
    by_index, distances = np.array(found).T

    assert 0.3 < by_index.max() < 1
    assert 0.3 < distances.max() / ks_by_chance(weight) < 1


def test_shares_are_as_far_apart_as_cohen_says():
    assert share_distance(0.5, 0.6) == pytest.approx(0.2014, abs=1e-4)
    assert share_distance(0.25, 0.25) == 0.0
    assert share_distance(0.0, 1.0) == pytest.approx(np.pi)
