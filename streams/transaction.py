"""Exactly-once: outputs and input offsets become visible in one Kafka transaction, or not at all.

A transaction that does not end well is never gone on with: its producer is thrown away, a new one
of the same transactional id fences it, and the committed offsets say which state is the true one.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from headrace.runtime.logging import get_logger
from headrace.streams.commit import (
    CheckedProducer,
    committed,
    load_note,
    producer_properties,
    send_all,
)
from headrace.streams.errors import FencedError, UndoneError, fenced
from headrace.streams.fencing import fence_dead

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.streams.batch import Outputs
    from headrace.streams.clients import Clients, ConsumerClient
    from headrace.streams.commit import Position

log = get_logger(__name__)

TRANSACTION_TIMEOUT_MS = 12_000
# Below the transaction's, so that a message that cannot go out ends the transaction from our side.
MESSAGE_TIMEOUT_MS = 8_000
# A request without an answer is found out, and sent again by the client, after this.
SOCKET_TIMEOUT_MS = 3_000
# A request that meets the end of the transaction before is refused, and one in twenty or thirty is:
# the client's 100 ms would be what readers wait for.
RETRY_MS = 5
# A call that hangs for good otherwise comes back after this, on the thread that nobody waits for.
IDLE_MS = 60_000
# The answer to a commit is waited for so long; then a new producer finds out what happened.
COMMIT_BUDGET_S = 5.0
# An answer later than this may be the second one, with the first request still under way.
SUSPICIOUS_S = 2.5
ABORT_BUDGET_S = 3.0
SLICE_S = 0.5
ANSWER_S = 5.0
# So many transactions in a row that come to nothing are no accident.
UNDONE_MAX = 100

# What no new attempt would change.
_FOR_GOOD = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_RECORD,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)


# The client cannot go on after these, but nobody has taken the id: a coordinator that took over
# had ended the transaction, and is asked to end it again; or a broker that stood still had what
# was sent again after all. A new producer finds out.
_NO_FENCE = frozenset(
    {
        KafkaError.INVALID_TXN_STATE,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
        KafkaError.DUPLICATE_SEQUENCE_NUMBER,
        KafkaError.UNKNOWN_PRODUCER_ID,
    }
)


class TransactionWatcher(Protocol):
    """Who is told how transactions end."""

    def transaction_committed(self, seconds: float) -> None:
        """Take note of a commit, and how long its requests took."""
        ...

    def transaction_aborted(self) -> None:
        """Take note of a transaction that came to nothing."""
        ...

    def transaction_unknown(self) -> None:
        """Take note of a commit whose outcome had to be looked up."""
        ...

    def delivers(self, able: bool) -> None:
        """Take note of whether outputs can be committed now; at first they can."""
        ...


def transactional_properties(
    client: Mapping[str, object], linger_ms: float, transactional_id: str
) -> dict[str, Any]:
    """Return librdkafka's properties of the transactional producer."""
    return {
        "retry.backoff.ms": RETRY_MS,
        **producer_properties(client, linger_ms, MESSAGE_TIMEOUT_MS),
        "transactional.id": transactional_id,
        "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
        "socket.timeout.ms": SOCKET_TIMEOUT_MS,
        # A client that drops what it knew of a broker may wait for it for ever (librdkafka 5511):
        # it need not drop all of them when all are away, since a new producer, which follows such
        # a call, begins with the bootstrap servers; and a connection that closes wakes it up.
        "metadata.recovery.strategy": "none",
        "connections.max.idle.ms": IDLE_MS,
        # A gap ends the transaction; it need not end the process.
        "enable.gapless.guarantee": False,
    }


