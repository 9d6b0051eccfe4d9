"""Settling, committing and undoing: what becomes of the outputs of tickets that are done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confluent_kafka import TopicPartition

from headrace.runtime.logging import get_logger
from headrace.streams.batch import EventBatch, Keep, Outputs
from headrace.streams.errors import UndoneError
from headrace.streams.flow import joined, marked
from headrace.streams.intake import BatchSizer, backlog_batch
from headrace.streams.pace import CommitPace

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from headrace.streams.batch import SingleOutput
    from headrace.streams.clients import Clients, ConsumerClient
    from headrace.streams.commit import Guarantee, Position
    from headrace.streams.companions import Companion
    from headrace.streams.flow import Flow
    from headrace.streams.handover import HandOver
    from headrace.streams.positions import OwnedPartition
    from headrace.streams.source_options import SourceOptions, SourceWatcher
    from headrace.streams.tickets import ProcessorTable

log = get_logger(__name__)

FLUSH_BUDGET_S = 10.0
# How long a commit waits for the tickets under way before it is put off.
DRAIN_BUDGET_S = 1.0
# A transaction whose tickets take longer is given up before the broker gives it up.
OPEN_MAX_S = 6.0


class Committer:
    """Sends what tickets caused, and decides when and how it is committed or undone."""

    def __init__(
        self,
        options: SourceOptions,
        clients: Clients,
        consumer: ConsumerClient,
        guarantee: Guarantee,
        hand_over: HandOver,
        owned: dict[tuple[str, int], OwnedPartition],
        table: ProcessorTable,
        companions: Sequence[Companion],
        watcher: SourceWatcher,
        flow: Flow,
    ) -> None:
        self._options = options
        self._clients = clients
        self._consumer = consumer
        self._hand_over = hand_over
        self._owned = owned
        self._table = table
        self._companions = companions
        self._watcher = watcher
        self._flow = flow
        self._sending = self._committing = False
        self._recommit = False
        self._committed_s = 0.0
        self._delivers = True
        self._pace = CommitPace(options.commit_interval_ms / 1000)
        self.guarantee = guarantee
        self.sizer = BatchSizer(options.batch_rows_max, options.batch_budget_ms / 1000)
        self.doomed = False
        self.undone = 0

    @property
    def inside(self) -> bool:
        """Whether a send or a commit is under way, or there is nothing left to commit."""
        return self._sending or self._committing or self.doomed

    @property
    def next_s(self) -> float:
        """When the next commit is due."""
        if not self.guarantee.undoes:
            return self._committed_s + self._options.commit_interval_ms / 1000
        waited_for = self.guarantee.open_s > 0
        return self._committed_s + self._pace.spacing_s(waited_for=waited_for, behind=self._behind)

    @property
    def gather_until_s(self) -> float:
        """Until when rows are gathered for one hand-over: they wait for the next commit anyway."""
        if not self.guarantee.undoes or self._behind:
            return 0.0
        return self._committed_s + self._pace.spacing_s(waited_for=True, behind=False)

    @property
    def _behind(self) -> bool:
        unread = sum(owned.high_offset - owned.next_offset for owned in self._owned.values())
        return unread > self.sizer.rows

    def settle_done(self) -> None:
        """Send what the tickets that are done caused."""
        while self._hand_over.first_done:
            self._settle()
        if self.guarantee.open_s > OPEN_MAX_S:
            self.doom("its tickets took too long")

    def settle_all(self, budget_s: float) -> bool:
        """Wait for all tickets and send what they caused; False if the budget was too small."""
        deadline_s = self._clients.monotonic_s() + budget_s
        while self._hand_over:
            if not self._hand_over.wait(max(0.0, deadline_s - self._clients.monotonic_s())):
                return False
            self._settle()
        return True

    def commit(self, *, wait: bool) -> None:
        """Commit what was sent; without ``wait`` the answer may come later."""
        if self.guarantee.undoes:
            self._commit_transaction()
            self._committed_s = self._clients.monotonic_s()
            return
        self._committed_s = self._clients.monotonic_s()
        if self._recommit:
            self._recommit = False
            for owned in self._owned.values():
                owned.committed_offset = min(owned.committed_offset, owned.emit_from - 1)
        positions = [p for p in (owned.position() for owned in self._owned.values()) if p]
        if not positions:
            return
        done = self.guarantee.commit(positions, FLUSH_BUDGET_S, wait)
        if done != self._delivers:
            self._delivers = done
            self._watcher.delivers(done)
        if done:
            self._known(positions)

    def commit_again(self) -> None:
        """Commit all positions with the next commit: an asynchronous one has failed."""
        self._recommit = True

    def doom(self, reason: str) -> None:
        """Give the open transaction up; what it changed is undone once nothing is under way."""
        if not self.doomed:
            log.warning("transaction_given_up", reason=reason)
            self.doomed = True

    def doom_open(self, partitions: Sequence[TopicPartition], reason: str) -> None:
        """Give the transaction up if partitions that leave have a part in it.

        One that is being committed is decided by its commit.
        """
        has_part = any(self._table.is_open(one.topic, one.partition) for one in partitions)
        if has_part and not self._committing:
            self.doom(reason)

    def released(self, places: Collection[tuple[str, int]]) -> None:
        """Take note of partitions that left."""
        self._flow.released(places)

    def undo(self) -> None:
        """Go back to what is committed; nothing is under way."""
        assert not self._hand_over
        self.guarantee.abort()
        starts = self._table.abort()
        self.doomed = False
        self.undone += 1
        for place, offset in starts.items():
            self._owned[place].rewind(offset)
            self._consumer.seek(TopicPartition(*place, offset))
        self._hand_over.forget_rows(starts)
        for companion in self._companions:
            companion.aborted(starts)
        log.warning("transaction_undone", partitions=len(starts))
        undone = [self._owned[place] for place in starts]
        self._hand_over.submit_all(
            [backlog_batch(one) for one in undone if one.high_offset > one.emit_from]
        )

    def _settle(self) -> None:
        """Send what the oldest ticket caused; its exception is raised here.

        What a doomed transaction would have sent is dropped: its rows are read again.
        """
        ticket = self._hand_over.pop()
        results = ticket.future.result()
        self.sizer.worked(ticket.rows, ticket.finished_s - ticket.started_s)
        self.guarantee.begin()
        self._sending = True
        alive: list[SingleOutput] = []
        try:
            for batch, outputs in zip(ticket.batches, results, strict=True):
                owned = self._owned.get((batch.topic, batch.partition))
                if owned is None or owned.epoch != batch.epoch:
                    continue
                undone = self.doomed and self._table.is_open(batch.topic, batch.partition)
                if undone and not isinstance(batch, Keep):
                    continue
                if isinstance(batch, EventBatch):
                    if batch.alive is None:
                        self.guarantee.send(outputs)
                    else:
                        alive += marked(outputs, batch.alive)
                    self._flow.settled(batch, outputs)
                    self._sent(owned, batch, outputs)
                for companion in self._companions:
                    companion.settled(batch, outputs)
            if alive:
                self.guarantee.send(Outputs(single=joined(alive)))
        except UndoneError as undone:
            self.doom(str(undone))
        finally:
            self._sending = False

    def _sent(self, owned: OwnedPartition, batch: EventBatch, outputs: Outputs) -> None:
        if len(batch):
            owned.done_offset = int(batch.offsets[-1]) + 1
            owned.newest_arrival_ms = int(batch.arrival_time_ms[-1])
            owned.held = outputs.held
        at_end = batch.at_end and owned.end_told and owned.next_offset >= owned.high_offset
        # It may have been another end: of rows that came since, nothing is sent yet.
        if at_end and not self._hand_over.holds(batch.topic, batch.partition):
            owned.done_offset = max(owned.done_offset, owned.next_offset)
        self._watcher.sent(batch, outputs)

    def _known(self, positions: Sequence[Position]) -> None:
        """Take note that the group knows positions."""
        for position in positions:
            owned = self._owned.get((position.topic, position.partition))
            if owned is not None:
                owned.committed(position)
        for companion in self._companions:
            companion.committed()

    def _commit_transaction(self) -> None:
        """Drain what is under way, so that the state is what is committed, and commit it."""
        started_s = self._clients.monotonic_s()
        if self.doomed or not self.settle_all(DRAIN_BUDGET_S):
            return
        if self.doomed:
            self.undo()
            return
        places = self._table.is_open
        made = [o.position(again=places(o.topic, o.partition)) for o in self._owned.values()]
        positions = [position for position in made if position is not None]
        if positions or self.guarantee.open_s:
            self._committing = True
            try:
                self.guarantee.commit(positions, FLUSH_BUDGET_S, wait=True)
            except UndoneError as undone:
                self.doom(str(undone))
                self.undo()
                return
            finally:
                self._committing = False
            self._pace.took(self._clients.monotonic_s() - started_s)
        self._table.commit()
        self._known(positions)
