"""Where the accepted rows of a source go: the hops out of one source partition."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from headrace.streams.duplicates import originals_of
from headrace.streams.lanes import RESUMED
from headrace.streams.rekey import LaneSender, StreamRows, hop_to

if TYPE_CHECKING:
    from headrace.features.plan import PipelinePlan
    from headrace.streams.batch import EventBatch, Outputs
    from headrace.streams.sieve import Accepted


class SourceRoutes:
    """The hops out of one partition of a source, with what to do on a silent replay.

    An event to be scored enters its first stage here, and the stages that it only updates; from
    stage to stage the stages hand it on themselves.
    """

    def __init__(self, plan: PipelinePlan, source: str, partition: int) -> None:
        """Find the hops of ``source`` in the plan."""
        self._partition = partition
        self._senders = [
            LaneSender(hop_to(plan, stage_index, input_index), partition)
            for stage_index, input_index in roles_of(plan, source)
            if not plan.stages[stage_index].direct
            and not (stage_index and plan.stages[stage_index].inputs[input_index].scored)
        ]
        self._last = self._saved_last = RESUMED

    def __bool__(self) -> bool:
        return bool(self._senders)

    def send(
        self, batch: EventBatch, rows: StreamRows, watermark_ms: int, outputs: Outputs
    ) -> None:
        """Send rows of the batch that are to be emitted on their way, and tell of the lanes."""
        self._last = last_offset(batch, self._last)
        for sender in self._senders:
            if batch.alive is not None:
                outputs.single += sender.say_again(self._last, watermark_ms)
                continue
            topic = sender.hop.topic
            if not emits(batch, topic):
                continue
            going = emitted(batch, rows, topic)
            outputs.single += sender.send(
                going,
                going.offset,
                self._last,
                watermark_ms,
                at_end=batch.at_end,
                opening=opens(batch),
            )

    def begin(self) -> None:
        """Remember the state, for ``abort``."""
        self._saved_last = self._last
        for sender in self._senders:
            sender.begin()

    def commit(self) -> None:
        """Forget what ``begin`` remembered."""
        for sender in self._senders:
            sender.commit()

    def abort(self) -> None:
        """Go back to the state at ``begin``."""
        self._last = self._saved_last
        for sender in self._senders:
            sender.abort()

    def dump(self) -> dict[str, Any]:
        """Return the state, for a checkpoint.

        What the receivers were told is none: who starts again tells them anew, as after a replay.
        """
        return {"last": self._last}

    def load(self, kept: dict[str, Any]) -> None:
        """Take over what ``dump`` returned."""
        self._last = kept["last"]


def roles_of(plan: PipelinePlan, source: str) -> list[tuple[int, int]]:
    """Return (stage, input) of every part that the source plays in the pipeline."""
    return [
        (stage_index, input_index)
        for stage_index, stage in enumerate(plan.stages)
        for input_index, stage_input in enumerate(stage.inputs)
        if stage_input.source == source
    ]


def source_rows(batch: EventBatch, accepted: Accepted) -> StreamRows:
    """Return accepted rows as the stages take them."""
    rows, events = accepted.rows, accepted.events
    whole = rows.size == len(batch)
    keys = batch.keys if whole else [batch.keys[row] for row in rows.tolist()]
    return StreamRows(
        events,
        np.full(rows.size, batch.partition, np.int32),
        batch.offsets if whole else batch.offsets[rows],
        batch.arrival_time_ms if whole else batch.arrival_time_ms[rows],
        pa.array(keys, pa.binary()),
        {},
        {},
        np.zeros(rows.size, bool),
        np.zeros(rows.size, bool),
        originals_of(batch, accepted),
    )


def last_offset(batch: EventBatch, before: int) -> int:
    """Return the last offset that is taken in with this batch; ``before`` it was this."""
    return int(batch.offsets[-1]) if len(batch) else before


def emits(batch: EventBatch, topic: str | None = None) -> bool:
    """Whether anything of the batch may be sent to ``topic``: a row of it, or where the log stands.

    That the log holds no more is told on a silent replay, too: whoever stopped may not have told.
    """
    told = batch.at_end or opens(batch) or topic in batch.unsent
    return told or int(batch.offsets[-1]) >= batch.emit_from


def opens(batch: EventBatch) -> bool:
    """Whether the batch only says that there is a backlog: no row, and not at the end."""
    return not len(batch) and not batch.at_end


def emitted(batch: EventBatch, rows: StreamRows, topic: str | None = None) -> StreamRows:
    """Return the rows that go to ``topic``: those not replayed in silence, or all, marked so."""
    if not len(rows) or int(rows.offset[0]) >= batch.emit_from:
        return rows
    if topic in batch.unsent:
        return dataclasses.replace(rows, silent=rows.silent | (rows.offset < batch.emit_from))
    return rows.take(np.flatnonzero(rows.offset >= batch.emit_from))
