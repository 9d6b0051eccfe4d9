"""The source thread's side of erasures: reads the topic, and says where each partition forgets.

A position is delivered to the broker before any row beyond it is handed over. Called by the source
thread only, but ``confirm``, which any thread may call.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from headrace.runtime.errors import KafkaUnavailableError, explain
from headrace.runtime.logging import get_logger
from headrace.streams.batch import EventBatch, Forget
from headrace.streams.companions import Companion
from headrace.streams.erasures import (
    ErasureBook,
    ErasurePosition,
    ErasureRequest,
    cut,
    encode_erasure,
    forget_of,
)
from headrace.streams.errors import ErasureError
from headrace.streams.positions import ATTEMPTS, patiently

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from headrace.features.plan import PipelinePlan, StagePlan
    from headrace.streams.batch import Outputs, Processor
    from headrace.streams.companions import Item
    from headrace.streams.erasures import Erasure
    from headrace.streams.online_feed import OnlineFeed
    from headrace.streams.positions import OwnedPartition

log = get_logger(__name__)

LOOK_EVERY_S = 0.5
TIMEOUT_S = 15.0
_POLL_S = 0.1
_END = KafkaError._PARTITION_EOF


class ErasureLog:
    """The erasures topic: read from its beginning, and written with confirmation."""

    def __init__(self, properties: Mapping[str, Any], topic: str) -> None:
        """Read ``topic``; nothing is read yet."""
        self._topic = topic
        self._consumer = Consumer(
            {
                **properties,
                # A group of no meaning: partitions are assigned, nothing is ever committed.
                "group.id": f"{topic}.reader",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 100,
            }
        )
        self._consumer.assign([TopicPartition(topic, 0, 0)])
        self._properties = dict(properties)
        self._producer: Producer | None = None
        self._next_offset = 0
        self.book = ErasureBook()

    def read_to_end(self, attempts: int = 1) -> None:
        """Read all that the topic holds now; a worker asks more than once, a person can ask again.

        Raises:
            KafkaUnavailableError: If that does not come about in time.

        """
        where = TopicPartition(self._topic, 0)
        try:
            _, end = patiently(
                lambda: self._consumer.get_watermark_offsets(where, timeout=TIMEOUT_S),
                time.sleep,
                attempts,
            )
        except KafkaException as error:
            got = error.args[0].str()
            raise KafkaUnavailableError(
                explain("the topic", "be read", got, self._topic)
            ) from error
        deadline_s = time.monotonic() + TIMEOUT_S
        while self._next_offset < end:
            if time.monotonic() > deadline_s:
                rule = f"be read within {TIMEOUT_S:g} s"
                got = f"{self._next_offset} of {end} records"
                raise KafkaUnavailableError(explain("the topic", rule, got, self._topic))
            self._take(_POLL_S)

    def catch_up(self) -> None:
        """Read what has come; waits for nothing."""
        while self._take(0.0):
            pass

    def write(self, erasure: Erasure) -> None:
        """Write a record and return once the broker has it.

        Raises:
            KafkaUnavailableError: If the broker does not take it in time.

        """
        if self._producer is None:
            settings = {"acks": "all", "enable.idempotence": True, "linger.ms": 0}
            self._producer = Producer({**self._properties, **settings})
        failures: list[str] = []
        self._producer.produce(
            self._topic,
            encode_erasure(erasure),
            erasure.record_key.encode(),
            partition=0,
            on_delivery=lambda error, _: failures.append(str(error)) if error else None,
        )
        if self._producer.flush(TIMEOUT_S) or failures:
            got = failures[0] if failures else f"no answer in {TIMEOUT_S:g} s"
            raise KafkaUnavailableError(explain("an erasure", "be taken", got, self._topic))

    def close(self) -> None:
        """Let the broker go."""
        self._consumer.close()

    def _take(self, timeout_s: float) -> bool:
        """Read one record or event; False when there was none."""
        message = self._consumer.poll(timeout_s)
        if message is None:
            return False
        error = message.error()
        if error is not None:
            if error.code() == _END:
                # Compaction may have taken the last records.
                self._next_offset = max(self._next_offset, message.offset() or 0)
            else:
                log.warning("erasures_topic_trouble", error=error.str())
            return error.code() == _END
        self._next_offset = (message.offset() or 0) + 1
        value = message.value()
        if value is not None:
            try:
                self.book.take(value)
            except ErasureError as unreadable:
                log.exception("erasure_not_readable", error=str(unreadable))
        return True


@dataclass(slots=True)
class _Kept:
    """A stage's partition: where its erasures are, and which were handed over already.

    ``settled``: the end of the log at its assignment. What lies before may have been sent already,
    with the key's rows counted, and must come out the same again.
    """

    owned: OwnedPartition
    stage: StagePlan
    settled: int
    waiting: list[Forget] = field(default_factory=list)
    handed: list[Forget] = field(default_factory=list)
    placed: set[str] = field(default_factory=set)


class ErasureFeed(Companion):
    """Puts forgets between the batches of the partitions that a worker owns."""

    def __init__(
        self,
        plan: PipelinePlan,
        log_: ErasureLog,
        topic_ids: Mapping[str, str],
        online: OnlineFeed | None = None,
    ) -> None:
        """Serve the stages of ``plan``; ``online`` erases what is served of their keys."""
        self._plan = plan
        self._log = log_
        self._topic_ids = topic_ids
        self._online = online
        self._stages = {stage.topic: stage for stage in plan.stages}
        self._kept: dict[tuple[str, int], _Kept] = {}
        self._next_s = 0.0

    def assigned(self, partitions: Iterable[OwnedPartition]) -> None:
        """Take in what former owners have said of newly assigned partitions.

        Raises:
            KafkaUnavailableError: If the topic cannot be read.

        """
        self._log.read_to_end(ATTEMPTS)
        for owned in partitions:
            stage = self._stages.get(owned.topic)
            if stage is None:
                continue
            settled = owned.high_offset if owned.emit_from else 0
            kept = _Kept(owned, stage, settled)
            self._kept[owned.topic, owned.partition] = kept
            for request in self._log.book.of_entity(stage.entity):
                position = self._log.book.positions.get(self._place(kept, request))
                if position is not None:
                    self._wait(kept, request, position)

    def restored(self, owned: OwnedPartition, processor: Processor) -> None:
        """Let what a restored partition has forgotten already not be forgotten again."""
        kept = self._kept.get((owned.topic, owned.partition))
        requests: Collection[str] = getattr(processor, "erased", ())
        if kept is not None and requests:
            kept.waiting = [one for one in kept.waiting if one.request not in requests]

    def released(self, places: Iterable[tuple[str, int]], *, flush: bool) -> None:
        """Let partitions go."""
        del flush
        for place in places:
            self._kept.pop(place, None)

    def cut(
        self, owned: OwnedPartition, parts: list[EventBatch | Forget]
    ) -> list[EventBatch | Forget]:
        """Return batches in parts, with what is to be forgotten between them."""
        return [
            piece
            for part in parts
            for piece in (self._cut(owned, part) if isinstance(part, EventBatch) else [part])
        ]

    def settled(self, item: Item, outputs: Outputs) -> None:
        """Let it be said that a key is forgotten, once the online store knows nothing of it."""
        slots = outputs.forgotten
        if not isinstance(item, Forget) or slots is None:
            return
        if self._online is None or not self._online.forgotten(item, slots, self.confirm):
            self.confirm(item, len(slots))

    def _cut(self, owned: OwnedPartition, batch: EventBatch) -> Sequence[EventBatch | Forget]:
        kept = self._kept.get((owned.topic, owned.partition))
        if kept is None or not kept.waiting or not len(batch):
            return [batch]
        last = int(batch.offsets[-1])
        due = [forget for forget in kept.waiting if forget.position <= last]
        kept.waiting = kept.waiting[len(due) :]
        kept.handed += due
        return cut(batch, due)

    def committed(self) -> None:
        """Take note that all that was handed over stays."""
        for kept in self._kept.values():
            kept.handed.clear()

    def aborted(self, starts: Mapping[tuple[str, int], int]) -> None:
        """Let what partitions have undone, back to an offset each, wait for its place again."""
        for place, offset in starts.items():
            kept = self._kept.get(place)
            if kept is not None:
                again = [forget for forget in kept.handed if forget.position >= offset]
                kept.waiting = sorted([*again, *kept.waiting], key=lambda one: one.position)
        self.committed()

    def due(self, room: int) -> list[Forget]:
        """Return what is to be forgotten now, after all that was handed over.

        Requests that came since are given a position; that is on the broker when this returns.

        Raises:
            KafkaUnavailableError: If the broker does not take a position.

        """
        del room
        now_s = time.monotonic()
        if now_s < self._next_s:
            return []
        self._next_s = now_s + LOOK_EVERY_S
        self._log.catch_up()
        found: list[Forget] = []
        for kept in self._kept.values():
            for request in self._log.book.of_entity(kept.stage.entity):
                if request.id not in kept.placed and kept.owned.next_offset >= kept.settled:
                    position = kept.owned.next_offset
                    self._place_it(self._said(kept, request.id, position, done=False))
                    self._wait(kept, request, position)
            due = [f for f in kept.waiting if f.position <= kept.owned.next_offset]
            kept.waiting = kept.waiting[len(due) :]
            kept.handed += due
            found += due
        return found

    def confirm(self, forget: Forget, keys: int) -> None:
        """Say that a key is forgotten, in the state (of ``keys`` slots) and where it was served.

        Raises:
            KafkaUnavailableError: If the broker does not take it.

        """
        kept = self._kept.get((forget.topic, forget.partition))
        if kept is None:
            return
        said = replace(self._said(kept, forget.request, forget.position, done=True), keys=keys)
        if said.place not in self._log.book.done:
            self._log.write(said)
            log.info("key_forgotten", erasure=forget.request, entity=kept.stage.entity)

    def _place_it(self, said: ErasurePosition) -> None:
        """Write a position and see that no other owner's word came before it."""
        self._log.write(said)
        self._log.read_to_end(ATTEMPTS)
        first = self._log.book.positions.get(said.place)
        if first != said.position:
            rule = f"be the first for its partition, as {first} is"
            hint = "another worker owned the partition until now: start this one again"
            got = said.position
            raise ErasureError(explain("an erasure's position", rule, got, said.topic, hint))

    def _wait(self, kept: _Kept, request: ErasureRequest, position: int) -> None:
        owned = kept.owned
        where = (owned.partition, owned.epoch)
        try:
            forget = forget_of(self._plan, kept.stage, request, self._topic_ids, where, position)
        except ErasureError as unreadable:
            # A request that no key of this stage can be meant by.
            log.warning("erasure_of_no_key", error=str(unreadable))
            kept.placed.add(request.id)
            return
        kept.placed.add(request.id)
        kept.waiting.append(forget)
        kept.waiting.sort(key=lambda one: one.position)

    def _place(self, kept: _Kept, request: ErasureRequest) -> tuple[str, str, str, str, int]:
        return self._said(kept, request.id, 0, done=False).place

    def _said(self, kept: _Kept, request: str, position: int, *, done: bool) -> ErasurePosition:
        owned = kept.owned
        return ErasurePosition(
            request,
            self._plan.name,
            owned.topic,
            owned.topic_id,
            owned.partition,
            position,
            "done" if done else "position",
        )
