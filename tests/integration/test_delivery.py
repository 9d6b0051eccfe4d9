"""Nothing that is sent is lost in silence: not for a full queue, not for a broker that refuses."""

from __future__ import annotations

import numpy as np
import pytest
from confluent_kafka import Consumer, TopicPartition

from headrace.runtime.kafka import admin, ensure_topics
from headrace.runtime.topics import TopicSpec
from headrace.streams.batch import SingleOutput
from headrace.streams.commit import CheckedProducer, producer_properties
from headrace.streams.errors import DeliveryError


@pytest.fixture
def client(stack):
    return {"bootstrap.servers": stack.bootstrap_servers}


def make_topic(client, name, config):
    connection = admin(client)
    ensure_topics(connection, [TopicSpec(name, "predictions", 1, 1, config)])


def read(client, topic, count):
    consumer = Consumer({**client, "group.id": topic, "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    values = []
    while len(values) < count:
        message = consumer.poll(10)
        assert message is not None, f"{len(values)} of {count}"
        assert message.error() is None
        values.append(message.value())
    assert consumer.poll(0.5) is None
    consumer.close()
    return values


def test_rows_that_a_full_queue_refuses_are_sent_again_in_order_each_once(client, unique_name):
    make_topic(client, unique_name, {})
    waits = []
    properties = producer_properties({**client, "queue.buffering.max.messages": 100}, 5.0)
    producer = CheckedProducer(properties, lambda: waits.append(1))
    values = [b"%d" % i for i in range(2_500)]
    for first in range(0, 2_500, 500):
        rows = [{"value": v, "key": b"k", "partition": 0} for v in values[first : first + 500]]
        producer.send_bulk(unique_name, rows)
    for value in (b"single", b"other"):
        producer.send_single(SingleOutput(unique_name, value, b"k", 0, [("h", b"1")]))
    assert producer.flush(30)

    assert waits, "the queue was never full: the test shows nothing"
    assert read(client, unique_name, 2_502) == [*values, b"single", b"other"]


def test_a_message_that_the_broker_refuses_is_an_error_of_the_flush(client, unique_name):
    make_topic(client, unique_name, {"max.message.bytes": "1000"})
    producer = CheckedProducer(producer_properties(client, 0.0))
    producer.send_single(
        SingleOutput(unique_name, np.random.default_rng(14).bytes(10_000), None, 0, [])
    )

    with pytest.raises(DeliveryError, match="Message size too large"):
        producer.flush(30)
    with pytest.raises(DeliveryError):
        producer.send_bulk(unique_name, [{"value": b"later", "key": None, "partition": 0}])
