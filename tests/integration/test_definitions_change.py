"""Other definitions take over on the real broker: every event is scored once, with whole windows.

What is sent is there before the worker starts: a backlog is read in the order of event time, while
20 seconds of payments that come within a millisecond may come in any.
"""

from __future__ import annotations

import json

import pytest
from confluent_kafka import TopicPartition
from live import LiveWorker, apply, make_project
from switch_cases import TILL, TWO_ENTITIES, check, ended, expected_features, make_payments

from headrace.runtime.kafka import admin
from headrace.streams.cutover import left_topics, outlook
from headrace.streams.environment import open_environment

NEW_FEATURE = ('hr.mean("amount", over=["1h"])', 'hr.mean("amount", over=["1h", "2h"])')


SCORED_MAX = 1_000_000


@pytest.fixture(params=["exactly_once", "at_least_once"])
def project(project_folder, request):
    settings = f"stream:\n  guarantee: {request.param}\n"
    made = make_project(project_folder, settings, definitions=TWO_ENTITIES, fields=(TILL,))
    yield made
    made.close()


def change(project, old, new):
    """Write other definitions, and apply them; return the environment of the new ones."""
    file = project.folder / "definitions.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    environment = open_environment(project.folder)
    apply(environment)
    return environment


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

    ids = [one["event_id"] for one in project.records("snapshots", SCORED_MAX, timeout_s=5.0)]
    assert set(ids) == set(wanted)
    if "exactly_once" in (project.folder / "headrace.yaml").read_text():
        assert len(ids) == len(wanted)
    later = [one for one in snapshots if "customer__amount_mean_2h" in one]
    assert {one["event_id"] for one in later} == {str(i) for i in range(750, 1_200)}
    kept = ["customer__count_1h", "customer__amount_mean_1h", "till__count_1h"]
    check(snapshots, wanted, kept)
    check(later, wanted, [*kept, "customer__amount_mean_2h"])


@pytest.mark.parametrize("project", ["exactly_once"], indirect=True)
def test_rows_that_nobody_has_scored_keep_other_definitions_away_until_they_are_drained(project):
    messages, rows = make_payments(project, 90_000, seed=5)
    former = (project.folder / "definitions.py").read_text()
    (project.folder / "definitions.py").write_text(former.replace(*NEW_FEATURE))
    environment = open_environment(project.folder)
    (project.folder / "definitions.py").write_text(former)
    sent = 0
    # Killed in the midst of many rows; in most cases that leaves some at once.
    while not unfinished(environment):
        assert sent < len(messages), "no kill has left a row"
        project.send(messages[sent : sent + 30_000])
        with LiveWorker(project.folder) as worker:
            worker.wait_for("headrace_events_total", 8_000)
            worker.kill()
        sent += 30_000
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

    found = project.records("snapshots", SCORED_MAX, timeout_s=5.0)
    assert {one["event_id"] for one in found} == set(wanted)
    assert not any("customer__amount_mean_2h" in one for one in found)
    check(found, wanted, ["customer__count_1h", "till__count_1h"])


@pytest.mark.parametrize("project", ["exactly_once"], indirect=True)
def test_a_log_that_was_cut_lets_no_feature_begin_with_a_gap(project):
    messages, _ = make_payments(project, 300, seed=9)
    project.send(messages)
    with LiveWorker(project.folder) as worker:
        project.read("snapshots", 300)
        assert worker.terminate() == 0, worker.output()
    code, said = ended(project.folder, "--drain")
    assert code == 0, said
    topic, client = project.topic("payments"), admin(project.environment.client)
    cut = [TopicPartition(topic, partition, 10) for partition in range(4)]
    for future in client.delete_records(cut).values():
        future.result()

    environment = change(project, *NEW_FEATURE)
    plan = environment.plan.pipelines[0]
    found = outlook(environment.client, plan)
    code, said = ended(project.folder)
    environment.registry.close()

    assert (found.replayed, found.dropped) == (300 - 40, 40)
    assert all(topic.is_finished for topic in found.left)
    assert code == 1
    assert "must begin at offset 0" in said
    assert "Definitions that have changed need all of the history" in said


def restored_places(worker):
    """Return by place how many rows a worker had to replay after its checkpoint."""
    said = [json.loads(line) for line in worker.output().splitlines() if line.startswith("{")]
    restored = [one for one in said if one["event"] == "checkpoint_restored"]
    return {one["place"]: one["rows_to_replay"] for one in restored}


@pytest.mark.parametrize("two_runs", [False, True])
def test_states_that_were_prepared_beside_the_former_workers_are_what_the_new_ones_begin_with(
    project, two_runs, wait_until
):
    messages, rows = make_payments(project, 1_300, seed=7)
    wanted = expected_features(rows)
    former = (project.folder / "definitions.py").read_text()
    project.send(messages[:900])
    with LiveWorker(project.folder) as worker:
        project.read("snapshots", 900)
        wait_until(lambda: project.committed() >= 900)
        environment = change(project, *NEW_FEATURE)
        for sent in (900, 1_000) if two_runs else (900,):
            code, said = ended(project.folder, "--prepare")
            assert code == 0, said
            assert f"the state of {sent} rows is kept" in said
            project.send(messages[sent : sent + 100])
            project.read("snapshots", sent + 100)
        assert worker.terminate() == 0, worker.output()
    later = (project.folder / "definitions.py").read_text()
    (project.folder / "definitions.py").write_text(former)
    assert ended(project.folder, "--drain")[0] == 0
    (project.folder / "definitions.py").write_text(later)
    before = 1_100 if two_runs else 1_000
    project.send(messages[before:])
    with LiveWorker(project.folder) as worker:
        snapshots = project.records("snapshots", 1_300)
        assert worker.terminate() == 0, worker.output()
    environment.registry.close()

    restored = restored_places(worker)
    payments = project.topic("payments")
    assert sum(left for place, left in restored.items() if payments in place) == 100
    assert any(payments not in place for place in restored), worker.output()
    ids = [one["event_id"] for one in project.records("snapshots", SCORED_MAX, timeout_s=5.0)]
    assert sorted(ids, key=int) == [str(i) for i in range(1_300)]
    new = [one for one in snapshots if "customer__amount_mean_2h" in one]
    assert {one["event_id"] for one in new} == {str(i) for i in range(before, 1_300)}
    kept = ["customer__count_1h", "customer__amount_mean_1h"]
    check(snapshots, wanted, kept)
    check(new, wanted, [*kept, "customer__amount_mean_2h"])
    # Those that came while a worker waited for them may stand in the next log in any order.
    waited_for = range(900, before)
    backlog = [one for one in snapshots if int(one["event_id"]) not in waited_for]
    check(backlog, wanted, ["till__count_1h"])
