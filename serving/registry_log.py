"""The registry's memory: the compacted topic ``_schemas``, with one writer at a time.

Every instance reads the topic. The one that holds the topic's partition in a consumer group may
write, through a transactional producer: so an instance that lost the partition without noticing
is fenced by the broker, and two instances can never allot one id to two schemas (E6).
"""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from headrace.runtime.errors import HeadraceError, KafkaUnavailableError
from headrace.runtime.kafka import admin, ensure_topics
from headrace.runtime.logging import get_logger
from headrace.runtime.topics import TopicSpec
from headrace.serving.errors import RegistryError
from headrace.serving.registry_subjects import LOG_FAILED, READ_ONLY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.serving.registry_subjects import Subjects

_log = get_logger("registry")

TOPIC = "_schemas"
_OWNER = "headrace.schema-registry"
_POLL_S = 0.1
# The registry has no settings of its own: a cluster's default says how many copies it wants.
_BROKERS_OWN_REPLICATION = -1
_WRITE_TIMEOUT_S = 10.0
_START_TIMEOUT_S = 60.0
# A broker that is about to start is found within this time; librdkafka's own default grows to 10 s.
_EAGER = {"reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 200}


class RegistryLog:
    """Keeps ``subjects`` equal to the topic, and appends to it while it is the writer.

    Args:
        kafka: Client properties.
        instance: This instance's name; one that comes back under its name takes over at once.
        subjects: What the records are applied to, by this object's reading thread only.

    """

    def __init__(self, kafka: Mapping[str, Any], instance: str, subjects: Subjects) -> None:
        self._kafka = {**kafka, **_EAGER, "client.id": f"{_OWNER}-{instance}"}
        self._instance = instance
        self._subjects = subjects
        self._changed = threading.Condition()
        self._position = 0
        self._holds_place = False
        self._producer: Producer | None = None
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Make the topic if it is missing, and begin to read it and to seek the writer's place."""
        self._make_topic()
        for work in (self._read, self._hold_place):
            thread = threading.Thread(target=self._run, args=(work,), name=work.__name__)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End the threads and leave the topic to others."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    @property
    def writable(self) -> bool:
        """Return whether this instance is the writer now."""
        return self._producer is not None

    @property
    def failed(self) -> bool:
        """Return whether a thread ended by an error; then the process should end as well."""
        return self._failure is not None

    def append(self, records: list[tuple[bytes, bytes | None]]) -> None:
        """Write records as one transaction and return when ``subjects`` shows them.

        Raises:
            RegistryError: 42205 if this instance is not the writer, 50001 if Kafka fails.

        """
        producer = self._writer()
        offsets: list[int] = []

        def delivered(error: KafkaError | None, message: Any) -> None:
            if error is None:
                offsets.append(message.offset())

        try:
            producer.begin_transaction()
            for key, value in records:
                producer.produce(TOPIC, key=key, value=value, partition=0, on_delivery=delivered)
            producer.commit_transaction(_WRITE_TIMEOUT_S)
        except KafkaException as error:
            raise self._give_up(error) from error
        self._wait_for(max(offsets) + 1)

    def _read_only(self) -> RegistryError:
        message = (
            f"schema registry must be the writer of {TOPIC}; got a write for instance "
            f"{self._instance!r}, which only reads; ask the instance that was there first"
        )
        return RegistryError(READ_ONLY, message)

    def _writer(self) -> Producer:
        """Return the producer; after a failed write a new one, which settles the old one's fate."""
        if not self._holds_place:
            raise self._read_only()
        if self._producer is None:
            try:
                self._become_writer()
            except KafkaException as error:
                raise self._give_up(error) from error
        assert self._producer is not None
        return self._producer

    def _give_up(self, error: KafkaException) -> RegistryError:
        """Write no more with a producer whose last transaction has an unknown outcome."""
        _log.warning("registry_write_failed", instance=self._instance, error=str(error))
        self._producer = None
        if error.args[0].code() in {KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH}:
            self._holds_place = False
            return self._read_only()
        message = f"the registry's log must take writes; {error.args[0].str()}; try again"
        return RegistryError(LOG_FAILED, message)

    def _make_topic(self) -> None:
        spec = TopicSpec(
            TOPIC, "deployments", 1, _BROKERS_OWN_REPLICATION, {"cleanup.policy": "compact"}
        )
        client = admin({**self._kafka, "log_level": 0})
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                ensure_topics(client, [spec])
            except KafkaUnavailableError:
                if time.monotonic() > deadline:
                    raise
            else:
                return

    def _run(self, work: Any) -> None:
        try:
            work()
        except (KafkaException, HeadraceError, ValueError, KeyError) as error:
            _log.exception("registry_thread_failed", instance=self._instance)
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            # A registry that no longer follows its log must not answer: let its owner start anew.
            signal.raise_signal(signal.SIGTERM)

    def _read(self) -> None:
        consumer = Consumer(
            {
                **self._kafka,
                "group.id": f"{_OWNER}.reader",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 100,
            }
        )
        consumer.assign([TopicPartition(TOPIC, 0, 0)])
        while not self._ended.is_set():
            message = consumer.poll(_POLL_S)
            if message is None:
                continue
            error, offset = message.error(), message.offset()
            if error is None:
                assert offset is not None
                key = message.key()
                assert key is not None, offset
                self._subjects.apply(key, message.value())
                self._advance(offset + 1)
            elif error.code() == KafkaError._PARTITION_EOF:
                # Transaction markers take offsets too: the end stands behind the last of them.
                self._advance(offset or 0)
            elif error.fatal():
                raise KafkaException(error)
        consumer.close()

    def _advance(self, position: int) -> None:
        with self._changed:
            self._position = max(self._position, position)
            self._changed.notify_all()

    def _wait_for(self, position: int) -> None:
        """Return when everything below ``position`` was applied."""
        with self._changed:
            reached = self._changed.wait_for(
                lambda: self._position >= position or self._failure is not None, _WRITE_TIMEOUT_S
            )
        if not reached or self._failure is not None:
            message = f"the registry's log must be readable up to offset {position}; it is not"
            raise RegistryError(LOG_FAILED, message)

    def _hold_place(self) -> None:
        """Stay in the group; being given the partition makes this instance the writer."""
        consumer = Consumer(
            {
                **self._kafka,
                "group.id": _OWNER,
                "group.instance.id": self._instance,
                "enable.auto.commit": False,
                # Sticky: who comes later gets nothing as long as the first one is there.
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": 6_000,
                "heartbeat.interval.ms": 1_000,
            }
        )

        def given(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            consumer.incremental_assign(partitions)
            if partitions:
                consumer.pause(partitions)
                self._become_writer()
                self._holds_place = True

        def taken(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            consumer.incremental_unassign(partitions)
            self._holds_place = False
            self._producer = None
            _log.info("registry_reads_only", instance=self._instance)

        consumer.subscribe([TOPIC], on_assign=given, on_revoke=taken, on_lost=taken)
        while not self._ended.is_set():
            message = consumer.poll(_POLL_S)
            error = None if message is None else message.error()
            if error is not None and error.fatal():
                # Another process came under the same instance name: it is the one to go on.
                self._holds_place = False
                self._producer = None
                _log.warning("registry_displaced", instance=self._instance)
                break
        consumer.close()

    def _become_writer(self) -> None:
        """Fence whoever wrote before, read all that they wrote, and only then accept writes."""
        producer = Producer({**self._kafka, "transactional.id": _OWNER, "linger.ms": 0})
        producer.init_transactions(_START_TIMEOUT_S)
        end = self._end()
        self._wait_for(end)
        self._producer = producer
        _log.info("registry_writes", instance=self._instance, end=end)

    def _end(self) -> int:
        consumer = Consumer({**self._kafka, "group.id": f"{_OWNER}.reader"})
        try:
            watermarks = consumer.get_watermark_offsets(TopicPartition(TOPIC, 0), timeout=15.0)
            return int(watermarks[1])
        finally:
            consumer.close()
