"""Duplicates by event id: the memory against a naive one, and streams against logs without them."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_cases import (
    DAY_MS,
    HOUR_MS,
    START_MS,
    differences,
    expected,
    make_payments,
    make_reports,
    one_stage,
    two_stages,
)

from headrace.features.duplicates import IdMemory, RowIds
from headrace.features.kernels.ids import AGAIN, CONFLICT, DUPLICATE, NEW, UNCHECKED
from headrace.features.kernels.keys import hash_keys
from headrace.streams.testing import Driver

PRECISE = settings(max_examples=150, deadline=None)
SOME = settings(max_examples=20, deadline=None)


class NaiveMemory:
    """A list of all that counted, in its order, looked through for each row."""

    def __init__(self, window_ms, lateness_ms):
        self.window_ms, self.keep_ms = window_ms, window_ms + lateness_ms
        self.block_ms = max(HOUR_MS, -(-self.keep_ms // 24))
        self.counted = []
        self.stream_ms = -(1 << 62)

    def block_end(self, time_ms):
        return (time_ms // self.block_ms + 1) * self.block_ms

    def judge(self, row):
        identity, payload, time_ms = row
        if identity is None:
            return NEW
        oldest_ms = self.stream_ms - self.keep_ms
        same = [
            (self.block_end(t), p)
            for i, p, t in self.counted
            if i == identity and self.block_end(t) > oldest_ms
        ]
        if same:
            end_ms, its_payload = max(same, key=lambda pair: pair[0])
            if end_ms > time_ms - self.window_ms:
                return DUPLICATE if its_payload == payload else CONFLICT
        if self.block_end(time_ms) <= oldest_ms:
            return UNCHECKED
        self.counted.append(row)
        return AGAIN if same else NEW


def as_columns(rows):
    hashes = np.maximum(hash_keys(pa.array([i for i, _, _ in rows], pa.int64())), np.uint64(1))
    known = np.array([i is not None for i, _, _ in rows], bool)
    payload = np.array([p for _, p, _ in rows], np.uint32)
    times = np.array([t for _, _, t in rows], np.int64)
    return RowIds(hashes, known, payload), times


ROWS = st.tuples(
    st.none() | st.integers(1, 40),
    st.integers(0, 1),
    # Sampled: whole numbers drawn from a range are mostly near its beginning.
    st.sampled_from(range(0, 60 * HOUR_MS, 20 * 60_000)),
)
TURNS = st.lists(
    st.tuples(
        st.lists(ROWS, max_size=30),
        st.sampled_from(["plain", "commit", "abort", "reload"]),
        st.sampled_from(range(0, 80 * HOUR_MS, HOUR_MS // 2)),
    ),
    max_size=8,
)


@PRECISE
@given(turns=TURNS, window_h=st.sampled_from([1, 5, 24, 100]), lateness_h=st.integers(0, 3))
def test_any_batches_aborts_and_reloads_give_the_naive_verdicts(turns, window_h, lateness_h):
    memory = IdMemory(window_h * HOUR_MS, lateness_h * HOUR_MS)
    naive = NaiveMemory(window_h * HOUR_MS, lateness_h * HOUR_MS)

    for rows, how, stream_ms in turns:
        columns = as_columns(rows)
        if how == "abort":
            memory.begin()
            memory.judge(*columns)
            memory.advance(stream_ms)
            memory.judge(*columns)
            memory.abort()
        if how == "reload":
            fresh = IdMemory(window_h * HOUR_MS, lateness_h * HOUR_MS)
            fresh.load(memory.dump())
            memory = fresh
        if how == "commit":
            memory.begin()
        wanted = [naive.judge(row) for row in rows]
        assert memory.judge(*columns).tolist() == wanted
        memory.advance(stream_ms)
        naive.stream_ms = max(naive.stream_ms, stream_ms)
        if how == "commit":
            memory.commit()


def test_tables_that_grow_in_a_transaction_are_put_back():
    memory = IdMemory(DAY_MS, 0)
    first = [(i, i % 7, START_MS) for i in range(1, 150)]
    more = [(i, i % 7, START_MS) for i in range(150, 3_000)]
    memory.judge(*as_columns(first))
    before = memory.dump()

    memory.begin()
    # A few into the table as it is, then so many that it grows, twice.
    for some in (more[:20], more[20:500], more[500:]):
        assert (memory.judge(*as_columns(some)) == NEW).all()
    memory.abort()

    after = memory.dump()
    assert memory.id_count == len(first)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert (memory.judge(*as_columns(more)) == NEW).all()
    assert (memory.judge(*as_columns(first + more)) == DUPLICATE).all()


def test_what_lies_behind_window_and_lateness_is_dropped():
    memory = IdMemory(DAY_MS, HOUR_MS)
    # On the average of hours that were filled to different degrees.
    for hour in range(100):
        count = 2_000 + 60 * hour
        rows = [((hour << 20) + i, 0, START_MS + hour * HOUR_MS) for i in range(1, count)]
        memory.judge(*as_columns(rows))
        memory.advance(START_MS + hour * HOUR_MS)

    kept_hours = len(memory.dump()["blocks"])
    assert 25 <= kept_hours <= 27
    assert 16 <= memory.nbytes / memory.id_count <= 32


def resent(rows, seed, share, *, within):
    """Return the rows with a share of them sent again, at most ``within`` places later."""
    draw = random.Random(seed)
    places = [(place, 0, row) for place, row in enumerate(rows)]
    places += [
        (place + draw.uniform(0, within), 1, row)
        for place, row in enumerate(rows)
        if draw.random() < share
    ]
    return [row for _, _, row in sorted(places, key=lambda item: item[:2])]


def with_dedupe(make_plan, **options):
    return make_plan(dedupe="1d", lateness="2h", **options)


def plans():
    reports = {"event_id": "report_id", "dedupe": "1d"}
    return {
        "direct": with_dedupe(one_stage),
        "two stages": with_dedupe(two_stages, alignment_ms=0, reports_options=reports),
        "routed": with_dedupe(
            two_stages, alignment_ms=0, partitioner=None, reports_options=reports
        ),
    }


@pytest.mark.parametrize("name", ["direct", "two stages", "routed"])
@SOME
@given(seed=st.integers(0, 10_000))
def test_what_is_sent_again_changes_no_number_however_it_is_read(name, seed):
    plan = plans()[name]
    payments = make_payments(80, seed)
    if name != "routed":
        # Without a Kafka key a producer chooses any partition, another one each time.
        payments = [row | {"customer_id": row["customer_id"] or "c1"} for row in payments]
    logs = {"payments": payments, "reports": make_reports(payments, seed)}
    driver = Driver(plan, partitions=3, seed=seed, batch_rows=11)
    sent = {}
    for source in plan.sources:
        sent[source.name] = resent(logs[source.name], seed + 1, 0.1, within=10)
        driver.send(source.name, sent[source.name])

    driver.run(crash_odds=0.1, abort_odds=0.2)

    assert differences(driver.snapshots(), expected(plan, logs)) == []
    emitted = Counter(driver.snapshots().column("event_id").to_pylist())
    # A crash repeats an output; none is made for a row that was sent again.
    places = set(driver.snapshots().column("prediction_id").to_pylist())
    assert len(places) == len(emitted) == len(payments)
    assert driver.dlq("payments") == []


@pytest.mark.parametrize("name", ["direct", "routed"])
def test_duplicates_and_conflicts_are_counted_and_conflicts_keep_their_bytes(name):
    plan = plans()[name]
    payments = make_payments(40, seed=3)
    for row in payments:
        row["customer_id"] = row["customer_id"] or "c1"
    other = payments[37] | {"amount": 77.0}
    driver = Driver(plan, partitions=3)
    driver.send("payments", [*payments, payments[37], other, payments[36]])

    counts, out_of_window, rejected = run_counted(driver)

    assert counts == {"payments": 2}
    assert out_of_window == {}
    assert rejected == {"id_conflict": 1}
    (record,) = driver.dlq("payments")
    assert record.value == driver.encode("payments", other)
    assert record.key == other["customer_id"].encode()
    headers = dict(record.headers)
    assert headers["headrace.errors.reason"] == b"id_conflict"
    partition, offset = (int(headers[f"headrace.errors.{n}"]) for n in ("partition", "offset"))
    assert driver._logs["payments"][partition][offset].value == record.value
    logs = {"payments": payments, "reports": []}
    assert differences(driver.snapshots(), expected(plan, logs)) == []


def run_counted(driver):
    counts, outside, rejected = Counter(), Counter(), Counter()
    step = driver.step

    def counted(owned, count, sent=1.0):
        outputs = step(owned, count, sent)
        counts.update(outputs.duplicates)
        outside.update(outputs.out_of_window)
        rejected.update(outputs.rejected)
        return outputs

    driver.step = counted
    driver.run()
    return counts, outside, rejected


def test_an_id_that_is_used_again_after_the_window_counts_and_is_told_of():
    plan = with_dedupe(one_stage)
    row = make_payments(1, seed=1)[0] | {"customer_id": "c1"}
    rows = [row, row | {"event_time": row["event_time"] + DAY_MS + HOUR_MS}]
    driver = Driver(plan, partitions=1)
    driver.send("payments", rows)

    counts, outside, rejected = run_counted(driver)

    assert (counts, rejected) == ({}, {})
    assert outside == {"payments": 1}
    assert driver.snapshots().num_rows == 2


def test_an_exact_copy_that_comes_after_the_window_is_late_and_never_counts_twice():
    plan = with_dedupe(one_stage)
    row = make_payments(1, seed=1)[0] | {"customer_id": "c1"}
    newer = row | {"payment_id": 999, "event_time": row["event_time"] + 30 * DAY_MS}
    driver = Driver(plan, partitions=1)
    driver.send("payments", [row, newer, row])

    counts, outside, _ = run_counted(driver)

    assert (counts, outside) == ({}, {})
    assert len(driver.late("payments")) == 1
    assert driver.snapshots().num_rows == 2


def test_the_same_id_in_another_source_is_another_id():
    reports = {"event_id": "payment_id", "dedupe": "1d"}
    plan = with_dedupe(two_stages, reports_options=reports)
    payments = [row | {"terminal_id": 1} for row in make_payments(10, seed=1)]
    driver = Driver(plan, partitions=2)
    driver.send("payments", payments)
    driver.send("reports", make_reports(payments, seed=1, share=1.0))

    counts, _, rejected = run_counted(driver)

    assert (counts, rejected) == ({}, {})
    assert driver.snapshots().num_rows == 10


def test_without_dedupe_the_fingerprint_is_what_it_was_and_with_it_another():
    plain = one_stage()
    assert plain.fingerprint == one_stage(event_id=None).fingerprint
    assert plain.fingerprint != with_dedupe(one_stage).fingerprint
    assert one_stage(dedupe="1d").fingerprint != one_stage(dedupe="2d").fingerprint
    assert dataclasses.asdict(plain.sources[0])["dedupe_ms"] == 0
