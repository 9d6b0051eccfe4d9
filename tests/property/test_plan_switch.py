"""Another plan goes on over the same logs: every event comes out once, with the numbers it has."""

from __future__ import annotations

import pytest
from stream_cases import (
    SCHEMAS,
    differences,
    expected,
    make_payments,
    make_reports,
    payments_source,
)

import headrace as hr
from headrace.features.compiler import compile_pipeline
from headrace.streams.testing import Driver

COUNT, SWITCH = 240, 130


def plan_of(customer, terminal, city=None, *, partitioner="murmur2", partitions=3):
    """Compile a pipeline from lists of features by entity; None leaves the entity out."""
    source = payments_source(partitioner=partitioner)
    reports = hr.Source("reports", key="payment_id", event_time="event_time", known_at="known_at")
    given = {"customer": customer, "terminal": terminal, "city": city}
    keys = {"customer": "customer_id", "terminal": "terminal_id", "city": "city"}
    views = [
        hr.FeatureView(
            name,
            entity=hr.Entity(name, key=keys[name]),
            source=source,
            features=[make(reports) if callable(make) else make for make in features],
        )
        for name, features in given.items()
        if features is not None
    ]
    pipeline = hr.Pipeline("fraud", source, views, alignment="0s")
    return compile_pipeline(pipeline, SCHEMAS, partitions=partitions)


def risk(reports):
    return hr.count(source=reports, name="reported", over="3d")


SPENT = hr.sum("amount", over="1d")
BUSY = hr.max(hr.feature("customer__count_1d"), over="12h", name="busiest")
COUNTED = hr.count(over="1d")
V1 = {"customer": [COUNTED], "terminal": [risk, COUNTED]}
CHANGES = {
    "the first stage gets a feature": (V1, {**V1, "customer": [COUNTED, SPENT]}),
    "the last stage gets a feature": (V1, {**V1, "terminal": [risk, COUNTED, hr.count(over="2d")]}),
    "a stage comes": (V1, {**V1, "city": [COUNTED, BUSY]}),
    "a stage goes": ({**V1, "city": [COUNTED, BUSY]}, V1),
    "the middle one changes": (
        {**V1, "city": [COUNTED, BUSY]},
        {**V1, "terminal": [risk, COUNTED, SPENT], "city": [COUNTED, BUSY]},
    ),
    "the first of three changes": (
        {**V1, "city": [COUNTED, BUSY]},
        {"customer": [COUNTED, SPENT], "terminal": [risk, COUNTED], "city": [COUNTED, BUSY]},
    ),
    "the source is re-keyed": (V1, {**V1, "partitioner": None}),
}


def logs_of(seed):
    payments = make_payments(COUNT, seed=seed)
    reports = make_reports(payments, seed=seed + 1)
    at = payments[SWITCH]["event_time"]
    return split(payments, reports, at)


def split(payments, reports, at):
    """Cut by what has happened, and was known, before a time."""
    return [
        {
            "payments": [row for row in payments if (row["event_time"] < at) == before],
            "reports": [row for row in reports if (row["known_at"] < at) == before],
        }
        for before in (True, False)
    ]


def send(driver, logs):
    # Reports first: at equal times they count, and in live traffic none is waited for.
    for source in ("reports", "payments"):
        driver.send(source, logs[source])


def ids(driver):
    return [int(i) for i in driver.snapshots().column("event_id").to_pylist()]


def check(driver, plan, logs, wanted_ids):
    assert sorted(set(ids(driver))) == sorted(wanted_ids)
    wanted = {i: row for i, row in expected(plan, logs).items() if i in set(wanted_ids)}
    assert differences(driver.snapshots(), wanted) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("change", CHANGES)
def test_the_new_plan_scores_what_comes_after_and_nothing_twice(change, seed):
    before, after = (plan_of(**given) for given in CHANGES[change])
    earlier, later = logs_of(seed)
    together = {source: earlier[source] + later[source] for source in earlier}
    old = Driver(before, partitions={"payments": 4, "reports": 2}, seed=seed, batch_rows=30)
    send(old, earlier)
    old.run()
    old.commit()

    new = old.succeeded_by(after, seed=seed + 10)
    # Some of what is new comes while the old is still being sent again.
    send(new, later)
    new.run(crash_odds=0.05, abort_odds=0.1)

    check(old, before, earlier, range(SWITCH))
    check(new, after, together, range(SWITCH, COUNT))
    assert new.dlq("payments") == [] == new.late("payments")


@pytest.mark.parametrize("seed", range(3))
def test_nothing_new_means_nothing_is_scored_and_the_next_start_sends_nothing_again(seed):
    before, after = (plan_of(**given) for given in CHANGES["the first stage gets a feature"])
    earlier, later = logs_of(seed)
    old = Driver(before, seed=seed, batch_rows=30)
    send(old, earlier)
    old.run()
    old.commit()

    new = old.succeeded_by(after, seed=seed)
    new.run()
    new.commit()
    topic = after.stages[1].topic
    sent = sum(bool(message.value) for message in new.messages(topic))
    assert ids(new) == []
    for owned in new.owned.values():
        new.crash(owned)
    new.run()

    # Where the lanes stand is told once more, without rows.
    assert sum(bool(message.value) for message in new.messages(topic)) == sent
    send(new, later)
    new.run()
    together = {source: earlier[source] + later[source] for source in earlier}
    check(new, after, together, range(SWITCH, COUNT))


@pytest.mark.parametrize("seed", range(3))
def test_back_to_the_plan_of_before(seed):
    before, after = (plan_of(**given) for given in CHANGES["the first of three changes"])
    earlier, later = logs_of(seed)
    half = len(later["payments"]) // 2
    at = later["payments"][half]["event_time"]
    middle, last = split(later["payments"], later["reports"], at)
    together = {source: earlier[source] + later[source] for source in earlier}
    first = Driver(before, seed=seed, batch_rows=30)
    send(first, earlier)
    first.run()
    first.commit()
    second = first.succeeded_by(after, seed=seed)
    send(second, middle)
    second.run(abort_odds=0.1)
    second.commit()

    third = second.succeeded_by(before, seed=seed)
    send(third, last)
    third.run(crash_odds=0.05, abort_odds=0.1)

    check(third, before, together, range(SWITCH + half, COUNT))
    assert {stage.topic for stage in before.stages[1:]}.isdisjoint(
        stage.topic for stage in after.stages[1:]
    )


def test_a_topic_is_named_after_what_travels_in_it():
    """A change behind the hop leaves the topic; one before it, or of what travels, does not."""
    plans = {name: tuple(plan_of(**g) for g in given) for name, given in CHANGES.items()}

    def topics_of(plan):
        return [stage.topic for stage in plan.stages if not stage.direct]

    before, after = plans["the first stage gets a feature"]
    assert topics_of(before) != topics_of(after)
    # The amount does not travel yet.
    before, after = plans["the last stage gets a feature"]
    assert topics_of(before) == topics_of(after)
    assert before.fingerprint != after.fingerprint
    before, after = plans["the middle one changes"]
    assert topics_of(before)[1] != topics_of(after)[1]
    wider = plan_of(**V1, partitions=5)
    assert topics_of(wider) != topics_of(plan_of(**V1))
