"""Events at rest through a pipeline's stages, as the stream would have done in event order.

Stage by stage, as on the stream: columns, checks and values by ``features.columns``, windows by
``features.state``, features by ``features.vector``. What differs is only where rows come from and
that a stage's log is merged by canonical order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
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
from headrace.lake.errors import HistoryError
from headrace.lake.stage_log import NOT_ASKED, LogRows, StageLog
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from headrace.features.plan import InputPlan, PipelinePlan, SourcePlan, StagePlan
    from headrace.lake.events import EventReader

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

_APPLY_ROWS = 262_144


@dataclass(slots=True)
class Chunk:
    """Good events of a source, and where they stand in it."""

    events: EventColumns
    position: Integers
    order: Integers


@dataclass(slots=True)
class Asks:
    """What is asked, in any order: events by their position, or bare keys and times.

    ``position``: sorted rows of the scored source, each with what came up to and with it. None:
    ``bare`` holds the keys' columns, and each ask takes all events up to its time.
    """

    event_time_ms: Integers
    position: Integers | None
    bare: EventColumns | None

    def __len__(self) -> int:
        return len(self.event_time_ms)


@dataclass(slots=True)
class Replayed:
    """What the asks got.

    ``features`` and ``ages`` by name, one number per ask, NaN for null. ``events`` holds the asked
    events' columns; ``answered`` is False for asked events that are bad input. ``rejected`` counts
    by (source, reason).
    """

    features: dict[str, Floats]
    ages: dict[str, Floats]
    events: EventColumns | None
    answered: NDArray[np.bool_]
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    incomplete: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """When rows go to files: more than ``rows`` in a stage's log are cut into key buckets."""

    rows: int
    folder: Path | None


