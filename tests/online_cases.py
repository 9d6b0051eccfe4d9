"""A pipeline in memory with its online store: what the source thread does, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.features.kernels.layout import NEVER
from headrace.features.plan import ProjectPlan
from headrace.features.store.memory import MemoryOnlineStore
from headrace.features.store.views import online_entities
from headrace.features.vector import stage_features
from headrace.runtime.clock import ManualClock
from headrace.streams.online import OnlineWriter
from headrace.streams.online_feed import OnlineFeed
from headrace.streams.positions import OwnedPartition
from headrace.streams.testing import Driver

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.features.plan import PipelinePlan
    from headrace.features.store.views import OnlineEntity
    from headrace.streams.batch import Outputs
    from headrace.streams.testing import Owned


@dataclass
class Seen:
    """What the writer told its metrics."""

    wrote: int = 0
    failed: list[str] = field(default_factory=list)
    waits: dict[str, tuple[int, float, int]] = field(default_factory=dict)

    def online_wrote(self, _entity: str, rows: int) -> None:
        self.wrote += rows

    def online_failed(self, reason: str) -> None:
        self.failed.append(reason)

    def online_waits(self, entity: str, pending: int, staleness_s: float, rebuild: int) -> None:
        self.waits[entity] = (pending, staleness_s, rebuild)


class RecordingStore(MemoryOnlineStore):
    """A store in memory that keeps which keys it was given."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.given: list[tuple[str, object]] = []

    def write(self, entity, partition, lineage, rows, clock_ms):
        self.given += [(entity.entity, key) for key in rows.keys.to_pylist()]
        return super().write(entity, partition, lineage, rows, clock_ms)


def entities_of(plan: PipelinePlan) -> Mapping[int, OnlineEntity]:
    return online_entities(ProjectPlan(plan.project, (plan,)))[plan.name]


class OnlineDriver(Driver):
    """A driver whose outputs feed an online store, as the source thread does it."""

    def __init__(self, plan: PipelinePlan, store: RecordingStore | None = None, **options: Any):
        self.store = store or RecordingStore()
        self.entities = entities_of(plan)
        super().__init__(plan, online=self.entities, **options)
        self.clock = ManualClock(1_700_000_000_000)
        self.seen = Seen()
        self._start()

    def _start(self) -> None:
        self.writer = OnlineWriter(self.store, self.seen, self.clock)
        self.feed = OnlineFeed(self.plan, self.entities, self.writer, self.clock)
        self.positions = {
            key: OwnedPartition(
                topic=owned.topic,
                partition=owned.partition,
                epoch=0,
                topic_id=f"id-of-{owned.topic}",
                emit_from=owned.committed,
                committed_offset=owned.committed,
                high_offset=len(self._log(owned)),
            )
            for key, owned in self.owned.items()
        }
        self.feed.assigned(self.positions.values())

    def step(self, owned: Owned, count: int, sent: float = 1.0) -> Outputs:
        batch = self._batch(owned, count)
        self.broker_time_ms = self.clock.now_ms()
        outputs = super().step(owned, count, sent)
        position = self.positions[owned.topic, owned.partition]
        position.high_offset = len(self._log(owned))
        if len(batch):
            position.done_offset = int(batch.offsets[-1]) + 1
            position.newest_arrival_ms = int(batch.arrival_time_ms[-1])
        self.feed.settled(batch, outputs)
        return outputs

    def crash(self, owned: Owned) -> None:
        """Lose a partition in the middle of things, and get it back."""
        super().crash(owned)
        key = (owned.topic, owned.partition)
        self.feed.released([key], flush=False)
        old = self.positions[key]
        self.positions[key] = replace(
            old,
            emit_from=owned.committed,
            committed_offset=owned.committed,
            done_offset=0,
            high_offset=len(self._log(owned)),
        )
        self.feed.assigned([self.positions[key]])

    def commit(self) -> None:
        super().commit()
        for key, owned in self.owned.items():
            self.positions[key].committed_offset = owned.committed
        self.feed.committed()

    def restart(self) -> None:
        """Start the worker again: state and writer are gone, log, commits and store are there."""
        for owned in self.owned.values():
            super().crash(owned)
        self._start()

    def look(self, turns: int = 1) -> None:
        """Let so many seconds pass, with all looks and writes that they bring."""
        for _ in range(turns):
            self.writer.turn()
            while looks := self.feed.looks():
                for look in looks:
                    outputs = self.owned[look.topic, look.partition].processor.look(look)
                    self.feed.settled(look, outputs)
                self.writer.turn()
            self.clock.advance(1_000)
            self.writer.turn()

    def catch_up(self) -> None:
        """Read everything, commit it, and let the writer do what it has to."""
        self.run()
        self.commit()
        self.look(3)

    def states(self):
        """Yield (entity, partition, stage, state) of every served partition."""
        for (topic, partition), owned in self.owned.items():
            for index, entity in self.entities.items():
                if self.plan.stages[index].topic == topic:
                    yield entity, partition, self.plan.stages[index], owned.processor.state

    def clock_of(self, entity: OnlineEntity, partition: int) -> int:
        """Return the partition's clock at the last look."""
        for kept in self.feed._kept.values():
            if kept.served.entity is entity and kept.served.partition == partition:
                return NEVER if kept.served.clock_ms is None else kept.served.clock_ms
        return NEVER

    def faults(self) -> list[object]:
        """Return what the store does not hold as the states say it, as of each row's time.

        A row whose values are others by its partition's clock is a fault, too.
        """
        wrong: list[object] = []
        for entity, partition, stage, state in self.states():
            clock_ms = self.clock_of(entity, partition)
            for slot, key in enumerate(state.keys(0).to_pylist()):
                probed = state.probe(np.array([slot]))
                row = self.store.row(entity, key)
                if probed.event_time_ms[0] == NEVER:
                    wrong += [] if row is None else [("unwanted", key)]
                    continue
                if row is None:
                    wrong.append(("missing", key))
                    continue
                probed = state.probe(np.array([slot]), row.fence[2])
                features = stage_features(stage, probed.aggregates)
                wanted = {f.name: float(features[f.name][0]) for f in entity.features}
                same = row.fence[2] == probed.as_of_ms[0] and repr(wanted) == repr(row.values)
                if not same or row.event_time_ms != probed.event_time_ms[0]:
                    wrong.append(("other", key, row, wanted))
                if row.partition != partition:
                    wrong.append(("partition", key, row.partition))
                if probed.due_ms[0] <= clock_ms:
                    wrong.append(("overdue", key, int(probed.due_ms[0])))
        return wrong

    def markers(self):
        return [
            marker
            for entity in self.entities.values()
            for marker in self.store.markers(entity).values()
        ]
