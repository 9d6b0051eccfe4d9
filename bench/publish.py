"""Put a table of events into a topic, in order and as fast as the broker takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
from confluent_kafka import Producer

from bench.measure import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from headrace.schemas.codec import RecordEncoder

CHUNK = 50_000


def producer(bootstrap_servers: str) -> Producer:
    """Return a producer that keeps the order and partitions as a Java producer does."""
    return Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "linger.ms": 20,
            "batch.size": 1 << 20,
            "compression.type": "lz4",
            "enable.idempotence": True,
            "queue.buffering.max.messages": 2_000_000,
            "queue.buffering.max.kbytes": 1 << 20,
            "partitioner": "murmur2_random",
        }
    )


def send(client: Producer, topic: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
    """Hand (key, value) pairs over, waiting where the queue is full."""
    for number, (key, value) in enumerate(rows):
        while True:
            try:
                client.produce(topic, value, key)
                break
            except BufferError:
                client.poll(0.1)
        if number % 10_000 == 0:
            client.poll(0)


def finish(client: Producer, topic: str) -> None:
    """Wait until the broker has everything.

    Raises:
        BenchError: If it does not take it within a minute.

    """
    missing = client.flush(60)
    if missing:
        msg = f"topic {topic} did not take {missing} messages"
        raise BenchError(msg)


def publish(
    bootstrap_servers: str,
    topic: str,
    table: pa.Table,
    key: str,
    encoder: RecordEncoder,
    progress: Callable[[int], None] = lambda _count: None,
) -> None:
    """Encode and send a table's rows in order, keyed by the text of a column."""
    client = producer(bootstrap_servers)
    for batch in table.to_batches(max_chunksize=CHUNK):
        keys = [text.encode() for text in batch[key].cast(pa.string()).to_pylist()]
        send(client, topic, zip(keys, encoder.encode(batch), strict=True))
        progress(len(batch))
    finish(client, topic)
