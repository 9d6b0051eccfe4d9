"""A source's rows in the lake as events: of one topic, in ranges of offsets, pruned by time.

The table's files are in no order, so a row's position is made of where it stood in Kafka. It is
the same after compaction, and the same whatever else is read.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.lake.errors import HistoryError
from headrace.lake.events import NEVER_MS, Part, arrival_ms
from headrace.lake.tables import ARRIVAL_TIME, OFFSET, PARTITION, TOPIC_ID
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from headrace.lake.events import Span
    from headrace.lake.tables import LakeTable

    Integers = NDArray[np.int64]

TopicChoice = Literal["current", "all"]

_OFFSET_BITS: Final = 46
_PARTITION_BITS: Final = 14
_TOPICS_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Offsets from ``first`` up to but without ``end`` of a partition; ``rows`` lie there."""

    topic_id: str
    partition: int
    first: int
    end: int
    rows: int


@dataclass(frozen=True, slots=True)
class LakeEvents:
    """A source's rows of one or more topics of its name, as one version of the table holds them.

    ``ranges`` is all that is read, now and in a rebuild. ``time`` is the column that ``narrow``
    prunes by; ``row_filter`` an Arrow expression, None: all rows.
    """

    name: str
    table: LakeTable
    ranges: tuple[OffsetRange, ...]
    time: str
    row_count: int
    row_filter: Any = None

    @property
    def ordered(self) -> bool:
        """The files are in no order."""
        return False

    @property
    def topic_ids(self) -> tuple[str, ...]:
        """The topics that are read, in the order that ties are broken by."""
        return tuple(sorted({one.topic_id for one in self.ranges}))

    def narrow(self, span: Span, *, counted: bool = True) -> LakeEvents:
        """Return a reader of the rows within the span; ``counted`` as in ``where``."""
        kind = self.table.schema.field(self.time).type
        field = pc.field(self.time)
        if pa.types.is_timestamp(kind):
            # A microsecond counts to its millisecond.
            start, end = (
                pa.scalar(min(max(us, -(1 << 62)), 1 << 62), pa.int64()).cast(kind)
                for us in (span.start_ms * 1_000, span.end_ms * 1_000 + 999)
            )
            inside = (field >= start) & (field <= end)
        else:
            inside = (field >= span.start_ms) & (field <= span.end_ms)
        return self.where(inside, counted=counted)

    def where(self, condition: Any, *, counted: bool = True) -> LakeEvents:
        """Return a reader of the rows for which the Arrow expression holds.

        Not ``counted``, its ``row_count`` stays an upper bound and no pass is made for it.
        """
        both = condition if self.row_filter is None else self.row_filter & condition
        rows = self.row_count
        if counted:
            rows = sum(batch.num_rows for batch in self.table.batches([OFFSET], both))
        return dataclasses.replace(self, row_filter=both, row_count=rows)

    def parts(self, columns: Sequence[str], *, whole: bool = False) -> Iterator[Part]:
        """Yield the rows with those of ``columns`` that there are; ``whole``: as one part."""
        names = self.table.schema.names
        wanted = [name for name in dict.fromkeys(columns) if name in names]
        places = [TOPIC_ID, PARTITION, OFFSET, ARRIVAL_TIME]
        batches = self.table.batches(list(dict.fromkeys([*wanted, *places])), self.row_filter)
        if whole or self.row_count == 0:
            yield self._part(self._whole(list(batches), [*wanted, *places]), wanted)
            return
        for batch in batches:
            if batch.num_rows:
                yield self._part(batch, wanted)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all rows in the order of their positions; None: with the record's fields."""
        names = list(self.table.schema.names) if columns is None else list(columns)
        (part,) = self.parts(names, whole=True)
        order = np.argsort(part.position, kind="stable")
        return pa.table(part.batch).take(pa.array(order))

    def _whole(self, batches: list[pa.RecordBatch], columns: list[str]) -> pa.Table:
        names = list(dict.fromkeys(columns))
        schema = pa.schema([self.table.schema.field(name) for name in names])
        if not batches:
            return schema.empty_table()
        return pa.Table.from_batches(batches).select(names)

    def _part(self, batch: pa.RecordBatch | pa.Table, wanted: list[str]) -> Part:
        position = positions(batch, self.topic_ids)
        return Part(batch.select(wanted), position, arrival_ms(batch))


def positions(
    batch: pa.RecordBatch | pa.Table,
    topic_ids: Sequence[str],
    columns: tuple[str, str, str] = (TOPIC_ID, PARTITION, OFFSET),
) -> Integers:
    """Return each row's place in Kafka as one number: topic, then partition, then offset.

    Args:
        batch: Rows of these topics only.
        topic_ids: The topics, in their order.
        columns: Where topic id, partition and offset stand.

    """
    topic, partition, offset = columns
    places: Integers = (_integers(batch, partition) << _OFFSET_BITS) | _integers(batch, offset)
    if len(topic_ids) > 1:
        rank = pc.index_in(_array(batch, topic), value_set=pa.array(topic_ids, pa.string()))
        places |= rank.to_numpy(zero_copy_only=False).astype(np.int64) << (
            _OFFSET_BITS + _PARTITION_BITS
        )
    return places


def partition_of(position: Integers) -> Integers:
    """Return the topic and partition that positions lie in, as one number for each such log."""
    return position >> _OFFSET_BITS


