"""confluent-kafka's producer, as far as workers use it, over the broker in memory."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, KafkaException

from bench.simulate.broker import Entry, FencedProducerError, TransactionStateError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from confluent_kafka import TopicPartition

    from bench.simulate.broker import Broker, Place
    from bench.simulate.group import Group
    from bench.simulate.process import Process

SOCKET_TIMEOUT_S = 3.0
GROUP_FENCED = "the member is not of the group's generation"


def trouble(code: int, text: str, **kinds: bool) -> KafkaException:
    """Return an error as librdkafka raises it."""
    return KafkaException(KafkaError(code, text, **kinds))


def timed_out(text: str) -> KafkaException:
    """Return the error of a call that may be made again."""
    return trouble(KafkaError._TIMED_OUT, text, retriable=True)


class SimulatedProducer:
    """Queues by partition, sent in order by a sender that runs now and then."""

    def __init__(
        self,
        process: Process,
        broker: Broker,
        groups: Callable[[str], Group],
        properties: Mapping[str, Any],
    ) -> None:
        self._process = process
        self._broker = broker
        self._groups = groups
        self._id: str | None = properties.get("transactional.id")
        self._errored = properties.get("error_cb", lambda _: None)
        self._delivered = properties.get("on_delivery", lambda _error, _message: None)
        self._message_timeout_s = float(properties.get("message.timeout.ms", 0)) / 1000
        self._queues: dict[Place, deque[tuple[float, Entry]]] = {}
        self._epoch = 0
        self._open = self._used = False
        self._fatal: KafkaError | None = None
        self._asked: bool | None = None
        self._answer: str | None = None
        self._ask_again_s = 0.0

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def __bool__(self) -> bool:
        return True

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        *,
        headers: list[tuple[str, bytes]],
        partition: int,
        timestamp: int = 0,
    ) -> None:
        """Enqueue a message, if there is room."""
        self._step("produce")
        if self._process.chaos.is_full():
            raise BufferError
        self._enqueue((topic, partition), value, key, headers, timestamp)

    def produce_batch(self, topic: str, messages: list[dict[str, Any]], partition: int) -> int:
        """Enqueue as many messages as there is room for, and mark the others."""
        self._step("produce_batch")
        taken = len(messages)
        if self._process.chaos.is_full():
            taken = self._process.world.draw.randrange(len(messages))
        for message in messages[:taken]:
            self._enqueue((topic, partition), message["value"], message["key"], [], 0)
        for message in messages[taken:]:
            message["_error"] = KafkaError(KafkaError._QUEUE_FULL, "full")
        return taken

    def poll(self, timeout: float) -> int:
        """Let the sender run, perhaps."""
        self._step("producer.poll")
        if timeout:
            self._process.sleep(timeout)
        self._send_some()
        return 0

    def flush(self, timeout: float) -> int:
        """Send all that is queued, if the broker takes it in time."""
        self._step("flush")
        deadline_s = self._now_s + timeout
        while len(self) and not self._send_all() and self._now_s < deadline_s:
            self._process.listen(max(0.0, deadline_s - self._now_s))
        return len(self)

    def purge(self) -> None:
        """Drop what is queued; what was on its way may still arrive."""
        self._process.step("purge")
        self.abandon()

    def abandon(self) -> None:
        """Be gone, with some of the messages on their way."""
        draw, broker, epoch = self._process.world.draw, self._broker, self._epoch
        queues, self._queues = self._queues, {}
        for place, queue in queues.items():
            entries = [entry for _, entry in queue][: draw.randint(0, len(queue))]

            def arrive(place: Place = place, entries: list[Entry] = entries) -> None:
                for entry in entries:
                    if broker.takes(entry.transaction, epoch):
                        broker.append(place, entry, epoch)

            if entries:
                self._process.world.later(draw.random() ** 2 * 4.0, arrive)

    def init_transactions(self, timeout: float) -> None:
        """Fence former producers of the id."""
        self._process.step("init_transactions")
        assert self._id is not None
        deadline_s = self._now_s + timeout
        if self._process.chaos.trouble(self._process, "init_transactions"):
            raise timed_out("init")
        while (epoch := None if self._broker.away else self._broker.begin(self._id)) is None:
            if self._now_s >= deadline_s:
                raise timed_out("init")
            self._process.listen(max(0.01, min(0.5, deadline_s - self._now_s)))
        self._epoch = epoch
        self._process.sleep(self._process.world.draw.random() * 0.01)

    def begin_transaction(self) -> None:
        """Open a transaction; the broker hears of it with what is sent first."""
        self._step("begin_transaction")
        assert not self._open, "a transaction is open"
        self._open, self._used, self._asked = True, False, None

    def send_offsets_to_transaction(
        self, positions: list[TopicPartition], group_metadata: Any, timeout: float
    ) -> None:
        """Commit offsets with the transaction."""
        self._step("send_offsets")
        assert self._open, "no transaction is open"
        assert self._id is not None
        group, member, generation = group_metadata
        fate = self._process.chaos.fate(self._process, "send_offsets")
        offsets = {(p.topic, p.partition): (p.offset, p.metadata or "") for p in positions}
        if fate in {"late", "reset"}:
            self._add_late(group, offsets, member, generation)
        if fate:
            self._process.sleep(SOCKET_TIMEOUT_S if fate != "reset" else 0.1)
            self._errored(KafkaError(KafkaError._TRANSPORT, "the connection was lost"))
        if fate == "lost_request" or self._broker.away or self._broker.is_ending(self._id):
            self._process.listen(timeout)
            raise timed_out("offsets")
        if self._process.chaos.trouble(self._process, "send_offsets"):
            raise trouble(KafkaError.COORDINATOR_NOT_AVAILABLE, "refused", txn_requires_abort=True)
        if not self._groups(group).is_valid(member, generation):
            raise trouble(KafkaError.ILLEGAL_GENERATION, GROUP_FENCED, txn_requires_abort=True)
        self._used = True
        self._asking(lambda: self._broker.add_offsets(str(self._id), self._epoch, group, offsets))

    def commit_transaction(self, timeout: float) -> None:
        """Send all that is queued and commit."""
        self._step("commit_transaction")
        self._end(timeout, commit=True)

    def abort_transaction(self, timeout: float) -> None:
        """Drop what is queued and abort."""
        self._step("abort_transaction")
        self._queues.clear()
        self._asked = None if self._asked else self._asked
        self._end(timeout, commit=False)

    # --- Inside -------------------------------------------------------------------------------

    @property
    def _now_s(self) -> float:
        return self._process.world.now_s

    def _step(self, call: str) -> None:
        self._process.step(call)
        if self._fatal is not None:
            raise KafkaException(self._fatal)

    def _end(self, timeout_s: float, *, commit: bool) -> None:
        assert self._open, "no transaction is open"
        deadline_s = self._now_s + timeout_s
        if self._asked is None:
            while commit and len(self) and not self._send_all():
                if self._now_s >= deadline_s:
                    raise timed_out("queued messages")
                self._process.listen(max(0.001, deadline_s - self._now_s))
            if not self._used:
                self._open = False
                return
            self._asked = commit
            self._ask(commit=commit)
        while self._answer is None:
            if self._now_s >= deadline_s:
                raise timed_out("end of transaction")
            if self._now_s >= self._ask_again_s:
                self._errored(KafkaError(KafkaError._TRANSPORT, "the connection was lost"))
                self._ask(commit=commit)
                continue
            self._process.listen(max(0.001, min(deadline_s, self._ask_again_s) - self._now_s))
        if self._answer != "done":
            self._fail(self._answer)
        self._open, self._asked = False, None

    def _ask(self, *, commit: bool) -> None:
        """Send the request to end the transaction; what becomes of it is drawn."""
        world, broker, name, epoch = self._process.world, self._broker, str(self._id), self._epoch
        fate = self._process.chaos.fate(self._process, "commit" if commit else "abort")
        self._answer = None
        self._ask_again_s = self._now_s + SOCKET_TIMEOUT_S
        delay_s = world.draw.random() * 0.01
        if fate == "lost_request":
            return
        if fate == "late":
            delay_s = 2.0 + world.draw.random() * 8.0
        elif fate == "reset":
            delay_s = world.draw.random() * 6.0
            self._ask_again_s = self._now_s + 0.1
        answers = fate == ""

        def arrive() -> None:
            if broker.away:
                return
            try:
                broker.end(name, epoch, commit=commit)
                answer = "done"
            except FencedProducerError:
                answer = "fenced"
            except TransactionStateError:
                answer = "state"
            world.note(
                "broker", "end request", name, epoch, "commit" if commit else "abort", answer
            )
            if answers:
                self._answer = answer
                world.tell()

        world.later(delay_s, arrive)

    def _add_late(
        self, group: str, offsets: dict[Place, tuple[int, str]], member: str, generation: int
    ) -> None:
        """Let a copy of the request to add offsets arrive when it likes."""
        broker, name, epoch = self._broker, str(self._id), self._epoch

        def arrive() -> None:
            valid = self._groups(group).is_valid(member, generation)
            if valid and broker.takes(name, epoch):
                broker.add_offsets(name, epoch, group, offsets)

        self._process.world.later(self._process.world.draw.random() * 6.0, arrive)

    def _fail(self, answer: str) -> None:
        self._fatal = KafkaError(KafkaError._FENCED, f"producer {self._id}: {answer}", fatal=True)
        raise KafkaException(self._fatal)

    def _asking(self, ask: Callable[[], None]) -> None:
        try:
            ask()
        except FencedProducerError:
            self._fail("fenced")

    def _enqueue(
        self,
        place: Place,
        value: bytes | None,
        key: bytes | None,
        headers: list[tuple[str, bytes]],
        timestamp_ms: int,
    ) -> None:
        assert self._id is None or self._open, "no transaction is open"
        entry = Entry(key, value, list(headers), timestamp_ms, transaction=self._id)
        self._queues.setdefault(place, deque()).append((self._now_s, entry))

    def _ready(self) -> bool:
        if self._broker.away:
            self._time_out()
            return False
        return self._id is None or not self._broker.is_ending(self._id)

    def _time_out(self) -> None:
        """Give up messages that have waited for the broker for too long."""
        if not self._message_timeout_s:
            return
        for queue in self._queues.values():
            while queue and self._now_s - queue[0][0] > self._message_timeout_s:
                queue.popleft()
                error = KafkaError(KafkaError.REQUEST_TIMED_OUT, "timed out")
                self._delivered(error, _Topic())

    def _send_some(self) -> None:
        """Send the first messages of some queues."""
        draw = self._process.world.draw
        if not self._ready() or draw.random() < 0.5:
            return
        for place, queue in self._queues.items():
            self._send(place, queue, draw.randint(0, len(queue)))

    def _send_all(self) -> bool:
        if not self._ready():
            return False
        for place, queue in self._queues.items():
            self._send(place, queue, len(queue))
        return True

    def _send(self, place: Place, queue: deque[tuple[float, Entry]], count: int) -> None:
        for _ in range(count):
            _, entry = queue.popleft()
            entry.timestamp_ms = entry.timestamp_ms or self._broker.now_ms
            self._used = True
            self._asking(lambda: self._broker.append(place, entry, self._epoch))  # noqa: B023


class _Topic:
    def topic(self) -> str:
        return "a topic"
