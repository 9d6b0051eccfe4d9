"""The source thread: it owns consumer and producer, hands batches over and sends what they cause.

It knows neither Faust nor what a processor does: ``submit`` takes a ticket and keeps it somewhere
until its future is done. One thread for both clients means that no callback of a rebalance can
wait for another thread that waits for it.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from headrace.runtime.errors import explain
from headrace.runtime.logging import get_logger
from headrace.streams.batch import EventBatch, Forget, Keep, Look
from headrace.streams.commit import AtLeastOnce, CheckedProducer, Guarantee, producer_properties
from headrace.streams.errors import DeliveryError, FencedError, PositionError, UndoneError
from headrace.streams.intake import BatchSizer, Row, backlog_batch, batches, end_batch, group
from headrace.streams.pace import CommitPace
from headrace.streams.positions import OwnedPartition, claim, own, refuse_lost_history
from headrace.streams.source_options import SourceOptions, SourceWatcher, consumer_properties
from headrace.streams.tickets import ProcessorTable, Ticket
from headrace.streams.transaction import ExactlyOnce

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from headrace.streams.batch import Outputs, Processor
    from headrace.streams.checkpoint_feed import CheckpointFeed
    from headrace.streams.commit import Position
    from headrace.streams.erasure_feed import ErasureFeed
    from headrace.streams.online_feed import OnlineFeed

log = get_logger(__name__)

# One ticket is worked on, one waits for the worker, one is being filled or sent.
TICKETS_MAX = 3
IDLE_WAIT_S = 0.1
BUSY_WAIT_S = 0.001
# While a hand-over is worked on, the next one waits for it unless it is as large as this.
SECOND_ROWS_MIN = 256
# While a ticket takes longer (registry away, first compilation) the consumer is paused and polled,
# or the group would take the worker for dead.
STALL_S = 1.0
REVOKE_BUDGET_S = 30.0
FLUSH_BUDGET_S = 10.0
# How long a commit waits for the tickets under way before it is put off.
DRAIN_BUDGET_S = 1.0
# A transaction whose tickets take longer is given up before the broker gives it up.
OPEN_MAX_S = 6.0
REPLAY_REPORT_S = 5.0

# librdkafka spells its local codes with a leading underscore.
_END = KafkaError._PARTITION_EOF
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
        online: OnlineFeed | None = None,
        erasures: ErasureFeed | None = None,
        checkpoints: CheckpointFeed | None = None,
    ) -> None:
        self._options = options
        self._table = table
        self._build = build
        self._submit = submit
        self._watcher = watcher
        self._online = online
        self._erasures = erasures
        self._checkpoints = checkpoints
        self._owned: dict[tuple[str, int], OwnedPartition] = {}
        self._tickets: deque[Ticket] = deque()
        self._looks: deque[Look] = deque()
        self._stash: list[Row] = []
        self._epoch = 0
        self._sizer = BatchSizer(options.batch_rows_max, options.batch_budget_ms / 1000)
        self._fault: BaseException | None = None
        self._stopping = False
        self._drain_wanted = True
        self._sending = self._committing = False
        self._doomed = False
        self._replaying = False
        self._assigned_once = False
        self._recommit = False
        self._committed_s = 0.0
        self._pace = CommitPace(options.commit_interval_ms / 1000)
        self._next_tick_s = 0.0
        self._next_report_s = 0.0
        self._polled_s = 0.0
        self._consumer = Consumer(
            {
                **consumer_properties(options),
                "on_commit": self._on_commit,
                "error_cb": self._on_error,
            }
        )
        self._guarantee: Guarantee = self._guarantee_of(options)

    def _guarantee_of(self, options: SourceOptions) -> Guarantee:
        if options.worker is None:
            properties = producer_properties(options.producer, options.linger_ms)
            return AtLeastOnce(CheckedProducer(properties, self._keep_alive), self._consumer)
        return ExactlyOnce(
            options.producer,
            options.linger_ms,
            options.worker,
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
        self._consumer.subscribe(
            list(self._options.routes),
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )
        drained = False
        try:
            while not self._stopping:
                self._step()
            if self._drain_wanted:
                self._settle_all(REVOKE_BUDGET_S)
                self._commit(wait=True)
                drained = True
        finally:
            if not drained:
                self._tickets.clear()
                self._owned.clear()
                # What ended the loop is what is told.
                with contextlib.suppress(FencedError):
                    self._guarantee.abort()
            self._consumer.close()

    def _step(self) -> None:
        """Send what is done, take what is there, and sleep only where something will wake us."""
        self._settle_done()
        if self._guarantee.open_s > OPEN_MAX_S:
            self._doom("its tickets took too long")
        if self._doomed:
            self._undo_when_drained()
            return
        if self._online is not None:
            self._take_looks(self._online)
        if self._erasures is not None:
            for forget in self._erasures.due():
                self._send_off(self._options.routes[forget.topic].kind, [forget])
        if self._checkpoints is not None and len(self._tickets) < TICKETS_MAX:
            for keep in self._checkpoints.keeps():
                self._send_off(self._options.routes[keep.topic].kind, [keep])
        if not self._tickets:
            self._poll(0.0 if self._stash else self._idle_s())
        if self._stash or len(self._tickets) < TICKETS_MAX:
            self._take()
        elif not self._wait(self._tickets[0], STALL_S):
            self._keep_alive()
        self._raise_fault()
        now_s = time.monotonic()
        if now_s >= self._next_commit_s():
            self._commit(wait=False)
        if now_s >= self._next_tick_s:
            self._tick(now_s)

    def _take(self) -> None:
        """Hand over what can be had at once; with nothing there, wait for a ticket a moment."""
        messages, self._stash = self._stash, []
        if len(messages) < self._sizer.rows and (messages or self._tickets):
            wanted = self._sizer.rows - len(messages)
            messages += cast("list[Row]", self._consumer.consume(wanted, 0))
            self._polled_s = time.monotonic()
            self._raise_fault()
        if messages:
            self._hand_over(messages)
        elif self._tickets:
            self._wait(self._tickets[0], BUSY_WAIT_S)

    def _poll(self, timeout_s: float) -> None:
        """Wait for one message: unlike ``consume`` this returns with the first."""
        message = self._consumer.poll(timeout_s)
        self._polled_s = time.monotonic()
        self._raise_fault()
        if message is not None:
            self._stash.append(cast("Row", message))

    def _hand_over(self, messages: list[Row]) -> None:
        rows, events = group(messages)
        ticket_batches: list[EventBatch | Forget] = []
        for key, found in rows.items():
            owned = self._owned.get(key)
            if owned is None:
                continue
            owned.high_offset = max(owned.high_offset, self._high_offset(owned))
            made = batches(owned, found, owned.high_offset)
            self._sizer.cut(len(found), len(made))
            owned.next_offset = found[-1].offset() + 1
            owned.end_told = made[-1].at_end
            if self._erasures is None:
                ticket_batches += made
            else:
                ticket_batches += [p for one in made for p in self._erasures.cut(owned, one)]
        for event in events:
            ticket_batches += self._serve_event(event)
        self._submit_all(ticket_batches)

    def _take_looks(self, online: OnlineFeed) -> None:
        """Hand over looks, one a ticket and never more than there is room for."""
        self._looks.extend(online.looks())
        while self._looks and len(self._tickets) < TICKETS_MAX:
            look = self._looks.popleft()
            if (look.topic, look.partition) in self._owned:
                self._send_off(self._options.routes[look.topic].kind, [look])

    def _submit_all(self, made: Sequence[EventBatch | Forget]) -> None:
        routes = self._options.routes
        made = sorted(made, key=lambda batch: -routes[batch.topic].rank)
        for kind, members in itertools.groupby(made, lambda batch: routes[batch.topic].kind):
            self._send_off(kind, list(members))

    def _send_off(self, kind: str, batches: Sequence[EventBatch | Look | Forget | Keep]) -> None:
        ticket = Ticket(kind, list(batches), submitted_s=time.monotonic())
        self._tickets.append(ticket)
        self._submit(ticket)

    def _high_offset(self, owned: OwnedPartition) -> int:
        known = self._consumer.get_watermark_offsets(
            TopicPartition(owned.topic, owned.partition), cached=True
        )
        return known[1] if known is not None else -1

    def _serve_event(self, event: Row) -> list[EventBatch]:
        """Act on a consumer event; the end of a partition may be news for its processor."""
        error = event.error()
        assert error is not None
        if error.code() == _END:
            owned = self._owned.get((event.topic(), event.partition()))
            if owned is None:
                return []
            # Control records have offsets too, so the end can lie beyond the last row's.
            owned.high_offset = max(owned.high_offset, event.offset())
            if owned.end_told or event.offset() < owned.next_offset:
                return []
            owned.next_offset = event.offset()
            owned.end_told = True
            return [end_batch(owned)]
        if error.code() in _NOT_RETRIED:
            raise PositionError(
                explain(
                    "the next offset",
                    "be retained by the broker",
                    event.offset(),
                    f"{event.topic()}[{event.partition()}]",
                    "the topic was cut or made anew while the worker ran: start the worker again",
                )
            )
        if error.fatal():
            raise KafkaException(error)
        log.warning("consumer_trouble", error=error.str(), topic=event.topic())
        return []

    def _wait(self, ticket: Ticket, timeout_s: float) -> bool:
        """Wait until the ticket is done; False when it is not after ``timeout_s``."""
        try:
            ticket.future.exception(timeout_s)
        except TimeoutError:
            return ticket.future.done()
        except CancelledError:
            pass
        return True

    def _settle_done(self) -> None:
        while self._tickets and self._tickets[0].future.done():
            self._settle()

    def _settle_all(self, budget_s: float) -> bool:
        """Wait for all tickets and send what they caused; False if the budget was too small."""
        deadline_s = time.monotonic() + budget_s
        while self._tickets:
            if not self._wait(self._tickets[0], max(0.0, deadline_s - time.monotonic())):
                return False
            self._settle()
        return True

    def _settle(self) -> None:
        """Send what the oldest ticket caused; its exception is raised here.

        What a doomed transaction would have sent is dropped: its rows are read again.
        """
        ticket = self._tickets.popleft()
        results = ticket.future.result()
        self._sizer.worked(ticket.rows, ticket.finished_s - ticket.started_s)
        self._guarantee.begin()
        self._sending = True
        try:
            for batch, outputs in zip(ticket.batches, results, strict=True):
                owned = self._owned.get((batch.topic, batch.partition))
                if owned is None or owned.epoch != batch.epoch:
                    continue
                undone = self._doomed and self._table.is_open(batch.topic, batch.partition)
                if self._checkpoints is not None and (isinstance(batch, Keep) or not undone):
                    self._checkpoints.settled(batch, outputs)
                if undone or isinstance(batch, Keep):
                    continue
                if isinstance(batch, EventBatch):
                    self._guarantee.send(outputs)
                    self._sent(owned, batch, outputs)
                if self._online is not None:
                    self._online.settled(batch, outputs)
                if isinstance(batch, Forget):
                    self._forgotten(batch, outputs)
        except UndoneError as undone:
            self._doom(str(undone))
        finally:
            self._sending = False
        if self._replaying:
            self._report_replay()

    def _forgotten(self, forget: Forget, outputs: Outputs) -> None:
        """Let it be said that a key is forgotten, once the online store knows nothing of it."""
        slots = outputs.forgotten
        if self._erasures is None or slots is None:
            return
        confirm = self._erasures.confirm
        if self._online is None or not self._online.forgotten(forget, slots, confirm):
            confirm(forget, len(slots))

    def _sent(self, owned: OwnedPartition, batch: EventBatch, outputs: Outputs) -> None:
        if len(batch):
            owned.done_offset = int(batch.offsets[-1]) + 1
            owned.newest_arrival_ms = int(batch.arrival_time_ms[-1])
        if batch.at_end and owned.end_told and owned.next_offset >= owned.high_offset:
            owned.done_offset = max(owned.done_offset, owned.next_offset)
        self._watcher.sent(batch, outputs)

    def _next_commit_s(self) -> float:
        if not self._guarantee.undoes:
            return self._committed_s + self._options.commit_interval_ms / 1000
        unread = sum(owned.high_offset - owned.next_offset for owned in self._owned.values())
        spacing_s = self._pace.spacing_s(
            waited_for=self._guarantee.open_s > 0, behind=unread > self._sizer.rows
        )
        return self._committed_s + spacing_s

    def _idle_s(self) -> float:
        """Return how long to wait for a message: no longer than until a commit is due."""
        if not self._guarantee.open_s:
            return IDLE_WAIT_S
        return min(IDLE_WAIT_S, max(0.0, self._next_commit_s() - time.monotonic()))

    def _commit(self, wait: bool) -> None:
        if self._guarantee.undoes:
            self._commit_transaction()
            self._committed_s = time.monotonic()
            return
        self._committed_s = time.monotonic()
        if self._recommit:
            self._recommit = False
            for owned in self._owned.values():
                owned.committed_offset = min(owned.committed_offset, owned.emit_from - 1)
        positions = [p for p in (owned.position() for owned in self._owned.values()) if p]
        if not positions:
            return
        if self._guarantee.commit(positions, FLUSH_BUDGET_S, wait):
            self._known(positions)

    def _known(self, positions: Sequence[Position]) -> None:
        """Take note that the group knows positions."""
        for position in positions:
            owned = self._owned.get((position.topic, position.partition))
            if owned is not None:
                owned.committed(position)
        if self._online is not None:
            self._online.committed()
        if self._erasures is not None:
            self._erasures.committed()
        if self._checkpoints is not None:
            self._checkpoints.committed()

    def _commit_transaction(self) -> None:
        """Drain what is under way, so that the state is what is committed, and commit it."""
        started_s = time.monotonic()
        if self._doomed or not self._settle_all(DRAIN_BUDGET_S):
            return
        if self._doomed:
            self._undo_when_drained()
            return
        places = self._table.is_open
        made = [o.position(again=places(o.topic, o.partition)) for o in self._owned.values()]
        positions = [position for position in made if position is not None]
        if positions or self._guarantee.open_s:
            self._committing = True
            try:
                self._guarantee.commit(positions, FLUSH_BUDGET_S, wait=True)
            except UndoneError as undone:
                self._doom(str(undone))
                self._undo_when_drained()
                return
            finally:
                self._committing = False
            self._pace.took(time.monotonic() - started_s)
        self._table.commit()
        self._known(positions)

    def _doom(self, reason: str) -> None:
        """Give the open transaction up; what it changed is undone once nothing is under way."""
        if not self._doomed:
            log.warning("transaction_given_up", reason=reason)
            self._doomed = True

    def _undo_when_drained(self) -> None:
        """Go back to what is committed, or wait a while for the tickets under way."""
        if self._tickets:
            if not self._wait(self._tickets[0], STALL_S):
                self._keep_alive()
            self._raise_fault()
            return
        self._guarantee.abort()
        starts = self._table.abort()
        self._doomed = False
        for place, offset in starts.items():
            self._owned[place].rewind(offset)
            self._consumer.seek(TopicPartition(*place, offset))
        self._stash = [r for r in self._stash if (r.topic(), r.partition()) not in starts]
        if self._online is not None:
            self._online.aborted()
        if self._erasures is not None:
            self._erasures.aborted(starts)
        if self._checkpoints is not None:
            self._checkpoints.aborted()
        log.warning("transaction_undone", partitions=len(starts))
        undone = [self._owned[place] for place in starts]
        self._submit_all([backlog_batch(one) for one in undone if one.high_offset > one.emit_from])

    def _tick(self, now_s: float) -> None:
        self._next_tick_s = now_s + 1.0
        for owned in self._owned.values():
            owned.high_offset = max(owned.high_offset, self._high_offset(owned))
        self._watcher.ticked(list(self._owned.values()))
        self._guarantee.poll()

    def _report_replay(self) -> None:
        left = sum(owned.replay_rows for owned in self._owned.values())
        if not left and self._assigned_once:
            self._replaying = False
            log.info("replayed", partitions=len(self._owned))
            self._watcher.caught_up()
        elif time.monotonic() >= self._next_report_s:
            self._next_report_s = time.monotonic() + REPLAY_REPORT_S
            log.info("replaying_in_silence", rows_left=left)

    def _keep_alive(self) -> None:
        """Poll without taking rows, so that the group sees a worker that waits as alive."""
        if time.monotonic() - self._polled_s < STALL_S:
            return
        assignment = self._consumer.assignment()
        self._consumer.pause(assignment)
        self._poll(0)
        still = [p for p in assignment if (p.topic, p.partition) in self._owned]
        self._consumer.resume(still)
        self._raise_fault()

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Start the new partitions; an exception must not pass through librdkafka's frames."""
        try:
            self._epoch += 1
            if partitions:
                self._guarantee.take_over(consumer, partitions)
            ids, mismatch = self._options.topic_ids, self._options.mismatch
            started = own(consumer, partitions, ids, self._epoch, mismatch) if partitions else []
            erased: dict[tuple[str, int], Collection[str]] = {}
            for owned in started:
                processor = self._start(owned)
                erased[owned.topic, owned.partition] = getattr(processor, "erased", ())
                at = owned.next_offset
                self._table.assign(owned.topic, owned.partition, owned.epoch, processor, at)
                self._owned[owned.topic, owned.partition] = owned
            if self._options.worker is not None and started:
                claim(consumer, started, self._options.worker)
            if self._erasures is not None:
                self._erasures.assigned(started)
                for place, requests in erased.items():
                    self._erasures.restored(place, requests)
            if self._checkpoints is not None:
                self._checkpoints.assigned(started)
            consumer.incremental_assign(
                [TopicPartition(o.topic, o.partition, o.next_offset) for o in started]
            )
        except BaseException as error:  # noqa: BLE001 -- raised again by the loop
            self._fault = error
            # Else the client assigns them itself when the callback returns.
            consumer.incremental_assign([])
            return
        rows = sum(owned.replay_rows for owned in started)
        log.info("partitions_assigned", count=len(started), replay_rows=rows)
        self._assigned_once = self._replaying = True
        self._next_report_s = 0.0
        self._watcher.assigned(list(self._owned.values()))
        if self._online is not None:
            self._online.assigned(started)
        # Who owned them before may have told the next stage that they were at their end.
        self._submit_all([backlog_batch(one) for one in started if one.high_offset > one.emit_from])
        self._report_replay()

    def _start(self, owned: OwnedPartition) -> Processor:
        """Return a partition's processor, from its newest checkpoint if it has one."""

        def make() -> Processor:
            return self._build(owned.topic, owned.partition)

        processor = make() if self._checkpoints is None else self._checkpoints.start(owned, make)
        refuse_lost_history(owned, self._options.mismatch)
        return processor

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Drain, commit, release: who gets the partitions next starts where we ended."""
        try:
            # Inside a send that waits for room nothing more can be delivered: let go without.
            inside = self._sending or self._committing or self._doomed
            if not inside and self._settle_all(REVOKE_BUDGET_S):
                self._commit(wait=True)
            self._doom_open(partitions, "partitions are revoked that it has rows of")
        except BaseException as error:  # noqa: BLE001 -- raised again by the loop
            self._fault = error
        self._release(partitions, flush=True)

    def _on_lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Drop partitions that another worker may own already: nothing of them is committed."""
        log.warning("partitions_lost", count=len(partitions))
        self._doom_open(partitions, "partitions are lost that it has rows of")
        self._release(partitions, flush=False)

    def _doom_open(self, partitions: list[TopicPartition], reason: str) -> None:
        """Give the transaction up if partitions that leave have a part in it.

        One that is being committed is decided by its commit.
        """
        has_part = any(self._table.is_open(one.topic, one.partition) for one in partitions)
        if has_part and not self._committing:
            self._doom(reason)

    def _release(self, partitions: list[TopicPartition], *, flush: bool) -> None:
        places = [(one.topic, one.partition) for one in partitions]
        if self._online is not None:
            self._online.released(places, flush=flush)
        if self._erasures is not None:
            self._erasures.released(places)
        if self._checkpoints is not None:
            self._checkpoints.released(places)
        for place in places:
            self._owned.pop(place, None)
            self._table.drop(*place)
        log.info("partitions_released", count=len(partitions))
        self._watcher.assigned(list(self._owned.values()))

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        failed = [p.error.str() for p in partitions if p.error is not None]
        if error is not None or failed:
            self._recommit = True
            log.warning("offsets_not_committed", error=error.str() if error else failed[0])

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fault = DeliveryError(f"the consumer cannot go on: {error.str()}")
        else:
            log.warning("broker_trouble", error=error.str())
