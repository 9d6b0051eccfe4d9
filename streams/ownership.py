"""Which partitions a worker owns: the callbacks of a rebalance, and restoring outside of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from confluent_kafka import TopicPartition

from headrace.runtime.logging import get_logger
from headrace.streams.intake import backlog_batch
from headrace.streams.positions import OwnedPartition, claim, own, refuse_lost_history
from headrace.streams.source_options import revoke_budget_s

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.streams.batch import Processor
    from headrace.streams.clients import Clients, ConsumerClient
    from headrace.streams.committing import Committer
    from headrace.streams.companions import Companion, Restorer
    from headrace.streams.handover import HandOver
    from headrace.streams.source_options import SourceOptions, SourceWatcher
    from headrace.streams.tickets import ProcessorTable

log = get_logger(__name__)

REPLAY_REPORT_S = 5.0


class Ownership:
    """Takes partitions in and lets them go.

    ``fail`` is told what a callback must not raise: no exception passes librdkafka's frames.
    """

    def __init__(
        self,
        options: SourceOptions,
        clients: Clients,
        consumer: ConsumerClient,
        committer: Committer,
        hand_over: HandOver,
        owned: dict[tuple[str, int], OwnedPartition],
        table: ProcessorTable,
        build: Callable[[str, int], Processor],
        companions: Sequence[Companion],
        restorer: Restorer,
        watcher: SourceWatcher,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._options = options
        self._clients = clients
        self._consumer = consumer
        self._committer = committer
        self._hand_over = hand_over
        self._owned = owned
        self._table = table
        self._build = build
        self._companions = companions
        self._restorer = restorer
        self._watcher = watcher
        self._fail = fail
        self._relays = frozenset[str]().union(*options.feeds.values())
        self._revoke_budget_s = revoke_budget_s(options)
        self._epoch = 0
        self._restoring: dict[tuple[str, int], OwnedPartition] = {}
        self._backlogs: list[OwnedPartition] = []
        self._replaying = False
        self._assigned_once = False
        self._next_report_s = 0.0

    def subscribe(self) -> None:
        """Join the group."""
        self._consumer.subscribe(
            list(self._options.routes),
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    def is_read(self, partition: TopicPartition) -> bool:
        """Whether rows of the partition may be taken: it is owned, and its state is there."""
        place = partition.topic, partition.partition
        return place in self._owned and place not in self._restoring

    @property
    def is_settled(self) -> bool:
        """Whether the group has said what is this worker's, and all of that is read."""
        return self._assigned_once and not self._restoring

    def drain(self) -> None:
        """Send and commit all that is under way."""
        self._committer.settle_all(self._revoke_budget_s)
        self._committer.commit(wait=True)

    def restore(self) -> None:
        """Go on with bringing back the state of partitions that wait for it.

        A transaction that is open is committed before: restoring may take longer than it can last.
        """
        if not self._restoring:
            return
        if self._committer.guarantee.open_s:
            self._committer.commit(wait=True)
            if self._committer.guarantee.open_s or self._committer.doomed:
                return
        for place, owned in list(self._restoring.items()):
            beginning = owned.next_offset
            processor = self._restorer.restore(owned, partial(self._build, *place))
            assert owned.next_offset <= max(owned.emit_from, beginning), owned
            refuse_lost_history(owned, self._options.mismatch)
            del self._restoring[place]
            self._settle_in(owned, processor)
            self._begin([owned])
            for companion in self._companions:
                companion.restored(owned, processor)
            at = TopicPartition(*place, owned.next_offset)
            self._consumer.seek(at)
            self._consumer.resume([at])

    def tell_backlogs(self) -> None:
        """Let new partitions say that they have a backlog, before the first of their rows.

        Not from within a callback: that may run while a commit waits, with nothing under way.
        """
        if not self._backlogs:
            return
        told = [one for one in self._backlogs if self._owned.get((one.topic, one.partition)) is one]
        self._backlogs.clear()
        self._hand_over.submit_all([backlog_batch(one) for one in told])

    def report_replay(self) -> None:
        """Tell how far the silent replay is, now and then, and when it has ended."""
        if not self._replaying:
            return
        left = sum(owned.replay_rows for owned in self._owned.values())
        if not left and self._assigned_once:
            self._replaying = False
            log.info("replayed", partitions=len(self._owned))
            self._watcher.caught_up()
        elif self._clients.monotonic_s() >= self._next_report_s:
            self._next_report_s = self._clients.monotonic_s() + REPLAY_REPORT_S
            log.info("replaying_in_silence", rows_left=left)

    def _on_assign(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        """Start the new partitions; an exception must not pass through librdkafka's frames."""
        try:
            started = self._take(partitions)
            restored: list[OwnedPartition] = []
            at_once: list[OwnedPartition] = []
            for one in started:
                (restored if self._restorer.wanted(one) else at_once).append(one)
            for one in at_once:
                refuse_lost_history(one, self._options.mismatch)
                self._settle_in(one, self._build(one.topic, one.partition))
            self._begin(at_once)
            consumer.incremental_assign(
                [TopicPartition(o.topic, o.partition, o.next_offset) for o in started]
            )
            self._unpause(at_once)
            if restored:
                consumer.pause([TopicPartition(one.topic, one.partition) for one in restored])
                self._restoring |= {(one.topic, one.partition): one for one in restored}
        except BaseException as error:  # noqa: BLE001 -- raised again by the loop
            self._fail(error)
            # Else the client assigns them itself when the callback returns.
            consumer.incremental_assign([])
            return
        rows = sum(owned.replay_rows for owned in started)
        log.info("partitions_assigned", count=len(started), replay_rows=rows)
        self._assigned_once = self._replaying = True
        self._next_report_s = 0.0
        self._watcher.assigned(list(self._owned.values()))
        self.report_replay()

    def _unpause(self, started: Sequence[OwnedPartition]) -> None:
        """Have new partitions read: the client keeps the pause of one that left and comes back."""
        self._consumer.resume([TopicPartition(one.topic, one.partition) for one in started])

    def _take(self, partitions: list[TopicPartition]) -> list[OwnedPartition]:
        """Own new partitions from the beginning of their logs on."""
        self._epoch += 1
        if not partitions:
            return []
        self._committer.guarantee.take_over(partitions)
        options = self._options
        started = own(
            self._consumer,
            partitions,
            options.topic_ids,
            self._epoch,
            options.mismatch,
            options.feeds,
            options.partition_counts,
            self._clients.sleep,
            options.followed,
        )
        for owned in started:
            self._stop_at(owned)
        self._owned |= {(owned.topic, owned.partition): owned for owned in started}
        if options.worker is not None:
            claim(self._consumer, started, options.worker)
        return started

    def _stop_at(self, owned: OwnedPartition) -> None:
        """Say where reading a partition ends, if it does."""
        followed, is_relay = self._options.followed, owned.topic in self._relays
        if followed is not None and (not is_relay or followed.knows(owned.topic, owned.partition)):
            owned.stop_offset = owned.high_offset = owned.emit_from
        elif self._options.drained is not None and not is_relay:
            owned.stop_offset = owned.high_offset

    def _settle_in(self, owned: OwnedPartition, processor: Processor) -> None:
        """Let a processor own the partition from where it stands on."""
        at = owned.next_offset
        self._table.assign(owned.topic, owned.partition, owned.epoch, processor, at)

    def _begin(self, started: Sequence[OwnedPartition]) -> None:
        """Let partitions begin whose state stands where reading them begins.

        Who owned them before may have told the next stage that they were at their end.
        """
        for companion in self._companions:
            companion.assigned(started)
        self._backlogs += [one for one in started if one.high_offset > one.emit_from]

    def _on_revoke(self, _consumer: Any, partitions: list[TopicPartition]) -> None:
        """Drain, commit, release: who gets the partitions next starts where we ended.

        What does not end within the budget is given up, or the group would go on without us.
        """
        committer = self._committer
        try:
            # Inside a send that waits for room nothing more can be delivered: let go without.
            if not committer.inside and committer.settle_all(self._revoke_budget_s):
                committer.commit(wait=True)
            committer.doom_open(partitions, "partitions are revoked that it has rows of")
        except BaseException as error:  # noqa: BLE001 -- raised again by the loop
            self._fail(error)
        self._release(partitions, flush=True)

    def _on_lost(self, _consumer: Any, partitions: list[TopicPartition]) -> None:
        """Drop partitions that another worker may own already: nothing of them is committed."""
        log.warning("partitions_lost", count=len(partitions))
        self._committer.doom_open(partitions, "partitions are lost that it has rows of")
        self._release(partitions, flush=False)

    def _release(self, partitions: list[TopicPartition], *, flush: bool) -> None:
        places = [(one.topic, one.partition) for one in partitions]
        for companion in self._companions:
            companion.released(places, flush=flush)
        for place in places:
            self._owned.pop(place, None)
            self._restoring.pop(place, None)
            self._table.drop(*place)
        self._hand_over.forget_rows(places)
        self._committer.released(places)
        log.info("partitions_released", count=len(partitions))
        self._watcher.assigned(list(self._owned.values()))
