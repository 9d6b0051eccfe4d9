"""The source thread: it owns consumer and producer, hands batches over and sends what they cause.

It knows neither Faust nor what a processor does: ``submit`` takes a ticket and keeps it somewhere
until its future is done. One thread for both clients means that no callback of a rebalance can
wait for another thread that waits for it.

The loop is here; ``ownership`` says which partitions, ``committing`` what becomes of outputs.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from confluent_kafka import KafkaError, TopicPartition

from headrace.runtime.errors import explain
from headrace.runtime.logging import get_logger
from headrace.streams.clients import KafkaClients
from headrace.streams.commit import AtLeastOnce, CheckedProducer, Guarantee, producer_properties
from headrace.streams.committing import Committer
from headrace.streams.companions import NoRestorer
from headrace.streams.drain import Drain
from headrace.streams.errors import DeliveryError, FencedError, PositionError, fenced
from headrace.streams.flow import Flow
from headrace.streams.handover import HandOver
from headrace.streams.intake import backlog_batch, batches, end_batch, group
from headrace.streams.ownership import Ownership
from headrace.streams.positions import CHOICES
from headrace.streams.source_options import SourceOptions, SourceWatcher, consumer_properties
from headrace.streams.transaction import ExactlyOnce
from headrace.streams.troubles import TroubleLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from headrace.streams.batch import EventBatch, Forget, Processor
    from headrace.streams.clients import Clients
    from headrace.streams.companions import Companion, Restorer
    from headrace.streams.intake import Row
    from headrace.streams.positions import OwnedPartition
    from headrace.streams.tickets import ProcessorTable, Ticket

log = get_logger(__name__)

IDLE_WAIT_S = 0.1
BUSY_WAIT_S = 0.001
# While a ticket takes longer (registry away, first compilation) the consumer is paused and polled,
# or the group would take the worker for dead.
STALL_S = 1.0

# librdkafka spells its local codes with a leading underscore.
_END = KafkaError._PARTITION_EOF
_FATAL = KafkaError._FATAL
_NOT_RETRIED = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)


class Source:
    """The loop of the source thread. ``run`` is its body; ``stop`` may be called from anywhere."""

    def __init__(
        self,
        options: SourceOptions,
        table: ProcessorTable,
        build: Callable[[str, int], Processor],
        submit: Callable[[Ticket], None],
        watcher: SourceWatcher,
        companions: Sequence[Companion] = (),
        restorer: Restorer | None = None,
        clients: Clients | None = None,
    ) -> None:
        self._options = options
        self._watcher = watcher
        self._companions = companions
        self._clients = clients or KafkaClients()
        self._owned: dict[tuple[str, int], OwnedPartition] = {}
        self._fault: BaseException | None = None
        self._stopping = False
        self._drain_wanted = True
        self._drain = Drain(self._owned)
        self._trouble = TroubleLog("broker_trouble", self._clients.monotonic_s)
        self._next_tick_s = 0.0
        self._polled_s = 0.0
        self._within = False
        self._consumer = self._clients.consumer(
            {
                **consumer_properties(options),
                "on_commit": self._on_commit,
                "error_cb": self._on_error,
            }
        )
        self._guarantee = self._guarantee_of(options)
        self._hand_over = HandOver(options.routes, submit, self._clients)
        self._flow = Flow(options.feeds, self._owned)
        self._committer = Committer(
            options,
            self._clients,
            self._consumer,
            self._guarantee,
            self._hand_over,
            self._owned,
            table,
            companions,
            watcher,
            self._flow,
        )
        self._ownership = Ownership(
            options,
            self._clients,
            self._consumer,
            self._committer,
            self._hand_over,
            self._owned,
            table,
            build,
            companions,
            restorer or NoRestorer(),
            watcher,
            self._fail,
        )

    def _guarantee_of(self, options: SourceOptions) -> Guarantee:
        if options.worker is None:
            properties = producer_properties(options.producer, options.linger_ms)
            producer = CheckedProducer(properties, self._keep_alive, self._clients)
            return AtLeastOnce(producer, self._consumer)
        return ExactlyOnce(
            options.producer,
            options.linger_ms,
            options.worker,
            self._clients,
            self._consumer,
            self._watcher,
            self._keep_alive,
            lambda: self._stopping,
        )

    def stop(self, drain: bool) -> None:
        """Ask the loop to end: with ``drain`` it sends and commits first, else it gives up."""
        self._drain_wanted = drain
        self._stopping = True

    def run(self) -> None:
        """Consume until stopped; everything raised here must end the process.

        Raises:
            HeadraceError: If the stream cannot go on.

        """
        self._guarantee.start()
        self._ownership.subscribe()
        drained = False
        try:
            while not self._stopping:
                self._step()
            if self._drain_wanted:
                self._ownership.drain()
                drained = True
        finally:
            if not drained:
                self._hand_over.clear()
                self._owned.clear()
                # What ended the loop is what is told.
                with contextlib.suppress(FencedError):
                    self._guarantee.abort()
            with self._callbacks():
                self._consumer.close()

    def _step(self) -> None:
        """Send what is done, take what is there, and sleep only where something will wake us."""
        self._committer.settle_done()
        if self._committer.doomed:
            self._undo_when_drained()
            return
        self._ownership.restore()
        self._ownership.tell_backlogs()
        self._ownership.report_replay()
        self._take_due()
        self._steer()
        if not self._hand_over:
            self._poll(0.0 if self._hand_over.stash else self._idle_s())
        if self._hand_over.stash or self._hand_over.room:
            self._take()
        elif not self._hand_over.wait(STALL_S):
            self._keep_alive()
        self._raise_fault()
        now_s = self._clients.monotonic_s()
        if now_s >= self._committer.next_s:
            self._committer.commit(wait=False)
        if now_s >= self._next_tick_s:
            self._tick(now_s)

    def _undo_when_drained(self) -> None:
        """Go back to what is committed, or wait a while for the tickets under way."""
        if not self._hand_over:
            self._committer.undo()
            return
        if not self._hand_over.wait(STALL_S):
            self._keep_alive()
        self._raise_fault()

    def _take_due(self) -> None:
        """Hand over what companions want between the batches."""
        for companion in self._companions:
            for item in companion.due(self._hand_over.room):
                self._hand_over.submit_one(item)

    def _steer(self) -> None:
        """Say which partitions are still at their end, and pause those that would run ahead."""
        now_s = self._clients.monotonic_s()
        if self._hand_over.room:
            self._hand_over.submit_all(self._flow.alive(now_s))
        change = self._flow.pauses(now_s)
        if change is None:
            return
        paused, resumed = change
        self._consumer.pause([TopicPartition(*place) for place in paused])
        resumed_places = [TopicPartition(*place) for place in resumed]
        self._consumer.resume([one for one in resumed_places if self._ownership.is_read(one)])
        # They stand still now, and others may think that they are at their end.
        self._hand_over.submit_all([backlog_batch(self._owned[place]) for place in paused])

    def _take(self) -> None:
        """Hand over what can be had at once; with nothing there, wait for a ticket a moment."""
        wanted = self._committer.sizer.rows - len(self._hand_over.stash)
        fresh: list[Row] = []
        if wanted > 0 and (self._hand_over.stash or self._hand_over):
            undone = self._committer.undone
            gather_s = self._gather_s()
            with self._callbacks():
                fresh = self._consumer.consume(wanted, gather_s)
            self._polled_s = self._clients.monotonic_s()
            self._raise_fault()
            if self._committer.undone != undone:
                fresh = self._read_again(fresh)
        # Only now: a callback in between forgets the rows of what it takes away.
        messages, self._hand_over.stash = self._hand_over.stash + fresh, []
        self._ownership.tell_backlogs()
        if messages:
            self._hand_over_rows(messages)
        elif self._hand_over:
            self._hand_over.wait(BUSY_WAIT_S)

    def _gather_s(self) -> float:
        """Return how long to gather rows: nobody sees what they cause before the next commit."""
        if self._hand_over:
            return 0.0
        until_s = self._committer.gather_until_s
        return min(IDLE_WAIT_S, max(0.0, until_s - self._clients.monotonic_s()))

    def _read_again(self, rows: list[Row]) -> list[Row]:
        """Drop rows of a call within which a transaction was undone, in the callback of a revoke.

        Some were fetched before partitions went back, some after, and nothing tells which.
        """
        places = dict.fromkeys((r.topic(), r.partition()) for r in rows + self._hand_over.stash)
        self._hand_over.stash.clear()
        for place in places:
            owned = self._owned.get(place)
            if owned is not None:
                self._consumer.seek(TopicPartition(*place, owned.next_offset))
        return []

    def _poll(self, timeout_s: float) -> None:
        """Wait for one message: unlike ``consume`` this returns with the first."""
        with self._callbacks():
            message = self._consumer.poll(timeout_s)
        self._polled_s = self._clients.monotonic_s()
        self._raise_fault()
        if message is not None:
            self._hand_over.stash.append(message)

    @contextlib.contextmanager
    def _callbacks(self) -> Iterator[None]:
        """Know that callbacks may be under way: none may poll, or the next one ends the process.

        confluent-kafka keeps one call a client and thread, and asserts that a callback has one.
        """
        assert not self._within
        self._within = True
        try:
            yield
        finally:
            self._within = False

    def _hand_over_rows(self, messages: list[Row]) -> None:
        rows, events = group(messages)
        self._flow.read(rows)
        ticket_batches: list[EventBatch | Forget] = []
        for key, found in rows.items():
            owned = self._owned.get(key)
            if owned is None:
                continue
            owned.high_offset = max(owned.high_offset, self._high_offset(owned))
            if owned.stop_offset is not None and found[-1].offset() >= owned.stop_offset:
                ticket_batches += self._last_rows(owned, found, owned.stop_offset)
                continue
            made = batches(owned, found, owned.high_offset)
            self._committer.sizer.cut(len(found), len(made))
            owned.next_offset = found[-1].offset() + 1
            owned.end_told = made[-1].at_end
            for one in made:
                ticket_batches += self._cut(owned, one)
        for event in events:
            ticket_batches += self._serve_event(event)
        self._hand_over.submit_all(ticket_batches)

    def _last_rows(
        self, owned: OwnedPartition, found: list[Row], stop_offset: int
    ) -> list[EventBatch | Forget]:
        """Return what of the rows lies before the offset where reading ends, as the end."""
        rows = [row for row in found if row.offset() < stop_offset]
        if owned.end_told:
            assert not rows, (owned.topic, owned.partition)
            return []
        made = batches(owned, rows, 0) if rows else [end_batch(owned)]
        owned.next_offset = stop_offset
        owned.end_told = True
        return [part for one in made for part in self._cut(owned, one)]

    def _cut(self, owned: OwnedPartition, batch: EventBatch) -> list[EventBatch | Forget]:
        """Return the batch with what companions put between its rows."""
        parts: list[EventBatch | Forget] = [batch]
        for companion in self._companions:
            parts = companion.cut(owned, parts)
        return parts

    def _high_offset(self, owned: OwnedPartition) -> int:
        known = self._consumer.get_watermark_offsets(
            TopicPartition(owned.topic, owned.partition), cached=True
        )
        high_offset = known[1] if known is not None else -1
        return high_offset if owned.stop_offset is None else min(high_offset, owned.stop_offset)

    def _serve_event(self, event: Row) -> list[EventBatch]:
        """Act on a consumer event; the end of a partition may be news for its processor."""
        error = event.error()
        assert error is not None
        if error.code() == _END:
            owned = self._owned.get((event.topic(), event.partition()))
            if owned is None:
                return []
            # Control records have offsets too, so the end can lie beyond the last row's.
            end = event.offset()
            if owned.stop_offset is not None:
                end = min(end, owned.stop_offset)
            owned.high_offset = max(owned.high_offset, end)
            # An end that was told moves on over an aborted transaction, without any row.
            if end < owned.next_offset or (owned.end_told and end == owned.next_offset):
                return []
            owned.next_offset = end
            owned.end_told = True
            return [end_batch(owned)]
        if error.code() in _NOT_RETRIED:
            raise PositionError(
                explain(
                    "the next offset",
                    "be retained by the broker",
                    event.offset(),
                    f"{event.topic()}[{event.partition()}]",
                    f"the topic was cut or made anew while the worker ran; {CHOICES}",
                )
            )
        # An event has the code of a fatal error, and says that it is none.
        if error.code() == _FATAL:
            raise fenced("member", str(self._options.worker), error.str())
        log.warning("consumer_trouble", error=error.str(), topic=event.topic())
        return []

    def _idle_s(self) -> float:
        """Return how long to wait for a message: no longer than until a commit is due."""
        if not self._guarantee.open_s:
            return IDLE_WAIT_S
        return min(IDLE_WAIT_S, max(0.0, self._committer.next_s - self._clients.monotonic_s()))

    def _tick(self, now_s: float) -> None:
        self._next_tick_s = now_s + 1.0
        self._look()
        self._guarantee.poll()
        if self._options.drained is not None and self._drain.is_over(self._is_settled()):
            self._committer.commit_again()
            self._options.drained()
            self._stopping = True

    def _look(self) -> None:
        """Tell how far the partitions are from their ends."""
        for owned in self._owned.values():
            owned.high_offset = max(owned.high_offset, self._high_offset(owned))
        self._watcher.ticked(list(self._owned.values()))

    def _is_settled(self) -> bool:
        """Whether nothing is under way: no rows, no ticket, no transaction."""
        under_way = self._hand_over.stash or self._hand_over or self._guarantee.open_s
        if not self._ownership.is_settled or under_way or self._flow.is_holding:
            return False
        # Who only drains leaves the state to whoever comes next, who has other definitions.
        return self._options.followed is None or all(c.is_settled for c in self._companions)

    def _keep_alive(self) -> None:
        """Poll without taking rows, so that the group sees a worker that waits as alive."""
        if self._within or self._clients.monotonic_s() - self._polled_s < STALL_S:
            return
        assignment = self._consumer.assignment()
        self._consumer.pause(assignment)
        self._poll(0)
        self._consumer.resume(
            [
                one
                for one in assignment
                if self._ownership.is_read(one) and not self._flow.is_paused(one)
            ]
        )
        self._raise_fault()
        # Who waits for a broker falls behind, and says so.
        self._look()

    def _fail(self, error: BaseException) -> None:
        """Keep what must end the loop, for where it can be raised."""
        self._fault = error

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        failed = [p.error.str() for p in partitions if p.error is not None]
        if error is not None or failed:
            self._committer.commit_again()
            log.warning("offsets_not_committed", error=error.str() if error else failed[0])

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fault = DeliveryError(f"the consumer cannot go on: {error.str()}")
        else:
            self._trouble(error)