def open_stored(
    table: LakeTable,
    name: str,
    time: str,
    topics: TopicChoice = "current",
    ranges: Sequence[OffsetRange] | None = None,
) -> LakeEvents:
    """Return a reader of a table's rows.

    Args:
        table: The table.
        name: What it is called in messages.
        time: The column with the event time.
        topics: ``current``: of a topic that was deleted and made again only the newest one, which
            is the one with the latest arrival; ``all``: of every topic of that name.
        ranges: Read exactly these offsets, as a receipt says.

    Raises:
        HistoryError: If the table lacks the column, rows of ``ranges``, or holds more topics or
            larger numbers than a position can tell apart.

    """
    if time not in table.schema.names:
        got = ", ".join(table.schema.names)
        raise HistoryError(explain(f"column {time}", "be in the lake", got, f"table {name}"))
    found = _extents(table, ranges)
    if ranges is None:
        chosen = _current(found) if topics == "current" else found
        kept = tuple(one for _, extents in sorted(chosen.items()) for one, _ in extents)
    else:
        kept = tuple(sorted(ranges, key=lambda one: (one.topic_id, one.partition)))
        _check_rows(found, kept, name)
    _check_bounds(kept, name)
    rows = sum(one.rows for one in kept)
    everything = sum(one.rows for extents in found.values() for one, _ in extents)
    pinned = ranges is not None or rows < everything
    row_filter = _range_filter(kept, exact=ranges is not None) if pinned else None
    return LakeEvents(name, table, kept, time, rows, row_filter)


_Extents = dict[str, list[tuple[OffsetRange, int]]]


def _extents(table: LakeTable, ranges: Sequence[OffsetRange] | None) -> _Extents:
    """Return by topic id the offsets that there are, partition by partition, and last arrivals."""
    row_filter = None if ranges is None else _range_filter(ranges, exact=True)
    seen: dict[tuple[str, int], list[int]] = {}
    columns = [TOPIC_ID, PARTITION, OFFSET, ARRIVAL_TIME]
    for batch in table.batches(columns, row_filter):
        topics = batch.column(0)
        offsets, arrivals = _integers(batch, OFFSET), arrival_ms(batch)
        arrivals = np.where(arrivals == NEVER_MS, 0, arrivals)
        partitions = _integers(batch, PARTITION)
        unique = topics.unique().to_pylist()
        for topic in unique:
            of_topic = (
                np.ones(len(offsets), bool)
                if len(unique) == 1
                else pc.equal(topics, topic).to_numpy(zero_copy_only=False)
            )
            for partition in np.unique(partitions[of_topic]).tolist():
                rows = of_topic & (partitions == partition)
                first, last = int(offsets[rows].min()), int(offsets[rows].max())
                count, arrival = int(rows.sum()), int(arrivals[rows].max())
                old = seen.setdefault((topic, partition), [first, last, 0, arrival])
                seen[topic, partition] = [
                    min(old[0], first),
                    max(old[1], last),
                    old[2] + count,
                    max(old[3], arrival),
                ]
    found: _Extents = {}
    for (topic, partition), (first, last, count, arrival) in sorted(seen.items()):
        one = OffsetRange(topic, partition, first, last + 1, count)
        found.setdefault(topic, []).append((one, arrival))
    return found


def _current(found: _Extents) -> _Extents:
    if not found:
        return {}
    newest = max(found, key=lambda topic: (max(arrival for _, arrival in found[topic]), topic))
    return {newest: found[newest]}


def _check_rows(found: _Extents, ranges: Sequence[OffsetRange], name: str) -> None:
    there = {
        (one.topic_id, one.partition): one.rows for extents in found.values() for one, _ in extents
    }
    for one in ranges:
        rows = there.get((one.topic_id, one.partition), 0)
        if rows != one.rows:
            where = f"table {name}, partition {one.partition}, offsets {one.first} to {one.end - 1}"
            hint = "retention or an erasure has taken rows away: such a set cannot be made again"
            rule = f"hold the receipt's {one.rows:,} rows"
            raise HistoryError(explain("the lake", rule, f"{rows:,}", where, hint))


def _check_bounds(ranges: Sequence[OffsetRange], name: str) -> None:
    topics = {one.topic_id for one in ranges}
    if len(topics) > _TOPICS_MAX:
        rule = f"be read from at most {_TOPICS_MAX} topics"
        hint = "take topics='current'"
        raise HistoryError(explain("a source", rule, len(topics), f"table {name}", hint))
    for one in ranges:
        if one.end > 1 << _OFFSET_BITS or one.partition >= 1 << _PARTITION_BITS:
            rule = f"be below 2^{_PARTITION_BITS} and 2^{_OFFSET_BITS}"
            got = f"{one.partition} and {one.end}"
            raise HistoryError(explain("partition and offset", rule, got, f"table {name}"))


def _range_filter(ranges: Sequence[OffsetRange], *, exact: bool) -> Any:
    """Return the Arrow expression of the rows in the ranges; not exact: of their topics."""
    if not ranges:
        return pc.scalar(False)
    if not exact:
        return pc.field(TOPIC_ID).isin(sorted({one.topic_id for one in ranges}))
    condition = None
    for one in ranges:
        inside = (
            (pc.field(TOPIC_ID) == one.topic_id)
            & (pc.field(PARTITION) == one.partition)
            & (pc.field(OFFSET) >= one.first)
            & (pc.field(OFFSET) < one.end)
        )
        condition = inside if condition is None else condition | inside
    return condition


def ranges_by_table(readers: Mapping[str, object]) -> dict[str, tuple[OffsetRange, ...]]:
    """Return what is read of each table, for those readers that read the lake."""
    return {
        reader.table.name: reader.ranges
        for reader in readers.values()
        if isinstance(reader, LakeEvents)
    }


def _array(batch: pa.RecordBatch | pa.Table, name: str) -> pa.Array:
    column = batch.column(batch.schema.names.index(name))
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _integers(batch: pa.RecordBatch | pa.Table, name: str) -> Integers:
    numbers: Integers = _array(batch, name).to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers
