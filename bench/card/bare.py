"""The limit of client and broker on this machine: consume and produce, no work in between.

``python -m bench.card.bare BOOTSTRAP IN OUT COUNT``: its own process, so that it is measured like
every other contender. It keeps running when done, until it is stopped.
"""

from __future__ import annotations

import signal
import sys
import threading

from confluent_kafka import Consumer, Producer, TopicPartition

from bench.card.job import PARTITION_COUNT

BATCH = 5_000
# As many bytes as an event's id, score and eight features take.
OUTPUT = b"x" * 90


def run(bootstrap_servers: str, source: str, target: str, count: int) -> None:
    """Write a constant value with each of ``count`` messages' keys to ``target``."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "bench.bare",
            "enable.auto.commit": False,
            "queued.min.messages": 200_000,
        }
    )
    consumer.assign([TopicPartition(source, partition, 0) for partition in range(PARTITION_COUNT)])
    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "linger.ms": 5,
            "batch.size": 1 << 20,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 2_000_000,
        }
    )
    done = 0
    while done < count:
        outputs = [
            {"value": OUTPUT, "key": message.key()} for message in consumer.consume(BATCH, 1.0)
        ]
        while outputs:
            producer.produce_batch(target, outputs)
            # With a full queue the call drops messages and only marks them.
            dropped = [output for output in outputs if "_error" in output]
            done += len(outputs) - len(dropped)
            for output in dropped:
                del output["_error"]
            outputs = dropped
            producer.poll(0.05 if dropped else 0)
    producer.flush()
    consumer.close()


def main() -> None:
    """Run until told to stop."""
    bootstrap_servers, source, target, count = sys.argv[1:]
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    run(bootstrap_servers, source, target, int(count))
    stopping.wait()


if __name__ == "__main__":
    main()
