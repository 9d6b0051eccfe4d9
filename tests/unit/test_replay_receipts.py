"""Vectors computed again from the logs are what was served, to the last bit."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from stream_cases import (
    DAY_MS,
    DriverLog,
    make_payments,
    make_reports,
    one_stage,
    three_stages,
    two_stages,
)

from headrace.scoring.receipts import as_matrix, same_bits
from headrace.streams.rerun import Asked, rerun
from headrace.streams.testing import Driver, once


def played(plan, *, seed=3, rows=400, crash_odds=0.05):
    """Return a driver that has taken payments and reports, out of order, with crashes."""
    payments = make_payments(rows, seed)
    draw = np.random.default_rng(seed)
    jitter = draw.integers(-3, 4, len(payments))
    late = [payments[i] for i in np.argsort(np.arange(len(payments)) + jitter, kind="stable")]
    driver = Driver(plan, partitions=3, seed=seed)
    if len(plan.sources) > 1:
        driver.send("reports", make_reports(payments, seed, known_after_ms=DAY_MS))
    for start in range(0, rows, 100):
        driver.send("payments", late[start : start + 100])
        driver.run(crash_odds=crash_odds)
    return driver


def asked_for(plan, snapshots):
    keys = {s.entity: snapshots.column(f"{s.entity}_key").to_pylist() for s in plan.stages}
    return Asked(
        snapshots.column("source_partition").to_numpy(),
        snapshots.column("source_offset").to_numpy(),
        keys,
    )


def assert_replayed(plan, driver, snapshots):
    result = rerun(plan, driver.context, DriverLog(driver), asked_for(plan, snapshots))
    served = as_matrix(snapshots.select([column.name for column in plan.vector]))
    assert result.missing == {}
    assert same_bits(served, result.vector).all()
    for view, ages in result.ages_ms.items():
        recorded = as_matrix(snapshots.select([f"{view}__age_ms"]))[:, 0]
        assert same_bits(recorded, ages).all()
    return result


@pytest.mark.parametrize("plan", [one_stage(), two_stages(), three_stages()], ids=lambda p: p.name)
def test_every_vector_is_computed_again_to_the_last_bit(plan):
    driver = played(plan)
    snapshots = once(driver.snapshots())
    assert snapshots.num_rows == 400
    assert driver.crashes

    assert_replayed(plan, driver, snapshots)


def test_some_rows_in_any_order_are_found_among_all():
    plan = three_stages()
    driver = played(plan, seed=8)
    some = np.random.default_rng(1).choice(400, 23, replace=False)

    assert_replayed(plan, driver, once(driver.snapshots()).take(pa.array(some)))


def test_what_the_log_does_not_hold_is_named_with_its_stage():
    plan = two_stages()
    driver = played(plan, rows=100)
    snapshots = once(driver.snapshots()).slice(0, 2)
    asked = asked_for(plan, snapshots)
    beyond = Asked(asked.partition, np.array([asked.offset[0], 10_000]), asked.keys)
    elsewhere = Asked(asked.partition, asked.offset, {**asked.keys, "terminal": ["77", "78"]})

    first = rerun(plan, driver.context, DriverLog(driver), beyond)
    second = rerun(plan, driver.context, DriverLog(driver), elsewhere)

    assert first.missing == {1: "customer"}
    assert set(second.missing.values()) <= {"terminal"}
    assert second.missing


def test_a_pass_ends_with_the_last_row_asked_for():
    plan = one_stage()
    driver = played(plan, crash_odds=0.0)
    snapshots = once(driver.snapshots())
    early = pa.array(np.flatnonzero(snapshots.column("source_offset").to_numpy() < 10))
    log = DriverLog(driver, rows=10)

    rerun(plan, driver.context, log, asked_for(plan, snapshots.take(early)))

    assert log.read == 30
