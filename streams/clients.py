"""The ports below the source: Kafka's clients, the clock, and the wait for a ticket.

All that the source and what it commits by take from outside comes through ``Clients``, so that a
simulation can stand in for all of it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Protocol, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from headrace.runtime.kafka import admin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from confluent_kafka import TopicPartition

    from headrace.streams.intake import Row
    from headrace.streams.tickets import Ticket

    Job = tuple[Future[None], Callable[..., object], tuple[Any, ...]]

ANSWER_S = 10.0
#: A transactional call that takes so many times so long more than it was given has hung.
HUNG_TIMES, HUNG_S = 10, 0.5


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

    def sleep(self, seconds: float) -> None:
        """Come back after so long."""
        ...

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


class BoundedProducer(Producer):
    """A producer whose transactional calls come back, whatever happens.

    librdkafka's own may not (2.16: ``send_offsets_to_transaction`` when a broker is dropped),
    while its threads keep the group's membership alive: the worker would stand still for ever. So
    they are made on a thread of the producer's own. One that has hung fails like one that was not
    answered, and so do all after it; the caller then takes a new producer, which fences this one.
    """

    def __init__(self, properties: dict[str, Any]) -> None:
        super().__init__(properties)
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._is_started = self._is_hung = False

    def __del__(self) -> None:
        self._jobs.put(None)

    def init_transactions(self, timeout: float = ANSWER_S) -> None:
        """Fence former producers of the transactional id."""
        self._bounded(super().init_transactions, timeout)

    def send_offsets_to_transaction(
        self, positions: list[TopicPartition], group_metadata: Any, timeout: float = ANSWER_S
    ) -> None:
        """Commit offsets with the transaction."""
        self._bounded(super().send_offsets_to_transaction, timeout, positions, group_metadata)

    def commit_transaction(self, timeout: float = ANSWER_S) -> None:
        """Commit."""
        self._bounded(super().commit_transaction, timeout)

    def abort_transaction(self, timeout: float = ANSWER_S) -> None:
        """Abort."""
        self._bounded(super().abort_transaction, timeout)

    def _bounded(self, call: Callable[..., object], timeout_s: float, *arguments: Any) -> None:
        if not self._is_started:
            self._is_started = True
            name = "headrace-transactions"
            threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True).start()
        if not self._is_hung:
            future: Future[None] = Future()
            self._jobs.put((future, call, (*arguments, timeout_s)))
            try:
                # In turns: a process that stood still for long has lost one of them.
                for wait_s in (timeout_s, *[HUNG_S] * HUNG_TIMES):
                    with contextlib.suppress(TimeoutError):
                        return future.result(wait_s)
            finally:
                # It holds the error, which holds this frame, which holds the producer.
                del future
        self._is_hung = True
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "the client does not come back"))


def _work(jobs: queue.SimpleQueue[Job | None]) -> None:
    """Make calls until told to end; hold no producer between them."""
    while (job := jobs.get()) is not None:
        future, call, arguments = job
        try:
            call(*arguments)
        except BaseException as error:  # noqa: BLE001 -- raised by who waits for it
            future.set_exception(error)
        else:
            future.set_result(None)
        del job, future, call, arguments


class KafkaClients:
    """confluent-kafka, the machine's clock, and tickets that other threads work on."""

    def sleep(self, seconds: float) -> None:
        """Come back after so long."""
        time.sleep(seconds)

    def monotonic_s(self) -> float:
        """Return the machine's monotonic clock."""
        return time.monotonic()

    def consumer(self, properties: Mapping[str, Any]) -> ConsumerClient:
        """Make a consumer."""
        return cast("ConsumerClient", Consumer(dict(properties)))

    def producer(self, properties: Mapping[str, Any]) -> ProducerClient:
        """Make a producer."""
        return cast("ProducerClient", BoundedProducer(dict(properties)))

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
