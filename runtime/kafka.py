"""The Kafka client's settings, and what is asked of a broker besides producing and consuming."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from headrace.runtime.errors import KafkaUnavailableError, TopicError, explain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from headrace.runtime.settings import Settings
    from headrace.runtime.topics import TopicSpec

Properties = dict[str, Any]

_TIMEOUT_S = 15.0
_VISIBLE_POLL_S = 0.02
# A connection that carries nothing any more is found out after this; the client's default is 60 s.
SOCKET_TIMEOUT_MS = 10_000
# A broker that is back is found after this; the client's default is 10 s.
RECONNECT_MAX_MS = 1_000


def client_properties(settings: Settings, bootstrap_servers: str) -> Properties:
    """Return what every Kafka client of the project starts from."""
    return {
        "bootstrap.servers": bootstrap_servers,
        "client.id": f"headrace-{settings.project}",
        "socket.timeout.ms": SOCKET_TIMEOUT_MS,
        "reconnect.backoff.max.ms": RECONNECT_MAX_MS,
        **settings.kafka.properties,
    }


def admin(properties: Mapping[str, Any]) -> AdminClient:
    """Return an admin client; it connects on first use."""
    return AdminClient(dict(properties))


def ensure_topics(client: AdminClient, specs: Iterable[TopicSpec]) -> tuple[str, ...]:
    """Make the topics that are missing and return their names once all have a leader.

    Raises:
        TopicError: If a topic is there with another number of partitions: keys would move.
        KafkaUnavailableError: If the broker does not answer or refuses.

    """
    wanted = {spec.name: spec for spec in specs}
    present = partition_counts(client, wanted)
    for name, count in present.items():
        if count != wanted[name].partitions:
            message = explain(
                "topic",
                f"have {wanted[name].partitions} partitions",
                count,
                name,
                "set topics.partitions to what is there, or delete the topic",
            )
            raise TopicError(message)
    missing = [spec for name, spec in wanted.items() if name not in present]
    if missing:
        _create(client, missing)
        _wait_visible(client, {spec.name: spec.partitions for spec in missing})
    _align_config(client, [wanted[name] for name in present])
    return tuple(spec.name for spec in missing)


def partition_counts(
    client: AdminClient, names: Iterable[str], timeout_s: float = _TIMEOUT_S
) -> dict[str, int]:
    """Return the number of partitions of each of ``names`` that exists.

    Raises:
        KafkaUnavailableError: If no broker answers in time.

    """
    wanted = set(names)
    topics = _metadata(client, timeout_s).topics
    return {name: len(topic.partitions) for name, topic in topics.items() if name in wanted}


def topic_ids(client: AdminClient, names: Iterable[str]) -> dict[str, str]:
    """Return each topic's id (Kafka's UUID in base64); one made anew under an old name has another.

    Raises:
        TopicError: If one of the topics does not exist.

    """
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return {}
    futures = client.describe_topics(TopicCollection(wanted), request_timeout=_TIMEOUT_S)
    try:
        return {name: str(future.result().topic_id) for name, future in futures.items()}
    except KafkaException as error:
        code = error.args[0].code()
        if code != KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise _unavailable(error) from error
        message = explain("topics", "exist", wanted, "this broker", "run 'headrace apply'")
        raise TopicError(message) from error


def end_offsets(
    properties: Mapping[str, Any], partitions: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], int]:
    """Return each (topic, partition)'s high watermark: the offset that the next record gets."""
    consumer = Consumer({**properties, "group.id": "headrace.offsets", "enable.auto.commit": False})
    try:
        return {
            (topic, partition): consumer.get_watermark_offsets(
                TopicPartition(topic, partition), timeout=_TIMEOUT_S
            )[1]
            for topic, partition in partitions
        }
    except KafkaException as error:
        raise _unavailable(error) from error
    finally:
        consumer.close()


def delete_topics(client: AdminClient, names: Iterable[str]) -> None:
    """Delete topics; one that is not there is no error."""
    wanted = list(names)
    if not wanted:
        return
    for future in client.delete_topics(wanted, operation_timeout=_TIMEOUT_S).values():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise _unavailable(error) from error


def cluster_id(client: AdminClient, timeout_s: float = _TIMEOUT_S) -> str:
    """Return the id of the cluster that answers."""
    return str(_metadata(client, timeout_s).cluster_id)


def _metadata(client: AdminClient, timeout_s: float = _TIMEOUT_S) -> Any:
    try:
        return client.list_topics(timeout=timeout_s)
    except KafkaException as error:
        raise _unavailable(error) from error


def _create(client: AdminClient, specs: list[TopicSpec]) -> None:
    left = {
        spec.name: NewTopic(
            spec.name,
            num_partitions=spec.partitions,
            replication_factor=spec.replication,
            config=dict(spec.config),
        )
        for spec in specs
    }
    # Twice: until its session ends, a node that has died may be named as the controller, and the
    # client waits for it.
    for is_last in (False, True):
        asked = client.create_topics(
            list(left.values()), operation_timeout=_TIMEOUT_S, request_timeout=2 * _TIMEOUT_S
        )
        for name, future in asked.items():
            try:
                future.result()
            except KafkaException as error:
                code = error.args[0].code()
                if code == KafkaError._TIMED_OUT and not is_last:
                    continue
                # Another apply may have been a moment earlier: the look at its shape follows.
                if code != KafkaError.TOPIC_ALREADY_EXISTS:
                    message = f"topic {name} must be creatable; {error.args[0].str()}"
                    raise TopicError(message) from error
            del left[name]
        if not left:
            return
        # Now the client learns who it is.
        _metadata(client)


def _wait_visible(client: AdminClient, partitions: Mapping[str, int]) -> None:
    """Wait until every partition has a leader: a create returns before the broker serves it."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        topics = _metadata(client).topics
        led = {
            name: sum(1 for p in topics[name].partitions.values() if p.leader >= 0)
            for name in partitions
            if name in topics
        }
        if led == dict(partitions):
            return
        if time.monotonic() > deadline:
            message = explain("topics", "have a leader", led, "the broker's metadata")
            raise TopicError(message)
        time.sleep(_VISIBLE_POLL_S)


def _align_config(client: AdminClient, specs: list[TopicSpec]) -> None:
    """Give topics that were there before the settings that reading them rightly needs."""
    resources = []
    for spec in specs:
        if spec.config:
            resource = ConfigResource(ResourceType.TOPIC, spec.name)
            _set_all(resource, spec.config)
            resources.append(resource)
    if not resources:
        return
    for future in client.incremental_alter_configs(resources).values():
        try:
            future.result()
        except KafkaException as error:
            raise _unavailable(error) from error


def _set_all(resource: ConfigResource, config: Mapping[str, str]) -> None:
    for name, value in config.items():
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        resource.add_incremental_config(entry)


def _unavailable(error: KafkaException) -> KafkaUnavailableError:
    text = error.args[0].str()
    return KafkaUnavailableError(f"Kafka must answer; got {text!r}; see 'headrace status'")
