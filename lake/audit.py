"""The audit: history in event order against what the stream gave, and why they differ.

A row's two values are equal unless the stream applied the rows of its key in another order than
their times, or other definitions. For each row that differs the cause is looked for in the lake.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.features.columns import check_rows, event_columns, take
from headrace.features.expressions import features_of
from headrace.features.kernels.canonical import canonical_keys
from headrace.lake.errors import HistoryError
from headrace.lake.events import Span
from headrace.lake.history import ROWS_IN_MEMORY, period_span
from headrace.lake.log_order import log_pieces
from headrace.lake.opening import open_readers, open_served
from headrace.lake.question import Question
from headrace.lake.replay import Limits, reach_ms
from headrace.lake.request import plans_for
from headrace.lake.spine import spine_of_events
from headrace.lake.stored import LakeEvents, partition_of
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from headrace.features.definitions import Pipeline
    from headrace.features.plan import PipelinePlan, StagePlan
    from headrace.features.project import Project
    from headrace.lake.history import Moment
    from headrace.lake.served import Served, Snapshots

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]
    Flags = NDArray[np.bool_]

#: Why a row's two values differ, the first that applies.
CAUSES: Final = {
    "definitions": "the snapshot is of other definitions",
    "order": "a row of its key with an earlier time stands after it in its partition",
    "too_late": "the stream left a row of its key out: it came too late",
    "label": "a row of an update-only source arrived after it",
    "other_partition": "a row of its key with an earlier time came by another partition",
    "unexplained": "nothing in the lake explains it",
}
_EXAMPLES: Final = 20


@dataclass(slots=True)
class Audit:
    """What an audit found.

    ``rows``: events of the period; ``compared``: those with a snapshot; ``differing``: those with a
    number that differs. ``features``: by name, how many rows differ in it. ``causes``: by cause,
    how many rows. ``examples``: some of the differing rows.
    """

    pipeline: str
    fingerprint: str
    start_ms: int | None
    end_ms: int | None
    rows: int = 0
    compared: int = 0
    differing: int = 0
    features: dict[str, int] = field(default_factory=dict)
    causes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0))
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def equal(self) -> int:
        """Rows that are equal bit for bit."""
        return self.compared - self.differing

    def table(self) -> pa.Table:
        """Return a row a feature: how many rows were compared, are equal, differ."""
        differing = list(self.features.values())
        return pa.table(
            {
                "feature": list(self.features),
                "compared": [self.compared] * len(differing),
                "equal": [self.compared - count for count in differing],
                "differing": differing,
            }
        )

    def data(self) -> dict[str, Any]:
        """Return all of it as values for JSON."""
        return {
            "pipeline": self.pipeline,
            "fingerprint": self.fingerprint,
            "start_ms": self.start_ms,
            "end_ms": self.end_ms,
            "rows": self.rows,
            "compared": self.compared,
            "equal": self.equal,
            "differing": self.differing,
            "features": self.features,
            "causes": self.causes,
            "examples": self.examples,
        }


def audit(
    pipeline: str | Pipeline | PipelinePlan,
    *,
    project: Project | Path | str | None = None,
    start: Moment | None = None,
    end: Moment | None = None,
    rows_in_memory: int = ROWS_IN_MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Compare event order with what was served, for the events of a period.

    Args:
        pipeline: Which one, or its name.
        project: The project, or its folder; default as in ``hr.history``.
        start: From this event time on; None: from the first.
        end: Before this event time; None: to the last.
        rows_in_memory: As in ``hr.history``.
        progress: Told how many rows of how many are done.

    Raises:
        HistoryError: If the lake does not hold the pipeline's sources and snapshots.

    """
    request = plans_for(pipeline, project, "lake")
    if request.names is not None or len(request.plans) != 1:
        rule = "be of a pipeline: snapshots are"
        raise HistoryError(explain("an audit", rule, pipeline, "history"))
    (plan,) = request.plans
    readers = open_readers(plan, request)
    snapshots = open_served(plan, request, readers)
    if not snapshots:
        hint = "'headrace lake' writes them once a worker has run"
        got = request.lake.names() if request.lake else []
        raise HistoryError(explain("an audit", "find snapshots", got, plan.name, hint))
    span = period_span(start, end)
    spine = spine_of_events(plan, readers[plan.source], span)
    question = Question(plan, readers, spine)
    found = Audit(
        plan.name,
        plan.fingerprint,
        None if span is None else span.start_ms,
        None if span is None else span.end_ms + 1,
    )
    stored = {name: r for name, r in readers.items() if isinstance(r, LakeEvents)}
    search = _Search(plan, stored)
    with tempfile.TemporaryDirectory(prefix="headrace-audit-") as folder:
        limits = Limits(rows_in_memory, Path(folder))
        answers = question.answer(limits, progress)
        begin = 0
        for part in answers.slices():
            stop = begin + len(part.answered)
            table = question.answers_of(part)
            _compare(found, plan, snapshots[0], search, question, slice(begin, stop), table)
            begin = stop
    return found


