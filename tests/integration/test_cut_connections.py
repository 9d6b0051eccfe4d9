"""Transactions over connections that are cut, by the worker's own producer on the real broker."""

from __future__ import annotations

import contextlib
import threading

import pytest
from confluent_kafka import Consumer, TopicPartition

from headrace.runtime.dev.proxy import KafkaFaultProxy
from headrace.runtime.kafka import RECONNECT_MAX_MS, admin, ensure_topics
from headrace.runtime.topics import TopicSpec
from headrace.streams.clients import KafkaClients
from headrace.streams.errors import UndoneError
from headrace.streams.transaction import TransactionalProducer, transactional_properties

CUTS = 6
SLICE_S = 0.5


@pytest.fixture
def proxy(stack):
    made = KafkaFaultProxy(int(stack.bootstrap_servers.rpartition(":")[2]))
    yield made
    made.close()


@pytest.fixture
def member(stack, unique_name, wait_until):
    """Return a consumer that is the only member of its group, with a topic of its own."""
    properties = {"bootstrap.servers": stack.bootstrap_servers}
    ensure_topics(admin(properties), [TopicSpec(unique_name, "source", 1, 1)])
    consumer = Consumer({**properties, "group.id": unique_name})
    consumer.subscribe([unique_name])
    wait_until(lambda: consumer.poll(0.1) or consumer.assignment())
    yield consumer
    consumer.close()


def producer_of(proxy, name, **properties):
    """Return the worker's transactional producer, over the proxy."""
    client = {
        "bootstrap.servers": f"127.0.0.1:{proxy.port}",
        "reconnect.backoff.max.ms": RECONNECT_MAX_MS,
    }
    properties = {**transactional_properties(client, 5.0, name), **properties}
    return TransactionalProducer(properties, lambda: None, KafkaClients())


def cut(proxy, producer, wait_until):
    """Cut all connections; return when the producer has heard of it and may connect again."""
    before = producer.troubles

    def has_heard():
        producer.poll()
        return producer.troubles > before

    proxy.refuses = True
    wait_until(has_heard)
    proxy.refuses = False


def transact(producer, member, name, offset):
    """Commit one offset of the topic in a transaction."""
    producer.begin()
    offsets = [TopicPartition(name, 0, offset)]
    while not producer.send_offsets(offsets, member.consumer_group_metadata(), SLICE_S):
        member.poll(0)
    while not producer.commit(SLICE_S):
        member.poll(0)


def test_a_call_after_all_connections_were_cut_comes_back(proxy, member, unique_name, wait_until):
    """librdkafka's own would not: it drops the brokers it knew, and waits for one of them."""
    with contextlib.closing(producer_of(proxy, unique_name)) as producer:
        wait_until(lambda: producer.init(SLICE_S))
        for offset in range(1, CUTS + 1):
            cut(proxy, producer, wait_until)
            transact(producer, member, unique_name, offset)

    assert member.committed([TopicPartition(unique_name, 0)], 10)[0].offset == CUTS


def test_a_call_that_hangs_keeps_its_client_no_longer_than_its_connections_are_idle(
    proxy, member, unique_name, wait_until, monkeypatch
):
    monkeypatch.setattr("headrace.streams.clients.HUNG_S", 0.1)
    before = set(threading.enumerate())
    hangs = {"metadata.recovery.strategy": "rebootstrap", "connections.max.idle.ms": 3_000}
    with contextlib.closing(producer_of(proxy, unique_name, **hangs)) as producer:
        wait_until(lambda: producer.init(SLICE_S))
        # It finds out, and keeps, who coordinates the group.
        transact(producer, member, unique_name, 1)
        cut(proxy, producer, wait_until)
        with pytest.raises(UndoneError, match="the client does not come back"):
            transact(producer, member, unique_name, 2)

    # The thread that makes its calls, and the proxy's for its connections, end with the client.
    wait_until(lambda: not set(threading.enumerate()) - before)
