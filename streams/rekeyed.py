"""A stage that reads its re-key topic, where the rows of all its inputs come together.

What a message lets through is processed in the order of event time, so that an outage of one
sender does not change the features of the others' rows; which rows that are is a function of the
log's prefix alone. What message m lets through is emitted with m's offset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from headrace.features.columns import value_matrix
from headrace.features.state import EntityState
from headrace.runtime.errors import explain
from headrace.streams.batch import Outputs
from headrace.streams.duplicates import duplicate_sieves
from headrace.streams.erasures import ErasedRows
from headrace.streams.errors import LaneError
from headrace.streams.exits import Onward, exit_of
from headrace.streams.keeping import Keeper
from headrace.streams.lanes import NEVER, Lane, LaneNote, LaneTable
from headrace.streams.online_tap import OnlineTap
from headrace.streams.rekey import hop_to
from headrace.streams.routes import emits, opens
from headrace.streams.stage import entity_keys_of, with_stage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.features.capture import SlotRecords
    from headrace.features.plan import PipelinePlan
    from headrace.streams.batch import EventBatch, Forget, Keep, Look, Undoable
    from headrace.streams.context import ProcessorContext
    from headrace.streams.lanes import Released
    from headrace.streams.rekey import StreamRows


class _Step(NamedTuple):
    """What one message lets through: runs of rows, each in time order; may they be emitted."""

    runs: list[Released]
    emits: bool


class _Sequence(NamedTuple):
    """All rows that a batch lets through.

    ``groups`` holds the rows by input, ``place`` for each group the rank of its rows in the order
    of processing, ``emits`` bool[n] in that order.
    """

    groups: dict[int, StreamRows]
    place: dict[int, np.ndarray]
    emits: np.ndarray


class RekeyedStageProcessor:
    """Owns one partition of a re-key topic."""

    def __init__(
        self, plan: PipelinePlan, stage_index: int, partition: int, context: ProcessorContext
    ) -> None:
        """Own ``partition`` of the re-key topic of stage ``stage_index``, with empty state."""
        self._plan = plan
        self._stage = stage = plan.stages[stage_index]
        assert not stage.direct, stage.entity
        self._hops = [hop_to(plan, stage_index, index) for index in range(len(stage.inputs))]
        self._lanes = lane_table(plan, stage_index, context)
        self._duplicates = duplicate_sieves(plan, stage_index, context)
        self._state = EntityState(stage)
        self._exit = exit_of(plan, stage_index, partition, context)
        self._erased = ErasedRows()
        self._tap = OnlineTap(self._state) if stage_index in context.online else None
        taps = [] if self._tap is None else [self._tap]
        self._parts: tuple[Undoable, ...] = (
            self._lanes,
            self._state,
            self._exit,
            self._erased,
            *self._duplicates.values(),
            *taps,
        )
        self._scored_inputs = np.array([stage_input.scored for stage_input in stage.inputs])
        self._position = 0
        self._watermark_ms = NEVER
        self._saved = (0, NEVER)
        self._keeper = Keeper(self._state)

    @property
    def state(self) -> EntityState:
        """The keys' state."""
        return self._state

    @property
    def lanes(self) -> LaneTable:
        """What is known of the lanes, and the rows held back."""
        return self._lanes

    def process(self, batch: EventBatch) -> Outputs:
        """Apply the batch to the state and return what it causes.

        Raises:
            LaneError: If a message is not one of this plan's.

        """
        outputs = Outputs()
        steps = []
        was_at_end, opened = self._lanes.all_at_end, False
        for index, offset in enumerate(batch.offsets.tolist()):
            opened |= self._take_in(batch, index, outputs)
            runs = self._lanes.release()
            if runs:
                steps.append(_Step(runs, offset >= batch.emit_from))
        rows, position, slots = None, None, None
        if steps:
            resent = self._exit.topic in batch.unsent
            rows, position, slots = self._apply(self._sequence(steps), outputs, resent=resent)
        if self._tap is not None:
            self._tap.touched(batch, slots, outputs)
        self._watermark_ms = max(self._watermark_ms, self._lanes.watermark_ms)
        if emits(batch, self._exit.topic):
            at_end = batch.at_end and self._lanes.all_at_end
            opening = not at_end and (opens(batch) or (opened and was_at_end))
            last, watermark_ms = self._position - 1, self._watermark_ms
            again = at_end and batch.alive is not None
            onward = Onward(rows, position, last, watermark_ms, at_end, opening, again)
            self._exit.write(onward, outputs)
        outputs.held = self._lanes.held_count
        outputs.waits_for_ms = self._lanes.watermark_ms if outputs.held else None
        return outputs

    def look(self, look: Look) -> Outputs:
        """Return keys for the online store; the stage must serve some."""
        assert self._tap is not None, self._stage.entity
        return self._tap.look(look)

    def _take_in(self, batch: EventBatch, index: int, outputs: Outputs) -> bool:
        """Take a message in; return whether a lane that may have been at its end is not, now."""
        where = f"{batch.topic}-{batch.partition} offset {int(batch.offsets[index])}"
        opened = self._lanes.pass_time(int(batch.arrival_time_ms[index]))
        notes = LaneNote.all_from_headers(batch.headers[index], where)
        value = batch.values[index]
        assert len(notes) == 1 or not value, where
        emitted = int(batch.offsets[index]) >= batch.emit_from
        for note in notes:
            self._check_note(note, where)
            opened |= self._take_note(note, value, emitted, outputs)
        return opened

    def _check_note(self, note: LaneNote, where: str) -> None:
        lane = note.lane
        known = self._lanes.knows(lane)
        if not known or note.fingerprint != self._hops[lane.input].fingerprint:
            rule = f"be of layout {self._hops[0].fingerprint}, and of a lane that the stage has"
            got = f"layout {note.fingerprint}, source {note.source}, lane {tuple(lane)}"
            hint = (
                "a source has more partitions than when this worker started: start it again; "
                "or something else writes to this topic"
            )
            raise LaneError(explain("a re-keyed message", rule, got, where, hint))

    def _take_note(
        self, note: LaneNote, value: bytes | None, emitted: bool, outputs: Outputs
    ) -> bool:
        """Take a note in, with its rows; return whether it only says that its lane goes on."""
        lane = note.lane
        high_water = self._lanes.high_water(lane)
        fresh = self._lanes.accept(note)
        sieve = self._duplicates.get(lane.input)
        if not value:
            if sieve is not None:
                sieve.memory.advance(self._lanes.input_time_ms(lane.input))
            return not note.at_end
        if not fresh:
            return False
        hop = self._hops[lane.input]
        packed = pa.ipc.read_record_batch(pa.py_buffer(value), hop.schema)
        position = hop.positions(packed)
        if position[0] <= high_water:
            packed = packed.slice(int(np.searchsorted(position, high_water, side="right")))
        if sieve is not None:
            packed = sieve.sift_packed(packed, lane.partition, emits=emitted, outputs=outputs)
            sieve.memory.advance(self._lanes.input_time_ms(lane.input))
        self._lanes.hold(lane, packed, hop.event_time_ms(packed))
        return False

    def _sequence(self, steps: list[_Step]) -> _Sequence:
        """Put the rows of each step in the order of event time; equal times stay as they lie."""
        runs_by_input: dict[int, list[Released]] = {}
        places: dict[int, list[np.ndarray]] = {}
        marks: list[np.ndarray] = []
        start = 0
        for runs, emits_step in steps:
            times = _joined([run.event_time_ms for run in runs])
            rank = np.arange(start, start + times.size)
            if len(runs) > 1:
                order = np.argsort(times, kind="stable")
                rank[order] = rank.copy()
            marks.append(np.full(times.size, emits_step))
            start += times.size
            used = 0
            for run in runs:
                runs_by_input.setdefault(run.lane.input, []).append(run)
                stop = used + run.event_time_ms.size
                places.setdefault(run.lane.input, []).append(rank[used:stop])
                used = stop
        groups = {index: self._unpack(index, runs) for index, runs in runs_by_input.items()}
        place = {index: _joined(parts) for index, parts in places.items()}
        return _Sequence(groups, place, _joined(marks))

    def _unpack(self, input_index: int, runs: list[Released]) -> StreamRows:
        hop = self._hops[input_index]
        if len(runs) == 1:
            return hop.unpack(runs[0].rows, runs[0].lane.partition)
        partition = np.repeat(
            np.array([run.lane.partition for run in runs], np.int32),
            [run.rows.num_rows for run in runs],
        )
        return hop.unpack(pa.concat_batches([run.rows for run in runs]), partition)

    def _apply(
        self, sequence: _Sequence, outputs: Outputs, *, resent: bool
    ) -> tuple[StreamRows | None, np.ndarray | None, np.ndarray]:
        """Apply rows to the state; return those to hand on, their positions, and all slots.

        ``resent``: rows that are not to be emitted are handed on, too, as silent ones.
        """
        stage, inputs = self._stage, self._stage.inputs
        groups = sequence.groups
        place = _joined([sequence.place[index] for index in groups])
        order = _inverse(place)
        input_of = np.repeat(np.array(list(groups), np.int8), [len(r) for r in groups.values()])
        input_of = input_of[order]
        scored = self._scored_inputs[input_of]
        keys = [entity_keys_of(stage, inputs[index].key, rows) for index, rows in groups.items()]
        keys_in_order = keys[0] if len(keys) == 1 else pa.concat_arrays(keys)
        values = [
            value_matrix(stage, inputs[index].source, rows.events, rows.features)
            for index, rows in groups.items()
        ]
        events = [rows.events for rows in groups.values()]
        applied = self._state.apply(
            keys_in_order if _is_range(order) else keys_in_order.take(pa.array(order)),
            input_of,
            _joined([part.event_time_ms for part in events])[order],
            _joined([part.known_at_ms for part in events])[order],
            _joined(values)[order],
            scored,
            self._counting(groups, keys, order),
        )
        asked = next((index for index in groups if inputs[index].scored), None)
        if asked is None:
            return None, None, applied.slots
        ranks = np.flatnonzero(scored)
        position = self._position + np.arange(ranks.size)
        self._position += ranks.size
        rows = groups[asked]
        newest_ms = int(rows.events.event_time_ms.max())
        self._watermark_ms = max(self._watermark_ms, newest_ms)
        outputs.event_time_ms_max = newest_ms
        emitting = sequence.emits[ranks]
        if not resent and not emitting.all():
            ranks, position = ranks[emitting], position[emitting]
            if not ranks.size:
                return None, None, applied.slots
        # Where each asked row stands within its own group.
        within = np.empty(place.size, np.int64)
        within[sequence.place[asked]] = np.arange(len(rows))
        picked = within[ranks]
        if picked.size < len(rows) or not _is_range(picked):
            rows = rows.take(picked)
        if resent:
            rows.silent = rows.silent | ~emitting
        aggregates, incomplete = applied.aggregates, applied.incomplete
        if ranks.size < place.size:
            aggregates, incomplete = aggregates[ranks], incomplete[ranks]
        return with_stage(stage, rows, aggregates, incomplete), position, applied.slots

    def _counting(
        self, groups: dict[int, StreamRows], keys: list[pa.Array], order: np.ndarray
    ) -> np.ndarray | None:
        """Return which rows still count, in the order of processing; None: all do."""
        parts = [
            self._erased.counting(own, rows.events.source.name, rows.partition, rows.offset)
            for rows, own in zip(groups.values(), keys, strict=True)
        ]
        if all(part is None for part in parts):
            return None
        pairs = zip(parts, keys, strict=True)
        counting = _joined([np.ones(len(k), bool) if p is None else p for p, k in pairs])
        in_order: np.ndarray = counting[order]
        return in_order

    def forget(self, forget: Forget) -> Outputs:
        """Drop what is kept of a key, and let its rows below the bounds count for nothing."""
        self._keeper.cancel()
        self._erased.add(forget)
        slots = self._state.forget(forget.key)
        if self._tap is not None:
            self._tap.forget(slots)
        return Outputs(forgotten=slots)

    def keep(self, keep: Keep) -> Outputs:
        """Return a slice of a checkpoint."""
        return self._keeper.keep(keep, self._dump)

    def restore(
        self, parts: dict[str, Any], records: Iterable[SlotRecords], key_count: int, offset: int
    ) -> None:
        """Be what was kept at ``offset``."""
        self._state.restore(records, key_count)
        self._keeper.track()
        self._position, self._watermark_ms = parts["position"], parts["watermark_ms"]
        self._lanes.load(parts["lanes"])
        self._erased.load(parts["erased"])
        for index, sieve in self._duplicates.items():
            sieve.load(parts["duplicates"][str(index)])
        if self._tap is not None:
            self._tap.restored(offset)

    @property
    def erased(self) -> frozenset[str]:
        """The requests whose keys are forgotten."""
        return self._erased.requests

    def _dump(self) -> dict[str, Any]:
        return {
            "position": self._position,
            "watermark_ms": self._watermark_ms,
            "lanes": self._lanes.dump(),
            "erased": self._erased.dump(),
            "duplicates": {str(i): sieve.dump() for i, sieve in self._duplicates.items()},
        }

    def begin(self) -> None:
        """Remember the state, for ``abort``."""
        self._saved = (self._position, self._watermark_ms)
        for part in self._parts:
            part.begin()

    def commit(self) -> None:
        """Forget what ``begin`` remembered."""
        for part in self._parts:
            part.commit()

    def abort(self) -> None:
        """Go back to the state at ``begin``."""
        self._keeper.cancel()
        self._position, self._watermark_ms = self._saved
        for part in self._parts:
            part.abort()


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _inverse(place: np.ndarray) -> np.ndarray:
    """Return where each rank stands, given the rank of each place."""
    order = np.empty_like(place)
    order[place] = np.arange(place.size)
    return order


def _is_range(order: np.ndarray) -> bool:
    return bool((order == np.arange(order.size)).all())


def lane_table(plan: PipelinePlan, stage_index: int, context: ProcessorContext) -> LaneTable:
    """Return the lanes that feed a stage.

    An input that is scored comes from the stage before, all others from their source's router.
    """
    stage = plan.stages[stage_index]
    ranks: dict[Lane, int] = {}
    for index, stage_input in enumerate(stage.inputs):
        topic = plan.source_plan(stage_input.source).topic
        if stage_input.scored and stage_index:
            topic = plan.stages[stage_index - 1].topic
        for partition in range(context.partition_counts[topic]):
            ranks[Lane(index, partition)] = len(stage.inputs) * stage_input.scored + index
    updates = [lane for lane in ranks if not stage.inputs[lane.input].scored]
    return LaneTable(ranks, ranks, plan.alignment_ms, updates)
