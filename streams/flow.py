"""How partitions of one worker mind each other: who is still at its end, who must not run ahead.

A lane that is at its end holds nobody back, but its word is taken for a while only (``lanes``): so
it is said again while there is traffic. And a partition is paused while the stages that it feeds
have enough to do, or hold back its rows for the sake of slower ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.streams.batch import SingleOutput
from headrace.streams.intake import alive_batch
from headrace.streams.lanes import ALIVE_HEADER
from headrace.streams.routes import roles_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from confluent_kafka import TopicPartition

    from headrace.features.plan import PipelinePlan
    from headrace.streams.batch import EventBatch, Outputs
    from headrace.streams.intake import Row, Rows
    from headrace.streams.positions import OwnedPartition

    Place = tuple[str, int]

# Three of these must fit into the time for which a lane's word is taken.
ROUND_S = 1.0
PAUSE_CHECK_S = 0.05
# Messages that a re-key partition may be behind; each holds the rows of a hand-over for it.
RELAY_LAG_MAX = 100
# Rows that a worker's stages may hold back before what runs ahead is paused.
HELD_ROWS_MAX = 200_000

_HEARD, _ECHO = b"heard", b"echo"


class Flow:
    """Steers the partitions of a worker. Called by the source thread only; reads no clock.

    What is said again is marked: by a worker that has had traffic itself, as heard; by one that
    only has heard of traffic so, as an echo, which nobody answers. So it ends when traffic does.
    A partition that feeds a topic of which the worker owns nothing cannot hear, and says it always.
    """

    def __init__(
        self, feeds: Mapping[str, frozenset[str]], owned: Mapping[Place, OwnedPartition]
    ) -> None:
        """Steer ``owned`` partitions; a topic's rows go on into those that it ``feeds``."""
        self._feeds = feeds
        self._relays = frozenset[str]().union(*feeds.values())
        self._owned = owned
        self._next_round_s = self._next_check_s = 0.0
        self._had_traffic = self._heard_of_traffic = False
        # In the round before; one round more is said, since a round leaves out who was told before
        # it, however long ago where the worker was slow or undid what it had said.
        self._had_before = self._heard_before = False
        self._owed: set[Place] = set()
        self._held: dict[Place, tuple[int, int]] = {}
        self._newest_ms: dict[Place, int] = {}
        self._congested: frozenset[str] = frozenset()
        self._holding: frozenset[str] = frozenset()
        self._paused: set[Place] = set()

    def is_paused(self, partition: TopicPartition) -> bool:
        """Whether the partition must not be read now."""
        return (partition.topic, partition.partition) in self._paused

    @property
    def is_holding(self) -> bool:
        """Whether rows are held back for the sake of slower partitions."""
        return any(held for place, (held, _) in self._held.items() if place in self._owned)

    def read(self, rows: Rows) -> None:
        """Take note of what was read."""
        if self._had_traffic or not self._feeds:
            return
        for (topic, _), found in rows.items():
            marks = map(_mark, found) if topic in self._relays else (None,)
            for mark in marks:
                if mark is None:
                    self._had_traffic = True
                    return
                self._heard_of_traffic |= mark == _HEARD

    def settled(self, batch: EventBatch, outputs: Outputs) -> None:
        """Take note of what a batch caused."""
        place = batch.topic, batch.partition
        if outputs.waits_for_ms is not None:
            self._held[place] = (outputs.held, outputs.waits_for_ms)
        else:
            self._held.pop(place, None)
        if outputs.event_time_ms_max is not None:
            newest_ms = max(outputs.event_time_ms_max, self._newest_ms.get(place, 0))
            self._newest_ms[place] = newest_ms

    def released(self, places: Collection[Place]) -> None:
        """Take note of partitions that left: if they come back, nothing pauses them."""
        self._paused.difference_update(places)

    def alive(self, now_s: float) -> list[EventBatch]:
        """Return batches for partitions that are to say again that they are at their end."""
        if now_s < self._next_round_s or not self._feeds:
            return []
        self._next_round_s = now_s + ROUND_S if self._owned else now_s
        had = self._had_traffic or self._had_before
        traffic = had or self._heard_of_traffic or self._heard_before
        topics = {topic for topic, _ in self._owned}
        mark = _HEARD if had else _ECHO
        made = []
        owed: set[Place] = set()
        for place, owned in self._owned.items():
            fed = self._feeds.get(owned.topic, frozenset())
            if not fed or not (traffic or place in self._owed or not fed <= topics):
                continue
            if place not in self._paused and _is_at_end(owned):
                made.append(alive_batch(owned, mark))
            else:
                owed.add(place)
        if not traffic and not made and not owed:
            # The first traffic is answered at once.
            self._next_round_s = now_s
        self._owed = owed
        self._had_before, self._heard_before = self._had_traffic, self._heard_of_traffic
        self._had_traffic = self._heard_of_traffic = False
        return made

    def pauses(self, now_s: float) -> tuple[list[Place], list[Place]] | None:
        """Return which partitions to pause and which to read again, None when nothing changes.

        Those furthest downstream are never paused, and of those that others wait for, never the
        slowest: so something always goes on.
        """
        if now_s < self._next_check_s or not self._feeds:
            return None
        self._next_check_s = now_s + PAUSE_CHECK_S
        self._congested = self._congested_topics()
        self._holding = self._holding_topics()
        wanted = {place for place, owned in self._owned.items() if self._must_pause(place, owned)}
        paused = sorted(wanted - self._paused)
        resumed = sorted(place for place in self._paused - wanted if place in self._owned)
        self._paused = wanted
        return (paused, resumed) if paused or resumed else None

    def _congested_topics(self) -> frozenset[str]:
        """Return the re-key topics of which this worker has too much to read."""
        behind: dict[str, int] = {}
        allowed: dict[str, int] = {}
        for owned in self._owned.values():
            if owned.topic in self._relays:
                behind[owned.topic] = behind.get(owned.topic, 0) + owned.lag_rows
                # Once too much, it is too much until half of it is done.
                share = RELAY_LAG_MAX // (2 if owned.topic in self._congested else 1)
                allowed[owned.topic] = allowed.get(owned.topic, 0) + share
        return frozenset(topic for topic, lag in behind.items() if lag > allowed[topic])

    def _holding_topics(self) -> frozenset[str]:
        """Return the re-key topics of which this worker holds too many rows back."""
        self._held = {place: held for place, held in self._held.items() if place in self._owned}
        rows = sum(count for count, _ in self._held.values())
        if rows <= (HELD_ROWS_MAX // 2 if self._holding else HELD_ROWS_MAX):
            return frozenset()
        return frozenset(topic for topic, _ in self._held)

    def _must_pause(self, place: Place, owned: OwnedPartition) -> bool:
        fed = self._feeds.get(owned.topic, frozenset())
        # One that is at its end has nothing that could be kept from running ahead.
        if not fed or (place not in self._paused and owned.end_told):
            return False
        if fed & self._congested:
            return True
        newest_ms = self._newest_ms.get(place)
        if newest_ms is None:
            return False
        return any(
            newest_ms > slowest_ms
            for (topic, _), (_, slowest_ms) in self._held.items()
            if topic in fed & self._holding
        )


def feeds_of(plan: PipelinePlan) -> dict[str, frozenset[str]]:
    """Return, by topic that a pipeline reads, the re-key topics that its rows go into."""
    stages = plan.stages
    onward = {
        index: [stages[index + 1].topic] if index + 1 < len(stages) else []
        for index in range(len(stages))
    }
    feeds: dict[str, set[str]] = {}
    for source in plan.sources:
        feeds[source.topic] = into = set()
        for stage_index, input_index in roles_of(plan, source.name):
            stage = stages[stage_index]
            if stage.direct:
                into.update(onward[stage_index])
            elif not (stage_index and stage.inputs[input_index].scored):
                into.add(stage.topic)
    for index, stage in enumerate(stages):
        if not stage.direct:
            feeds[stage.topic] = set(onward[index])
    return {topic: frozenset(into) for topic, into in feeds.items()}


def marked(outputs: Outputs, mark: bytes) -> list[SingleOutput]:
    """Return what one partition says again, with the mark that tells it from traffic."""
    header = (ALIVE_HEADER, mark)
    return [
        SingleOutput(one.topic, one.value, one.key, one.partition, [*one.headers, header])
        for one in outputs.single
    ]


def joined(alive: list[SingleOutput]) -> list[SingleOutput]:
    """Return one message for each receiver, which says what all of them say."""
    found: dict[tuple[str, int | None], SingleOutput] = {}
    for one in alive:
        first = found.setdefault((one.topic, one.partition), one)
        if first is not one:
            first.headers = one.headers[:-1] + first.headers
    return list(found.values())


def _mark(row: Row) -> bytes | None:
    headers = row.headers()
    return headers[-1][1] if headers and headers[-1][0] == ALIVE_HEADER else None


def _is_at_end(owned: OwnedPartition) -> bool:
    return owned.end_told and owned.next_offset >= owned.high_offset
