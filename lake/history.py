"""``hr.history``: the features that the stream would have had, for any rows of the past.

Three orders (docs/adr/0020): all that is known by now of the time up to a row, what the stream gave
it, or what was there after a lag. The kernels are the stream's own; ``replay`` brings rows to them.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pyarrow as pa

from headrace.lake.answers import Asks
from headrace.lake.errors import HistoryError
from headrace.lake.events import Span, open_events
from headrace.lake.labels import read_labels
from headrace.lake.opening import open_readers, open_served, orders_of
from headrace.lake.question import Question
from headrace.lake.replay import Limits
from headrace.lake.request import Request, as_of_from, plans_for
from headrace.lake.spine import Spine, event_times, spine_of_events, spine_of_table
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from headrace.features.definitions import FeatureView, Pipeline
    from headrace.features.plan import PipelinePlan
    from headrace.features.project import Project
    from headrace.lake.events import Data, EventReader
    from headrace.lake.labels import Labels
    from headrace.lake.stored import TopicChoice

    Floats = NDArray[np.float64]
    Features = str | Pipeline | PipelinePlan | FeatureView | Sequence[FeatureView | str]
    Moment = str | int | datetime

# Rows of all sources that are worked on in memory: some 150 bytes each at the peak.
ROWS_IN_MEMORY: Final = 4_000_000
#: The end of a period that has none: the year 10000.
_FOREVER_MS: Final = 253_402_300_800_000


def history(
    spine: Data | None,
    features: Features,
    *,
    sources: Mapping[str, Data] | Literal["lake"] | None = None,
    project: Project | Path | str | None = None,
    as_of: str = "event",
    start: Moment | None = None,
    end: Moment | None = None,
    event_id: str | Literal[False] | None = None,
    time: str | None = None,
    order_by: str | Mapping[str, str] | None = None,
    ages: bool = False,
    label: bool = False,
    replayed: bool = False,
    topics: TopicChoice = "current",
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
            Parquet or Arrow files and folders; the order of rows is the order of arrival.
            ``"lake"``: the project's lake. Default: ``history`` in the project's ``headrace.yaml``,
            and the lake where that names nothing, or where ``as_of`` asks for what only it knows.
        project: The project, or its folder. Default: the folder of the file with the definitions;
            for a name, the working folder.
        as_of: Which rows count. ``"event"``: all that are known by now. ``"served"``: what the
            stream gave, from its snapshots. A lag such as ``"250ms"``: those that the broker had at
            the row's time and so much after it, the row's own event among them.
        start: Without a spine: events from this time on (ISO text, datetime, or epoch ms).
        end: Without a spine: events before this time.
        event_id: The spine's column with event ids. Default: the source's own event id, if the
            spine has a column of that name; False: take bare keys and times all the same.
        time: The spine's column with the time. Default: the source's event time.
        order_by: The column of a source (or one for each, by source) that orders events of equal
            time where the order of rows does not. The lake orders them by place in Kafka.
        ages: Add ``<view>__age_ms``: how old the newest event in a view's longest window is.
        label: Add ``label`` (1: reported positive) and ``label_known_at``, of a pipeline's label.
        replayed: Allow a lag on rows that the broker got long after they happened.
        topics: Of a topic that was deleted and made again, the lake holds both. ``"current"``: the
            one with the latest arrival; ``"all"``: both.
        rows_in_memory: With more events than this the work is cut by keys into temporary files.

    Returns:
        The spine's columns (but those whose name a feature has), then the features: int64 or
        float64, null where undefined. Without a spine the source's columns stand in front; from
        the lake in the order of event time, without events that are bad input. The schema's
        metadata hold ``headrace.fingerprint``, ``headrace.rejected`` (JSON: rows left out as bad
        input, by source and reason) and ``headrace.unanswered`` (asked events that are bad input,
        or that nothing was served for: their features are null).

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
    order = as_of_from(as_of)
    request = plans_for(features, project, sources, order)
    table = None if spine is None else open_events("spine", spine).read()
    span = period_span(start, end)
    if span is not None and table is not None:
        rule = "come without a spine, whose rows say what is asked"
        raise HistoryError(explain("start= and end=", rule, "both", "history"))
    results = []
    for plan in request.plans:
        if label and plan.label is None:
            hint = "give hr.Pipeline a label=hr.Label(source, column, on=…, delay=…)"
            raise HistoryError(explain("label=True", "ask a pipeline", None, plan.name, hint))
        readers = open_readers(plan, request, topics=topics, label=label)
        question = Question(
            plan,
            readers,
            spine_of(plan, readers[plan.source], table, span, event_id, time),
            order,
            orders_of(plan, order_by),
            request.names,
            ages=ages,
            labels=take_labels(plan, readers) if label else None,
            replayed=replayed,
            snapshots=open_served(plan, request, readers) if order.kind == "served" else (),
        )
        with tempfile.TemporaryDirectory(prefix="headrace-history-") as folder:
            answers = question.answer(Limits(rows_in_memory, Path(folder)))
            answer = pa.concat_tables(question.tables(answers))
        results.append((with_spine(question.spine, answer), question.metadata))
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
    request = Request((plan,), None, tables, None, (), None)
    readers = open_readers(plan, request)
    position, inverse = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
    _, times = event_times(plan.source_plan(plan.source), readers[plan.source])
    # The table of the spine is not looked at: its rows are the asks.
    spine = Spine(Asks(times[position], position, None), pa.table({}))
    question = Question(plan, readers, spine)
    vector = np.full((len(position), len(plan.vector)), np.nan)
    with tempfile.TemporaryDirectory(prefix="headrace-history-") as folder:
        start = 0
        for table in question.tables(question.answer(Limits(ROWS_IN_MEMORY, Path(folder)))):
            for index, column in enumerate(table.columns):
                part = vector[start : start + table.num_rows]
                part[:, index] = column.to_numpy()
            start += table.num_rows
    return vector[inverse] if not np.array_equal(inverse, np.arange(len(rows))) else vector


def spine_of(
    plan: PipelinePlan,
    reader: EventReader,
    table: pa.Table | None,
    span: Span | None,
    event_id: str | Literal[False] | None = None,
    time: str | None = None,
) -> Spine:
    """Return a table's rows as a spine, or without one the events of a span, or all of them."""
    if table is None:
        return spine_of_events(plan, reader, span)
    return spine_of_table(plan, reader, table, event_id, time)


