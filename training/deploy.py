"""Puts a model live: an event on the deployments topic, and a look at what workers make of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, Producer, TopicPartition

from headrace.runtime.errors import KafkaUnavailableError, explain
from headrace.runtime.kafka import admin, end_offsets, partition_counts
from headrace.scoring.deployments import Deployment, decode_deployment, encode_deployment
from headrace.scoring.errors import DeploymentError
from headrace.training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pyarrow as pa

TIMEOUT_S = 15.0
_POLL_S = 0.2
_BATCH = 1_000


class LivePredictions:
    """Predictions from now on, read beside all consumer groups."""

    def __init__(
        self,
        properties: Mapping[str, Any],
        topic: str,
        decode: Callable[[list[bytes | None]], pa.RecordBatch],
    ) -> None:
        """Note where the topic ends now; what is published from here on is what is read."""
        self._consumer = _reader(properties)
        self._decode = decode
        ends = _ends(properties, topic)
        self._consumer.assign([TopicPartition(topic, p, end) for p, end in ends.items()])

    def wait_for(self, revision: int, timeout_s: float) -> bool:
        """Return whether a prediction of this revision, or of a later one, came in time."""
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            messages = self._consumer.consume(_BATCH, min(left_s, _POLL_S))
            values = [message.value() for message in messages if message.error() is None]
            if not values:
                continue
            if any(seen >= revision for seen in self._decode(values)["revision"].to_pylist()):
                return True
        return False

    def close(self) -> None:
        """Leave."""
        self._consumer.close()


def read_deployments(properties: Mapping[str, Any], topic: str) -> dict[str, Deployment]:
    """Return the newest deployment of each pipeline.

    Raises:
        KafkaUnavailableError: If the broker does not answer.
        TrainingError: If the topic is not there.
    """
    newest: dict[str, Deployment] = {}
    for value in _read_all(properties, topic):
        try:
            deployment = decode_deployment(value)
        except DeploymentError:
            # A foreign or newer event on the topic must not keep a model from going live.
            continue
        known = newest.get(deployment.pipeline)
        if known is None or deployment.revision > known.revision:
            newest[deployment.pipeline] = deployment
    return newest


def publish_deployment(properties: Mapping[str, Any], topic: str, deployment: Deployment) -> None:
    """Publish a deployment and return once every in-sync replica has it.

    Raises:
        KafkaUnavailableError: If it was not taken in time.
    """
    failures: list[str] = []
    producer = Producer({**properties, "acks": "all", "enable.idempotence": True})
    producer.produce(
        topic,
        value=encode_deployment(deployment),
        key=deployment.key,
        partition=0,
        on_delivery=lambda error, _: failures.append(str(error)) if error is not None else None,
    )
    left = producer.flush(TIMEOUT_S)
    if left or failures:
        got = failures[0] if failures else f"no answer in {TIMEOUT_S:g} s"
        raise KafkaUnavailableError(explain("deployment", "be taken by the broker", got, topic))


def _read_all(properties: Mapping[str, Any], topic: str) -> Iterator[bytes]:
    """Yield the values of the topic's first partition, up to where it ends now."""
    end = _ends(properties, topic).get(0, 0)
    if end == 0:
        return
    consumer = _reader(properties)
    deadline_s = time.monotonic() + TIMEOUT_S
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        # Compaction may have taken the last records: the position tells, not a record's offset.
        while _position(consumer, topic) < end:
            if time.monotonic() > deadline_s:
                rule = f"be read within {TIMEOUT_S:g} s"
                raise KafkaUnavailableError(explain("topic", rule, "no end of it", topic))
            message = consumer.poll(_POLL_S)
            value = message.value() if message is not None and message.error() is None else None
            if value is not None:
                yield value
    finally:
        consumer.close()


def _position(consumer: Consumer, topic: str) -> int:
    return max(0, consumer.position([TopicPartition(topic, 0)])[0].offset)


def _ends(properties: Mapping[str, Any], topic: str) -> dict[int, int]:
    counts = partition_counts(admin(properties), [topic])
    if topic not in counts:
        message = explain("topic", "exist", "no such topic", topic, "run 'headrace apply'")
        raise TrainingError(message)
    ends = end_offsets(properties, [(topic, p) for p in range(counts[topic])])
    return {partition: offset for (_, partition), offset in ends.items()}


def _reader(properties: Mapping[str, Any]) -> Consumer:
    return Consumer(
        {
            **properties,
            # A name that the client demands; nothing joins or commits.
            "group.id": "headrace.deploy",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
