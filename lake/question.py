"""A question to the past: what is asked, of which events, in which order; and its answer as tables.

``hr.history`` gathers the tables, ``lake.dataset`` writes them out one by one.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pyarrow as pa
import structlog

from headrace.features.columns import event_columns
from headrace.features.durations import duration_text
from headrace.features.vector import assemble
from headrace.lake.errors import HistoryError
from headrace.lake.events import NEVER_MS
from headrace.lake.labels import LABEL, LABEL_KNOWN_AT, LABEL_TIME
from headrace.lake.replay import Limits, Replay, useful_span
from headrace.lake.request import AsOf
from headrace.lake.served import answer_served
from headrace.lake.stored import LakeEvents
from headrace.lake.tables import ARRIVAL_TIME
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from headrace.features.columns import EventColumns
    from headrace.features.plan import PipelinePlan, VectorColumn
    from headrace.lake.answers import Answers, AnswerSlice
    from headrace.lake.events import EventReader
    from headrace.lake.labels import Labels
    from headrace.lake.served import Snapshots
    from headrace.lake.spine import Spine
    from headrace.lake.stored import OffsetRange

    Floats = NDArray[np.float64]
    Ranges = Mapping[str, Sequence[OffsetRange]]

#: A broker that got events an hour after they happened, on the median, got a replay of them.
REPLAYED_MS: Final = 3_600_000
_ASSEMBLE_ROWS: Final = 131_072

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Question:
    """One plan, the events it is asked of, and how.

    ``names``: which of the vector's columns, None: all; ``snapshots`` only for ``served``.
    """

    plan: PipelinePlan
    readers: dict[str, EventReader]
    spine: Spine
    as_of: AsOf = field(default_factory=lambda: AsOf("event"))
    order_by: Mapping[str, str] = field(default_factory=dict)
    names: Sequence[str] | None = None
    ages: bool = False
    labels: Labels | None = None
    replayed: bool = False
    snapshots: tuple[Snapshots, ...] = ()
    #: What the answer says of itself, once it is there.
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def vector(self) -> list[VectorColumn]:
        """The vector's columns that are asked for."""
        return [c for c in self.plan.vector if self.names is None or c.name in self.names]

    def answer(self, limits: Limits, progress: Callable[[int, int], None] | None = None) -> Answers:
        """Find the answers.

        Args:
            limits: What may be in memory.
            progress: Told how many rows of how many are done.

        Raises:
            HistoryError: If the sources do not allow the order that is asked for.

        """
        if self.as_of.kind == "served":
            answers = self._served(limits)
        else:
            answers = self._replay(limits, progress).run()
        self._report(answers)
        return answers

    def tables(self, answers: Answers) -> Iterator[pa.Table]:
        """Yield the answers as tables, in the order of the asks.

        Without a table as spine the asked events' columns come first, and events that nothing is
        known about are left out. Else there are the answers alone, a row an ask.
        """
        columns = self.vector
        for part in answers.slices():
            numbers = self._columns(columns, part)
            table = pa.table({c.name: arrow(numbers[c.name], c.dtype) for c in columns})
            if self.ages:
                for stage in self.plan.stages:
                    for age in stage.ages:
                        name = f"{age.view}__age_ms"
                        table = table.append_column(name, arrow(part.numbers[name], "int64"))
            if self.labels is not None:
                known = self._labels(part)
                table = table.append_column(LABEL, known.is_valid().cast(pa.int8()))
                table = table.append_column(LABEL_KNOWN_AT, known)
            if self.spine.table is None:
                table = self._with_events(table, part)
            yield table

    def answers_of(self, part: AnswerSlice) -> dict[str, Floats]:
        """Return a slice's answers as numbers by name, NaN for null."""
        return self._columns(self.vector, part)

    # --- Finding ------------------------------------------------------------------------------

    def _replay(self, limits: Limits, progress: Callable[[int, int], None] | None) -> Replay:
        readers = {
            name: reader.narrow(useful_span(self.plan, self.spine.asks, name))
            for name, reader in self.readers.items()
        }
        lag_ms = None
        if self.as_of.kind == "lag":
            lag_ms = self.as_of.lag_ms
            check_arrivals(self.plan, readers, replayed=self.replayed)
        return Replay(
            self.plan,
            readers,
            self.spine.asks,
            self.order_by,
            limits,
            lag_ms=lag_ms,
            progress=progress,
        )

    def _served(self, limits: Limits) -> Answers:
        scored = self.readers[self.plan.source]
        if not isinstance(scored, LakeEvents):
            rule = "be asked of the lake"
            hint = "leave sources= out, or take sources='lake'"
            raise HistoryError(
                explain("as_of='served'", rule, "files or tables", self.plan.name, hint)
            )
        readers = {self.plan.source: scored}
        asks = self.spine.asks
        if len(asks):
            span = useful_span(self.plan, asks, self.plan.source)
            readers = {self.plan.source: scored.narrow(span)}
        # A copy has no snapshot: that says which one counted.
        answers = Replay(self.plan, readers, asks, {}, limits, repeats=True).collect_events()
        wanted = [column.name for column in self.vector]
        if self.ages:
            wanted += [f"{age.view}__age_ms" for stage in self.plan.stages for age in stage.ages]
        others = answer_served(
            self.plan, scored, self.snapshots, answers, asks, wanted, limits.slice_rows
        )
        if others:
            self.metadata["headrace.other_definitions"] = json.dumps(others, sort_keys=True)
            for fingerprint, rows in sorted(others.items()):
                log.warning("history_served_by_other_definitions", of=fingerprint, rows=rows)
        return answers

    def _report(self, answers: Answers) -> None:
        for (source, reason), rows in sorted(answers.rejected.items()):
            log.warning("history_rows_left_out", source=source, reason=reason, rows=rows)
        unanswered = int((~answers.answered).sum())
        if unanswered and self.as_of.kind == "served":
            log.warning("history_without_snapshot", pipeline=self.plan.name, rows=unanswered)
        elif unanswered:
            log.warning("history_asked_for_bad_input", pipeline=self.plan.name, rows=unanswered)
        assert answers.incomplete == 0, "asks come in event order: nothing they need was dropped"
        rejected = {f"{source}.{reason}": n for (source, reason), n in answers.rejected.items()}
        self.metadata |= {
            "headrace.fingerprint": self.plan.fingerprint,
            "headrace.rejected": json.dumps(rejected, sort_keys=True),
            "headrace.unanswered": str(unanswered),
        }
        if self.as_of.kind != "event":
            self.metadata["headrace.as_of"] = self.as_of.text

    # --- Telling ------------------------------------------------------------------------------

    def _columns(self, vector: Sequence[VectorColumn], part: AnswerSlice) -> dict[str, Floats]:
        """Return the vector's columns per ask; assembled as on the stream, some rows at a time."""
        made = [column for column in vector if column.name not in part.numbers]
        matrix = np.full((len(part.answered), len(made)), np.nan)
        rows = np.flatnonzero(part.answered)
        if made and len(rows):
            plan = dataclasses.replace(self.plan, vector=tuple(made))
            for start in range(0, len(rows), _ASSEMBLE_ROWS):
                some = rows[start : start + _ASSEMBLE_ROWS]
                features = {name: values[some] for name, values in part.numbers.items()}
                matrix[some] = self._assemble(plan, part.events_at(some), features)
        values = {column.name: matrix[:, place] for place, column in enumerate(made)}
        nothing = ~part.answered
        columns = {}
        for column in vector:
            numbers = values.get(column.name)
            if numbers is None:
                numbers = part.numbers[column.name]
                if nothing.any():
                    numbers = np.where(nothing, np.nan, numbers)
            columns[column.name] = numbers
        return columns

    def _assemble(
        self, plan: PipelinePlan, events: EventColumns, features: dict[str, Floats]
    ) -> Floats:
        try:
            return assemble(plan, events, features)
        except KeyError as error:
            rule = f"hold column {error.args[0]}, which the pipeline's vector reads"
            got = ", ".join(events.columns)
            hint = "name events by their id, or ask for views instead of the pipeline"
            raise HistoryError(explain("the spine", rule, got, plan.name, hint)) from error

    def _with_events(self, table: pa.Table, part: AnswerSlice) -> pa.Table:
        """Return the answered rows with their events' columns in front."""
        source = self.plan.source_plan(self.plan.source)
        reader = self.readers[self.plan.source]
        assert isinstance(reader, LakeEvents), "files give the spine its table"
        rows = np.flatnonzero(part.answered)
        if len(rows) < table.num_rows:
            table = table.take(pa.array(rows))
        events = part.events_at(rows) if len(rows) else None
        front = {}
        for column in source.columns:
            kind = reader.table.schema.field(column.name).type
            values = pa.nulls(0, kind) if events is None else events.columns[column.name]
            if pa.types.is_timestamp(kind):
                values = values.cast(pa.timestamp("ms", kind.tz)).cast(kind)
            front[column.name] = values
        return pa.table(front | {name: table.column(name) for name in table.schema.names})

    def _labels(self, part: AnswerSlice) -> pa.Array:
        """Return when each ask's event was first reported positive, null if never."""
        assert self.labels is not None, "the caller has looked"
        on = self.labels.on
        rows = np.flatnonzero(part.event_row >= 0)
        if not len(rows):
            return pa.nulls(len(part.event_row), LABEL_TIME)
        events = part.events_at(rows)
        if on not in events.columns:
            got = ", ".join(events.columns)
            hint = "name events by their id"
            raise HistoryError(explain("the spine", f"hold {on}, the label's key", got, "", hint))
        known = self.labels.known_at(events.columns[on])
        place = np.full(len(part.event_row), -1)
        place[rows] = np.arange(len(rows))
        return known.take(pa.array(place, mask=place < 0))


