"""What is asked of a broker besides producing and consuming."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import ConfigResource, ResourceType

from headrace.runtime import kafka
from headrace.runtime.dev.processes import free_ports
from headrace.runtime.errors import KafkaUnavailableError, TopicError
from headrace.runtime.topics import TopicSpec


@pytest.fixture
def properties(stack):
    return {"bootstrap.servers": stack.bootstrap_servers}


@pytest.fixture
def client(properties):
    return kafka.admin(properties)


def test_missing_topics_are_made_with_their_settings_and_others_are_left(client, unique_name):
    first = TopicSpec(f"{unique_name}.a", "source", 3, 1, {"retention.ms": "-1"})
    second = TopicSpec(f"{unique_name}.b", "deployments", 1, 1, {"cleanup.policy": "compact"})

    assert kafka.ensure_topics(client, [first]) == (first.name,)
    assert kafka.ensure_topics(client, [first, second]) == (second.name,)
    assert kafka.ensure_topics(client, [first, second]) == ()

    assert kafka.partition_counts(client, [first.name, second.name, "nowhere"]) == {
        first.name: 3,
        second.name: 1,
    }
    assert setting(client, second.name, "cleanup.policy") == "compact"


def setting(client, topic, name):
    resource = ConfigResource(ResourceType.TOPIC, topic)
    (future,) = client.describe_configs([resource]).values()
    return future.result()[name].value


def test_a_topic_that_was_there_gets_the_settings_that_reading_it_needs(client, unique_name):
    kafka.ensure_topics(client, [TopicSpec(unique_name, "source", 1, 1)])

    config = {"message.timestamp.type": "LogAppendTime"}
    kafka.ensure_topics(client, [TopicSpec(unique_name, "source", 1, 1, config)])

    assert setting(client, unique_name, "message.timestamp.type") == "LogAppendTime"


def test_a_topic_with_another_number_of_partitions_is_refused(client, unique_name):
    kafka.ensure_topics(client, [TopicSpec(unique_name, "source", 2, 1)])

    with pytest.raises(TopicError, match="topic must have 4 partitions; got 2"):
        kafka.ensure_topics(client, [TopicSpec(unique_name, "source", 4, 1)])


def test_a_topic_made_anew_under_its_name_has_another_id(client, unique_name, wait_until):
    spec = TopicSpec(unique_name, "source", 1, 1)
    kafka.ensure_topics(client, [spec])
    first = kafka.topic_ids(client, [unique_name])
    kafka.delete_topics(client, [unique_name, "nowhere"])
    wait_until(lambda: not kafka.partition_counts(client, [unique_name]))
    kafka.ensure_topics(client, [spec])

    assert kafka.topic_ids(client, [unique_name]) != first


def test_the_id_of_a_topic_that_is_not_there_is_refused_with_the_command_that_makes_it(client):
    with pytest.raises(TopicError, match="run 'headrace apply'"):
        kafka.topic_ids(client, ["nowhere"])


def test_the_end_of_a_partition_is_the_offset_of_its_next_record(client, properties, unique_name):
    kafka.ensure_topics(client, [TopicSpec(unique_name, "source", 2, 1)])
    producer = Producer(properties)
    for _ in range(3):
        producer.produce(unique_name, b"x", partition=1)
    assert producer.flush(30) == 0

    ends = kafka.end_offsets(properties, [(unique_name, 0), (unique_name, 1)])

    assert ends == {(unique_name, 0): 0, (unique_name, 1): 3}


def test_a_broker_that_is_not_there_is_said_to_be_unavailable():
    (port,) = free_ports(1)
    client = kafka.admin({"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0})

    with pytest.raises(KafkaUnavailableError, match="see 'headrace status'"):
        kafka.cluster_id(client, timeout_s=1.0)
