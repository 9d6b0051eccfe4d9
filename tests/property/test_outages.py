"""Whoever stands still, and for how long: what comes out is what would have come out without.

The broker's time runs here; a partition that nobody reads has rows in it that nobody has read.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stream_cases import (
    HOUR_MS,
    differences,
    expected,
    make_payments,
    make_reports,
    three_stages,
    two_stages,
)

from headrace.streams.lanes import TRUST_MS
from headrace.streams.testing import Driver

PARTITIONS = 12
ROWS = 240
PAYMENTS = make_payments(ROWS, seed=31, step_ms=120_000)
REPORTS = make_reports(PAYMENTS, seed=32, share=0.5, known_after_ms=0)
LOGS = {"payments": PAYMENTS, "reports": REPORTS}
PLANS = {"two": two_stages(delay="0s", alignment_ms=0), "three": three_stages(alignment_ms=0)}
EXPECTED = {name: expected(plan, LOGS) for name, plan in PLANS.items()}
COMMON = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def started(name, seed):
    driver = Driver(PLANS[name], partitions=PARTITIONS, seed=seed, batch_rows=15)
    driver.run()
    return driver


def send_between(driver, first_ms, last_ms):
    """Send what happened from ``first_ms`` to before ``last_ms``, and what was reported of it."""
    sent = 0
    for source, rows in LOGS.items():
        chosen = [row for row in rows if first_ms <= row["event_time"] < last_ms]
        driver.send(source, chosen)
        sent += len(chosen)
    return sent


def settle(driver, name):
    """Read everything, saying again who is at the end, until nothing is held back any more."""
    last = driver.plan.stages[-1].topic
    for _ in range(20):
        driver.run()
        driver.say_again()
        stage = [o for (topic, _), o in driver.owned.items() if topic == last]
        if not any(o.processor.lanes.held_count for o in stage):
            driver.run()
            return
    pytest.fail(f"{name}: rows are held back for ever")


def check(driver, name):
    assert driver.late("payments") == driver.late("reports") == []
    assert differences(driver.snapshots(), EXPECTED[name]) == []


@pytest.mark.parametrize("name", PLANS)
@COMMON
@given(
    silent=st.sampled_from(["payments", "reports"]),
    place=st.integers(0, PARTITIONS - 1),
    begin=st.integers(0, ROWS // 2),
    seed=st.integers(0, 1000),
)
def test_an_hour_in_which_nobody_reads_a_lane_that_stood_at_its_end(
    name, silent, place, begin, seed
):
    driver = started(name, seed)
    start_ms = PAYMENTS[begin]["event_time"]
    send_between(driver, 0, start_ms)
    settle(driver, name)

    # Its reader dies; it has said that it is at its end, and its hour comes in behind its back.
    dead = driver.owned[silent, place]
    dead.paused = True
    driver.broker_time_ms += TRUST_MS + 1
    for step in range(6):
        first_ms = start_ms + step * HOUR_MS // 6
        send_between(driver, first_ms, first_ms + HOUR_MS // 6)
        driver.run()
        driver.say_again()
        driver.broker_time_ms += 700
    # Somebody takes it over: replays in silence, and tells of the backlog before reading it.
    dead.paused = False
    driver.crash(dead)
    send_between(driver, start_ms + HOUR_MS, 1 << 62)
    settle(driver, name)

    check(driver, name)


@pytest.mark.parametrize("name", PLANS)
@COMMON
@given(seed=st.integers(0, 1000), first=st.sampled_from(["payments", "reports"]))
def test_an_hour_in_which_nobody_reads_anything(name, seed, first):
    driver = started(name, seed)
    start_ms = PAYMENTS[ROWS // 3]["event_time"]
    send_between(driver, 0, start_ms)
    settle(driver, name)

    driver.broker_time_ms += HOUR_MS
    send_between(driver, start_ms, 1 << 62)
    # Workers come back one after the other: the first reads one source while nobody has the rest.
    back = {(topic, n) for topic, n in driver.owned if topic == first or "rekey" in topic}
    for place, owned in driver.owned.items():
        owned.paused = place not in back
        driver.crash(owned)
    driver.run()
    for owned in driver.owned.values():
        owned.paused = False
    settle(driver, name)

    check(driver, name)
