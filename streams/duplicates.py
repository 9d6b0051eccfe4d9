"""Duplicates by event id, in the first stage that keeps state of a row's key.

What was seen before is left out of the rows; a known id with other content goes to the DLQ. The
memory is a function of the prefix of the log that the rows come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from headrace.features.duplicates import IdMemory, RowIds, row_ids
from headrace.features.kernels.ids import AGAIN, CONFLICT, DUPLICATE, UNCHECKED
from headrace.runtime import topics
from headrace.streams.batch import SingleOutput
from headrace.streams.sieve import error_headers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.features.plan import PipelinePlan, SourcePlan
    from headrace.streams.batch import EventBatch, Outputs
    from headrace.streams.context import ProcessorContext
    from headrace.streams.rekey import StreamRows
    from headrace.streams.sieve import Accepted

ID_CONFLICT = "id_conflict"
FIELDS = (
    pa.field("_id_hash", pa.uint64()),
    pa.field("_payload_hash", pa.uint32()),
    pa.field("_value", pa.binary()),
    pa.field("_original_key", pa.binary()),
    pa.field("_original_arrival_ms", pa.int64()),
)
"""What a hop carries beside its rows as far as the stage that looks for duplicates."""


@dataclass(slots=True)
class Originals:
    """Rows as they came, for the stage that looks for duplicates: their ids and their bytes."""

    ids: RowIds
    values: pa.Array

    def take(self, indices: np.ndarray) -> Originals:
        """Return the rows at ``indices`` (int64[k]), in that order."""
        return Originals(self.ids.take(indices), self.values.take(pa.array(indices)))

    def pack(self, rows: StreamRows) -> list[pa.Array]:
        """Return the arrays of ``FIELDS``."""
        assert rows.keys is not None
        return [
            pa.array(self.ids.hashes, mask=~self.ids.known),
            pa.array(self.ids.payload),
            self.values,
            rows.keys,
            pa.array(rows.arrival_time_ms),
        ]


def originals_of(batch: EventBatch, accepted: Accepted) -> Originals | None:
    """Return the accepted rows as they came, None where nobody looks for duplicates."""
    if not accepted.events.source.dedupe_ms:
        return None
    values = [batch.values[row] for row in accepted.rows.tolist()]
    return Originals(row_ids(accepted.events), pa.array(values, pa.binary()))


@dataclass(frozen=True, slots=True)
class _Places:
    """Where rows came from: one source partition, their offsets, and which may be emitted."""

    partition: int
    offset: np.ndarray
    emitted: np.ndarray


class DuplicateSieve:
    """Leaves out the duplicates of one source in one stage partition."""

    def __init__(self, source: SourcePlan, context: ProcessorContext, stage: str) -> None:
        """Look for duplicates of ``source``, which must declare ``dedupe``, with nothing seen."""
        self._source = source
        self._stage = stage
        self._app_version = context.app_version
        self._dlq = topics.dlq(source.topic)
        self._dlq_partitions = context.partition_counts[self._dlq]
        self.memory = IdMemory.of(source)

    def sift(
        self, rows: StreamRows, batch: EventBatch, stream_ms: int, outputs: Outputs
    ) -> StreamRows:
        """Return the rows that count, of a batch of the source's own partition.

        ``stream_ms`` is the partition's watermark, these rows included.
        """
        originals = rows.originals
        assert originals is not None, self._source.name
        rows.originals = None
        if not len(rows):
            return rows
        verdict = self.memory.judge(originals.ids, rows.events.event_time_ms)
        self.memory.advance(stream_ms)
        emitted = rows.offset >= batch.emit_from
        self._count(verdict[emitted], outputs)
        for row in np.flatnonzero((verdict == CONFLICT) & emitted).tolist():
            assert rows.keys is not None
            before = batch.headers[int(np.searchsorted(batch.offsets, rows.offset[row]))] or []
            outputs.single.append(
                self._refused(
                    originals.values[row].as_py(),
                    rows.keys[row].as_py(),
                    before,
                    batch.partition,
                    int(rows.offset[row]),
                    int(rows.arrival_time_ms[row]),
                )
            )
        counting = _counting(verdict)
        return rows if len(counting) == len(rows) else rows.take(counting)

    def sift_packed(
        self, packed: pa.RecordBatch, partition: int, *, emits: bool, outputs: Outputs
    ) -> pa.RecordBatch:
        """Return the rows that count of a re-keyed message, without ``FIELDS``.

        ``partition`` is the source's; ``emits`` says whether anything of it may be sent.
        """
        width = packed.num_columns - len(FIELDS)
        hashes, payload, value, key, arrival = packed.columns[width:]
        ids = RowIds(
            hashes.fill_null(0).to_numpy(),
            hashes.is_valid().to_numpy(zero_copy_only=False),
            payload.to_numpy(),
        )
        # The time that lateness is about; what is scored has no other than its event's.
        names = packed.schema.names
        update = "_known_at_ms" in names and "_arrival_ms" not in names
        time_ms = packed.column(names.index("_known_at_ms" if update else "_event_time_ms"))
        verdict = self.memory.judge(ids, time_ms.to_numpy())
        if emits:
            self._count(verdict, outputs)
            offset = packed.column(0)
            for row in np.flatnonzero(verdict == CONFLICT).tolist():
                outputs.single.append(
                    self._refused(
                        value[row].as_py(),
                        key[row].as_py(),
                        [],
                        partition,
                        offset[row].as_py(),
                        arrival[row].as_py(),
                    )
                )
        counting = _counting(verdict)
        if len(counting) < packed.num_rows:
            packed = packed.take(pa.array(counting))
        return packed.select(list(range(width)))

    def _count(self, verdict: np.ndarray, outputs: Outputs) -> None:
        name = self._source.name
        if duplicates := int(np.count_nonzero(verdict == DUPLICATE)):
            outputs.duplicates[name] += duplicates
        outside = int(np.count_nonzero((verdict == AGAIN) | (verdict == UNCHECKED)))
        if outside:
            outputs.out_of_window[name] += outside
        if conflicts := int(np.count_nonzero(verdict == CONFLICT)):
            outputs.rejected[ID_CONFLICT] += conflicts

    def _refused(
        self,
        value: bytes | None,
        key: bytes | None,
        before: Sequence[tuple[str, bytes]],
        partition: int,
        offset: int,
        arrival_time_ms: int,
    ) -> SingleOutput:
        headers = error_headers(
            before,
            reason=ID_CONFLICT,
            message=f"{self._source.event_id} was seen before with other content",
            topic=self._source.topic,
            partition=partition,
            offset=offset,
            stage=self._stage,
            app_version=self._app_version,
        )
        target = partition % self._dlq_partitions
        return SingleOutput(self._dlq, value, key, target, headers, arrival_time_ms)

    def begin(self) -> None:
        """Remember the state, for ``abort``."""
        self.memory.begin()

    def commit(self) -> None:
        """Forget what ``begin`` remembered."""
        self.memory.commit()

    def abort(self) -> None:
        """Go back to the state at ``begin``."""
        self.memory.abort()

    def dump(self) -> Mapping[str, np.ndarray | int | bytes | str]:
        """Return all that is remembered, as ``load`` takes it."""
        return self.memory.dump()

    def load(self, dumped: Mapping[str, np.ndarray | int | bytes | str]) -> None:
        """Remember what ``dump`` returned, and nothing else."""
        self.memory.load(dumped)


def duplicate_sieves(
    plan: PipelinePlan, stage_index: int, context: ProcessorContext
) -> dict[int, DuplicateSieve]:
    """Return a sieve for each input of a stage in which duplicates are looked for, by its index.

    Rows that another stage hands on have been through that stage's.
    """
    stage = plan.stages[stage_index]
    return {
        index: DuplicateSieve(plan.source_plan(given.source), context, stage.entity)
        for index, given in enumerate(stage.inputs)
        if looks_for_duplicates(plan, stage_index, index)
    }


def looks_for_duplicates(plan: PipelinePlan, stage_index: int, input_index: int) -> bool:
    """Whether the stage is the first of its kind to see this input's rows."""
    given = plan.stages[stage_index].inputs[input_index]
    handed_on = given.scored and stage_index > 0
    return bool(plan.source_plan(given.source).dedupe_ms) and not handed_on


def _counting(verdict: np.ndarray) -> np.ndarray:
    return np.flatnonzero((verdict != DUPLICATE) & (verdict != CONFLICT))
