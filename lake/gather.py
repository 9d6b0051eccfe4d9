"""A topic's records on their way to its tables: gathered as bytes, decoded when appended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa

from headrace.lake.decode import TopicDecoder
from headrace.lake.errors import UnstorableError
from headrace.lake.storable import stored_batch
from headrace.lake.tables import RECORD_FIELDS
from headrace.lake.writer import Advance, TopicTables, record_columns, rejected_rows
from headrace.runtime.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from confluent_kafka import Message

    from headrace.lake.targets import Target
    from headrace.schemas.codec import Decoded
    from headrace.schemas.registry import SchemaRegistry

log = get_logger(__name__)

NOT_STORABLE: Final = "not_storable"
#: What a gathered record costs besides its key and value.
_ROW_BYTES: Final = 160


@dataclass(slots=True)
class Lane:
    """A partition: how far its tables are, how far it has been read, and what lies between.

    ``position`` is the main table's; ``settled`` are offsets from there on that stand among the
    rejected already. ``next_offset`` None: from the partition's beginning.
    """

    partition: int
    position: int | None
    settled: frozenset[int]
    next_offset: int | None = None
    end_offset: int = 0
    at_end: bool = False
    #: The broker has fewer records than the table holds: nothing is read until it has more.
    is_beyond_end: bool = False
    values: list[bytes | None] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    arrival_time_ms: list[int] = field(default_factory=list)

    @property
    def has_moved(self) -> bool:
        """Return whether it has been read beyond what the table says."""
        return self.next_offset is not None and self.next_offset != self.position

    def forget(self) -> None:
        """Drop what was gathered."""
        for column in (self.values, self.keys, self.offsets, self.arrival_time_ms):
            column.clear()


class Appended(NamedTuple):
    """What an append held: rows, and rejected records by reason."""

    rows: int
    rejected: Mapping[str, int]


class Gather:
    """A topic's lanes, and what was read of them and not yet appended."""

    def __init__(
        self, target: Target, topic_id: str, folder: Path, registry: SchemaRegistry
    ) -> None:
        self.target = target
        self.topic_id = topic_id
        self.tables = TopicTables(folder, target.table)
        self.lanes: dict[int, Lane] = {}
        self.rows = 0
        self.bytes = 0
        self._decoder = TopicDecoder(target, registry)

    def redefine(self, target: Target) -> None:
        """Go on with the definitions' new schema."""
        self.target = target
        self._decoder.redefine(target)

    def add_lane(self, partition: int) -> None:
        """Follow one more partition, from where the tables end."""
        position = self.tables.main.position(self.topic_id, partition)
        settled = self.tables.settled(self.topic_id, partition, position or 0)
        self.lanes[partition] = Lane(partition, position, settled, position)

    def add(self, partition: int, messages: Sequence[Message]) -> None:
        """Gather a partition's next records, in order."""
        lane = self.lanes[partition]
        begin = lane.next_offset or 0
        if messages[0].offset() < begin:  # type: ignore[operator]
            messages = [one for one in messages if one.offset() >= begin]  # type: ignore[operator]
            if not messages:
                return
        values = [one.value() for one in messages]
        lane.values += values
        lane.keys += [one.key() for one in messages]
        lane.offsets += [one.offset() for one in messages]  # type: ignore[misc]
        lane.arrival_time_ms += [one.timestamp()[1] for one in messages]
        lane.next_offset = lane.offsets[-1] + 1
        lane.at_end = False
        self.rows += len(messages)
        self.bytes += _ROW_BYTES * len(messages) + sum([len(one) for one in values if one])

    def forget(self) -> None:
        """Drop what was gathered."""
        for lane in self.lanes.values():
            lane.forget()
        self.rows = self.bytes = 0

    def resume(self) -> None:
        """Look at the tables again after an append that did not go through."""
        self.tables.reload()
        for lane in self.lanes.values():
            position = lane.position or 0
            lane.settled = self.tables.settled(self.topic_id, lane.partition, position)

    @property
    def has_moved(self) -> bool:
        """Return whether any lane has been read beyond its table."""
        return any(lane.has_moved for lane in self.lanes.values())

    def append(self) -> Appended:
        """Append what was gathered, and the positions; nothing is gathered any more.

        Raises:
            RegistryUnavailableError: Nothing was appended; to be called again.
            TableBusyError: As for ``TopicTables.append``; ``resume``, then to be called again.
            SecondWriterError: Somebody else writes to the tables.

        """
        lanes = [lane for _, lane in sorted(self.lanes.items()) if lane.has_moved]
        advances = [
            Advance(self.topic_id, lane.partition, lane.position, lane.next_offset)
            for lane in lanes
            if lane.next_offset is not None
        ]
        records = _Records(self.topic_id, lanes)
        rows, refused = self._rows(records)
        rejected = records.rejected(refused) if refused else None
        self.tables.append(rows, rejected, advances)
        for lane in lanes:
            lane.position = lane.next_offset
            if lane.settled:
                # Some may lie further on than this append went.
                end = lane.position or 0
                lane.settled = frozenset(offset for offset in lane.settled if offset >= end)
        self.forget()
        reasons: dict[str, int] = {}
        for _, reason, _ in refused:
            reasons[reason] = reasons.get(reason, 0) + 1
        return Appended(rows.num_rows, reasons)

    def _rows(self, records: _Records) -> tuple[pa.Table, list[tuple[int, str, str]]]:
        """Return what goes to the main table, and (place, reason, detail) of what does not."""
        decoded = self._decoder.decode(records.values)
        refused = [(one.index, one.reason, one.detail) for one in decoded.rejected]
        try:
            rows, bad, why = self._aligned(decoded, records)
        except UnstorableError as error:
            log.warning("not_storable", topic=self.target.topic, reason=str(error))
            detail = str(error)[:300]
            refused += [(place, NOT_STORABLE, detail) for place in decoded.rows.tolist()]
            rows, _, _ = self.tables.main.aligned(RECORD_FIELDS.empty_table())
        else:
            refused += [(place, NOT_STORABLE, why) for place in decoded.rows[bad].tolist()]
        refused.sort()
        return rows, refused

    def _aligned(self, decoded: Decoded, records: _Records) -> tuple[pa.Table, np.ndarray, str]:
        rows = stored_batch(decoded.batch)
        taken = {name.lower() for name in RECORD_FIELDS.names}
        for name in rows.column_names:
            if name.lower() in taken:
                message = f"field {name} must not have a name of the lake's own; rename the field"
                raise UnstorableError(message)
        for index, name in enumerate(RECORD_FIELDS.names):
            column = records.columns.column(index)
            if len(decoded.rows) < len(column):
                column = column.take(pa.array(decoded.rows))
            rows = rows.append_column(RECORD_FIELDS.field(name), column)
        return self.tables.main.aligned(rows)


