"""Spines: the rows that are asked about, as asks, and back from asks to rows.

A row that names an event asks for what came up to and with it; a bare row, a key and a time, for
all up to that time; no spine at all for every event of the source, or of a period of it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.features.columns import event_columns
from headrace.features.errors import did_you_mean
from headrace.lake.answers import Asks
from headrace.lake.errors import HistoryError
from headrace.lake.repeats import find_repeats
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headrace.features.columns import EventColumns
    from headrace.features.plan import PipelinePlan, SourcePlan
    from headrace.lake.events import EventReader, Span

    Integers = NDArray[np.int64]


_ROWS_IN_MEMORY: Final = 4_000_000


@dataclass(slots=True)
class Spine:
    """What is asked, and how an answer per ask becomes one per row.

    ``table`` None: each ask is a row and its columns are its event's. ``inverse``: which ask each
    row is, None: row i is ask i.
    """

    asks: Asks
    table: pa.Table | None
    inverse: Integers | None = None


def spine_of_events(plan: PipelinePlan, reader: EventReader, span: Span | None) -> Spine:
    """Return every event of the scored source as a spine, or those of a span.

    Rows come as they lie in files; from the lake by event time, then place in Kafka.
    """
    source = plan.source_plan(plan.source)
    if span is not None:
        reader = reader.narrow(span)
    position, times = event_times(source, reader)
    inside = None
    if span is not None:
        inside = np.flatnonzero((times >= span.start_ms) & (times <= span.end_ms))
        position, times = position[inside], times[inside]
    if not reader.ordered:
        order = np.lexsort((position, times))
        return Spine(Asks(times[order], position[order], None), None)
    table = reader.read([column.name for column in source.columns])
    if inside is not None:
        table = table.take(pa.array(inside))
    return Spine(Asks(times, position, None), table)


def spine_of_table(
    plan: PipelinePlan,
    reader: EventReader,
    table: pa.Table,
    event_id: str | Literal[False] | None,
    time: str | None,
) -> Spine:
    """Return the rows of a table as a spine.

    Raises:
        HistoryError: If it names unknown events, or has no usable key or time.

    """
    source = plan.source_plan(plan.source)
    named = _event_id_column(table, source, event_id)
    if named is None:
        bare = _bare_events(plan, source, table, time)
        return Spine(Asks(bare.event_time_ms, None, bare), table)
    position = _positions(table.column(named), source, reader)
    unique, inverse = np.unique(position, return_inverse=True)
    asks = Asks(_times_at(source, reader, unique), unique, None)
    return Spine(asks, table, None if np.array_equal(unique, position) else inverse)


def event_times(source: SourcePlan, reader: EventReader) -> tuple[Integers, Integers]:
    """Return position and event time of each row of the scored source, bad ones included."""
    only = _only_time(source)
    parts = [
        (part.position, event_columns(part.batch, only).event_time_ms)
        for part in reader.parts([only.event_time])
    ]
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    positions, times = zip(*parts, strict=True)
    return np.concatenate(positions), np.concatenate(times)


def _only_time(source: SourcePlan) -> SourcePlan:
    return dataclasses.replace(
        source,
        columns=tuple(c for c in source.columns if c.name == source.event_time),
        known_at=None,
        checked=(),
        checked_expressions=(),
    )


def _times_at(source: SourcePlan, reader: EventReader, position: Integers) -> Integers:
    """Return the event times of the rows at sorted positions."""
    times = np.zeros(len(position), np.int64)
    only = _only_time(source)
    wanted = Asks(times, position, None)
    for part in reader.parts([only.event_time]):
        found = wanted.find(part.position)
        rows = np.flatnonzero(found >= 0)
        if len(rows):
            times[found[rows]] = event_columns(part.batch, only).event_time_ms[rows]
    return times


def _event_id_column(
    table: pa.Table, source: SourcePlan, event_id: str | Literal[False] | None
) -> str | None:
    names = table.schema.names
    if event_id is False:
        return None
    if event_id is None:
        own = source.event_id
        return own if own in names else None
    where = f"source {source.name}"
    if source.event_id is None:
        rule = "be declared where a spine names events"
        raise HistoryError(explain("event_id", rule, None, where, "write event_id=… there"))
    if event_id not in names:
        hint = did_you_mean(event_id, names)
        raise HistoryError(explain(f"column {event_id}", "be in the spine", names, where, hint))
    return event_id


def _positions(ids: pa.ChunkedArray, source: SourcePlan, reader: EventReader) -> Integers:
    """Return the position of each event id in its source; of an id that comes twice, the first.

    Where the stream looks for duplicates that is the one that it counted.
    """
    assert source.event_id is not None, "the caller has checked"
    where = f"source {source.name}"
    kind = next(column.kind for column in source.columns if column.name == source.event_id)
    target = {"int64": pa.int64(), "string": pa.string(), "bytes": pa.binary()}[kind]
    try:
        wanted = ids.combine_chunks().cast(target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        rule = f"hold {kind} event ids"
        raise HistoryError(explain("the spine", rule, str(ids.type), where)) from error
    unique = wanted.unique()
    unknown = np.iinfo(np.int64).max
    position = np.full(len(unique), unknown, dtype=np.int64)
    repeats = find_repeats(source, reader, scored=True, rows_in_memory=_ROWS_IN_MEMORY)
    for part in reader.parts([source.event_id]):
        column = part.batch.column(part.batch.schema.names.index(source.event_id)).cast(target)
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        found = pc.fill_null(pc.index_in(column, value_set=unique), -1).to_numpy()
        rows = np.flatnonzero((found >= 0) & ~repeats.among(part.position))
        np.minimum.at(position, found[rows], part.position[rows])
    lost = np.flatnonzero(position == unknown)
    if len(lost):
        got = f"{len(lost):,} unknown ids, such as {unique[int(lost[0])].as_py()!r}"
        rule = "name events that its source holds"
        raise HistoryError(explain("the spine", rule, got, where))
    places: Integers = position[pc.index_in(wanted, value_set=unique).to_numpy()]
    return places


def _bare_events(
    plan: PipelinePlan, source: SourcePlan, table: pa.Table, time: str | None
) -> EventColumns:
    """Return a spine of keys and times as events of the scored source, as far as it has columns."""
    name = time or source.event_time
    where = "the spine"
    if name not in table.schema.names:
        hint = "name the column with time="
        raise HistoryError(explain(f"column {name}", "be there", table.schema.names, where, hint))
    if name != source.event_time:
        others = [n for n in table.schema.names if n != source.event_time]
        table = table.select(others).rename_columns(
            [source.event_time if n == name else n for n in others]
        )
    for stage in plan.stages:
        key = next(given.key for given in stage.inputs if given.scored)
        if key not in table.schema.names:
            rule = f"hold the key of entity {stage.entity}"
            got = ", ".join(table.schema.names)
            raise HistoryError(explain(where, rule, got, f"column {key}"))
    present = tuple(c for c in source.columns if c.name in table.schema.names)
    partial = dataclasses.replace(
        source, columns=present, known_at=None, checked=(), checked_expressions=()
    )
    events = event_columns(table, partial)
    if events.columns[source.event_time].null_count:
        rule = "hold no nulls"
        got = events.columns[source.event_time].null_count
        raise HistoryError(explain(f"column {name}", rule, got, where))
    return events