def _compare(
    found: Audit,
    plan: PipelinePlan,
    snapshots: Snapshots,
    search: _Search,
    question: Question,
    part: slice,
    event_order: Mapping[str, Floats],
) -> None:
    """Compare one slice, and add it to what was found."""
    asks = question.spine.asks
    assert asks.position is not None, "an audit asks for events"
    names = [c.name for c in plan.vector if c.name in snapshots.columns]
    position, times = asks.position[part], asks.event_time_ms[part]
    served = snapshots.of_events(position, times, names)
    found.rows += len(position)
    found.compared += int(served.found.sum())
    differs = np.zeros((len(position), len(names)), bool)
    for place, name in enumerate(names):
        differs[:, place] = _differ(event_order[name], served.values[:, place]) & served.found
        count = int(differs[:, place].sum())
        found.features[name] = found.features.get(name, 0) + count
    rows = np.flatnonzero(differs.any(axis=1))
    found.differing += len(rows)
    if not len(rows):
        return
    causes = search.causes(position[rows], _stages_of(plan, names, differs[rows]))
    causes[_is_other(served, rows, plan.fingerprint)] = list(CAUSES).index("definitions")
    for cause, count in Counter(causes.tolist()).items():
        found.causes[list(CAUSES)[cause]] += count
    for index in range(min(len(rows), _EXAMPLES - len(found.examples))):
        row = rows[index]
        found.examples.append(
            {
                "partition": int(partition_of(position[row])),
                "offset": int(position[row] - (partition_of(position[row]) << 46)),
                "event_time_ms": int(times[row]),
                "cause": list(CAUSES)[int(causes[index])],
                "features": {
                    name: {
                        "event": _plain(event_order[name][row]),
                        "served": _plain(served.values[row, place]),
                    }
                    for place, name in enumerate(names)
                    if differs[row, place]
                },
            }
        )


def _differ(left: Floats, right: Floats) -> Flags:
    """Return which numbers are not equal bit for bit; null equals null."""
    same = np.ascontiguousarray(left).view(np.int64) == np.ascontiguousarray(right).view(np.int64)
    differs: Flags = ~(same | (np.isnan(left) & np.isnan(right)))
    return differs


def _is_other(served: Served, rows: Integers, fingerprint: str) -> Flags:
    names = served.fingerprints
    ours = names.index(fingerprint) if fingerprint in names else -2
    others: Flags = served.fingerprint[rows] != ours
    return others


def _plain(number: float) -> float | None:
    return None if np.isnan(number) else float(number)


def _stages_of(plan: PipelinePlan, names: Sequence[str], differs: Flags) -> dict[int, Integers]:
    """Return by stage which of the rows differ in a feature of it, or in one derived from it."""
    expressions = {column.name: column.expression for column in plan.vector}
    found: dict[int, Integers] = {}
    for index, stage in enumerate(plan.stages):
        own = {feature.name for feature in stage.features}
        columns = []
        for place, name in enumerate(names):
            expression = expressions[name]
            made_of = () if expression is None else features_of(expression)
            if name in own or own & set(made_of):
                columns.append(place)
        if columns:
            found[index] = np.flatnonzero(differs[:, columns].any(axis=1))
    return found


# --- Causes -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Near:
    """Rows of some keys of one stage, sorted by key and time; ``code`` is the key's number."""

    code: Integers
    time_ms: Integers
    rank: Integers
    position: Integers
    arrival_ms: Integers
    left_out: Flags


