"""Rows that are sent in bulk lie on the partition that they name."""

from __future__ import annotations

from confluent_kafka import Consumer, TopicPartition

from headrace.runtime.kafka import admin, ensure_topics
from headrace.runtime.topics import TopicSpec
from headrace.streams.commit import CheckedProducer, producer_properties


def test_each_row_of_a_bulk_lies_on_its_own_partition_in_the_order_sent(stack, unique_name):
    client = {"bootstrap.servers": stack.bootstrap_servers}
    ensure_topics(admin(client), [TopicSpec(unique_name, "predictions", 3, 1)])
    producer = CheckedProducer(producer_properties(client, linger_ms=5.0))
    # One key on all of them: no partitioner would do this.
    rows = [{"value": b"%d" % i, "key": b"k", "partition": i * 7 % 3} for i in range(300)]

    producer.send_bulk(unique_name, [dict(row) for row in rows])
    assert producer.flush(30)
    del producer  # Else it looks for the broker when that is gone.

    expected = {p: [r["value"] for r in rows if r["partition"] == p] for p in range(3)}
    assert read_by_partition(client, unique_name, 3) == expected


def read_by_partition(client, topic, partitions):
    consumer = Consumer({**client, "group.id": topic, "enable.partition.eof": True})
    consumer.assign([TopicPartition(topic, p, 0) for p in range(partitions)])
    found = {p: [] for p in range(partitions)}
    ended = set()
    while len(ended) < partitions:
        message = consumer.poll(10)
        assert message is not None, "the broker went silent"
        if message.error():
            ended.add(message.partition())
        else:
            found[message.partition()].append(message.value())
    consumer.close()
    return found
