"""Sending outputs without silent loss, and committing what was delivered.

``AtLeastOnce`` is the seam for the guarantee: the source thread calls ``begin``, ``send``,
``commit`` and ``abort`` in the same order for every guarantee. Only that thread may call.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from headrace.runtime.errors import explain
from headrace.runtime.logging import get_logger
from headrace.streams.clients import KafkaClients
from headrace.streams.errors import DeliveryError
from headrace.streams.troubles import TroubleLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from headrace.streams.batch import Outputs, SingleOutput
    from headrace.streams.clients import Clients, ConsumerClient

log = get_logger(__name__)

# What one worker may hold unsent: above it `send` waits, which is the backpressure of a slow
# broker. Bytes bind for large records, messages for small ones.
QUEUE_MESSAGES_MAX = 500_000
QUEUE_KBYTES_MAX = 128 * 1024
# A DLQ record repeats the original bytes: the client's own limit must not be what refuses them.
MESSAGE_BYTES_MAX = 128 * 1024 * 1024
WAIT_SLICE_S = 0.05
# librdkafka spells its local codes with a leading underscore.
_QUEUE_FULL = KafkaError._QUEUE_FULL
_ANY_PARTITION = -1


@dataclass(frozen=True, slots=True)
class Position:
    """How far a topic partition is done: ``offset`` is the next one to read.

    ``version`` counts the transactions that committed it; 0 outside of transactions.
    """

    topic: str
    partition: int
    offset: int
    topic_id: str
    version: int = 0
    checkpoint: str = ""
    origin: int = 0
    partitions: int = 0
    sent: str = ""
    held: int = 0

    def note(self, writer: str = "") -> CommitNote:
        """Return what travels with the offset."""
        return CommitNote(
            self.topic_id,
            self.version,
            writer,
            self.checkpoint,
            self.origin,
            self.partitions,
            self.sent,
            self.held,
        )


@dataclass(frozen=True, slots=True)
class CommitNote:
    """What travels in the metadata of an offset commit, beside the offset.

    ``topic_id`` tells a recreated topic from the one that the offset belongs to. ``version`` counts
    the partition's transactions and ``writer`` is the transactional id that wrote the last one:
    together they tell whether a commit whose answer was lost has happened. ``checkpoint`` names
    the newest state that was kept, if one was. ``origin`` is the first offset that the group ever
    read of the partition: a state without what lies there is not whole.

    ``partitions`` is how many the topic had. ``sent`` names the re-key topics, with spaces between,
    that hold all that comes from below the offset: other definitions may have others. ``held``
    counts the rows below the offset that wait for others in a re-keyed stage: they are not emitted.
    """

    topic_id: str
    version: int = 0
    writer: str = ""
    checkpoint: str = ""
    origin: int = 0
    partitions: int = 0
    sent: str = ""
    held: int = 0

    def dump(self) -> str:
        """Return the note as compact JSON; readers ignore keys that they do not know."""
        content = {name: value for name, value in asdict(self).items() if value}
        return orjson.dumps({"topic_id": self.topic_id, **content}).decode()


def load_note(metadata: str | None) -> CommitNote | None:
    """Return the note of a commit's metadata, None where another program wrote the commit."""
    if not metadata:
        return None
    try:
        content = orjson.loads(metadata)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(content, dict):
        return None
    types = {
        "topic_id": str,
        "version": int,
        "writer": str,
        "checkpoint": str,
        "origin": int,
        "partitions": int,
        "sent": str,
        "held": int,
    }
    known = {name: content[name] for name in types if isinstance(content.get(name), types[name])}
    return CommitNote(**known) if "topic_id" in known else None


def committed(
    consumer: ConsumerClient, partitions: list[TopicPartition], timeout_s: float
) -> list[TopicPartition]:
    """Return the group's offsets with their metadata.

    Raises:
        KafkaException: If the broker does not say, be it of one partition: that is not the same
            as that nothing was committed.

    """
    found = consumer.committed(partitions, timeout=timeout_s)
    for one in found:
        if one.error is not None:
            raise KafkaException(one.error)
    return found


