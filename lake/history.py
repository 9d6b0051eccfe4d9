"""``hr.history``: the features that the stream would have had, for any rows of the past.

Event order (docs/adr on event time): each row gets what is known by now of the time up to it, by
canonical order. The kernels are the stream's own; ``replay`` brings the rows to them.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from headrace.features.columns import event_columns
from headrace.features.errors import did_you_mean
from headrace.features.vector import assemble
from headrace.lake.errors import HistoryError
from headrace.lake.events import EventReader, open_events
from headrace.lake.replay import Asks, Limits, Replay, Replayed
from headrace.lake.request import plans_for
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from headrace.features.columns import EventColumns
    from headrace.features.definitions import FeatureView, Pipeline
    from headrace.features.plan import PipelinePlan, SourcePlan, VectorColumn
    from headrace.features.project import Project
    from headrace.lake.events import Data

    Floats = NDArray[np.float64]
    Features = Pipeline | PipelinePlan | FeatureView | Sequence[FeatureView | str]

# Rows of all sources that are worked on in memory: some 150 bytes each at the peak.
ROWS_IN_MEMORY = 4_000_000
_ASSEMBLE_ROWS = 131_072

log = structlog.get_logger(__name__)


def history(
    spine: Data | None,
    features: Features,
    *,
    sources: Mapping[str, Data] | None = None,
    project: Project | Path | str | None = None,
    event_id: str | Literal[False] | None = None,
    time: str | None = None,
    order_by: str | Mapping[str, str] | None = None,
    ages: bool = False,
    rows_in_memory: int = ROWS_IN_MEMORY,
) -> pa.Table:
    """Return the spine with the features as they were at each of its rows.

    A row that names an event (by the source's event id) gets what the stream gave that event: the
    events up to and with it, ties by order of arrival. A bare row (keys and a time) gets all events
    up to and at its time. Rows of update-only sources count once they are known.

    Args:
        spine: An Arrow table, a pandas frame or a path. None: every event of the pipeline's source.
        features: A pipeline (its whole vector: request, features, derived), a feature view, the
            name of one, or a list of views and features' full names (``"customer__count_1d"``).
        sources: The events of each source that is read, by name: tables, frames, or paths of
            Parquet or Arrow files and folders; the order of rows is the order of arrival. Default:
            ``history`` in the project's ``headrace.yaml``.
        project: The project, or its folder. Default: the folder of the file with the definitions;
            for a name, the working folder.
        event_id: The spine's column with event ids. Default: the source's own event id, if the
            spine has a column of that name; False: take bare keys and times all the same.
        time: The spine's column with the time. Default: the source's event time.
        order_by: The column of a source (or one for each, by source) that orders events of equal
            time where the order of rows does not.
        ages: Add ``<view>__age_ms``: how old the newest event in a view's longest window is.
        rows_in_memory: With more events than this the work is cut by keys into temporary files.

    Returns:
        The spine's columns (but those whose name a feature has), then the features: int64 or
        float64, null where undefined. The schema's metadata hold ``headrace.fingerprint``,
        ``headrace.rejected`` (JSON: rows left out as bad input, by source and reason) and
        ``headrace.unanswered`` (asked events that are bad input: their features are null).

    Raises:
        HistoryError: If the spine or a source's data cannot be used as they are.
        DefinitionError: If the features' definitions break a rule.
        ColumnError: If a source lacks a column, or has it in another type.

    Cost: about 1 µs per row, source and stage, plus reading; memory is bounded by
    ``rows_in_memory`` and the result.

    Examples:
        >>> hr.history(transactions, fraud, sources={"transactions": "tx/", "reports": reports})
        ... # doctest: +SKIP

    """
    request = plans_for(features, project, sources)
    table = None if spine is None else open_events("spine", spine).read()
    results = []
    for plan in request.plans:
        readers = _readers(plan, request.sources)
        asked = _Spine(plan, table, readers, event_id, time)
        orders = _orders(plan, order_by)
        with tempfile.TemporaryDirectory(prefix="headrace-history-") as folder:
            limits = Limits(rows_in_memory, Path(folder))
            replayed = Replay(plan, readers, asked.asks, orders, limits).run()
        _report(plan, replayed)
        results.append(asked.answer(replayed, ages=ages, names=request.names))
    return _merged(results, request.names)


def event_vectors(
    plan: PipelinePlan, tables: Mapping[str, Data], rows: NDArray[np.integer]
) -> Floats:
    """Return the vector of events of the scored source, as the stream gave them.

    Args:
        plan: The pipeline.
        tables: The events of each of its sources.
        rows: Positions in the scored source's table, in any order.

    Shape: (len(rows), len(plan.vector)), C-contiguous; NaN is null.
    """
    readers = _readers(plan, tables)
    position, inverse = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
    times = _times_of(plan, readers[plan.source])[position]
    asks = Asks(times, position, None)
    with tempfile.TemporaryDirectory(prefix="headrace-history-") as folder:
        replayed = Replay(plan, readers, asks, {}, Limits(ROWS_IN_MEMORY, Path(folder))).run()
    _report(plan, replayed)
    vector = np.full((len(position), len(plan.vector)), np.nan)
    for index, column in enumerate(_columns(plan, plan.vector, replayed)):
        vector[:, index] = column
    return vector[inverse] if not np.array_equal(inverse, np.arange(len(rows))) else vector


# --- The spine --------------------------------------------------------------------------------


class _Spine:
    """What is asked, and how an answer per ask becomes one per row of the spine."""

    def __init__(
        self,
        plan: PipelinePlan,
        table: pa.Table | None,
        readers: Mapping[str, EventReader],
        event_id: str | Literal[False] | None,
        time: str | None,
    ) -> None:
        self._plan = plan
        self._source = plan.source_plan(plan.source)
        self._inverse: NDArray[np.int64] | None = None
        reader = readers[plan.source]
        if table is None:
            times = _times_of(plan, reader)
            self.table = reader.read([column.name for column in self._source.columns])
            self.asks = Asks(times, np.arange(len(times), dtype=np.int64), None)
            return
        self.table = table
        named = self._event_id_column(event_id)
        if named is None:
            bare = _bare_events(plan, self._source, table, time)
            self.asks = Asks(bare.event_time_ms, None, bare)
        else:
            position = _positions(table.column(named), self._source, reader)
            unique, inverse = np.unique(position, return_inverse=True)
            if not np.array_equal(unique, position):
                self._inverse = inverse
            self.asks = Asks(_times_of(plan, reader)[unique], unique, None)

    def _event_id_column(self, event_id: str | Literal[False] | None) -> str | None:
        names = self.table.schema.names
        if event_id is False:
            return None
        if event_id is None:
            own = self._source.event_id
            return own if own in names else None
        where = f"source {self._source.name}"
        if self._source.event_id is None:
            rule = "be declared where a spine names events"
            raise HistoryError(explain("event_id", rule, None, where, "write event_id=… there"))
        if event_id not in names:
            hint = did_you_mean(event_id, names)
            raise HistoryError(explain(f"column {event_id}", "be in the spine", names, where, hint))
        return event_id

    def answer(
        self, replayed: Replayed, *, ages: bool, names: Sequence[str] | None
    ) -> tuple[pa.Table, dict[str, str]]:
        """Return the spine's columns with the answers, and the metadata."""
        vector = [c for c in self._plan.vector if names is None or c.name in names]
        columns = {
            column.name: self._arrow(values, column.dtype)
            for column, values in zip(vector, _columns(self._plan, vector, replayed), strict=True)
        }
        if ages:
            columns |= {
                f"{view}__age_ms": self._arrow(age, "int64") for view, age in replayed.ages.items()
            }
        kept = [name for name in self.table.schema.names if name not in columns]
        table = self.table.select(kept)
        for name, column in columns.items():
            table = table.append_column(name, column)
        rejected = {f"{source}.{reason}": n for (source, reason), n in replayed.rejected.items()}
        return table, {
            "headrace.fingerprint": self._plan.fingerprint,
            "headrace.rejected": json.dumps(rejected, sort_keys=True),
            "headrace.unanswered": str(int((~replayed.answered).sum())),
        }

    def _arrow(self, values: Floats, dtype: Literal["int64", "float64"]) -> pa.Array:
        if self._inverse is not None:
            values = values[self._inverse]
        missing = np.isnan(values)
        mask = missing if missing.any() else None
        if dtype == "int64":
            return pa.array(np.where(missing, 0, values).astype(np.int64), mask=mask)
        return pa.array(values, mask=mask)


def _times_of(plan: PipelinePlan, reader: EventReader) -> NDArray[np.int64]:
    """Return the event time of each row of the scored source, bad ones included."""
    source = plan.source_plan(plan.source)
    only = dataclasses.replace(
        source,
        columns=tuple(c for c in source.columns if c.name == source.event_time),
        known_at=None,
        checked=(),
        checked_expressions=(),
    )
    parts = [
        event_columns(batch, only).event_time_ms for batch in reader.batches([only.event_time])
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _positions(ids: pa.ChunkedArray, source: SourcePlan, reader: EventReader) -> NDArray[np.int64]:
    """Return the row of each event id in its source; of an id that comes twice, the first."""
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
    position = np.full(len(unique), -1, dtype=np.int64)
    start = 0
    for batch in reader.batches([source.event_id]):
        column = batch.column(0).cast(target)
        found = pc.fill_null(pc.index_in(column, value_set=unique), -1).to_numpy()
        rows = np.flatnonzero(found >= 0)[::-1]
        fresh = rows[position[found[rows]] < 0]
        # Written from the last row back: the first of an id in a batch wins.
        position[found[fresh]] = start + fresh
        start += batch.num_rows
    lost = np.flatnonzero(position < 0)
    if len(lost):
        got = f"{len(lost):,} unknown ids, such as {unique[int(lost[0])].as_py()!r}"
        rule = "name events that its source holds"
        raise HistoryError(explain("the spine", rule, got, where))
    places: NDArray[np.int64] = position[pc.index_in(wanted, value_set=unique).to_numpy()]
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


# --- The answers ------------------------------------------------------------------------------


def _columns(
    plan: PipelinePlan, vector: Sequence[VectorColumn], replayed: Replayed
) -> list[Floats]:
    """Return the vector's columns per ask; assembled as on the stream, some rows at a time."""
    if all(column.kind == "feature" for column in vector):
        return [replayed.features[column.name] for column in vector]
    events = replayed.events
    assert events is not None, "the replay keeps the events that are asked for"
    part_plan = dataclasses.replace(plan, vector=tuple(vector))
    count = len(replayed.answered)
    rows = np.flatnonzero(replayed.answered)
    columns = [np.full(count, np.nan) for _ in vector]
    for start in range(0, len(rows), _ASSEMBLE_ROWS):
        part = rows[start : start + _ASSEMBLE_ROWS]
        some = _slice(events, start, len(part))
        features = {name: values[part] for name, values in replayed.features.items()}
        try:
            matrix = assemble(part_plan, some, features)
        except KeyError as error:
            rule = f"hold column {error.args[0]}, which the pipeline's vector reads"
            got = ", ".join(events.columns)
            hint = "name events by their id, or ask for views instead of the pipeline"
            raise HistoryError(explain("the spine", rule, got, plan.name, hint)) from error
        for index, column in enumerate(columns):
            column[part] = matrix[:, index]
    return columns


def _slice(events: EventColumns, start: int, length: int) -> EventColumns:
    part = slice(start, start + length)
    return dataclasses.replace(
        events,
        length=length,
        event_time_ms=events.event_time_ms[part],
        known_at_ms=events.known_at_ms[part],
        columns={name: column.slice(start, length) for name, column in events.columns.items()},
    )


def _merged(
    results: Sequence[tuple[pa.Table, dict[str, str]]], names: Sequence[str] | None
) -> pa.Table:
    """Return one table with the columns of all plans, features in the order asked for."""
    table, metadata = results[0]
    for other, more in results[1:]:
        for name in other.schema.names:
            if name not in table.schema.names:
                table = table.append_column(name, other.column(name))
        metadata = {key: f"{value} {more[key]}" for key, value in metadata.items()}
    if names is not None:
        own = [name for name in table.schema.names if name not in names]
        table = table.select([*own, *names])
    return table.replace_schema_metadata(metadata)


def _report(plan: PipelinePlan, replayed: Replayed) -> None:
    for (source, reason), rows in sorted(replayed.rejected.items()):
        log.warning("history_rows_left_out", source=source, reason=reason, rows=rows)
    unanswered = int((~replayed.answered).sum())
    if unanswered:
        log.warning("history_asked_for_bad_input", pipeline=plan.name, rows=unanswered)
    assert replayed.incomplete == 0, "asks come in event order: nothing they need was dropped"


# --- The sources ------------------------------------------------------------------------------


def _readers(plan: PipelinePlan, sources: Mapping[str, Data]) -> dict[str, EventReader]:
    needed = {given.source for stage in plan.stages for given in stage.inputs} | {plan.source}
    for name in sorted(needed - sources.keys()):
        hint = f"give sources={{{name!r}: …}}, or name its files in headrace.yaml under history:"
        got = sorted(sources)
        raise HistoryError(explain("history", f"hold source {name}", got, plan.name, hint))
    return {name: open_events(name, sources[name]) for name in sorted(needed)}


def _orders(plan: PipelinePlan, order_by: str | Mapping[str, str] | None) -> dict[str, str]:
    if order_by is None:
        return {}
    if isinstance(order_by, str):
        return {plan.source: order_by}
    names = {source.name for source in plan.sources}
    for name in order_by:
        if name not in names:
            hint = did_you_mean(name, names)
            raise HistoryError(explain("order_by", "name sources", name, plan.name, hint))
    return dict(order_by)