def with_spine(spine: Spine, answer: pa.Table) -> pa.Table:
    """Return the spine's columns, but those that the answer has, and the answer's."""
    if spine.table is None:
        return answer
    if spine.inverse is not None:
        answer = answer.take(pa.array(spine.inverse))
    table = spine.table.select(
        [n for n in spine.table.schema.names if n not in answer.schema.names]
    )
    for name in answer.schema.names:
        table = table.append_column(name, answer.column(name).combine_chunks())
    return table


def take_labels(plan: PipelinePlan, readers: dict[str, EventReader]) -> Labels:
    """Return the pipeline's labels, and leave only those readers that its stages need."""
    assert plan.label is not None, "the caller has looked"
    labels = read_labels(plan, readers[plan.label.source])
    needed = {given.source for stage in plan.stages for given in stage.inputs} | {plan.source}
    if plan.label.source not in needed:
        del readers[plan.label.source]
    return labels


def period_span(start: Moment | None, end: Moment | None) -> Span | None:
    """Return the event times of a period: ``start`` included, ``end`` not.

    Raises:
        HistoryError: If a text is no date, or the end does not come after the start.

    """
    if start is None and end is None:
        return None
    first = 0 if start is None else _moment_ms(start)
    last = _FOREVER_MS if end is None else _moment_ms(end)
    if last <= first:
        raise HistoryError(explain("end=", "come after start=", end, f"start={start}"))
    return Span(first, last - 1)


def _moment_ms(moment: Moment) -> int:
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError as error:
            hint = "write 2018-07-25 or 2018-07-25T12:00:00"
            raise HistoryError(explain("a time", "be a date", moment, "history", hint)) from error
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return int(moment.timestamp() * 1_000)
    return int(moment)


def _merged(
    results: Sequence[tuple[pa.Table, dict[str, str]]], names: Sequence[str] | None
) -> pa.Table:
    """Return one table with the columns of all plans, features in the order asked for."""
    table, metadata = results[0]
    for other, more in results[1:]:
        for name in other.schema.names:
            if name not in table.schema.names:
                table = table.append_column(name, other.column(name))
        metadata = {key: f"{value} {more[key]}" for key, value in metadata.items() if key in more}
    if names is not None:
        own = [name for name in table.schema.names if name not in names]
        table = table.select([*own, *names])
    return table.replace_schema_metadata(metadata)
