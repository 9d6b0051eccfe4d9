"""The ports below the source: Kafka's clients, the clock, and the wait for a ticket.

All that the source and what it commits by take from outside comes through ``Clients``, so that a
simulation can stand in for all of it.
"""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Protocol, cast

from confluent_kafka import Consumer, Producer

from headrace.runtime.kafka import admin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from confluent_kafka import TopicPartition

    from headrace.streams.intake import Row
    from headrace.streams.tickets import Ticket

ANSWER_S = 10.0


class ConsumerClient(Protocol):
    """What is used of confluent-kafka's consumer; the same names, arguments and errors."""

    def subscribe(
        self,
        topics: list[str],
        on_assign: Callable[[Any, list[TopicPartition]], None],
        on_revoke: Callable[[Any, list[TopicPartition]], None],
        on_lost: Callable[[Any, list[TopicPartition]], None],
    ) -> None:
        """Join the group for topics; the callbacks run within ``poll``, ``consume``, ``close``."""
        ...

    def poll(self, timeout: float) -> Row | None:
        """Return the next message or event, None if there was none in time."""
        ...

    def consume(self, num_messages: int, timeout: float) -> list[Row]:
        """Return up to so many messages and events."""
        ...

    def assignment(self) -> list[TopicPartition]:
        """Return what is assigned."""
        ...

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        """Add partitions, each to be read from its offset."""
        ...

    def pause(self, partitions: list[TopicPartition]) -> None:
        """Give no messages of partitions."""
        ...

    def resume(self, partitions: list[TopicPartition]) -> None:
        """Give messages of partitions again."""
        ...

    def seek(self, partition: TopicPartition) -> None:
        """Read a partition from an offset on."""
        ...

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> Any:
        """Commit offsets; asynchronously the answer goes to ``on_commit``."""
        ...

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        """Return the group's offsets with their metadata."""
        ...

    def get_watermark_offsets(
        self, partition: TopicPartition, timeout: float = -1, cached: bool = False
    ) -> tuple[int, int] | None:
        """Return the first offset of a partition and its end."""
        ...

    def consumer_group_metadata(self) -> Any:
        """Return which member of the group this is now."""
        ...

    def close(self) -> None:
        """Leave."""
        ...


class ProducerClient(Protocol):
    """What is used of confluent-kafka's producer; the same names, arguments and errors."""

    def __len__(self) -> int: ...

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        *,
        headers: list[tuple[str, bytes]],
        **extra: Any,
    ) -> None:
        """Enqueue one message; ``extra`` may name ``partition`` and ``timestamp``."""
        ...

    def produce_batch(self, topic: str, messages: list[dict[str, Any]], partition: int) -> int:
        """Enqueue messages and return how many fitted; the others are marked."""
        ...

    def poll(self, timeout: float) -> int:
        """Serve callbacks."""
        ...

    def flush(self, timeout: float) -> int:
        """Wait for deliveries and return how many are missing."""
        ...

    def purge(self) -> None:
        """Drop what is queued or on its way."""
        ...

    def init_transactions(self, timeout: float) -> None:
        """Fence former producers of the transactional id."""
        ...

    def begin_transaction(self) -> None:
        """Open a transaction."""
        ...

    def send_offsets_to_transaction(
        self, positions: list[TopicPartition], group_metadata: Any, timeout: float
    ) -> None:
        """Commit offsets with the transaction."""
        ...

    def commit_transaction(self, timeout: float) -> None:
        """Commit."""
        ...

    def abort_transaction(self, timeout: float) -> None:
        """Abort."""
        ...


class Clients(Protocol):
    """Who makes clients, reads the monotonic clock, and waits."""

    def monotonic_s(self) -> float:
        """Return the seconds since some fixed moment."""
        ...

    def consumer(self, properties: Mapping[str, Any]) -> ConsumerClient:
        """Make a consumer of librdkafka's properties."""
        ...

    def producer(self, properties: Mapping[str, Any]) -> ProducerClient:
        """Make a producer of librdkafka's properties."""
        ...

    def members(self, client: Mapping[str, Any], group: str) -> set[str]:
        """Return the instance ids of a group's members.

        Raises:
            KafkaException: If the broker does not say.
            TimeoutError: If it does not answer in time.

        """
        ...

    def wait(self, ticket: Ticket, timeout_s: float) -> bool:
        """Wait until a ticket is done; False when it is not after ``timeout_s``."""
        ...


class KafkaClients:
    """confluent-kafka, the machine's clock, and tickets that other threads work on."""

    def monotonic_s(self) -> float:
        """Return the machine's monotonic clock."""
        return time.monotonic()

    def consumer(self, properties: Mapping[str, Any]) -> ConsumerClient:
        """Make a consumer."""
        return cast("ConsumerClient", Consumer(dict(properties)))

    def producer(self, properties: Mapping[str, Any]) -> ProducerClient:
        """Make a producer."""
        return cast("ProducerClient", Producer(dict(properties)))

    def members(self, client: Mapping[str, Any], group: str) -> set[str]:
        """Return the instance ids of the group's members."""
        # Held until the answer is there: a client that is collected answers nobody.
        connection = admin(client)
        asked = connection.describe_consumer_groups([group], request_timeout=ANSWER_S)
        members = asked[group].result(2 * ANSWER_S).members
        return {member.group_instance_id for member in members if member.group_instance_id}

    def wait(self, ticket: Ticket, timeout_s: float) -> bool:
        """Wait until another thread is done with the ticket."""
        try:
            ticket.future.exception(timeout_s)
        except TimeoutError:
            return ticket.future.done()
        except CancelledError:
            pass
        return True
