"""`guarantee: exactly_once` on the real broker: whatever is killed, each row comes out once."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from collections import defaultdict

import numpy as np
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from live import SHOP, TWO_ENTITIES, LiveWorker, make_project, payments

from headrace.runtime import topics
from headrace.runtime.dev.proxy import KafkaFaultProxy
from headrace.streams.testing import Driver

START_MS = 1_750_000_000_000
# Commits come often here, so that kills fall before, between and into them.
SETTINGS = "stream:\n  guarantee: exactly_once\n  commit_interval_ms: 20\n"
REPLAYED = "headrace_replayed_total"
KILLS = int(os.environ.get("KILLS", "5"))


@pytest.fixture
def project(project_folder):
    made = make_project(project_folder, SETTINGS)
    yield made
    made.close()


@pytest.fixture
def two_entities(project_folder):
    made = make_project(project_folder, SETTINGS, definitions=TWO_ENTITIES, fields=(SHOP,))
    yield made
    made.close()


def by_event(project, snapshots):
    """Return the vectors by event id, float64 bits and all; an event that came twice fails."""
    names = [column.name for column in project.plan.vector]
    found = {}
    for one in snapshots:
        assert one["event_id"] not in found, one["event_id"]
        found[one["event_id"]] = tuple(np.float64(one[name]).tobytes() for name in names)
    return found


def fault_free(project, rows):
    """Return the vectors by event id of a run in memory, without broker or faults."""
    driver = Driver(project.plan, partitions=project.partitions)
    driver.send(project.plan.source, [project.record(*row) for row in rows])
    driver.run()
    return by_event(project, driver.snapshots().to_pylist())


def assert_exact(project, rows):
    """Compare all that a read_committed reader sees with the run without faults.

    The order that holds is that of the last stage's key, within a partition of the output.
    """
    snapshots = project.records("snapshots", len(rows) + 1, timeout_s=3.0)
    messages = project.read("predictions", len(rows) + 1, timeout_s=3.0)
    assert by_event(project, snapshots) == fault_free(project, rows)
    keys = {row[0]: row[4] if len(row) > 4 else row[2] for row in rows}
    order = defaultdict(list)
    for message in messages:
        event_id = int(project.decode(message.value())["event_id"])
        order[message.partition(), keys[event_id]].append(event_id)
    assert sorted(itertools.chain(*order.values())) == [row[0] for row in rows]
    assert all(ids == sorted(ids) for ids in order.values())


class Outputs:
    """Counts all snapshots that were ever written, committed or not."""

    def __init__(self, project):
        self._consumer = Consumer(
            {
                "bootstrap.servers": project.bootstrap_servers,
                "group.id": "outputs",
                "isolation.level": "read_uncommitted",
                "fetch.wait.max.ms": 10,
            }
        )
        places = range(project.partitions)
        topic = project.topic("snapshots")
        self._consumer.assign([TopicPartition(topic, place, 0) for place in places])
        self.count = 0

    def wait(self, count, timeout_s=60.0):
        """Return once there are ``count`` more than when this was last called."""
        wanted, deadline_s = self.count + count, time.monotonic() + timeout_s
        while self.count < wanted:
            assert time.monotonic() < deadline_s, (self.count, wanted)
            found = self._consumer.consume(max(1, wanted - self.count), 0.05)
            self.count += sum(message.error() is None for message in found)

    def close(self):
        self._consumer.close()


def kill_and_drain(project, rows, kills, seed):
    """Work all rows off by workers of which the first ``kills`` are killed at random outputs."""
    draw = random.Random(seed)
    step = len(rows) // (kills + 1)
    with contextlib.closing(Outputs(project)) as outputs:
        for left in reversed(range(kills)):
            with LiveWorker(project.folder) as worker:
                outputs.wait(draw.randint(1, step))
                # On a busy machine all may fall before a first commit: the last one does not.
                while not left and not project.committed():
                    outputs.wait(1)
                worker.kill()
    with LiveWorker(project.folder) as worker:
        project.read("snapshots", len(rows))
        assert any(
            value for name, value in worker.metrics().items() if name.startswith(REPLAYED)
        ), "nobody had committed anything before it was killed: the test shows little"
        assert worker.terminate() == 0, worker.output()
    assert project.committed() == len(rows)


def test_workers_killed_at_random_instants_lose_and_repeat_nothing(project):
    messages, rows = payments(project, 40_000, START_MS, seed=1)
    project.send(messages)

    kill_and_drain(project, rows, KILLS, seed=1)

    assert_exact(project, rows)


def test_a_pipeline_of_two_entities_loses_and_repeats_nothing_either(two_entities):
    project = two_entities
    draw = np.random.default_rng(2)
    customers, shops = draw.integers(0, 50, 30_000), draw.integers(0, 20, 30_000)
    amounts = np.round(draw.gamma(2.0, 20.0, 30_000), 2)
    rows = [
        (i, START_MS + 100 * i, f"c{customers[i]}", float(amounts[i]), int(shops[i]))
        for i in range(30_000)
    ]
    messages = [(row[2].encode(), project.payment(*row)) for row in rows]
    project.send(messages)

    kill_and_drain(project, rows, KILLS, seed=2)

    assert_exact(project, rows)


def test_commits_whose_answers_or_requests_are_lost_tear_nothing(project, stack):
    messages, rows = payments(project, 20_000, START_MS, seed=3)
    port = int(stack.bootstrap_servers.rpartition(":")[2])
    proxy = KafkaFaultProxy(port)
    settings = project.folder / "headrace.yaml"
    settings.write_text(settings.read_text().replace(f":{port}", f":{proxy.port}"))
    with contextlib.closing(proxy), LiveWorker(project.folder) as worker:
        project.send(messages[:5_000])
        project.read("snapshots", 5_000)
        # The client asks again by itself, and is answered.
        proxy.lose_answers = 1
        project.send(messages[5_000:10_000])
        project.read("snapshots", 10_000)
        assert proxy.lost == 1
        for number, kind in enumerate(("lose_answers", "lose_requests"), start=1):
            unknown = worker.metrics()["headrace_transactions_unknown_total"]
            setattr(proxy, kind, 1_000)
            done = 5_000 + 5_000 * number
            project.send(messages[done : done + 5_000])
            worker.wait_for("headrace_transactions_unknown_total", unknown + 1)
            setattr(proxy, kind, 0)
            project.read("snapshots", done + 5_000)
        metrics = worker.metrics()
        assert worker.terminate() == 0, worker.output()

    assert metrics["headrace_transactions_unknown_total"] >= 2
    assert metrics["headrace_transactions_aborted_total"] >= 1
    # The one lost answer: asked again, the broker answers, or refuses if it was slow itself; then
    # the commit is looked up as the others are.
    was_slow = "commit_was_slow" in worker.output()
    assert was_slow or metrics["headrace_transactions_unknown_total"] >= 3
    assert_exact(project, rows)


def test_a_second_worker_of_one_name_is_refused_and_a_foreign_one_fences_the_first(project):
    messages, rows = payments(project, 2_000, START_MS, seed=4)
    settings = project.folder / "headrace.yaml"
    settings.write_text(settings.read_text() + "  ordinal: 3\n")
    with LiveWorker(project.folder) as first:
        refused = LiveWorker(project.folder)
        assert refused.process.wait(120) == 1
        refused.close()
        project.send(messages[:1_000])
        project.read("snapshots", 1_000)
        name = f"{topics.group(project.plan.project, project.plan.name)}.3"
        assert f"worker {name} must be one process" in refused.output()

        foreign = {"bootstrap.servers": project.bootstrap_servers, "transactional.id": name}
        Producer(foreign).init_transactions(30)
        project.send(messages[1_000:])
        assert first.process.wait(60) == 1
        assert f"transactional id {name} must belong to one worker" in first.output()
        assert "Traceback" not in first.output()
    with LiveWorker(project.folder) as worker:
        project.read("snapshots", 2_000)
        assert worker.terminate() == 0, worker.output()

    assert_exact(project, rows)


def test_a_frozen_worker_is_fenced_by_the_one_that_takes_over_and_ends_when_it_wakes(project):
    messages, rows = payments(project, 30_000, START_MS, seed=5)
    project.send(messages[:20_000])
    with contextlib.closing(Outputs(project)) as outputs, LiveWorker(project.folder) as frozen:
        outputs.wait(5_000)
        frozen.process.send_signal(signal.SIGSTOP)
        with LiveWorker(project.folder) as other:
            project.send(messages[20_000:])
            project.read("snapshots", 30_000)
            frozen.process.send_signal(signal.SIGCONT)
            assert frozen.process.wait(30) == 1, frozen.output()
            assert other.terminate() == 0, other.output()
        assert "dead_worker_fenced" in other.output()

    assert_exact(project, rows)
