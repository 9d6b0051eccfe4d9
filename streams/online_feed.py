"""The source thread's side of the online store: what is committed goes to the writer's thread.

It holds blocks until the commit that covers them, keeps each partition's clock, and says which
looks at the state are due. Called by the source thread only.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.streams.batch import EventBatch, Look
from headrace.streams.companions import Companion
from headrace.streams.online import Erase, ServedPartition, Wish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np

    from headrace.features.plan import PipelinePlan
    from headrace.features.store.views import OnlineEntity
    from headrace.runtime.clock import Clock
    from headrace.streams.batch import Forget, OnlineBlock, Outputs
    from headrace.streams.companions import Item
    from headrace.streams.online import OnlineWriter
    from headrace.streams.positions import OwnedPartition

LOOK_EVERY_MS = 1_000.0
#: A partition whose newest record came so recently is as good as at its end.
LIVE_MS = 10_000
#: While so many rows wait for the store, no look makes more.
WAITING_ROWS_MAX = 32_768


@dataclass(slots=True)
class _Kept:
    """A served partition: what is not committed yet, its newest event, and its looks."""

    owned: OwnedPartition
    served: ServedPartition
    held: deque[OnlineBlock | Erase] = field(default_factory=deque)
    event_time_ms: int | None = None
    arrival_ms: int = 0
    pass_number: int = 0
    looking: bool = False
    more: bool = False


class OnlineFeed(Companion):
    """Keeps the writer supplied; does nothing for partitions that serve nobody."""

    def __init__(
        self,
        plan: PipelinePlan,
        entities: Mapping[int, OnlineEntity],
        writer: OnlineWriter,
        clock: Clock,
    ) -> None:
        """Serve ``entities``, by index of their stage."""
        self._plan = plan
        self._entities = {plan.stages[index].topic: index for index in entities}
        self._by_stage = entities
        self._writer = writer
        self._clock = clock
        self._kept: dict[tuple[str, int], _Kept] = {}
        self._next_ms = 0.0
        self._looks: deque[Look] = deque()

    def assigned(self, partitions: Iterable[OwnedPartition]) -> None:
        """Start to serve newly assigned partitions."""
        for owned in partitions:
            index = self._entities.get(owned.topic)
            if index is None:
                continue
            served = ServedPartition(
                stage=self._plan.stages[index],
                entity=self._by_stage[index],
                partition=owned.partition,
                token=f"{self._plan.fingerprint}:{owned.topic_id}",
                end_offset=owned.high_offset,
            )
            self._kept[owned.topic, owned.partition] = _Kept(owned, served)
            self._writer.assign(served)

    def released(self, places: Iterable[tuple[str, int]], *, flush: bool) -> None:
        """Let partitions go; what is not committed is dropped."""
        for key in places:
            kept = self._kept.pop(key, None)
            if kept is not None:
                self._writer.release(kept.served, flush=flush)

    def settled(self, item: Item, outputs: Outputs) -> None:
        """Take what a batch or look caused, which was sent."""
        kept = self._kept.get((item.topic, item.partition))
        if kept is None:
            return
        if isinstance(item, Look):
            kept.looking = False
            kept.more = any(block.more for block in outputs.online)
        elif isinstance(item, EventBatch) and len(item):
            newest_ms = outputs.event_time_ms_max
            if newest_ms is not None and newest_ms >= (kept.event_time_ms or newest_ms):
                kept.event_time_ms = newest_ms
                kept.arrival_ms = int(item.arrival_time_ms[-1])
        kept.held.extend(outputs.online)
        self._post(kept)

    def forgotten(
        self, forget: Forget, slots: np.ndarray, confirm: Callable[[Forget, int], None]
    ) -> bool:
        """Erase a key from the store once all that was told of it before is committed.

        ``confirm`` is called when that is done, by the writer's thread; False: nobody is served.
        """
        kept = self._kept.get((forget.topic, forget.partition))
        if kept is None:
            return False
        kept.held.append(Erase(forget, slots, confirm))
        self._post(kept)
        return True

    def committed(self) -> None:
        """Post what the partitions' commits cover now."""
        for kept in self._kept.values():
            self._post(kept)

    def aborted(self, starts: Mapping[tuple[str, int], int]) -> None:
        """Drop what no commit covers: it is taken back, and comes again."""
        del starts
        for kept in self._kept.values():
            if kept.held:
                kept.held.clear()
                kept.more = True

    def due(self, room: int) -> list[Look]:
        """Return looks, never more than there is room for: they can wait."""
        self._looks.extend(self.looks())
        found: list[Look] = []
        while self._looks and len(found) < room:
            look = self._looks.popleft()
            if (look.topic, look.partition) in self._kept:
                found.append(look)
        return found

    def looks(self) -> list[Look]:
        """Return the looks to take now: one a partition at a time, once a second without news."""
        now_ms = self._clock.monotonic_ms()
        due = now_ms >= self._next_ms
        if due:
            self._writer.check()
            self._next_ms = now_ms + LOOK_EVERY_MS
        return [
            self._look(kept)
            for kept in self._kept.values()
            if (due or kept.more)
            and not kept.looking
            and not kept.owned.replay_rows
            and kept.served.waiting_rows < WAITING_ROWS_MAX
        ]

    def _look(self, kept: _Kept) -> Look:
        owned, served = kept.owned, kept.served
        wish = served.wish if served.wish.pass_number > kept.pass_number else Wish(0, 0)
        kept.pass_number = max(kept.pass_number, wish.pass_number)
        served.live, served.clock_ms = self._now_of(kept)
        kept.looking = True
        return Look(
            owned.topic,
            owned.partition,
            owned.epoch,
            # Behind the end, values are soon others by new events: they are not told as of ticks.
            served.clock_ms if served.live else None,
            wish.pass_number,
            wish.since,
        )

    def _now_of(self, kept: _Kept) -> tuple[bool, int | None]:
        """Return whether the partition is as good as at its end, and its clock.

        The clock is the time of its newest event, moved on by the wall clock from when the broker
        got that event; behind the end it stands.
        """
        now_ms = self._clock.now_ms()
        newest_arrival_ms = kept.owned.newest_arrival_ms
        live = not kept.owned.lag_rows or (
            newest_arrival_ms is not None and now_ms - newest_arrival_ms < LIVE_MS
        )
        if kept.event_time_ms is None:
            return live, None
        passed_ms = max(0, now_ms - kept.arrival_ms) if live else 0
        return live, kept.event_time_ms + passed_ms

    def _post(self, kept: _Kept) -> None:
        held = kept.held
        while held and held[0].version <= kept.owned.committed_offset:
            first = held.popleft()
            if isinstance(first, Erase):
                self._writer.erase(kept.served, first)
            else:
                self._writer.post(kept.served, first)
