"""The embedded cluster of three nodes: any one may go, at any time, and nothing is lost."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from headrace.runtime import kafka
from headrace.runtime.dev.cluster import Cluster
from headrace.runtime.errors import EmbeddedError
from headrace.runtime.topics import TopicSpec

# A cluster's start takes a quarter of a minute of CPU: once for all tests here.
ALONE = """
import os, pathlib, signal, sys
from headrace.runtime.dev.cluster import Cluster
with Cluster(pathlib.Path(sys.argv[1]), nodes=1):
    print("up", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster
        gc.collect()


@pytest.fixture
def cluster(shared_cluster):
    """Return the cluster with all nodes up and caught up, whatever the test before did to it."""
    for node in shared_cluster.running():
        shared_cluster.thaw(node)
    shared_cluster.up()
    return shared_cluster


@pytest.fixture
def topic(cluster, unique_name):
    made = TopicSpec(unique_name, "source", 3, 3, {})
    kafka.ensure_topics(kafka.admin(properties(cluster)), [made])
    return unique_name


def properties(cluster, **more):
    return {
        "bootstrap.servers": cluster.bootstrap_servers,
        "reconnect.backoff.max.ms": 200,
        "log_level": 0,
        **more,
    }


def write(cluster, topic, value, timeout_ms=60_000):
    """Return whether the brokers acknowledged a record in partition 0."""
    failed = []
    producer = Producer(
        properties(cluster, **{"enable.idempotence": True, "message.timeout.ms": timeout_ms})
    )
    producer.produce(topic, value, partition=0, on_delivery=lambda e, _: e and failed.append(e))
    assert producer.flush(2 * timeout_ms / 1000) == 0
    return not failed


def values(cluster, topic, count):
    consumer = Consumer(properties(cluster, **{"group.id": "reader"}))
    consumer.assign([TopicPartition(topic, 0, 0)])
    found = [consumer.poll(60).value() for _ in range(count)]
    consumer.close()
    return found


def committed(producer):
    try:
        producer.commit_transaction(5)
    except KafkaException as error:
        if error.args[0].retriable():
            return False
        raise
    return True


def test_what_was_acknowledged_survives_the_kill_of_its_leader_which_comes_back(cluster, topic):
    first = cluster.leader(topic, 0)
    assert write(cluster, topic, b"before")

    cluster.kill(first)
    assert write(cluster, topic, b"without")
    assert cluster.leader(topic, 0) not in {first, -1}
    assert first not in cluster.running()
    cluster.start(first)
    cluster.wait_in_sync()

    cluster.kill(cluster.leader(topic, 0))
    assert values(cluster, topic, 2) == [b"before", b"without"]


def test_a_node_that_is_stopped_in_order_hands_its_partitions_over_first(cluster, topic):
    first = cluster.leader(topic, 0)
    assert cluster.stop(first)

    assert cluster.leader(topic, 0) not in {first, -1}
    assert write(cluster, topic, b"value")


def test_one_node_of_three_takes_no_writes_until_another_is_back(cluster, topic):
    last = cluster.leader(topic, 0)
    others = [node for node in cluster.nodes if node != last]
    cluster.kill(*others)

    assert not write(cluster, topic, b"refused", timeout_ms=3_000)
    cluster.start(others[0])
    assert write(cluster, topic, b"taken")

    assert values(cluster, topic, 1)[-1] in {b"taken", b"refused"}


@pytest.mark.timeout(180)
def test_the_controller_moves_when_its_node_is_killed(cluster, unique_name, wait_until):
    first = cluster.controller()
    cluster.kill(first)
    wait_until(lambda: cluster.controller() not in {first, -1})

    client = kafka.admin(properties(cluster))
    kafka.ensure_topics(client, [TopicSpec(unique_name, "source", 1, 2, {})])
    # It may have been given to the node that has died, as long as nobody had missed that.
    wait_until(lambda: cluster.leader(unique_name, 0) in cluster.running())


def test_a_frozen_node_loses_what_it_leads_and_takes_its_copies_up_again(
    cluster, topic, wait_until
):
    first = cluster.leader(topic, 0)
    cluster.freeze(first)
    wait_until(lambda: cluster.leader(topic, 0) not in {first, -1})
    assert write(cluster, topic, b"value")

    cluster.thaw(first)
    cluster.wait_in_sync()
    assert cluster.running() == cluster.nodes


def test_a_topic_that_no_node_hears_of_is_said_to_be_unknown(cluster, monkeypatch):
    monkeypatch.setattr("headrace.runtime.dev.cluster._ANSWER_TIMEOUT_S", 0.1)
    with pytest.raises(EmbeddedError, match="a node must know the topic; got 'absent'"):
        cluster.leader("absent", 0)


def test_coordinators_are_where_the_brokers_say_they_are(cluster, topic, unique_name, wait_until):
    for number in range(4):
        group = f"{unique_name}.{number}"
        consumer = Consumer(properties(cluster, **{"group.id": group}))
        consumer.commit(offsets=[TopicPartition(topic, 0, 0)], asynchronous=False)
        consumer.close()
        client = kafka.admin(properties(cluster))
        told = client.describe_consumer_groups([group])[group].result(30)
        assert cluster.group_coordinator(group) == told.coordinator.id

    name = f"{unique_name}.transactions"
    producer = Producer(properties(cluster, **{"transactional.id": name}))
    producer.init_transactions(60)
    cluster.kill(cluster.transaction_coordinator(name))
    # Only that node decided about it: without it the transaction waits for another to take over.
    producer.begin_transaction()
    producer.produce(topic, b"value", partition=0)
    wait_until(lambda: committed(producer))
    assert cluster.transaction_coordinator(name) in cluster.running()


def test_a_borrower_that_is_killed_leaves_no_node_behind(tmp_path, wait_until):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.returncode) == ("up\n", -signal.SIGKILL)
    wait_until(lambda: not Cluster(tmp_path, nodes=1).running())
