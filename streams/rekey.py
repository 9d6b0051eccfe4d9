"""Re-keyed rows: what a hop to another entity's stage carries, how it is packed and unpacked.

A message is one Arrow IPC record batch without its schema: both ends take that from the plan, and
the fingerprint of the layout in the lane note says that they mean the same one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from headrace.features.columns import EventColumns, take
from headrace.features.kernels.keys import hash_keys, partition_of
from headrace.features.layouts import needed_columns, rekey_layout
from headrace.streams.batch import SingleOutput
from headrace.streams.duplicates import FIELDS, looks_for_duplicates
from headrace.streams.lanes import NEVER, RESUMED, Lane, LaneNote

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.features.plan import PipelinePlan, SourcePlan
    from headrace.streams.duplicates import Originals

MESSAGE_BYTES_MAX = 512 * 1024
"""Upper bound of a re-keyed message; a single row that is larger travels alone."""

_INCOMPLETE, _SILENT = np.uint8(1), np.uint8(2)
ARROW_TYPES = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "bytes": pa.binary(),
}


@dataclass(slots=True)
class StreamRows:
    """Events on their way through the stages, in the order in which they are processed.

    ``partition`` and ``offset`` are the source's; ``keys`` the original Kafka keys (None for
    update-only rows). ``features`` and ``ages`` are float64[n] by name and view, NaN for null.
    ``incomplete`` marks rows of which a window reached beyond what the state still held,
    ``silent`` those that change states on their way and are not scored: an earlier plan did that.
    ``originals`` goes with the rows up to the stage that looks for duplicates.
    """

    events: EventColumns
    partition: np.ndarray
    offset: np.ndarray
    arrival_time_ms: np.ndarray
    keys: pa.Array | None
    features: dict[str, np.ndarray]
    ages: dict[str, np.ndarray]
    incomplete: np.ndarray
    silent: np.ndarray
    originals: Originals | None = None

    def __len__(self) -> int:
        return self.events.length

    def take(self, indices: np.ndarray) -> StreamRows:
        """Return the rows at ``indices`` (int64[k]), in that order."""
        return StreamRows(
            take(self.events, indices),
            self.partition[indices],
            self.offset[indices],
            self.arrival_time_ms[indices],
            None if self.keys is None else self.keys.take(pa.array(indices)),
            {name: values[indices] for name, values in self.features.items()},
            {view: values[indices] for view, values in self.ages.items()},
            self.incomplete[indices],
            self.silent[indices],
            None if self.originals is None else self.originals.take(indices),
        )


@dataclass(frozen=True, slots=True)
class Hop:
    """The way from one log into one input of a stage.

    ``columns`` are the event's columns that are still needed; ``features`` and ``ages`` what the
    stages before have computed. ``relayed``: the sender is itself a re-keyed stage, so that its
    positions are not the source's offsets. ``with_originals``: the receiver looks for duplicates.
    """

    fingerprint: str
    receivers: int
    alignment_ms: int
    input: int
    source: SourcePlan
    topic: str
    key: str
    key_type: pa.DataType
    scored: bool
    relayed: bool
    columns: tuple[str, ...]
    features: tuple[str, ...]
    ages: tuple[str, ...]
    schema: pa.Schema = field(compare=False)
    with_originals: bool = False

    def pack(self, rows: StreamRows, position: np.ndarray) -> pa.RecordBatch:
        """Return the rows as the hop carries them."""
        arrays = [pa.array(rows.offset), pa.array(rows.events.event_time_ms)]
        if self.relayed:
            arrays += [pa.array(position), pa.array(rows.partition, pa.int32())]
        if self.source.known_at is not None:
            arrays.append(pa.array(rows.events.known_at_ms))
        if self.scored:
            assert rows.keys is not None
            flags = rows.incomplete * _INCOMPLETE | rows.silent * _SILENT
            arrays += [pa.array(rows.arrival_time_ms), rows.keys, pa.array(flags)]
        arrays += [rows.events.columns[name] for name in self.columns]
        arrays += [pa.array(rows.features[name]) for name in self.features]
        arrays += [pa.array(rows.ages[view]) for view in self.ages]
        if self.with_originals:
            assert rows.originals is not None
            arrays += rows.originals.pack(rows)
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def receiver_of(self, rows: StreamRows) -> np.ndarray:
        """Return int32[n]: the partition of ``topic`` that owns each row's key.

        A row without a key belongs to nobody's state; it goes where its offset says, or its id, so
        that one sent twice comes to the same place.
        """
        keys = rows.events.columns[self.key]
        if keys.type != self.key_type:
            keys = keys.cast(self.key_type)
        receivers: np.ndarray = partition_of(hash_keys(keys), self.receivers)
        if keys.null_count:
            hashes = hash_keys(pa.array(rows.offset))
            if rows.originals is not None:
                hashes = np.where(rows.originals.ids.known, rows.originals.ids.hashes, hashes)
            spread = partition_of(hashes, self.receivers)
            receivers = np.where(keys.is_null().to_numpy(zero_copy_only=False), spread, receivers)
        return receivers

    def positions(self, packed: pa.RecordBatch) -> np.ndarray:
        """Return int64[n]: where each row stands in its lane."""
        column: np.ndarray = packed.column(2 if self.relayed else 0).to_numpy()
        return column

    def event_time_ms(self, packed: pa.RecordBatch) -> np.ndarray:
        """Return int64[n]: the event time of each row."""
        column: np.ndarray = packed.column(1).to_numpy()
        return column

    def unpack(self, packed: pa.RecordBatch, lane_partition: int | np.ndarray) -> StreamRows:
        """Return the rows of a packed batch.

        ``lane_partition`` is the sender's partition of each row: where the sender reads the source
        itself, that is the source's.
        """
        arrays: Iterator[pa.Array] = iter(packed.columns)
        count = packed.num_rows
        offset = next(arrays).to_numpy()
        event_time = next(arrays)
        if self.relayed:
            next(arrays)
            partition = next(arrays).to_numpy()
        else:
            partition = np.empty(count, np.int32)
            partition[:] = lane_partition
        known_at = next(arrays) if self.source.known_at is not None else event_time
        keys, flags, arrival_time_ms = None, np.zeros(count, np.uint8), np.zeros(count, np.int64)
        if self.scored:
            arrival_time_ms = next(arrays).to_numpy()
            keys = next(arrays)
            flags = next(arrays).to_numpy()
        columns = {name: next(arrays) for name in self.columns}
        columns[self.source.event_time] = event_time
        if self.source.known_at is not None:
            columns[self.source.known_at] = known_at
        events = EventColumns(
            self.source, count, event_time.to_numpy(), known_at.to_numpy(), columns
        )
        features = {name: next(arrays).to_numpy() for name in self.features}
        ages = {view: next(arrays).to_numpy() for view in self.ages}
        return StreamRows(
            events,
            partition,
            offset,
            arrival_time_ms,
            keys,
            features,
            ages,
            incomplete=(flags & _INCOMPLETE).astype(bool),
            silent=(flags & _SILENT).astype(bool),
        )


def hop_to(plan: PipelinePlan, stage_index: int, input_index: int) -> Hop:
    """Describe the hop into input ``input_index`` of stage ``stage_index``."""
    stage = plan.stages[stage_index]
    stage_input = stage.inputs[input_index]
    source = plan.source_plan(stage_input.source)
    before = plan.stages[:stage_index] if stage_input.scored else ()
    kinds = {column.name: column.kind for column in source.columns}
    columns = needed_columns(plan, stage_index, input_index)
    features = tuple(feature.name for earlier in before for feature in earlier.features)
    ages = tuple(age.view for earlier in before for age in earlier.ages)
    relayed = bool(before) and not before[-1].direct
    fields = [pa.field("_offset", pa.int64()), pa.field("_event_time_ms", pa.int64())]
    if relayed:
        fields += [pa.field("_position", pa.int64()), pa.field("_partition", pa.int32())]
    if source.known_at is not None:
        fields.append(pa.field("_known_at_ms", pa.int64()))
    if stage_input.scored:
        fields += [pa.field("_arrival_ms", pa.int64()), pa.field("_key", pa.binary())]
        fields.append(pa.field("_flags", pa.uint8()))
    fields += [pa.field(name, ARROW_TYPES[kinds[name]]) for name in columns]
    fields += [pa.field(name, pa.float64()) for name in features]
    fields += [pa.field(f"_age_{view}", pa.float64()) for view in ages]
    with_originals = looks_for_duplicates(plan, stage_index, input_index)
    if with_originals:
        fields += FIELDS
    return Hop(
        rekey_layout(plan, stage_index),
        plan.partitions,
        plan.alignment_ms,
        input_index,
        source,
        stage.topic,
        stage_input.key,
        ARROW_TYPES[stage.key_kind],
        stage_input.scored,
        relayed,
        columns,
        features,
        ages,
        pa.schema(fields),
        with_originals,
    )


class LaneSender:
    """One lane's sending end: cuts rows by receiver and tells every receiver how far it has come.

    A receiver that gets no rows is told when the lane has come to its end, when it opens again
    with a backlog before it, and else when the watermark has moved by half the alignment since it
    was last told: no row waits for more.
    """

    def __init__(self, hop: Hop, partition: int) -> None:
        """Send from ``partition`` of the log that this end reads."""
        self._hop = hop
        self._lane = Lane(hop.input, partition)
        self._told_position = [RESUMED] * hop.receivers
        self._told_watermark_ms = [NEVER] * hop.receivers
        self._told_at_end: list[bool | None] = [None] * hop.receivers
        # Who was told that the lane is at its end since that was last said again.
        self._told_lately = [False] * hop.receivers
        self._saved: tuple[list[int], list[int], list[bool | None]] | None = None

    @property
    def hop(self) -> Hop:
        """Where the lane leads."""
        return self._hop

    def send(
        self,
        rows: StreamRows | None,
        position: np.ndarray | None,
        last: int,
        watermark_ms: int,
        *,
        at_end: bool,
        opening: bool = False,
    ) -> list[SingleOutput]:
        """Return the messages of one batch.

        Args:
            rows: What goes on, or None.
            position: int64[n], growing: where each row stands in the lane.
            last: The position up to which these rows are complete.
            watermark_ms: Largest time that this end has seen.
            at_end: Whether the log that this end reads holds no more.
            opening: Whether it held no more before, and now there is a backlog.

        """
        hop = self._hop
        outputs: list[SingleOutput] = []
        bounds = np.zeros(hop.receivers + 1, np.int64)
        packed: pa.RecordBatch | None = None
        if rows is not None and len(rows):
            assert position is not None
            packed = hop.pack(rows, position)
            if hop.receivers > 1:
                receiver = hop.receiver_of(rows)
                if (receiver[1:] < receiver[:-1]).any():
                    packed = packed.take(pa.array(np.argsort(receiver, kind="stable")))
                np.cumsum(np.bincount(receiver, minlength=hop.receivers), out=bounds[1:])
            else:
                bounds[1] = packed.num_rows
        for receiver_index in range(hop.receivers):
            start, stop = int(bounds[receiver_index]), int(bounds[receiver_index + 1])
            if packed is not None and stop > start:
                pieces = cut(packed.slice(start, stop - start))
                outputs += [self._piece(receiver_index, piece) for piece in pieces[:-1]]
                body = pieces[-1].serialize().to_pybytes()
            elif self._must_tell(receiver_index, watermark_ms, at_end=at_end, opening=opening):
                body = b""
            else:
                continue
            outputs.append(self._message(receiver_index, body, last, watermark_ms, at_end=at_end))
        return outputs

    def say_again(self, last: int, watermark_ms: int) -> list[SingleOutput]:
        """Return messages that say once more that the lane is at its end.

        Whoever was told since this was last called is left out, so that calls at an interval leave
        nobody without word for twice as long.
        """
        outputs = [
            self._message(receiver, b"", last, watermark_ms, at_end=True)
            for receiver in range(self._hop.receivers)
            if not self._told_lately[receiver]
        ]
        self._told_lately = [False] * self._hop.receivers
        return outputs

    def begin(self) -> None:
        """Remember what the receivers have been told, for ``abort``."""
        self._saved = (
            list(self._told_position),
            list(self._told_watermark_ms),
            list(self._told_at_end),
        )

    def commit(self) -> None:
        """Forget what ``begin`` remembered."""
        self._saved = None

    def abort(self) -> None:
        """Go back to what the receivers had been told at ``begin``."""
        assert self._saved is not None
        self._told_position, self._told_watermark_ms, self._told_at_end = self._saved
        # What was told before the transaction may be long ago.
        self._told_lately = [False] * self._hop.receivers
        self._saved = None

    def _must_tell(self, receiver: int, watermark_ms: int, *, at_end: bool, opening: bool) -> bool:
        if at_end or opening:
            return self._told_at_end[receiver] is not at_end
        step = self._hop.alignment_ms // 2
        return watermark_ms - self._told_watermark_ms[receiver] > step

    def _piece(self, receiver: int, piece: pa.RecordBatch) -> SingleOutput:
        """Return a message that others of the same batch follow: no more than before is told."""
        last = int(self._hop.positions(piece)[-1])
        watermark_ms = self._told_watermark_ms[receiver]
        body = piece.serialize().to_pybytes()
        return self._message(receiver, body, last, watermark_ms, at_end=False)

    def _message(
        self, receiver: int, body: bytes, last: int, watermark_ms: int, *, at_end: bool
    ) -> SingleOutput:
        note = LaneNote(
            self._hop.fingerprint,
            self._hop.source.name,
            self._lane,
            self._told_position[receiver],
            last,
            watermark_ms,
            at_end,
        )
        self._told_position[receiver] = last
        self._told_watermark_ms[receiver] = watermark_ms
        self._told_at_end[receiver] = at_end
        self._told_lately[receiver] |= at_end
        return SingleOutput(self._hop.topic, body, None, receiver, [note.header()])


def cut(rows: pa.RecordBatch, bytes_max: int = MESSAGE_BYTES_MAX) -> list[pa.RecordBatch]:
    """Cut rows into runs of at most ``bytes_max`` each, halving until they fit."""
    if rows.num_rows <= 1 or rows.nbytes <= bytes_max:
        return [rows]
    half = rows.num_rows // 2
    return cut(rows.slice(0, half), bytes_max) + cut(rows.slice(half), bytes_max)
