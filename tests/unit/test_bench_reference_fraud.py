"""The two-entity bench checks against numbers that are themselves right."""

from __future__ import annotations

import pytest

from bench.fraud_reference import reference_features
from examples.fraud.generate import DAY_MS, make_world, simulate

START_MS = 1_767_225_600_000  # 2026-01-01, a Thursday


@pytest.fixture(scope="module")
def small():
    return simulate(make_world(customers=150, terminals=600, seed=3), START_MS, 50)


@pytest.fixture(scope="module")
def features(small):
    return reference_features(small.transactions, small.reports)


def rows_of(table):
    return [{**row, "ms": round(row["event_time"].timestamp() * 1000)} for row in table.to_pylist()]


@pytest.mark.parametrize("days", [1, 7, 30])
def test_windows_equal_those_counted_one_by_one(small, features, days):
    rows = rows_of(small.transactions)
    frauds = set(small.reports["transaction_id"].to_pylist())

    for number, row in list(enumerate(rows))[::401]:
        t = row["ms"]
        mine = [
            r
            for r in rows
            if r["customer_id"] == row["customer_id"] and t - days * DAY_MS < r["ms"] <= t
        ]
        at_terminal = [
            r
            for r in rows
            if r["terminal_id"] == row["terminal_id"]
            and t - (7 + days) * DAY_MS < r["ms"] <= t - 7 * DAY_MS
        ]
        reported = [r for r in at_terminal if r["transaction_id"] in frauds]

        assert features[f"customer__count_{days}d"][number] == len(mine)
        assert features[f"customer__amount_mean_{days}d"][number] == pytest.approx(
            sum(r["amount"] for r in mine) / len(mine), rel=1e-12
        )
        assert features[f"terminal__count_{days}d"][number] == len(at_terminal)
        risk = len(reported) / len(at_terminal) if at_terminal else 0.0
        assert features[f"terminal__risk_{days}d"][number] == risk


def test_the_sample_holds_risky_terminals(features):
    assert (features["terminal__risk_30d"] > 0).any()
    assert (features["terminal__count_30d"] > 1).any()


def test_weekends_and_nights_are_those_of_the_calendar(small, features):
    for number, row in enumerate(rows_of(small.transactions)):
        assert features["during_weekend"][number] == (row["event_time"].weekday() >= 5)
        assert features["during_night"][number] == (row["event_time"].hour <= 6)