class _Records:
    """The lanes' records one behind the other, by (partition, offset), the settled left out."""

    def __init__(self, topic_id: str, lanes: Sequence[Lane]) -> None:
        self.values: list[bytes | None] = []
        self._keys: list[bytes | None] = []
        columns = [RECORD_FIELDS.empty_table()]
        for lane in lanes:
            offsets = np.array(lane.offsets, np.int64)
            arrival = np.array(lane.arrival_time_ms, np.int64)
            values, keys = lane.values, lane.keys
            if lane.settled:
                kept = [i for i, offset in enumerate(lane.offsets) if offset not in lane.settled]
                offsets, arrival = offsets[kept], arrival[kept]
                values, keys = [values[i] for i in kept], [keys[i] for i in kept]
            self.values += values
            self._keys += keys
            columns.append(record_columns(topic_id, lane.partition, offsets, arrival))
        self.columns = pa.concat_tables(columns)

    def rejected(self, refused: list[tuple[int, str, str]]) -> pa.Table:
        """Return the records at the places of (place, reason, detail) as their table holds them."""
        places = [place for place, _, _ in refused]
        return rejected_rows(
            self.columns.take(pa.array(places, pa.int64())),
            [(reason, detail) for _, reason, detail in refused],
            [self._keys[place] for place in places],
            [self.values[place] for place in places],
        )
