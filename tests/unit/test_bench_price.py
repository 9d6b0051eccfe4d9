"""What the benches of exactly-once's price are fed with, and how they sum up."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from bench.card.job import PARTITION_COUNT, customer_name
from bench.fraud_latency import at_rate
from bench.report import spread
from bench.scale import even_events
from headrace.features.kernels.keys import murmur2_partitions


def test_the_events_of_the_scale_bench_are_spread_evenly_over_the_partitions():
    events = even_events(20_000)
    keys = [customer_name(number).encode() for number in events.customer.tolist()]
    counts = np.bincount(murmur2_partitions(keys, PARTITION_COUNT), minlength=PARTITION_COUNT)
    assert counts.sum() == 20_000
    assert counts.max() < 1.05 * counts.min()


def test_payments_are_as_far_apart_in_event_time_as_they_are_played():
    payments = pa.table(
        {
            "transaction_id": [7, 8, 9],
            "event_time": [5, 5_000, 90_000],
            "customer_id": ["a", "b", "a"],
        }
    )
    played = at_rate(payments, 1_000)
    assert played["transaction_id"].to_pylist() == [0, 1, 2]
    assert played["event_time"].cast(pa.int64()).to_pylist() == [1_000, 1_001, 1_002]
    assert played["customer_id"] == payments["customer_id"]


def test_ratios_are_told_with_their_spread():
    assert spread([1.1, 0.85, 0.9]) == "min 0.85, median 0.90, max 1.10"
