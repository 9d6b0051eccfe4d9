"""Events at rest through a pipeline's stages, as the stream would have done in event order.

Stage by stage, as on the stream: columns, checks and values by ``features.columns``, windows by
``features.state``, features by ``features.vector``. What differs is only where rows come from and
that a stage's log is merged by canonical order.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from headrace.features.columns import (
    REJECT_REASONS,
    EventColumns,
    check_rows,
    event_columns,
    take,
    value_matrix,
)
from headrace.features.expressions import features_of
from headrace.features.state import EntityState
from headrace.features.vector import stage_ages, stage_features
from headrace.lake.answers import NOT_ASKED, Answers
from headrace.lake.errors import HistoryError
from headrace.lake.events import Span
from headrace.lake.repeats import find_repeats
from headrace.lake.stage_log import LogRows, StageLog
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from headrace.features.plan import InputPlan, PipelinePlan, SourcePlan, StagePlan
    from headrace.lake.answers import Asks
    from headrace.lake.events import EventReader, Part
    from headrace.lake.repeats import Repeats

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

_APPLY_ROWS = 262_144
_REPEATED = len(REJECT_REASONS)


@dataclass(slots=True)
class Chunk:
    """Good events of a source, and where they stand in it."""

    events: EventColumns
    position: Integers
    order: Integers


@dataclass(frozen=True, slots=True)
class Limits:
    """When rows go to files: more than ``rows`` in a stage's log are cut into key buckets."""

    rows: int
    folder: Path | None

    @property
    def slice_rows(self) -> int:
        """How many answers are in memory at a time."""
        return max(1, self.rows // 2)


def reach_ms(stage: StagePlan, source: str) -> int:
    """Return how far back any window of the stage looks at events of the source."""
    return max(
        (
            window.length_ms + window.delay_ms + stage.rings[window.ring].grain_ms
            for window in stage.windows
            if stage.rings[window.ring].source == source
        ),
        default=0,
    )


def useful_span(plan: PipelinePlan, asks: Asks, source: str) -> Span:
    """Return the event times of a source that an ask's answer can depend on."""
    if not len(asks):
        return Span(0, -1)
    if any(features_of(value.expression) for stage in plan.stages for value in stage.values):
        # A stage may read an earlier one's features of the events in its own windows.
        names = [one.name for one in plan.sources]
        back = sum(max(reach_ms(stage, name) for name in names) for stage in plan.stages)
    else:
        back = max(reach_ms(stage, source) for stage in plan.stages)
    ahead = 0
    if dedupe_ms := plan.source_plan(source).dedupe_ms:
        # A row counts for nothing if its id came before, at another time of the window, even so.
        back, ahead = back + 2 * dedupe_ms, dedupe_ms + plan.source_plan(source).lateness_ms
    return Span(int(asks.event_time_ms.min()) - back, int(asks.event_time_ms.max()) + ahead)


def lagged(plan: PipelinePlan) -> PipelinePlan:
    """Return the plan with a known-at in every ring: there a row's arrival can be written."""
    stages = tuple(
        dataclasses.replace(
            stage, rings=tuple(dataclasses.replace(ring, known_at=True) for ring in stage.rings)
        )
        for stage in plan.stages
    )
    return dataclasses.replace(plan, stages=stages)


class Replay:
    """One pipeline's events from their readers through its stages, for a set of asks."""

    def __init__(
        self,
        plan: PipelinePlan,
        readers: Mapping[str, EventReader],
        asks: Asks,
        order_by: Mapping[str, str],
        limits: Limits,
        *,
        lag_ms: int | None = None,
        repeats: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            plan: The pipeline.
            readers: The events of each of its sources.
            asks: What is asked.
            order_by: The columns that order events of equal time, by source.
            limits: When rows go to files.
            lag_ms: A row counts once it had arrived this long before; None: whenever it came.
            repeats: Keep rows whose id came before: whoever asks knows which of them counted.
            progress: Told how many rows of how many are done.

        """
        self._keep_repeats = repeats
        self._plan = plan if lag_ms is None else lagged(plan)
        self._readers = readers
        self._asks = asks
        self._order_by = order_by
        self._limits = limits
        self._lag_ms = lag_ms
        self._tell = progress
        self._done = 0
        self._repeats: dict[str, Repeats] = {}
        self._small = sum(reader.row_count for reader in readers.values()) <= limits.rows
        self._cache: dict[str, list[Chunk]] = {}
        self._counted: set[str] = set()
        # Of every event of the scored source, where a later stage's values read features.
        self._event_features: dict[str, Floats] = {}
        self._event_index = np.zeros(0, np.int64)
        self._answers = Answers(asks, limits.slice_rows, limits.folder)

    def run(self) -> Answers:
        """Return the answers."""
        for index, stage in enumerate(self._plan.stages):
            read_later = {
                name
                for later in self._plan.stages[index + 1 :]
                for value in later.values
                for name in features_of(value.expression)
            }
            self._run_stage(stage, read_later)
        self.collect_events()
        return self._answers

    def collect_events(self) -> Answers:
        """Keep the asked events' columns, and only them."""
        if self._asks.position is None:
            return self._answers
        answered = self._answers.answered
        answered[:] = False
        for chunk in self._chunks(self._plan.source_plan(self._plan.source)):
            ask = self._asks.find(chunk.position)
            rows = np.flatnonzero(ask != NOT_ASKED)
            answered[ask[rows]] = True
            whole = len(rows) == chunk.events.length
            self._answers.add_events(ask[rows], chunk.events if whole else take(chunk.events, rows))
        return self._answers

    def _progress(self, rows: int) -> None:
        if self._tell is not None:
            reads = [self._readers[given.source] for s in self._plan.stages for given in s.inputs]
            self._done += rows
            self._tell(self._done, 2 * sum(reader.row_count for reader in reads))

    # --- One stage ----------------------------------------------------------------------------

    def _run_stage(self, stage: StagePlan, read_later: set[str]) -> None:
        ordered = all(self._readers[given.source].ordered for given in stage.inputs)
        has_order = bool(self._order_by) or not ordered
        log = StageLog(self._bucket_count(stage), self._limits.folder, has_order)
        for rank, given in enumerate(stage.inputs):
            reach = reach_ms(stage, given.source)
            for chunk in self._chunks(self._plan.source_plan(given.source)):
                rows = self._log_rows(stage, rank, given, chunk)
                self._add_useful(log, rows, reach, whole=bool(read_later) and given.scored)
                self._progress(chunk.events.length)
        if self._asks.bare is not None:
            log.add(self._bare_rows(stage, self._asks.bare))
        events_aggregates = None
        if read_later:
            self._index_events()
            events_aggregates = np.full((len(self._event_index), len(stage.aggregates)), np.nan)
        names = [*(f.name for f in stage.features), *(f"{a.view}__age_ms" for a in stage.ages)]
        self._answers.declare(stage.entity, names)
        scored = next(rank for rank, given in enumerate(stage.inputs) if given.scored)
        for rows in log.parts():
            self._apply(stage, rows, events_aggregates, scored)
        if events_aggregates is not None:
            features = stage_features(stage, events_aggregates)
            self._event_features |= {n: v for n, v in features.items() if n in read_later}

    def _apply(
        self, stage: StagePlan, rows: LogRows, events_aggregates: Floats | None, scored_input: int
    ) -> None:
        """Run one bucket's rows through a state of its own."""
        state = EntityState(stage)
        for start in range(0, len(rows.ask), _APPLY_ROWS):
            part = slice(start, start + _APPLY_ROWS)
            ask = rows.ask[part]
            scored = ask != NOT_ASKED
            if events_aggregates is not None:
                scored |= rows.insert[part] & (rows.input[part] == scored_input)
            applied = state.apply(
                rows.keys.slice(start, _APPLY_ROWS),
                rows.input[part],
                rows.event_time_ms[part],
                rows.known_at_ms[part],
                rows.values[part],
                scored,
                rows.insert[part],
            )
            asked = np.flatnonzero(ask != NOT_ASKED)
            if len(asked):
                names, numbers = _numbers(stage, applied.aggregates[asked])
                self._answers.add_numbers(stage.entity, names, ask[asked], numbers)
            self._answers.incomplete += int(applied.incomplete[asked].sum())
            if events_aggregates is not None:
                events = np.flatnonzero(scored & rows.insert[part])
                places = np.searchsorted(self._event_index, rows.position[part][events])
                events_aggregates[places] = applied.aggregates[events]
            self._progress(len(ask))

    def _index_events(self) -> None:
        """Find the positions of all events of the scored source, sorted."""
        if not len(self._event_index):
            parts = self._readers[self._plan.source].parts([])
            found = [part.position for part in parts]
            self._event_index = np.sort(np.concatenate(found)) if found else self._event_index

    def _bucket_count(self, stage: StagePlan) -> int:
        if self._small or self._limits.folder is None:
            return 1
        rows = sum(self._readers[given.source].row_count for given in stage.inputs)
        if self._asks.bare is not None:
            rows += len(self._asks)
        return max(1, -(-rows // self._limits.rows))

    def _add_useful(self, log: StageLog, rows: LogRows, reach: int, *, whole: bool) -> None:
        """Add the rows that a window of an ask can see; all rows where a later stage needs them."""
        times = rows.event_time_ms
        if whole or not len(times) or not len(self._asks):
            log.add(rows)
            return
        first, last = self._asks.event_time_ms.min() - reach, self._asks.event_time_ms.max()
        useful = (times >= first) & (times <= last)
        if useful.all():
            log.add(rows)
        elif useful.any():
            log.add(rows.take(np.flatnonzero(useful)))

    # --- Rows ---------------------------------------------------------------------------------

    def _log_rows(self, stage: StagePlan, rank: int, given: InputPlan, chunk: Chunk) -> LogRows:
        events = chunk.events
        features = None
        if given.scored and self._event_features:
            places = np.searchsorted(self._event_index, chunk.position)
            features = {n: v[places] for n, v in self._event_features.items()}
        ask = np.full(events.length, NOT_ASKED, dtype=np.int64)
        if given.scored and self._asks.position is not None:
            ask = self._asks.find(chunk.position)
        return LogRows(
            keys=events.columns[given.key],
            input=np.full(events.length, rank, dtype=np.int8),
            event_time_ms=events.event_time_ms,
            known_at_ms=events.known_at_ms,
            values=value_matrix(stage, given.source, events, features),
            order=chunk.order,
            position=chunk.position,
            ask=ask,
            insert=np.ones(events.length, dtype=bool),
        )

    def _bare_rows(self, stage: StagePlan, bare: EventColumns) -> LogRows:
        """Return the bare asks as rows that insert nothing and stand last at their time."""
        rank, given = next((r, i) for r, i in enumerate(stage.inputs) if i.scored)
        return LogRows(
            keys=bare.columns[given.key],
            input=np.full(bare.length, rank, dtype=np.int8),
            event_time_ms=bare.event_time_ms,
            known_at_ms=bare.event_time_ms,
            values=np.full((bare.length, len(stage.values)), np.nan),
            order=np.arange(bare.length, dtype=np.int64),
            position=np.full(bare.length, NOT_ASKED, dtype=np.int64),
            ask=np.arange(bare.length, dtype=np.int64),
            insert=np.zeros(bare.length, dtype=bool),
        )

    # --- Events -------------------------------------------------------------------------------

    def _chunks(self, source: SourcePlan) -> Iterator[Chunk]:
        """Yield the source's good events; kept if all sources are small."""
        if source.name in self._cache:
            yield from self._cache[source.name]
            return
        chunks = []
        columns = [column.name for column in source.columns]
        order_by = self._order_by.get(source.name)
        wanted = columns if order_by is None or order_by in columns else [*columns, order_by]
        for part in self._readers[source.name].parts(wanted, whole=self._small):
            chunk = self._chunk(part, source, order_by)
            if self._small:
                chunks.append(chunk)
            yield chunk
        self._counted.add(source.name)
        if self._small:
            self._cache[source.name] = chunks

    def _chunk(self, part: Part, source: SourcePlan, order_by: str | None) -> Chunk:
        events, position = event_columns(part.batch, source), part.position
        order = position if order_by is None else _order_column(part.batch, order_by, source.name)
        reasons = check_rows(events, part.arrival_time_ms)
        if self._lag_ms is not None:
            assert part.arrival_time_ms is not None, "who asks for a lag has looked for arrivals"
            arrived = part.arrival_time_ms - self._lag_ms
            events.known_at_ms = np.maximum(events.known_at_ms, arrived)
        if not self._keep_repeats:
            reasons[self._repeats_of(source).among(position)] = _REPEATED
        if reasons.any():
            if source.name not in self._counted:
                for reason, rows in enumerate(np.bincount(reasons)):
                    if 0 < reason < _REPEATED and rows:
                        self._answers.rejected[source.name, REJECT_REASONS[reason]] += int(rows)
            good = np.flatnonzero(reasons == 0)
            events, position, order = take(events, good), position[good], order[good]
        return Chunk(events, position, order)

    def _repeats_of(self, source: SourcePlan) -> Repeats:
        """Return the rows whose id came before, found once."""
        if source.name not in self._repeats:
            found = find_repeats(
                source,
                self._readers[source.name],
                scored=source.name == self._plan.source,
                rows_in_memory=self._limits.rows,
            )
            self._repeats[source.name] = found
            for reason, rows in found.reasons.items():
                self._answers.rejected[source.name, reason] += rows
        return self._repeats[source.name]


def _numbers(stage: StagePlan, aggregates: Floats) -> tuple[list[str], Floats]:
    """Return a stage's features and ages: their names, and a column for each."""
    columns = stage_features(stage, aggregates)
    columns |= {f"{view}__age_ms": age for view, age in stage_ages(stage, aggregates).items()}
    numbers = np.empty((len(aggregates), len(columns)))
    for place, column in enumerate(columns.values()):
        numbers[:, place] = column
    return list(columns), numbers


def _order_column(part: pa.Table | pa.RecordBatch, name: str, source: str) -> Integers:
    where = f"source {source}"
    if name not in part.schema.names:
        raise HistoryError(explain(f"order_by column {name}", "be there", part.schema.names, where))
    column = part.column(name)
    try:
        order = column.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        rule = "hold whole numbers or times"
        got = str(column.type)
        raise HistoryError(explain(f"order_by column {name}", rule, got, where)) from error
    if order.null_count:
        rule = "hold no nulls"
        raise HistoryError(explain(f"order_by column {name}", rule, order.null_count, where))
    numbers: Integers = order.to_numpy()
    return numbers
