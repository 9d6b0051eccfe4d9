"""Ending the open transactions of workers that died: else every reader waits for their timeout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaException

from headrace.runtime.logging import get_logger
from headrace.streams.commit import committed, load_note

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confluent_kafka import TopicPartition

    from headrace.streams.clients import Clients

log = get_logger(__name__)

ANSWER_S = 10.0


def fence_dead(
    clients: Clients,
    client: Mapping[str, Any],
    own_id: str,
    partitions: list[TopicPartition],
    group: str,
) -> None:
    """Fence the last writers of partitions that are not members of ``group`` any more.

    What cannot be asked or fenced is left to the broker's timeout, with a warning: it costs the
    readers seconds, never a record.
    """
    try:
        dead = _writers(clients, client, group, partitions) - {own_id}
        if dead:
            dead -= clients.members(client, group)
        for writer in sorted(dead):
            _fence(clients, client, writer)
    except (KafkaException, TimeoutError) as error:
        log.warning("dead_workers_not_fenced", error=str(error))


def _writers(
    clients: Clients, client: Mapping[str, Any], group: str, partitions: list[TopicPartition]
) -> set[str]:
    """Return the transactional ids that the partitions' committed offsets name.

    As they were before any open transaction: asked for stable ones, the broker would wait for it.
    """
    reader = clients.consumer(
        {
            **client,
            "group.id": group,
            "enable.auto.commit": False,
            "isolation.level": "read_uncommitted",
        }
    )
    try:
        found = committed(reader, partitions, ANSWER_S)
    finally:
        reader.close()
    notes = [load_note(one.metadata) for one in found]
    return {note.writer for note in notes if note is not None and note.writer}


def _fence(clients: Clients, client: Mapping[str, Any], writer: str) -> None:
    producer = clients.producer({**client, "transactional.id": writer, "log_level": 3})
    producer.init_transactions(ANSWER_S)
    log.info("dead_worker_fenced", transactional_id=writer)