class Guarantee(Protocol):
    """How outputs and positions become visible together.

    Where ``undoes``, outputs and positions are one transaction: ``send`` and ``commit`` may raise
    ``UndoneError``, after which all since the last commit is as if it had never been sent.
    """

    @property
    def undoes(self) -> bool:
        """Whether what was sent can be taken back, so that the state must be able to as well."""
        ...

    @property
    def open_s(self) -> float:
        """How long what was sent has waited for its commit, seconds; 0 when nothing has."""
        ...

    def start(self) -> None:
        """Get ready, before the first partition is owned."""
        ...

    def take_over(self, partitions: list[TopicPartition]) -> None:
        """End what former owners of partitions have left open."""
        ...

    def begin(self) -> None:
        """Open what the next sends belong to; a no-op while it is open."""
        ...

    def send(self, outputs: Outputs) -> None:
        """Enqueue everything that one batch caused, in order; waits while the queue is full."""
        ...

    def commit(self, positions: Sequence[Position], timeout_s: float, wait: bool) -> bool:
        """Make the outputs durable, then the positions; False when time ran out before."""
        ...

    def abort(self) -> None:
        """Give up what was sent since ``begin``, as far as the guarantee can."""
        ...

    def poll(self) -> None:
        """Serve the producer's callbacks."""
        ...


def producer_properties(
    client: Mapping[str, object], linger_ms: float, timeout_ms: int = 0
) -> dict[str, Any]:
    """Return librdkafka properties of a producer that never loses or reorders a message unseen.

    Only failures are reported (reports of success cost 0.7 CPU-us a message), so ``flush() == 0``
    without a failure proves delivery. ``timeout_ms`` 0: a broker that is away is waited for.
    """
    return {
        "queue.buffering.max.messages": QUEUE_MESSAGES_MAX,
        "queue.buffering.max.kbytes": QUEUE_KBYTES_MAX,
        "message.max.bytes": MESSAGE_BYTES_MAX,
        "compression.type": "lz4",
        "batch.size": 1 << 20,
        **client,
        "linger.ms": linger_ms,
        "message.timeout.ms": timeout_ms,
        "enable.idempotence": True,
        "enable.gapless.guarantee": True,
        "delivery.report.only.error": True,
        # Trouble reaches us through the error callback; the rest is advice about settings.
        "log_level": 2,
    }


