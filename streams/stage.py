"""A stage that reads its source directly: keeps the entity's state and computes its features.

The state and all that a stage emits is a function of the prefix of its input partition: cutting
the log into other batches, or replaying it, changes nothing. No clock, no Kafka.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.features.columns import value_matrix
from headrace.features.state import EntityState
from headrace.features.vector import stage_ages, stage_features
from headrace.streams.batch import Outputs
from headrace.streams.duplicates import duplicate_sieves
from headrace.streams.erasures import ErasedRows
from headrace.streams.exits import Onward, exit_of
from headrace.streams.keeping import Keeper
from headrace.streams.lanes import RESUMED
from headrace.streams.online_tap import OnlineTap
from headrace.streams.partitioning import PartitioningCheck, placing
from headrace.streams.rekey import ARROW_TYPES
from headrace.streams.routes import SourceRoutes, emits, emitted, last_offset, opens, source_rows
from headrace.streams.sieve import SourceSieve

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.features.capture import SlotRecords
    from headrace.features.plan import PipelinePlan, StagePlan
    from headrace.streams.batch import EventBatch, Forget, Keep, Look, Undoable
    from headrace.streams.context import ProcessorContext
    from headrace.streams.rekey import StreamRows


def entity_keys_of(stage: StagePlan, key: str, rows: StreamRows) -> pa.Array:
    """Return the rows' keys of the stage's entity, in the type that the stage keeps them."""
    keys = rows.events.columns[key]
    wanted = ARROW_TYPES[stage.key_kind]
    return keys if keys.type == wanted else keys.cast(wanted)


def with_stage(
    stage: StagePlan, rows: StreamRows, aggregates: np.ndarray, incomplete: np.ndarray
) -> StreamRows:
    """Add to the rows what the stage has computed for them."""
    rows.features.update(stage_features(stage, aggregates))
    rows.ages.update(stage_ages(stage, aggregates))
    rows.incomplete = rows.incomplete | incomplete
    return rows


class DirectStageProcessor:
    """A stage that reads its source's own partition, as the entity's only source."""

    def __init__(
        self, plan: PipelinePlan, stage_index: int, partition: int, context: ProcessorContext
    ) -> None:
        """Own ``partition`` of the source that stage ``stage_index`` reads, with empty state."""
        self._stage = stage = plan.stages[stage_index]
        assert stage.direct, stage.entity
        assert [stage_input.scored for stage_input in stage.inputs] == [True], stage.entity
        self._key = stage.inputs[0].key
        source = plan.source_plan(stage.inputs[0].source)
        self._sieve = SourceSieve(source, context, stage.entity, scored=True, kafka_key=True)
        partitions = context.partition_counts[source.topic]
        self._check = PartitioningCheck(source, partition, partitions)
        self._duplicates = duplicate_sieves(plan, stage_index, context).get(0)
        self._routes = SourceRoutes(plan, source.name, partition)
        self._state = EntityState(stage)
        self._exit = exit_of(plan, stage_index, partition, context)
        self._erased = ErasedRows()
        self._tap = OnlineTap(self._state) if stage_index in context.online else None
        taps = [] if self._tap is None else [self._tap]
        self._parts: tuple[Undoable, ...] = (
            self._sieve,
            self._routes,
            self._state,
            self._exit,
            self._erased,
            *([] if self._duplicates is None else [self._duplicates]),
            *taps,
        )
        self._last = self._saved_last = RESUMED
        self._keeper = Keeper(self._state)

    @property
    def state(self) -> EntityState:
        """The keys' state."""
        return self._state

    def process(self, batch: EventBatch) -> Outputs:
        """Apply the batch to the state and return what it causes.

        Raises:
            PartitioningError: If a row does not lie where its key says.

        """
        outputs = Outputs()
        accepted = self._sieve.accept(batch, outputs)
        rows = source_rows(batch, accepted)
        if self._duplicates is not None:
            rows = self._duplicates.sift(rows, batch, self._sieve.watermark_ms, outputs)
        keys = self._owned_keys(rows)
        events, count = rows.events, len(rows)
        applied = self._state.apply(
            keys,
            np.zeros(count, np.int8),
            events.event_time_ms,
            events.known_at_ms,
            value_matrix(self._stage, events.source.name, events),
            np.ones(count, bool),
            self._erased.counting(keys, events.source.name, rows.partition, rows.offset),
        )
        if self._tap is not None:
            self._tap.touched(batch, applied.slots, outputs)
        self._last = last_offset(batch, self._last)
        watermark_ms, topic = self._sieve.watermark_ms, self._exit.topic
        if emits(batch, topic):
            rows = with_stage(self._stage, rows, applied.aggregates, applied.incomplete)
            going = emitted(batch, rows, topic)
            at_end, again = batch.at_end, batch.alive is not None
            self._exit.write(
                Onward(going, going.offset, self._last, watermark_ms, at_end, opens(batch), again),
                outputs,
            )
        if self._routes:
            self._routes.send(batch, rows, watermark_ms, outputs)
        return outputs

    def look(self, look: Look) -> Outputs:
        """Return keys for the online store; the stage must serve some."""
        assert self._tap is not None, self._stage.entity
        return self._tap.look(look)

    def forget(self, forget: Forget) -> Outputs:
        """Drop what is kept of a key, and let its rows below the bounds count for nothing."""
        self._keeper.cancel()
        self._erased.add(forget)
        slots = self._state.forget(forget.key)
        if self._tap is not None:
            self._tap.forget(slots)
        return Outputs(forgotten=slots)

    def _owned_keys(self, rows: StreamRows) -> pa.Array:
        """Return the rows' keys; null where the Kafka key says nothing of the owner."""
        keys = entity_keys_of(self._stage, self._key, rows)
        raw = rows.keys
        assert raw is not None
        placed = placing(rows.events.source, raw)
        if placed.true_count == len(raw) and not keys.null_count:
            self._check.check(raw, keys, rows.offset)
            return keys
        known = pc.and_(placed, keys.is_valid())
        offsets = rows.offset[known.to_numpy(zero_copy_only=False)]
        self._check.check(raw.filter(known), keys.filter(known), offsets)
        return pc.if_else(placed, keys, pa.scalar(None, keys.type))

    def keep(self, keep: Keep) -> Outputs:
        """Return a slice of a checkpoint."""
        return self._keeper.keep(keep, self._dump)

    def restore(
        self, parts: dict[str, Any], records: Iterable[SlotRecords], key_count: int, offset: int
    ) -> None:
        """Be what was kept at ``offset``."""
        self._state.restore(records, key_count)
        self._keeper.track()
        self._last = parts["last"]
        self._sieve.load(parts["sieve"])
        self._check.load(parts["check"])
        self._routes.load(parts["routes"])
        self._erased.load(parts["erased"])
        if self._duplicates is not None:
            self._duplicates.load(parts["duplicates"])
        if self._tap is not None:
            self._tap.restored(offset)

    @property
    def erased(self) -> frozenset[str]:
        """The requests whose keys are forgotten."""
        return self._erased.requests

    def _dump(self) -> dict[str, Any]:
        return {
            "last": self._last,
            "sieve": self._sieve.dump(),
            "check": self._check.dump(),
            "routes": self._routes.dump(),
            "erased": self._erased.dump(),
            "duplicates": None if self._duplicates is None else self._duplicates.dump(),
        }

    def begin(self) -> None:
        """Remember the state, for ``abort``."""
        self._saved_last = self._last
        for part in self._parts:
            part.begin()

    def commit(self) -> None:
        """Forget what ``begin`` remembered."""
        for part in self._parts:
            part.commit()

    def abort(self) -> None:
        """Go back to the state at ``begin``."""
        self._keeper.cancel()
        self._last = self._saved_last
        for part in self._parts:
            part.abort()
