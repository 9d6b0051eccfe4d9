"""`guarantee: exactly_once` on the real broker: whatever is killed, each row comes out once."""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict

import numpy as np
import pytest
from confluent_kafka import Consumer, TopicPartition
from live import LiveWorker, make_project, payments

from headrace.streams.testing import Driver

START_MS = 1_750_000_000_000
SETTINGS = "stream:\n  guarantee: exactly_once\n"
KILLS = int(os.environ.get("KILLS", "4"))
SHOP = {"name": "shop", "type": "long"}
TWO_ENTITIES = """
import headrace as hr

payments = hr.Source(
    "payments",
    key="customer_id",
    event_time="event_time",
    event_id="payment_id",
    partitioner="murmur2",
)
customer, shop = hr.Entity("customer", key="customer_id"), hr.Entity("shop", key="shop")
spending = hr.FeatureView(
    "customer", entity=customer, source=payments, features=[hr.count(over="1h")]
)
takings = hr.FeatureView(
    "shop",
    entity=shop,
    source=payments,
    features=[hr.count(over="1h"), hr.sum("amount", over="1h")],
)
spend = hr.Pipeline(
    "spend",
    source=payments,
    views=[spending, takings],
    request={"amount": hr.col("amount")},
    alignment="0s",
)
"""


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
    assert sorted(sum(order.values(), [])) == [row[0] for row in rows]
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
    outputs = Outputs(project)
    step = len(rows) // (kills + 1)
    for _ in range(kills):
        with LiveWorker(project.folder) as worker:
            outputs.wait(draw.randint(1, step))
            worker.kill()
    outputs.close()
    assert 0 < project.committed() < len(rows)
    with LiveWorker(project.folder) as worker:
        project.read("snapshots", len(rows))
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
