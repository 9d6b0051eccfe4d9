"""The stream through the broker-free driver against brute force, whatever comes in between."""

from __future__ import annotations

import pytest
from stream_cases import (
    DAY_MS,
    HOUR_MS,
    differences,
    expected,
    make_payments,
    make_reports,
    one_stage,
    three_stages,
    two_stages,
)

from headrace.streams.testing import Driver, once

SEEDS = range(6)


def drive(plan, logs, *, seed=None, crash_odds=0.0, abort_odds=0.0, batch_rows=40):
    driver = Driver(plan, seed=seed, batch_rows=batch_rows)
    for source, rows in logs.items():
        driver.send(source, rows)
    driver.run(crash_odds=crash_odds, abort_odds=abort_odds)
    return driver


@pytest.fixture(scope="module")
def logs():
    payments = make_payments(400, seed=1)
    return {"payments": payments, "reports": make_reports(payments, seed=2)}


@pytest.mark.parametrize("seed", SEEDS)
def test_one_stage_equals_brute_force_under_crashes_and_aborts(logs, seed):
    plan = one_stage()
    logs = {"payments": logs["payments"]}

    driver = drive(plan, logs, seed=seed, crash_odds=0.1, abort_odds=0.1)

    assert driver.crashes
    assert driver.aborts
    assert differences(driver.snapshots(), expected(plan, logs)) == []
    assert once(driver.predictions()).num_rows == 400


@pytest.mark.parametrize("seed", SEEDS)
def test_two_stages_equal_brute_force_under_any_interleaving(logs, seed):
    plan = two_stages(delay="0s", alignment_ms=0)

    driver = drive(plan, logs, seed=seed, crash_odds=0.05, abort_odds=0.05)

    assert driver.crashes
    assert driver.aborts
    assert differences(driver.snapshots(), expected(plan, logs)) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_three_stages_equal_brute_force_under_any_interleaving(logs, seed):
    plan = three_stages(alignment_ms=0)

    driver = drive(plan, logs, seed=seed, crash_odds=0.05, abort_odds=0.05)

    assert driver.crashes
    assert differences(driver.snapshots(), expected(plan, logs)) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_delayed_window_bears_the_alignment_that_the_plan_allows(logs, seed):
    plan = two_stages(delay="1d")

    driver = drive(plan, logs, seed=seed)

    assert differences(driver.snapshots(), expected(plan, logs)) == []


@pytest.mark.parametrize("known_after_ms", [0, HOUR_MS, 2 * DAY_MS])
def test_reports_sent_before_all_payments_change_nothing(logs, known_after_ms):
    plan = two_stages(delay="1h")
    reports = make_reports(logs["payments"], seed=3, known_after_ms=known_after_ms)
    logs = {"payments": logs["payments"], "reports": reports}
    driver = Driver(plan, seed=1, batch_rows=40)

    driver.send("reports", reports)
    driver.run()
    driver.send("payments", logs["payments"])
    driver.run()

    assert driver.late("reports") == []
    assert differences(driver.snapshots(), expected(plan, logs)) == []


@pytest.mark.parametrize("held", range(4))
def test_one_source_partition_an_hour_behind_makes_nothing_late_and_nothing_differ(logs, held):
    plan = two_stages(delay="0s", alignment_ms=0)
    driver = Driver(plan, seed=held, batch_rows=25)
    for source, rows in logs.items():
        driver.send(source, rows)
    behind = driver.owned["payments", held]

    behind.paused = True
    driver.run()
    stage = [o.processor for (topic, _), o in driver.owned.items() if topic == plan.stages[1].topic]
    waiting = sum(processor.lanes.held_count for processor in stage)
    behind.paused = False
    driver.run()

    assert waiting > 200
    assert driver.late("payments") == driver.late("reports") == []
    assert sum(processor.lanes.held_count for processor in stage) == 0
    assert differences(driver.snapshots(), expected(plan, logs)) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_source_read_through_the_router_gives_the_same_features(logs, seed):
    direct, routed = two_stages(), two_stages(partitioner=None, alignment_ms=0, delay="1d")
    assert [stage.direct for stage in direct.stages] == [True, False]
    assert [stage.direct for stage in routed.stages] == [False, False]
    driver = Driver(routed, seed=seed, batch_rows=40)
    driver.send("reports", logs["reports"])
    # Producers that put keys anywhere.
    driver.send(
        "payments", logs["payments"], partition=[row["payment_id"] % 4 for row in logs["payments"]]
    )

    driver.run(crash_odds=0.05, abort_odds=0.05)

    assert differences(driver.snapshots(), expected(routed, logs)) == []
