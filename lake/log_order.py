"""A source's partitions in the order of their offsets, as a stage that reads them directly did.

The same sieve and the same kernel as on the stream: what was bad input or too late is left out, the
rest is applied row after row. So the numbers are those that were, or would have been, emitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.features.columns import check_rows, event_columns, take, value_matrix
from headrace.features.duplicates import IdMemory, row_ids
from headrace.features.kernels.ids import CONFLICT, DUPLICATE
from headrace.features.state import EntityState
from headrace.features.vector import stage_ages, stage_features
from headrace.lake.tables import OFFSET, PARTITION, TOPIC_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from headrace.features.columns import EventColumns
    from headrace.features.plan import PipelinePlan, SourcePlan, StagePlan
    from headrace.lake.stored import LakeEvents, OffsetRange

    Integers = NDArray[np.int64]

_STEP: Final = 1 << 20
_NEVER: Final = -(1 << 62)
_KEY_TYPES: Final = {"int64": pa.int64(), "string": pa.string(), "bytes": pa.binary()}


@dataclass(slots=True)
class LogPiece:
    """Rows of one partition that follow each other: those that counted, and those left out.

    ``position`` belongs to ``events``; ``left_out`` are positions of bad input, late rows and
    duplicates.
    """

    events: EventColumns
    position: Integers
    left_out: Integers


def log_pieces(source: SourcePlan, reader: LakeEvents, one: OffsetRange) -> Iterator[LogPiece]:
    """Yield a partition of the scored source in the order of its offsets, sifted as on the stream.

    Lateness is counted from the first row that the lake holds.
    """
    columns = [column.name for column in source.columns]
    watermark_ms = _NEVER
    memory = IdMemory.of(source) if source.dedupe_ms else None
    for start in range(one.first, one.end, _STEP):
        here = (
            (pc.field(TOPIC_ID) == one.topic_id)
            & (pc.field(PARTITION) == one.partition)
            & (pc.field(OFFSET) >= start)
            & (pc.field(OFFSET) < min(start + _STEP, one.end))
        )
        (part,) = reader.where(here, counted=False).parts(columns, whole=True)
        order = np.argsort(part.position)
        position = part.position[order]
        events = event_columns(pa.table(part.batch).take(pa.array(order)), source)
        assert part.arrival_time_ms is not None, "rows in the lake have an arrival"
        good = check_rows(events, part.arrival_time_ms[order]) == 0
        # Bad input moves no clock.
        times = np.where(good, events.event_time_ms, _NEVER)
        newest = np.maximum(np.maximum.accumulate(times), watermark_ms)
        if len(newest):
            watermark_ms = int(newest[-1])
        kept = good & (times >= newest - source.lateness_ms)
        if memory is not None:
            accepted = np.flatnonzero(kept)
            counted = take(events, accepted)
            verdict = memory.judge(row_ids(counted), counted.event_time_ms)
            kept[accepted[(verdict == DUPLICATE) | (verdict == CONFLICT)]] = False
            memory.advance(watermark_ms)
        rows = np.flatnonzero(kept)
        yield LogPiece(take(events, rows), position[rows], position[~kept])


def replay_direct(
    plan: PipelinePlan, stage: StagePlan, reader: LakeEvents
) -> Iterator[tuple[Integers, dict[str, NDArray[np.float64]]]]:
    """Yield positions of rows and what the stage gave for them: features and ages by name.

    Args:
        plan: The pipeline.
        stage: One of its stages, which reads the scored source directly.
        reader: The scored source, from its first row on.

    A row without a Kafka key has no owner on the stream and keeps no state there; the lake does
    not hold Kafka's keys, so here the key column decides.
    """
    assert stage.direct, stage.entity
    source = plan.source_plan(stage.inputs[0].source)
    key_type = _KEY_TYPES[stage.key_kind]
    for one in reader.ranges:
        state = EntityState(stage)
        for piece in log_pieces(source, reader, one):
            events = piece.events
            applied = state.apply(
                events.columns[stage.inputs[0].key].cast(key_type),
                np.zeros(events.length, np.int8),
                events.event_time_ms,
                events.known_at_ms,
                value_matrix(stage, source.name, events),
                np.ones(events.length, bool),
            )
            numbers = stage_features(stage, applied.aggregates)
            ages = stage_ages(stage, applied.aggregates)
            numbers |= {f"{view}__age_ms": age for view, age in ages.items()}
            yield piece.position, numbers
