"""A pipeline of two entities on the real broker, its payments, and what each feature must be."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict

import pytest
from live import LiveWorker

START_MS = 1_750_000_000_000
HOUR_MS = 3_600_000
TWO_ENTITIES = """
import headrace as hr

payments = hr.Source(
    "payments",
    key="customer_id",
    event_time="event_time",
    event_id="payment_id",
    partitioner="murmur2",
)
spending = hr.FeatureView(
    "customer",
    entity=hr.Entity("customer", key="customer_id"),
    source=payments,
    features=[hr.count(over=["1h"]), hr.mean("amount", over=["1h"])],
)
tills = hr.FeatureView(
    "till",
    entity=hr.Entity("till", key="till"),
    source=payments,
    features=[hr.count(over=["1h"])],
)
spend = hr.Pipeline("spend", source=payments, views=[spending, tills], alignment="0s")
"""
TILL = {"name": "till", "type": "long"}


def make_payments(project, count, seed):
    """Return payments of 50 customers at 11 tills, 20 s apart: keys with values, and the rows."""
    rows = [
        (i, START_MS + 20_000 * i, f"c{(7 * i + seed) % 50}", float((i * 13) % 97), (5 * i) % 11)
        for i in range(count)
    ]
    return [(row[2].encode(), project.payment(*row)) for row in rows], rows


def expected_features(rows):
    """Return by event id what the definitions say, from the rows alone."""
    by_customer, by_till, wanted = defaultdict(list), defaultdict(list), {}
    for payment_id, time_ms, customer, amount, till in rows:
        by_customer[customer].append((time_ms, amount))
        by_till[till].append(time_ms)
        one = {}
        for label, length_ms in (("1h", HOUR_MS), ("2h", 2 * HOUR_MS)):
            history = by_customer[customer]
            times = [t for t, _ in history]
            first = bisect_right(times, time_ms - length_ms)
            amounts = [a for _, a in history[first:]]
            one[f"customer__count_{label}"] = len(amounts)
            one[f"customer__amount_mean_{label}"] = sum(amounts) / len(amounts)
        tills = by_till[till]
        one["till__count_1h"] = len(tills) - bisect_right(tills, time_ms - HOUR_MS)
        wanted[str(payment_id)] = one
    return wanted


def check(snapshots, wanted, names):
    for one in snapshots:
        for name in names:
            assert one[name] == pytest.approx(wanted[one["event_id"]][name], abs=1e-9), (name, one)


def ended(folder, *options):
    """Run a worker that ends by itself; return its exit code and what it said."""
    worker = LiveWorker(folder, *options)
    try:
        code = worker.process.wait(120)
        said = worker.process.stdout.read().decode()
        return code, said + worker.output()
    finally:
        worker.close()
