"""The beginning of a state that neither its log nor a checkpoint holds any more, from the lake.

Only what is whole counts: every offset from where the group first read up to where the log begins
must stand in the lake, as a row or as a rejected one. Re-key topics are not in it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.lake.tables import ARRIVAL_TIME, OFFSET, PARTITION, TOPIC_ID, rejected_table
from headrace.runtime.errors import HeadraceError, explain
from headrace.runtime.logging import get_logger
from headrace.streams.batch import EventBatch
from headrace.streams.companions import NoRestorer
from headrace.streams.errors import RefillError
from headrace.streams.publisher import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from headrace.features.plan import PipelinePlan, SourcePlan
    from headrace.lake.tables import Lake
    from headrace.streams.batch import Processor
    from headrace.streams.companions import Restorer
    from headrace.streams.positions import OwnedPartition
    from headrace.streams.publisher import Encoder

log = get_logger(__name__)

#: Offsets that are read of the lake at once: its files are in no order.
STEP = 1 << 18
BATCH_ROWS = 5_000


class LakeRefill:
    """A restorer that asks another one first, and the lake for what that has not."""

    def __init__(
        self,
        first: Restorer | None,
        lake: Lake,
        plan: PipelinePlan,
        partitions: Mapping[str, int],
        encoders: Mapping[str, Encoder],
    ) -> None:
        """Refill sources of ``plan``, of so many ``partitions`` by topic; ``encoders`` by name."""
        self._first = first or NoRestorer()
        self._lake = lake
        self._sources = {source.topic: source for source in plan.sources}
        self._partitions = partitions
        self._encoders = encoders

    def wanted(self, owned: OwnedPartition) -> bool:
        """Whether there may be a checkpoint, or something that the lake may hold."""
        return self._first.wanted(owned) or self._may_hold(owned)

    def restore(self, owned: OwnedPartition, make: Callable[[], Processor]) -> Processor:
        """Return the partition's processor as it was where the log begins, or later."""
        first = self._first
        processor = first.restore(owned, make) if first.wanted(owned) else make()
        if not self._may_hold(owned):
            return processor
        place = f"{owned.topic}[{owned.partition}]"
        started_s = time.monotonic()
        try:
            rows = self._refill(owned, processor)
        except (RefillError, OSError, pa.ArrowException) as error:
            # A file of the lake that cannot be read is no history either.
            log.warning("history_not_refilled", place=place, reason=str(error))
            # Half a history is none.
            return make()
        owned.refilled = True
        seconds = round(time.monotonic() - started_s, 3)
        log.info("history_refilled", place=place, rows=rows, seconds=seconds)
        return processor

    def _may_hold(self, owned: OwnedPartition) -> bool:
        source = self._sources.get(owned.topic)
        return owned.lacks_history and source is not None and self._lake.has(source.name)

    def _refill(self, owned: OwnedPartition, processor: Processor) -> int:
        """Let a processor take what the log has lost, in silence; return the number of rows."""
        source = self._sources[owned.topic]
        self._check_whole(source.name, owned)
        rows = 0
        for batch in self._batches(source, owned):
            processor.process(batch)
            rows += len(batch)
        return rows

    def _check_whole(self, name: str, owned: OwnedPartition) -> None:
        tables = [one for one in (name, rejected_table(name)) if self._lake.has(one)]
        span = _span(owned, owned.origin, owned.next_offset)
        held = sum(
            part.num_rows
            for table in tables
            for part in self._lake.table(table).batches([OFFSET], span)
        )
        wanted = owned.next_offset - owned.origin
        if held != wanted:
            where = f"table {name}, partition {owned.partition}, from offset {owned.origin} on"
            rule = f"hold each of the {wanted:,} records that the log has lost"
            hint = "it began later, retention or an erasure took some, or transactions left gaps"
            raise RefillError(explain("the lake", rule, f"{held:,}", where, hint))

    def _batches(self, source: SourcePlan, owned: OwnedPartition) -> Iterator[EventBatch]:
        table = self._lake.table(source.name)
        for first in range(owned.origin, owned.next_offset, STEP):
            span = _span(owned, first, min(first + STEP, owned.next_offset))
            log.info("refilling_history", offset=first, until=owned.next_offset)
            found = [part for part in table.batches(None, span) if part.num_rows]
            if not found:
                continue
            rows = pa.Table.from_batches(found).sort_by(OFFSET)
            for batch in rows.to_batches(BATCH_ROWS):
                yield self._batch(source, owned, batch)

    def _batch(self, source: SourcePlan, owned: OwnedPartition, rows: pa.RecordBatch) -> EventBatch:
        where = f"{owned.topic}[{owned.partition}]"
        encoder, partitions = self._encoders[source.name], self._partitions[owned.topic]
        try:
            made = messages(source, encoder, partitions, rows)
        except (pa.ArrowException, HeadraceError) as error:
            rule = "be what the source's schema says"
            raise RefillError(explain("the lake's rows", rule, error, where)) from error
        arrival = rows.column(ARRIVAL_TIME)
        if arrival.null_count:
            raise RefillError(explain("the lake's rows", "have a time of arrival", "null", where))
        # The lake does not know what key a message had: only the source's own would be right.
        keyed = [one["partition"] for one in made if one["key"] is not None]
        if source.partitioner is not None and set(keyed) - {owned.partition}:
            rule = "lie where their keys say"
            raise RefillError(explain("the lake's rows", rule, sorted(set(keyed)), where))
        return EventBatch(
            topic=owned.topic,
            partition=owned.partition,
            epoch=owned.epoch,
            offsets=_numbers(rows.column(OFFSET)),
            arrival_time_ms=_numbers(arrival) // 1_000,
            keys=[one["key"] for one in made],
            values=[one["value"] for one in made],
            headers=[None] * len(made),
            emit_from=owned.emit_from,
            at_end=False,
        )


def _span(owned: OwnedPartition, first: int, end: int) -> Any:
    return (
        (pc.field(TOPIC_ID) == owned.topic_id)
        & (pc.field(PARTITION) == owned.partition)
        & (pc.field(OFFSET) >= first)
        & (pc.field(OFFSET) < end)
    )


def _numbers(column: pa.Array) -> np.ndarray:
    return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))
