"""A profile says what numpy says of the columns, and comes back from its JSON as it was."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import orjson
import pytest

from headrace.drift.bins import bin_edges, count_bins, group_starts
from headrace.drift.errors import ProfileError
from headrace.drift.profile import (
    DAY_MS,
    PERCENTS,
    ColumnProfile,
    decode_profile,
    encode_profile,
    make_profile,
    profile_column,
)

ROWS = 28_000
DAYS = np.repeat(np.arange(28), ROWS // 28)


@pytest.fixture(scope="module")
def random():
    return np.random.default_rng(20260101)


@pytest.fixture(scope="module")
def vector(random):
    amount = np.round(random.lognormal(3, 1, ROWS), 2)
    amount[::7] = np.nan
    amount[5] = math.inf
    count = random.poisson(4, ROWS).astype(float)
    risk = np.where(random.random(ROWS) < 0.95, 0.0, random.random(ROWS))
    return np.column_stack([amount, count, risk, np.full(ROWS, np.nan)])


@pytest.fixture(scope="module")
def profile(vector, random):
    scores = random.beta(1, 50, 3_000)
    names = ["amount", "count", "risk", "empty"]
    times = (DAYS * DAY_MS).astype(np.int64)
    return make_profile(names, vector, times, scores, np.arange(3_000) * 1_000)


def test_figures_are_those_that_numpy_gives(profile, vector):
    for index, column in enumerate(profile.columns[:3]):
        values = vector[:, index]
        good = values[np.isfinite(values)]

        assert column.rows == ROWS
        assert column.nulls == np.isnan(values).sum()
        assert column.infinite == np.isinf(values).sum()
        assert column.zeros == (good == 0).sum()
        assert column.distinct == len(np.unique(good))
        assert (column.minimum, column.maximum) == (good.min(), good.max())
        assert (column.mean, column.deviation) == (good.mean(), good.std())
        exact = [np.sort(good)[math.ceil(p * len(good) / 100) - 1] for p in PERCENTS]
        assert column.quantiles == tuple(exact)


def test_bins_hold_every_row_once_and_about_a_percent_each(profile, vector):
    for index, column in enumerate(profile.columns[:3]):
        values = vector[:, index]
        good = values[np.isfinite(values)]
        ends = [-math.inf, *column.edges, math.inf]
        inside = [int(((good > a) & (good <= b)).sum()) for a, b in pairwise(ends)]

        assert list(column.counts) == inside
    shares = np.array(profile.columns[0].counts) / profile.columns[0].finite
    assert 80 <= len(shares) <= 120
    assert shares.max() < 0.02


def test_a_flood_of_zeros_has_a_bin_of_its_own_and_hides_nothing(profile):
    risk = profile.columns[2]
    zeros = risk.counts[0]

    assert zeros == risk.zeros
    assert risk.edges[0] == 0.0
    assert len(risk.counts) > 5
    assert max(risk.counts[1:]) < risk.finite * 0.02


def test_a_frequent_value_in_the_middle_is_alone_in_its_bin():
    values = np.concatenate([np.linspace(0, 1, 500), np.full(300, 0.5), np.linspace(1, 2, 500)])
    edges = bin_edges(*np.unique(values, return_counts=True))
    counts = count_bins(edges, values)

    assert counts[np.searchsorted(edges, 0.5)] == (values == 0.5).sum()
    assert count_bins(edges, np.nextafter([0.5, 0.5], [0, 1]))[np.searchsorted(edges, 0.5)] == 0


def test_few_values_are_all_kept_with_their_rows(profile, vector):
    count = profile.columns[1]
    values, rows = np.unique(vector[:, 1], return_counts=True)

    assert count.values == tuple(values)
    assert count.value_counts == tuple(rows)
    assert profile.columns[0].values == ()


def test_groups_hold_a_twentieth_unless_something_large_stands_beside_them():
    random = np.random.default_rng(7)
    for _ in range(200):
        counts = random.integers(0, 50, random.integers(1, 120))
        counts[random.integers(0, len(counts))] += 1 + random.integers(0, 2) * 3_000
        starts = group_starts(counts)
        sums = np.add.reduceat(counts, starts)
        large = counts >= counts.sum() / 10

        assert starts[0] == 0
        assert sums.sum() == counts.sum()
        for start, held in zip(starts, sums, strict=True):
            beside = {start - 1, start, start + int(np.argmax(large[start:]))} | {start}
            alone = any(0 <= at < len(large) and large[at] for at in beside)
            assert held * 20 >= counts.sum() or alone


def test_rows_of_a_day_are_alike_where_the_day_decides():
    random = np.random.default_rng(3)
    weekend = (DAYS % 7 >= 5).astype(float)
    of_weekend = profile_column("weekend", weekend, DAYS)
    of_chance = profile_column("chance", random.normal(size=ROWS), DAYS)
    of_days = profile_column("days", random.normal(size=28)[DAYS], DAYS)

    assert of_weekend.day_correlation == 1.0
    assert of_weekend.week_correlation == 0.0
    assert of_chance.day_correlation < 0.001
    assert of_days.day_correlation > 0.9
    assert of_days.week_correlation > 0.9


def test_two_weeks_are_needed_to_know_a_weekday():
    first = DAYS < 7
    weekend = (DAYS % 7 >= 5).astype(float)

    assert profile_column("weekend", weekend[first], DAYS[first]).week_correlation == 0.0


def test_a_profile_survives_its_json_to_the_last_bit(profile):
    raw = encode_profile(profile)
    again = decode_profile(raw, "test")

    assert encode_profile(again) == raw
    assert again.columns[:3] == profile.columns[:3]
    assert again.score == profile.score
    assert math.isnan(again.columns[3].mean)
    assert again.columns[3].edges == ()


def test_equal_training_sets_give_equal_bytes(vector):
    names = ["amount", "count", "risk", "empty"]
    scores = np.linspace(0, 1, 50)
    times = (DAYS * DAY_MS).astype(np.int64)
    once, again = (
        encode_profile(make_profile(names, vector.copy(), times, scores, np.arange(50)))
        for _ in range(2)
    )

    assert once == again


def test_a_feature_called_score_and_the_score_are_two_columns():
    made = make_profile(["score"], np.zeros((3, 1)), np.zeros(3, np.int64), np.ones(3))

    assert (made.columns[0].name, made.score.name) == ("score", "model score")


def test_a_profile_of_a_later_format_says_to_upgrade(profile):
    data = orjson.loads(encode_profile(profile))
    data["format"] = 2

    with pytest.raises(ProfileError, match="upgrade"):
        decode_profile(orjson.dumps(data), "test")


FIELDS = [field.name for field in dataclasses.fields(ColumnProfile)]


@pytest.mark.parametrize("wrong", ["none", {}, [[]], True], ids=repr)
@pytest.mark.parametrize("name", FIELDS[1:])
def test_a_profile_with_a_field_of_another_kind_is_refused(profile, name, wrong):
    data = orjson.loads(encode_profile(profile))
    data["columns"][0][name] = wrong

    with pytest.raises(ProfileError, match="test"):
        decode_profile(orjson.dumps(data), "test")


@pytest.mark.parametrize("wrong", [-1, 1.5])
@pytest.mark.parametrize("name", ["rows", "days", "nulls", "infinite", "zeros", "distinct"])
def test_a_count_that_is_none_is_refused(profile, name, wrong):
    data = orjson.loads(encode_profile(profile))
    data["columns"][0][name] = wrong

    with pytest.raises(ProfileError, match="whole number"):
        decode_profile(orjson.dumps(data), "test")


@pytest.mark.parametrize("name", FIELDS)
def test_a_profile_without_one_of_its_fields_is_refused(profile, name):
    data = orjson.loads(encode_profile(profile))
    del data["columns"][0][name]

    with pytest.raises(ProfileError):
        decode_profile(orjson.dumps(data), "test")


@pytest.mark.parametrize("change", [{"nulls": 0}, {"edges": [2.0, 1.0]}, {"counts": [1]}])
def test_a_profile_that_does_not_agree_with_itself_is_refused(profile, change):
    data = orjson.loads(encode_profile(profile))
    data["columns"][0].update(change)

    with pytest.raises(ProfileError):
        decode_profile(orjson.dumps(data), "test")