class TransactionalProducer(CheckedProducer):
    """A producer whose failures end the transaction, and the process only if they are for good."""

    def __init__(
        self,
        properties: Mapping[str, Any],
        on_wait: Callable[[], None],
        clients: Clients,
    ) -> None:
        self._id = str(properties["transactional.id"])
        self._doom: str | None = None
        self._fatal: str | None = None
        self._spent = False
        self.troubles = 0
        super().__init__(properties, on_wait, clients)

    def check(self) -> None:
        """Raise what is known to have gone wrong.

        Raises:
            DeliveryError: If the broker refused a message for good.
            FencedError: If another producer has taken the transactional id.
            UndoneError: If the transaction cannot be committed any more.

        """
        self.check_fence()
        super().check()
        if self._doom is not None:
            message = f"the transaction of {self._id} cannot be committed: {self._doom}"
            raise UndoneError(message)

    def check_fence(self) -> None:
        """Raise ``FencedError`` if this producer cannot go on."""
        if self._fatal is not None:
            raise fenced("transactional id", self._id, self._fatal)

    def init(self, timeout_s: float) -> bool:
        """Fence all former holders of the id and end what they left; False: not yet."""
        return self._call(lambda: self._producer.init_transactions(timeout_s))

    def begin(self) -> None:
        """Open a transaction."""
        self._call(self._producer.begin_transaction)

    def send_offsets(self, offsets: list[TopicPartition], member: Any, timeout_s: float) -> bool:
        """Add offsets to the transaction; False: not yet, call again."""
        return self._call(
            lambda: self._producer.send_offsets_to_transaction(offsets, member, timeout_s)
        )

    def commit(self, timeout_s: float) -> bool:
        """Send what is queued and commit; False: not yet, call again."""
        return self._call(lambda: self._producer.commit_transaction(timeout_s))

    def abort(self, timeout_s: float) -> bool:
        """Abort; False when that did not come about.

        Raises:
            FencedError: If this producer cannot go on.

        """
        try:
            self._producer.abort_transaction(timeout_s)
        except KafkaException as error:
            if error.args[0].fatal():
                self._failed(error)
            self.check_fence()
            return False
        self.check_fence()
        self._doom = None
        return True

    def close(self) -> None:
        """Drop what is queued and end the client; nothing may be called any more.

        Its callbacks are methods of this object, so without this the two would keep each other
        alive, with threads and connections, until a collection that a worker hardly ever makes.
        """
        self.discard()
        del self._producer

    def _call(self, call: Callable[[], object]) -> bool:
        try:
            call()
        except KafkaException as error:
            reason: KafkaError = error.args[0]
            if reason.retriable() and not reason.txn_requires_abort() and not reason.fatal():
                self.check()
                return False
            self._failed(error)
        except SystemError as error:
            self._failed(error.__cause__ or error)
        self.check()
        return True

    def _failed(self, error: BaseException) -> None:
        reason = error.args[0] if isinstance(error, KafkaException) else None
        if isinstance(reason, KafkaError):
            if reason.fatal():
                self._ended(reason)
            else:
                self._doom = self._doom or reason.str()
        elif not self._spent:
            self._fatal = self._fatal or str(error)

    def _ended(self, reason: KafkaError) -> None:
        """Take note of what this client cannot go on after; a new one may, if it is no fence."""
        if self._spent or reason.code() in _NO_FENCE:
            self._spent = True
            self._doom = self._doom or reason.str()
        else:
            self._fatal = self._fatal or reason.str()

    def _refused(self, topic: str, error: KafkaError) -> None:
        if error.code() in _FOR_GOOD:
            super()._refused(topic, error)
        elif error.fatal():
            self._ended(error)
        else:
            self._doom = self._doom or f"{topic}: {error.str()}"

    def _errored(self, error: KafkaError) -> None:
        if error.fatal():
            self._ended(error)
        else:
            self.troubles += 1
            self._trouble(error)