class _Search:
    """Looks in the lake for the rows that make a difference."""

    def __init__(self, plan: PipelinePlan, readers: Mapping[str, LakeEvents]) -> None:
        self._plan = plan
        self._readers = readers
        self._left_out: Integers | None = None

    def causes(self, position: Integers, stages: Mapping[int, Integers]) -> Integers:
        """Return for each differing row its cause, an index into ``CAUSES``."""
        names = list(CAUSES)
        causes = np.full(len(position), names.index("unexplained"))
        for index, rows in stages.items():
            if not len(rows):
                continue
            stage = self._plan.stages[index]
            near, own = self._near(stage, position[rows])
            for row, mine in zip(rows.tolist(), own, strict=True):
                cause = names.index(self._cause(stage, near, mine))
                causes[row] = min(causes[row], cause)
        return causes

    def _cause(self, stage: StagePlan, near: _Near, own: int) -> str:
        """Return why the row at ``own`` in ``near`` differs."""
        code, time = near.code[own], near.time_ms[own]
        back = max(reach_ms(stage, given.source) for given in stage.inputs)
        first, last = np.searchsorted(near.code, [code, code + 1])
        times = near.time_ms[first:last]
        low, high = first + np.searchsorted(times, [time - back, time + 1])
        part = slice(int(low), int(high))
        rank, place = near.rank[part], near.position[part]
        scored = rank == near.rank[own]
        log = partition_of(place)
        same_log = scored & (log == partition_of(near.position[own : own + 1])[0])
        before = (near.time_ms[part] < time) | (rank < near.rank[own])
        before |= scored & (near.time_ms[part] == time) & (place < near.position[own])
        behind = same_log & ((place > near.position[own]) == before)
        behind &= place != near.position[own]
        if (behind & ~near.left_out[part]).any():
            return "order"
        if near.left_out[part].any():
            return "too_late"
        after = near.arrival_ms[part] > near.arrival_ms[own]
        if (~scored & after).any():
            return "label"
        # The order between partitions is that of the stage's log, which is not in the lake: it may
        # differ from that of the times by as much as lanes are out of step.
        slack = self._plan.alignment_ms + max(s.lateness_ms for s in self._plan.sources)
        close = near.time_ms[part] >= time - slack
        if ((scored & ~same_log & (after | close)) | (~scored & close)).any():
            return "other_partition"
        return "unexplained"

    def _near(self, stage: StagePlan, position: Integers) -> tuple[_Near, Integers]:
        """Return the rows of the asked rows' keys, and where in it each asked row stands."""
        keys, times = self._keys_of(stage, position)
        known = keys.drop_null().unique()
        scored = next(rank for rank, given in enumerate(stage.inputs) if given.scored)
        parts: list[tuple[Integers, ...]] = []
        for rank, given in enumerate(stage.inputs):
            source = self._plan.source_plan(given.source)
            span = Span(int(times.min()) - reach_ms(stage, given.source), int(times.max()))
            reader = self._readers[given.source].narrow(span, counted=False)
            for part in reader.parts([column.name for column in source.columns]):
                events = event_columns(part.batch, source)
                assert part.arrival_time_ms is not None, "rows in the lake have an arrival"
                code = pc.index_in(canonical_keys(events.columns[given.key]), value_set=known)
                code = pc.fill_null(code, -1).to_numpy().astype(np.int64)
                good = (code >= 0) & (check_rows(events, part.arrival_time_ms) == 0)
                rows = np.flatnonzero(good)
                place = part.position[rows]
                out = np.isin(place, self._too_late()) if rank == scored else np.zeros(len(rows))
                parts.append(
                    (
                        code[rows],
                        events.event_time_ms[rows],
                        np.full(len(rows), rank),
                        place,
                        part.arrival_time_ms[rows],
                        out.astype(bool),
                    )
                )
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        order = np.lexsort((columns[3], columns[2], columns[1], columns[0]))
        near = _Near(*(column[order] for column in columns))
        # A place stands once among the rows of the scored input.
        place = np.where(near.rank == scored, near.position, -1)
        by_place = np.argsort(place, kind="stable")
        own = by_place[np.searchsorted(place[by_place], position)]
        return near, own

    def _keys_of(self, stage: StagePlan, position: Integers) -> tuple[pa.Array, Integers]:
        """Return the key and time of the rows at ``position``, in some order."""
        source = self._plan.source_plan(self._plan.source)
        key = next(given.key for given in stage.inputs if given.scored)
        keys, times = [], []
        for part in self._readers[source.name].parts([column.name for column in source.columns]):
            rows = np.flatnonzero(np.isin(part.position, position))
            if len(rows):
                events = take(event_columns(part.batch, source), rows)
                keys.append(canonical_keys(events.columns[key]))
                times.append(events.event_time_ms)
        return pa.concat_arrays(keys), np.concatenate(times)

    def _too_late(self) -> Integers:
        """Return the places of the scored source's rows that the stream left out."""
        if self._left_out is None:
            source = self._plan.source_plan(self._plan.source)
            reader = self._readers[source.name]
            found = [
                piece.left_out for one in reader.ranges for piece in log_pieces(source, reader, one)
            ]
            self._left_out = np.concatenate(found) if found else np.zeros(0, np.int64)
        return self._left_out
