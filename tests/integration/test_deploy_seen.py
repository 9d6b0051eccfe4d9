"""Whoever deploys and waits is told when a worker's predictions carry the revision."""

from __future__ import annotations

import pyarrow as pa
import pytest
from confluent_kafka import Producer

from headrace.runtime.kafka import admin, ensure_topics
from headrace.runtime.topics import TopicSpec
from headrace.training.deploy import LivePredictions


def decode(values):
    return pa.record_batch({"revision": pa.array([int(value) for value in values], pa.int64())})


@pytest.fixture
def live(stack, unique_name):
    client = {"bootstrap.servers": stack.bootstrap_servers}
    topic = f"{unique_name}.predictions"
    ensure_topics(admin(client), [TopicSpec(topic, "predictions", 3, 1)])
    producer = Producer(client)

    def predict(revision, partition):
        producer.produce(topic, str(revision).encode(), partition=partition)
        assert producer.flush(30) == 0

    predict(7, 0)
    watching = LivePredictions(client, topic, decode)
    yield watching, predict
    watching.close()


def test_a_prediction_of_the_revision_on_any_partition_is_seen(live):
    watching, predict = live
    predict(6, 0)
    predict(7, 2)

    assert watching.wait_for(7, 30)


def test_a_later_revision_counts_and_earlier_ones_do_not(live):
    watching, predict = live
    predict(8, 1)

    assert watching.wait_for(7, 30)


def test_what_was_there_before_the_deployment_does_not_count(live):
    watching, predict = live
    predict(6, 0)

    assert not watching.wait_for(7, 2)