class ExactlyOnce:
    """Outputs and offsets of all partitions in one transaction of one worker.

    ``on_wait`` keeps the group alive while the broker is waited for; ``given_up`` tells whether
    nobody waits any more. Only the source's thread may call.
    """

    undoes = True

    def __init__(
        self,
        client: Mapping[str, Any],
        linger_ms: float,
        transactional_id: str,
        clients: Clients,
        consumer: ConsumerClient,
        watcher: TransactionWatcher,
        on_wait: Callable[[], None] = lambda: None,
        given_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._client = client
        self._properties = transactional_properties(client, linger_ms, transactional_id)
        self._id = transactional_id
        self._clients = clients
        self._consumer = consumer
        self._watcher = watcher
        self._on_wait = on_wait
        self._given_up = given_up
        self._producer: TransactionalProducer | None = None
        self._opened_s: float | None = None
        self._troubles = 0
        self._undone_in_a_row = 0

    @property
    def open_s(self) -> float:
        """How long the open transaction has been open; 0: none is."""
        return 0.0 if self._opened_s is None else self._clients.monotonic_s() - self._opened_s

    def start(self) -> None:
        """Fence a former process of this worker and end the transaction that it left open."""
        self._renew()

    def take_over(self, partitions: list[TopicPartition]) -> None:
        """End the open transactions of dead workers that owned the partitions before."""
        fence_dead(self._clients, self._client, self._id, partitions, self._group())

    def begin(self) -> None:
        """Do nothing: a transaction is opened by what is sent first."""

    def send(self, outputs: Outputs) -> None:
        """Enqueue outputs within the transaction.

        Raises:
            UndoneError: If the transaction came to nothing.

        """
        if outputs.single or outputs.bulk:
            with self._undoing():
                send_all(self._open(), outputs)

    def commit(self, positions: Sequence[Position], timeout_s: float, wait: bool) -> bool:
        """Commit outputs and positions, and return only when it is known that they are.

        Raises:
            UndoneError: If they are not; the next transaction may begin.

        """
        del timeout_s, wait
        started_s = self._clients.monotonic_s()
        deadline_s = started_s + COMMIT_BUDGET_S
        with self._undoing():
            producer = self._open()
            if positions:
                # Fresh each time: a generation can change without a callback.
                member = self._consumer.consumer_group_metadata()
                self._repeat(
                    lambda: producer.send_offsets(self._offsets(positions), member, SLICE_S),
                    deadline_s,
                )
        try:
            self._repeat(lambda: producer.commit(SLICE_S), deadline_s)
        except UndoneError as undone:
            if not self._find_out(positions):
                self._count(undone)
                raise
        else:
            took_s = self._clients.monotonic_s() - started_s
            if self._had_troubles(producer) or took_s > SUSPICIOUS_S:
                log.warning("commit_was_slow", seconds=round(took_s, 3))
                self._renew()
        self._opened_s = None
        self._undone_in_a_row = 0
        self._watcher.transaction_committed(self._clients.monotonic_s() - started_s)
        return True

    def abort(self) -> None:
        """Give the open transaction up; without one, do nothing."""
        if self._opened_s is not None:
            self._end(ABORT_BUDGET_S)

    def poll(self) -> None:
        """Serve the producer's callbacks."""
        if self._opened_s is None and self._producer is not None:
            with contextlib.suppress(UndoneError):
                self._producer.poll()

    def _group(self) -> str:
        return self._id.rpartition(".")[0]

    def _open(self) -> TransactionalProducer:
        assert self._producer is not None, "start comes first"
        if self._opened_s is None:
            self._producer.begin()
            self._troubles = self._producer.troubles
            self._opened_s = self._clients.monotonic_s()
        return self._producer

    def _offsets(self, positions: Sequence[Position]) -> list[TopicPartition]:
        return [
            TopicPartition(
                p.topic,
                p.partition,
                p.offset,
                metadata=p.note(self._id).dump(),
            )
            for p in positions
        ]

    @contextlib.contextmanager
    def _undoing(self) -> Any:
        try:
            yield
        except UndoneError as undone:
            self._end(ABORT_BUDGET_S)
            self._count(undone)
            raise

    def _count(self, undone: UndoneError) -> None:
        """Take note of a transaction that came to nothing.

        Raises:
            FencedError: If too many in a row did.

        """
        self._undone_in_a_row += 1
        if self._undone_in_a_row > UNDONE_MAX:
            message = f"{UNDONE_MAX} transactions in a row came to nothing: {undone}"
            raise FencedError(message) from undone

    def _end(self, budget_s: float) -> None:
        """Abort, in the usual way or by a new producer that fences the transaction."""
        assert self._producer is not None
        self._opened_s = None
        self._watcher.transaction_aborted()
        if not self._producer.abort(budget_s) or self._had_troubles(self._producer):
            self._renew()

    def _had_troubles(self, producer: TransactionalProducer) -> bool:
        """Whether the client may have asked twice: the first request must not meet what follows."""
        return producer.troubles > self._troubles

    def _repeat(self, call: Callable[[], bool], deadline_s: float) -> None:
        late = False
        while not call():
            if late:
                message = f"the broker did not answer {self._id} in {COMMIT_BUDGET_S:g} s"
                raise UndoneError(message)
            # Once more: a process that stood still may have been fenced, and hears of it only now.
            late = self._clients.monotonic_s() > deadline_s
            self._on_wait()

    def _renew(self) -> None:
        """Take a new producer; when this returns, every former transaction of the id has ended."""
        self._opened_s = None
        if self._producer is not None:
            self._producer.close()
            self._producer = None
        producer = TransactionalProducer(self._properties, self._on_wait, self._clients)
        waits = 0
        while True:
            try:
                if producer.init(SLICE_S if waits else ANSWER_S):
                    break
            except UndoneError as error:
                log.warning("transactions_not_ready", error=str(error))
                producer.close()
                producer = TransactionalProducer(self._properties, self._on_wait, self._clients)
            if waits == 0:
                log.warning("waiting_for_transactions", transactional_id=self._id)
                self._watcher.delivers(False)
            waits += 1
            if self._given_up():
                message = f"{self._id} was stopped while the broker was away"
                raise FencedError(message)
            self._on_wait()
        if waits:
            log.info("transactions_ready", transactional_id=self._id)
            self._watcher.delivers(True)
        self._producer = producer

    def _find_out(self, positions: Sequence[Position]) -> bool:
        """Return whether a commit that was not answered has happened."""
        log.warning("commit_outcome_unknown", transactional_id=self._id)
        self._watcher.transaction_unknown()
        self._opened_s = None
        self._renew()
        versions = {(p.topic, p.partition): p.version for p in positions}
        wanted = [TopicPartition(*place) for place in versions]
        while wanted:
            try:
                found = committed(self._consumer, wanted, ANSWER_S)
            except KafkaException as error:
                log.warning("committed_offsets_unknown", error=error.args[0].str())
                if self._given_up():
                    raise
                self._on_wait()
                continue
            notes = [(load_note(one.metadata), versions[one.topic, one.partition]) for one in found]
            happened = any(
                note is not None and note.writer == self._id and note.version == version
                for note, version in notes
            )
            log.warning("commit_outcome_known", committed=happened)
            if not happened:
                self._watcher.transaction_aborted()
            return happened
        return False