def _by_partition(messages: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    places = {message.get("partition", _ANY_PARTITION) for message in messages}
    if len(places) == 1:
        return {places.pop(): messages}
    rows: dict[int, list[dict[str, Any]]] = {}
    for message in messages:
        rows.setdefault(message.get("partition", _ANY_PARTITION), []).append(message)
    return rows


class CheckedProducer:
    """A producer whose every message is either delivered or raises ``DeliveryError``.

    ``on_wait`` is called while the queue is full, so that the owner can keep its group alive.
    """

    def __init__(
        self,
        properties: Mapping[str, Any],
        on_wait: Callable[[], None] = lambda: None,
        clients: Clients | None = None,
    ) -> None:
        self._failures: list[str] = []
        self._on_wait = on_wait
        clients = clients or KafkaClients()
        self._trouble = TroubleLog("producer_trouble", clients.monotonic_s)
        self._producer = clients.producer(
            {**properties, "on_delivery": self._delivered, "error_cb": self._errored}
        )

    def __len__(self) -> int:
        return len(self._producer)

    def send_bulk(self, topic: str, messages: list[dict[str, Any]]) -> None:
        """Enqueue all of ``messages``; rows that did not fit are sent again, exactly those.

        ``produce_batch`` raises nothing when the queue is full: it counts, and marks the rows. Of a
        row's own ``partition`` it takes no notice (2.16.1, whatever its documentation says), so
        rows go in one call per partition.
        """
        for partition, rows in _by_partition(messages).items():
            self._send_rows(topic, rows, partition)
        self.poll()

    def _send_rows(self, topic: str, remaining: list[dict[str, Any]], partition: int) -> None:
        while remaining:
            taken = self._producer.produce_batch(topic, remaining, partition=partition)
            if taken == len(remaining):
                break
            refused = [row for row in remaining if "_error" in row]
            assert taken + len(refused) == len(remaining), (
                taken,
                len(refused),
                len(remaining),
            )
            for row in refused:
                error = row.pop("_error")
                if error.code() != _QUEUE_FULL:
                    self._refused(topic, error)
            self.check()
            self._wait()
            remaining = refused

    def send_single(self, output: SingleOutput) -> None:
        """Enqueue one message with its headers and timestamp."""
        extra: dict[str, Any] = {}
        if output.partition is not None:
            extra["partition"] = output.partition
        if output.timestamp_ms is not None:
            extra["timestamp"] = output.timestamp_ms
        while True:
            try:
                self._producer.produce(
                    output.topic,
                    output.value,
                    output.key,
                    headers=[*output.headers],
                    **extra,
                )
            except BufferError:
                self._wait()
            except KafkaException as error:
                self._refused(output.topic, error.args[0])
                self.check()
            else:
                break
        self.poll()

    def flush(self, timeout_s: float) -> bool:
        """Wait for every delivery; False when ``timeout_s`` was not enough.

        Raises:
            DeliveryError: If the broker refused a message for good.
        """
        with self._fatal_as_failure():
            left = self._producer.flush(timeout_s)
        self.check()
        return left == 0

    def check(self) -> None:
        """Raise ``DeliveryError`` if any message so far was refused."""
        if self._failures:
            raise DeliveryError(
                explain(
                    "every output",
                    "be accepted by the broker",
                    self._failures[0],
                    f"{len(self._failures)} message(s)",
                    "check the topic's max.message.bytes, its ACLs and `headrace apply`",
                )
            )

    def poll(self) -> None:
        """Serve callbacks; raise ``DeliveryError`` if one told of a message that was refused."""
        with self._fatal_as_failure():
            self._producer.poll(0)
        self.check()

    def discard(self) -> None:
        """Drop what is queued and was not sent; used when the worker gives up."""
        self._producer.purge()

    def _wait(self) -> None:
        self._on_wait()
        with self._fatal_as_failure():
            self._producer.poll(WAIT_SLICE_S)
        self.check()

    @contextlib.contextmanager
    def _fatal_as_failure(self) -> Iterator[None]:
        """Take the client's fatal errors for what they are: a message that cannot be delivered.

        A refused message is fatal here, since nothing may overtake it (the gapless guarantee). The
        client raises that from within its callbacks, at times as a SystemError.
        """
        try:
            yield
        except (KafkaException, SystemError) as error:
            self._failed(error.__cause__ or error)
            self.check()

    def _failed(self, error: BaseException) -> None:
        """Take note of a call that ended in a fatal error."""
        self._failures.insert(0, str(error))

    def _refused(self, topic: str, error: KafkaError) -> None:
        """Take note of a message that will not be delivered."""
        self._failures.append(f"{topic}: {error.str()}")

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._refused(str(message.topic()), error)

    def _errored(self, error: KafkaError) -> None:
        if error.fatal():
            self._failures.append(error.str())
        else:
            self._trouble(error)


def send_all(producer: CheckedProducer, outputs: Outputs) -> None:
    """Enqueue the re-keyed, DLQ and late messages, then the bulk ones."""
    for single in outputs.single:
        producer.send_single(single)
    for bulk in outputs.bulk:
        producer.send_bulk(bulk.topic, bulk.messages)


class AtLeastOnce:
    """Outputs first, then the offsets: after a crash rows may come twice, never not at all."""

    undoes = False
    open_s = 0.0

    def __init__(self, producer: CheckedProducer, consumer: ConsumerClient) -> None:
        self._producer = producer
        self._consumer = consumer

    def start(self) -> None:
        """Do nothing: the producer connects by itself."""

    def take_over(self, partitions: list[TopicPartition]) -> None:
        """Do nothing: nobody leaves anything open."""

    def poll(self) -> None:
        """Serve the producer's callbacks."""
        self._producer.poll()

    def begin(self) -> None:
        """Do nothing: each message stands for itself."""

    def send(self, outputs: Outputs) -> None:
        """Enqueue the re-keyed, DLQ and late messages, then the bulk ones."""
        send_all(self._producer, outputs)

    def commit(self, positions: Sequence[Position], timeout_s: float, wait: bool) -> bool:
        """Flush, then commit ``positions``; without ``wait`` the broker's answer comes later.

        A commit that fails is not repeated here: the next one covers it, and until then a crash
        only means more rows that come twice.
        """
        if not self._producer.flush(timeout_s):
            log.warning("outputs_not_delivered_yet", waiting=len(self._producer))
            return False
        offsets = [
            TopicPartition(p.topic, p.partition, p.offset, metadata=p.note().dump())
            for p in positions
        ]
        if not offsets:
            return True
        try:
            self._consumer.commit(offsets=offsets, asynchronous=not wait)
        except KafkaException as error:
            log.warning("offsets_not_committed", error=error.args[0].str())
            return False
        return True

    def abort(self) -> None:
        """Drop what the broker has not got; what it has cannot be taken back."""
        self._producer.discard()
        with contextlib.suppress(DeliveryError):
            self._producer.flush(WAIT_SLICE_S)
