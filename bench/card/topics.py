"""The bench's own topics: made anew for each run, the input filled once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from bench.card.job import PARTITION_COUNT, Events, customer_name
from bench.measure import BenchError
from bench.publish import finish, producer, send

if TYPE_CHECKING:
    import pyarrow as pa

# Old event times must not make the broker drop the log, and the broker's stamps are the measure.
TOPIC_CONFIG = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}


def create(bootstrap_servers: str, *topics: str) -> None:
    """Make topics that must not be there yet."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    wanted = [NewTopic(topic, PARTITION_COUNT, 1, config=TOPIC_CONFIG) for topic in topics]
    for future in admin.create_topics(wanted, operation_timeout=15).values():
        future.result()


def delete(bootstrap_servers: str, *topics: str) -> None:
    """Delete those of the topics that are there, so that runs do not fill the disk."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    there = [topic for topic in admin.list_topics(timeout=15).topics if topic in topics]
    for future in (admin.delete_topics(there) if there else {}).values():
        try:
            future.result()
        except KafkaException as error:
            msg = f"topic must be deletable; got {error}"
            raise BenchError(msg) from error


def fill(bootstrap_servers: str, topic: str, events: Events, values: list[bytes]) -> None:
    """Produce the events in order, partitioned as a Java producer does by the customer."""
    client = producer(bootstrap_servers)
    keys = [customer_name(number).encode() for number in events.customer.tolist()]
    send(client, topic, zip(keys, values, strict=True))
    finish(client, topic)


def framed(bodies: pa.BinaryArray, schema_id: int) -> list[bytes]:
    """Return Avro bodies behind the Confluent header of ``schema_id``."""
    header = b"\0" + schema_id.to_bytes(4, "big")
    return [header + body for body in bodies.to_pylist()]
