"""Other definitions take over on the real broker: every event is scored once, with whole windows.

What is sent is there before the worker starts: a backlog is read in the order of event time, while
20 seconds of payments that come within a millisecond may come in any.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict

import pytest
from live import LiveWorker, apply, make_project

from headrace.streams.cutover import left_topics
from headrace.streams.environment import open_environment

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
NEW_FEATURE = ('hr.mean("amount", over=["1h"])', 'hr.mean("amount", over=["1h", "2h"])')


@pytest.fixture(params=["exactly_once", "at_least_once"])
def project(project_folder, request):
    settings = f"stream:\n  guarantee: {request.param}\n"
    made = make_project(project_folder, settings, definitions=TWO_ENTITIES, fields=(TILL,))
    yield made
    made.close()


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
        assert bisect_left(tills, time_ms) < len(tills)
        wanted[str(payment_id)] = one
    return wanted


def check(snapshots, wanted, names):
    for one in snapshots:
        for name in names:
            assert one[name] == pytest.approx(wanted[one["event_id"]][name], abs=1e-9), (name, one)


def change(project, old, new):
    """Write other definitions, and apply them; return the environment of the new ones."""
    file = project.folder / "definitions.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    environment = open_environment(project.folder)
    apply(environment)
    return environment


def ended(folder, *options):
    """Run a worker that ends by itself; return its exit code and what it said."""
    worker = LiveWorker(folder, *options)
    try:
        code = worker.process.wait(120)
        said = worker.process.stdout.read().decode()
        return code, said + worker.output()
    finally:
        worker.close()


def unfinished(environment):
    return [
        topic
        for topic in left_topics(environment.client, environment.plan.pipelines[0])
        if not topic.is_finished
    ]


def test_a_new_feature_is_whole_from_its_first_event_and_nothing_is_scored_twice(project):
    messages, rows = make_payments(project, 1_200, seed=3)
    wanted = expected_features(rows)
    before = project.plan
    project.send(messages[:700])
    with LiveWorker(project.folder) as worker:
        project.read("snapshots", 200)
        assert worker.terminate() == 0, worker.output()
    # Comes while nobody reads: the former definitions score it, if it is there when they drain.
    project.send(messages[700:750])
    code, said = ended(project.folder, "--drain")
    assert code == 0, said
    assert "drained: " in said
    first = project.records("snapshots", 750)
    assert len(first) == 750

    environment = change(project, *NEW_FEATURE)
    plan = environment.plan.pipelines[0]
    assert plan.stages[1].topic != before.stages[1].topic
    assert [topic.name for topic in left_topics(environment.client, plan)] == [
        before.stages[1].topic
    ]
    project.send(messages[750:1_000])
    with LiveWorker(project.folder) as worker:
        project.read("snapshots", 1_000)
        # Once more, so that what was sent again is not sent a second time.
        worker.kill()
    project.send(messages[1_000:])
    with LiveWorker(project.folder) as worker:
        snapshots = project.records("snapshots", 1_200)
        assert worker.terminate() == 0, worker.output()
    environment.registry.close()

    ids = [one["event_id"] for one in project.records("snapshots", 10_000, timeout_s=3.0)]
    assert set(ids) == set(wanted)
    if "exactly_once" in (project.folder / "headrace.yaml").read_text():
        assert len(ids) == len(wanted)
    later = [one for one in snapshots if "customer__amount_mean_2h" in one]
    assert {one["event_id"] for one in later} == {str(i) for i in range(750, 1_200)}
    kept = ["customer__count_1h", "customer__amount_mean_1h", "till__count_1h"]
    check(snapshots, wanted, kept)
    check(later, wanted, [*kept, "customer__amount_mean_2h"])


def test_rows_that_nobody_has_scored_keep_other_definitions_away_until_they_are_drained(project):
    messages, rows = make_payments(project, 30_000, seed=5)
    former = (project.folder / "definitions.py").read_text()
    (project.folder / "definitions.py").write_text(former.replace(*NEW_FEATURE))
    environment = open_environment(project.folder)
    (project.folder / "definitions.py").write_text(former)
    sent = 0
    # Killed in the midst of many rows; in most cases that leaves some at once.
    while not unfinished(environment):
        assert sent < len(messages), "no kill has left a row"
        project.send(messages[sent : sent + 6_000])
        with LiveWorker(project.folder) as worker:
            project.read("snapshots", sent + 1)
            worker.kill()
        sent += 6_000
    wanted = expected_features(rows[:sent])
    (project.folder / "definitions.py").write_text(former.replace(*NEW_FEATURE))
    apply(environment)

    code, said = ended(project.folder)
    assert code == 1, said
    assert "headrace worker --drain" in said
    assert project.plan.stages[1].topic in said

    current = (project.folder / "definitions.py").read_text()
    (project.folder / "definitions.py").write_text(former)
    code, said = ended(project.folder, "--drain")
    assert code == 0, said
    assert not unfinished(environment)
    (project.folder / "definitions.py").write_text(current)
    with LiveWorker(project.folder) as worker:
        worker.wait_for("headrace_partitions", 1)
        assert worker.terminate() == 0, worker.output()
    environment.registry.close()

    found = project.records("snapshots", 10_000, timeout_s=3.0)
    assert {one["event_id"] for one in found} == set(wanted)
    assert not any("customer__amount_mean_2h" in one for one in found)
    check(found, wanted, ["customer__count_1h", "till__count_1h"])
