"""The handbook's first transactions through the broker-free driver: all its features.

`./dev parity` and its integration test run the whole set through Kafka; this one finds a broken
window in seconds. 100,000 rows are ten days: the windows of terminals end seven days back.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import headrace as hr
from headrace.features.compiler import compile_pipeline
from headrace.streams.testing import Driver, once

ROWS = 100_000
DAY_MS = 86_400_000
DAYS = (1, 7, 30)
_TIME = {"type": "long", "logicalType": "timestamp-millis"}
_KEYS = {"transaction_id": "long", "customer_id": "long", "terminal_id": "long"}


def _schema(name, fields):
    listed = [{"name": field, "type": kind} for field, kind in fields.items()]
    return json.dumps({"type": "record", "name": name, "fields": listed})


SCHEMAS = {
    "transactions": _schema("Transaction", {**_KEYS, "event_time": _TIME, "amount": "double"}),
    "reports": _schema("Report", {**_KEYS, "event_time": _TIME, "known_at": _TIME}),
}


def make_plan():
    transactions = hr.Source(
        "transactions",
        key="customer_id",
        event_time="event_time",
        event_id="transaction_id",
        partitioner="murmur2",
    )
    reports = hr.Source(
        "reports", key="transaction_id", event_time="event_time", known_at="known_at"
    )
    over = [f"{days}d" for days in DAYS]
    spending = hr.FeatureView(
        "customer",
        entity=hr.Entity("customer", key="customer_id"),
        source=transactions,
        features=[hr.count(over=over), hr.mean("amount", over=over)],
    )
    risk = hr.FeatureView(
        "terminal",
        entity=hr.Entity("terminal", key="terminal_id"),
        source=transactions,
        delay="7d",
        features=[
            hr.count(over=over),
            hr.ratio(hr.count(source=reports), hr.count(), name="risk", over=over, default=0.0),
        ],
    )
    request = {
        "during_weekend": hr.weekday("event_time") >= 5,
        "during_night": hr.hour("event_time") <= 6,
    }
    pipeline = hr.Pipeline("fraud", transactions, [spending, risk], request=request)
    return compile_pipeline(pipeline, SCHEMAS)


@pytest.fixture(scope="module")
def handbook(shared_data):
    return pq.read_table(shared_data / "fraud" / "transformed.parquet").slice(0, ROWS)


@pytest.fixture(scope="module")
def ties(shared_data):
    """Return pairs of ids whose order in the reference is not that of their ids."""
    text = (shared_data / "fraud" / "customer_tie_order.json").read_text()
    pairs = json.loads(text)
    pairs = pairs if isinstance(pairs, list) else pairs["pairs"]
    return [pair["reference_order"] for pair in pairs if pair["swapped_vs_id"]]


def events_of(handbook, ties):
    """Return transactions in the reference's order, and reports of the frauds."""
    order = np.arange(ROWS)
    for first, second in ties:
        if max(first, second) < ROWS:
            order[[first, second]] = order[[second, first]]
    rows = handbook.take(order)
    transactions = pa.table(
        {
            "transaction_id": rows["TRANSACTION_ID"].cast(pa.int64()),
            "customer_id": rows["CUSTOMER_ID"].cast(pa.int64()),
            "terminal_id": rows["TERMINAL_ID"].cast(pa.int64()),
            "event_time": rows["TX_DATETIME"]
            .cast(pa.timestamp("ms"))
            .cast(pa.timestamp("ms", "UTC")),
            "amount": rows["TX_AMOUNT"].cast(pa.float64()),
        }
    )
    frauds = transactions.filter(pc.equal(rows["TX_FRAUD"], 1))
    time_ms = frauds["event_time"].cast(pa.int64())
    known_at = pc.add(time_ms, 7 * DAY_MS).cast(pa.timestamp("ms", "UTC"))
    return transactions, frauds.append_column("known_at", known_at)


def test_every_feature_of_the_handbook_at_every_row(handbook, ties):
    transactions, reports = events_of(handbook, ties)
    assert reports.num_rows > 250
    driver = Driver(make_plan(), partitions=4, seed=1, batch_rows=5_000)
    driver.send("reports", reports)
    driver.send("transactions", transactions)

    driver.run(crash_odds=0.02)

    assert driver.crashes
    snapshots = once(driver.snapshots())
    ids = np.array(snapshots["event_id"].to_pylist(), np.int64)
    found = snapshots.take(np.argsort(ids))
    assert sorted(ids) == list(range(ROWS))
    for days in DAYS:
        window = f"{days}DAY_WINDOW"
        for ours, theirs in (
            (f"customer__count_{days}d", f"CUSTOMER_ID_NB_TX_{window}"),
            (f"terminal__count_{days}d", f"TERMINAL_ID_NB_TX_{window}"),
            (f"terminal__risk_{days}d", f"TERMINAL_ID_RISK_{window}"),
        ):
            wrong = found[ours].to_numpy() != handbook[theirs].to_numpy()
            assert np.count_nonzero(wrong) == 0, ours
        mean = found[f"customer__amount_mean_{days}d"].to_numpy()
        wanted = handbook[f"CUSTOMER_ID_AVG_AMOUNT_{window}"].to_numpy()
        np.testing.assert_allclose(mean, wanted, rtol=1e-9, atol=1e-9)
    for name in ("weekend", "night"):
        wrong = (
            found[f"during_{name}"].to_numpy() != handbook[f"TX_DURING_{name.upper()}"].to_numpy()
        )
        assert np.count_nonzero(wrong) == 0, name