class Replay:
    """One pipeline's events from their readers through its stages, for a set of asks."""

    def __init__(
        self,
        plan: PipelinePlan,
        readers: Mapping[str, EventReader],
        asks: Asks,
        order_by: Mapping[str, str],
        limits: Limits,
    ) -> None:
        self._plan = plan
        self._readers = readers
        self._asks = asks
        self._order_by = order_by
        self._limits = limits
        self._small = sum(reader.row_count for reader in readers.values()) <= limits.rows
        self._cache: dict[str, list[Chunk]] = {}
        self._counted: set[str] = set()
        # Of every event of the scored source, where a later stage's values read features.
        self._event_features: dict[str, Floats] = {}
        self._result = Replayed({}, {}, None, np.ones(len(asks), bool))

    def run(self) -> Replayed:
        """Return the answers."""
        for index, stage in enumerate(self._plan.stages):
            read_later = {
                name
                for later in self._plan.stages[index + 1 :]
                for value in later.values
                for name in features_of(value.expression)
            }
            self._run_stage(stage, read_later)
        if self._asks.position is not None:
            self._collect_events()
        else:
            self._result.events = self._asks.bare
        return self._result

    # --- One stage ----------------------------------------------------------------------------

    def _run_stage(self, stage: StagePlan, read_later: set[str]) -> None:
        log = StageLog(self._bucket_count(stage), self._limits.folder, bool(self._order_by))
        for rank, given in enumerate(stage.inputs):
            reach_ms = self._reach(stage, given.source)
            for chunk in self._chunks(self._plan.source_plan(given.source)):
                rows = self._log_rows(stage, rank, given, chunk)
                self._add_useful(log, rows, reach_ms, whole=bool(read_later) and given.scored)
        if self._asks.bare is not None:
            log.add(self._bare_rows(stage, self._asks.bare))
        aggregates = np.full((len(self._asks), len(stage.aggregates)), np.nan)
        events_aggregates = None
        if read_later:
            shape = (self._readers[self._plan.source].row_count, len(stage.aggregates))
            events_aggregates = np.full(shape, np.nan)
        scored = next(rank for rank, given in enumerate(stage.inputs) if given.scored)
        for rows in log.parts():
            self._apply(stage, rows, aggregates, events_aggregates, scored)
        self._result.features |= stage_features(stage, aggregates)
        self._result.ages |= {
            view: age.copy() for view, age in stage_ages(stage, aggregates).items()
        }
        if events_aggregates is not None:
            features = stage_features(stage, events_aggregates)
            self._event_features |= {n: v for n, v in features.items() if n in read_later}

    def _apply(
        self,
        stage: StagePlan,
        rows: LogRows,
        aggregates: Floats,
        events_aggregates: Floats | None,
        scored_input: int,
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
            aggregates[ask[asked]] = applied.aggregates[asked]
            self._result.incomplete += int(applied.incomplete[asked].sum())
            if events_aggregates is not None:
                events = np.flatnonzero(scored & rows.insert[part])
                events_aggregates[rows.position[part][events]] = applied.aggregates[events]

    def _bucket_count(self, stage: StagePlan) -> int:
        if self._small or self._limits.folder is None:
            return 1
        rows = sum(self._readers[given.source].row_count for given in stage.inputs)
        if self._asks.bare is not None:
            rows += len(self._asks)
        return max(1, -(-rows // self._limits.rows))

    @staticmethod
    def _reach(stage: StagePlan, source: str) -> int:
        """Return how far back any window looks at events of the source, ms."""
        return max(
            (
                window.length_ms + window.delay_ms + stage.rings[window.ring].grain_ms
                for window in stage.windows
                if stage.rings[window.ring].source == source
            ),
            default=0,
        )

    def _add_useful(self, log: StageLog, rows: LogRows, reach_ms: int, *, whole: bool) -> None:
        """Add the rows that a window of an ask can see; all rows where a later stage needs them."""
        times = rows.event_time_ms
        if whole or not len(times) or not len(self._asks):
            log.add(rows)
            return
        first, last = self._asks.event_time_ms.min() - reach_ms, self._asks.event_time_ms.max()
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
            features = {n: v[chunk.position] for n, v in self._event_features.items()}
        ask = np.full(events.length, NOT_ASKED, dtype=np.int64)
        asked = self._asks.position
        if given.scored and asked is not None and events.length:
            places = np.searchsorted(asked, chunk.position)
            places[places == len(asked)] = 0
            hits = asked[places] == chunk.position if len(asked) else np.zeros(len(places), bool)
            ask[hits] = places[hits]
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
        """Yield the source's good events in order of arrival; kept if all sources are small."""
        if source.name in self._cache:
            yield from self._cache[source.name]
            return
        chunks = []
        position = 0
        reader = self._readers[source.name]
        columns = [column.name for column in source.columns]
        order_by = self._order_by.get(source.name)
        wanted = columns if order_by is None or order_by in columns else [*columns, order_by]
        # An empty source still has columns, which only reading it whole gives.
        whole = self._small or reader.row_count == 0
        parts = [reader.read(wanted)] if whole else reader.batches(wanted)
        for part in parts:
            chunk = self._chunk(part, source, position, order_by)
            position += part.num_rows
            if self._small:
                chunks.append(chunk)
            yield chunk
        self._counted.add(source.name)
        if self._small:
            self._cache[source.name] = chunks

    def _chunk(
        self, part: pa.Table | pa.RecordBatch, source: SourcePlan, start: int, order_by: str | None
    ) -> Chunk:
        events = event_columns(part, source)
        position = np.arange(start, start + part.num_rows, dtype=np.int64)
        order = position if order_by is None else _order_column(part, order_by, source.name)
        reasons = check_rows(events, None)
        if reasons.any():
            if source.name not in self._counted:
                for reason, rows in enumerate(np.bincount(reasons)):
                    if reason and rows:
                        self._result.rejected[source.name, REJECT_REASONS[reason]] += int(rows)
            good = np.flatnonzero(reasons == 0)
            events, position, order = take(events, good), position[good], order[good]
        return Chunk(events, position, order)

    def _collect_events(self) -> None:
        """Keep the asked events' columns, in the order of the asks."""
        asked = self._asks.position
        assert asked is not None, "bare asks have no events"
        found: list[EventColumns] = []
        self._result.answered[:] = False
        for chunk in self._chunks(self._plan.source_plan(self._plan.source)):
            rows = np.flatnonzero(np.isin(chunk.position, asked, assume_unique=True))
            places = np.searchsorted(asked, chunk.position[rows])
            self._result.answered[places] = True
            found.append(
                chunk.events if len(rows) == chunk.events.length else take(chunk.events, rows)
            )
        self._result.events = _joined(found, self._plan.source_plan(self._plan.source))


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


def _joined(found: list[EventColumns], source: SourcePlan) -> EventColumns:
    if len(found) == 1:
        return found[0]
    columns = {
        column.name: pa.concat_arrays([events.columns[column.name] for events in found])
        for column in source.columns
    }
    return EventColumns(
        source=source,
        length=sum(events.length for events in found),
        event_time_ms=np.concatenate([events.event_time_ms for events in found]),
        known_at_ms=np.concatenate([events.known_at_ms for events in found]),
        columns=columns,
    )