def check_arrivals(
    plan: PipelinePlan, readers: Mapping[str, EventReader], *, replayed: bool
) -> None:
    """Refuse a lag where rows have no arrival, or arrived long after they were due.

    Raises:
        HistoryError: If so.

    """
    for name, reader in readers.items():
        source, where = plan.source_plan(name), f"source {name}"
        behind = []
        columns = [c for c in (source.event_time, source.known_at) if c is not None]
        only = dataclasses.replace(
            source,
            columns=tuple(c for c in source.columns if c.name in columns),
            checked=(),
            checked_expressions=(),
        )
        for part in reader.parts(columns):
            if part.arrival_time_ms is None:
                rule = f"hold {ARRIVAL_TIME}, when the broker got each row"
                hint = "take sources='lake', or as_of='event'"
                raise HistoryError(explain("a lag", rule, "rows without it", where, hint))
            due = event_columns(part.batch, only).known_at_ms
            known = part.arrival_time_ms < NEVER_MS
            behind.append(np.abs(part.arrival_time_ms - due)[known])
        late_ms = float(np.median(np.concatenate(behind))) if any(map(len, behind)) else 0.0
        if late_ms > REPLAYED_MS and not replayed:
            rule = "be asked of rows that arrived when they happened"
            got = f"rows that came {duration_text(int(late_ms))} off on the median"
            hint = "these were replayed: say replayed=True if their arrival is what you mean"
            raise HistoryError(explain("a lag", rule, got, where, hint))


def arrow(values: Floats, dtype: Literal["int64", "float64"]) -> pa.Array:
    """Return numbers as an Arrow array of the dtype, NaN as null."""
    missing = np.isnan(values)
    mask = missing if missing.any() else None
    if dtype == "int64":
        return pa.array(np.where(missing, 0, values).astype(np.int64), mask=mask)
    return pa.array(np.ascontiguousarray(values), mask=mask)
