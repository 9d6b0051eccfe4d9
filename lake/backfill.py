"""Feast's offline tables: every served view's values at each event of the source that is scored.

The values are ``history``'s. A period is replaced as a whole, so that a second run changes nothing;
events are worked on some hours at a time, so that from the lake memory does not grow with the
period (files are read whole by ``history``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import shutil
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from headrace.features.columns import check_rows, event_columns, take
from headrace.features.errors import did_you_mean
from headrace.features.feast_repo.objects import pipeline_of, repo_objects, serving
from headrace.features.feast_repo.repository import repository_of
from headrace.features.feast_repo.tables import ensure_table
from headrace.lake.errors import LakeError
from headrace.lake.history import history
from headrace.lake.offline import DAY_MS, TableWriter, table_rows
from headrace.lake.opening import open_readers
from headrace.lake.request import plans_for
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from headrace.features.columns import EventColumns
    from headrace.features.definitions import Pipeline
    from headrace.features.feast_repo.objects import RepoView
    from headrace.features.plan import SourcePlan
    from headrace.features.project import Project
    from headrace.lake.events import EventReader

#: Events that are worked on at once, about: some 300 bytes each at the peak with 20 features.
ROWS_AT_ONCE: Final = 1_000_000
_HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class BackfilledView:
    """What was written of a view: rows, the days that have any, and where its files are."""

    view: str
    rows: int
    days: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Backfill:
    """What a backfill wrote.

    ``left_out`` counts events that are bad input: the stream would have sent them to the DLQ.
    ``applied``: Feast's registry knows these tables.
    """

    views: tuple[BackfilledView, ...]
    left_out: int
    applied: bool


def backfill(
    project: Project,
    views: Sequence[str] = (),
    *,
    start_ms: int | None = None,
    end_ms: int | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
    progress: Callable[[int, int], None] | None = None,
) -> Backfill:
    """Write Feast's offline tables of a project.

    Args:
        project: The project.
        views: Names of views; none: all that a pipeline serves.
        start_ms: First day, epoch ms at its UTC midnight. None: from the first event on.
        end_ms: The day after the last. None: up to the last event. Without both the tables are
            written anew from end to end.
        rows_at_once: How many events are worked on at once, about: at least those of an hour.
        progress: Called with the rows done and the rows in all.

    Raises:
        LakeError: For an unknown view, a period that does not consist of days, or while another
            backfill runs.
        HistoryError: If the events cannot be used as they are.

    """
    _check_period(start_ms, end_ms)
    objects = {view.name: view for view in repo_objects(project).views}
    for name in views:
        if name not in objects:
            hint = did_you_mean(name, objects)
            raise LakeError(explain("a view", "be served by a pipeline", name, "backfill", hint))
    repository = repository_of(project.settings)
    groups = [
        (pipeline_of(pipeline, chosen), [objects[view.name] for view in chosen])
        for pipeline, served in serving(project.pipelines)
        if (chosen := [view for view in served if not views or view.name in views])
    ]
    jobs = [
        _Job(project, pipeline, members, start_ms, end_ms, rows_at_once)
        for pipeline, members in groups
    ]
    total, done = sum(job.rows for job in jobs), 0
    written: list[BackfilledView] = []
    with _locked(repository.offline):
        for job in jobs:
            for rows in job.run(repository.offline):
                done += rows
                if progress is not None:
                    progress(done, total)
            written += job.commit()
        applied = all(repository.names(item.folder.name) for item in written)
        if applied:
            _remove_older(written)
    return Backfill(tuple(written), sum(job.left_out for job in jobs), applied)


def _check_period(start_ms: int | None, end_ms: int | None) -> None:
    for what, time_ms in (("--from", start_ms), ("--to", end_ms)):
        if time_ms is not None and time_ms % DAY_MS:
            got = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat()
            rule = "be a day: tables are replaced by whole UTC days"
            raise LakeError(explain(what, rule, got, "backfill", "write 2018-07-25"))
    if start_ms is not None and end_ms is not None and start_ms >= end_ms:
        raise LakeError(explain("--from", "be before --to", start_ms, "backfill"))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the offline tables: one backfill at a time; a killed one lets go."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "backfill.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            rule = "run alone on its tables"
            raise LakeError(explain("backfill", rule, "another one", str(folder))) from None
        yield


def _remove_older(written: Sequence[BackfilledView]) -> None:
    """Remove the tables of older definitions, which no reader finds any more."""
    for item in written:
        for other in item.folder.parent.iterdir():
            if other != item.folder and other.is_dir():
                shutil.rmtree(other)


class _Job:
    """The views that one pipeline serves, at the events of its source."""

    def __init__(
        self,
        project: Project,
        pipeline: Pipeline,
        views: Sequence[RepoView],
        start_ms: int | None,
        end_ms: int | None,
        rows_at_once: int,
    ) -> None:
        self._project = project
        self._pipeline = pipeline
        self._views = views
        request = plans_for(pipeline, project, None)
        (self._plan,) = request.plans
        reader = open_readers(self._plan, request)[self._plan.source]
        self._period = (start_ms, end_ms)
        self._hours = _rows_by_hour(self._source, reader, start_ms, end_ms)
        self._rows_at_once = rows_at_once
        self._writers: list[TableWriter] = []
        self.left_out = 0

    @property
    def _source(self) -> SourcePlan:
        return self._plan.source_plan(self._plan.source)

    @property
    def rows(self) -> int:
        """Return the events of the period."""
        return self._hours.total()

    def run(self, offline: Path) -> Iterator[int]:
        """Write the tables' days beside those that are there; yield the events done, by parts."""
        self._writers = [TableWriter(view, ensure_table(offline, view)) for view in self._views]
        for start_ms, end_ms in _parts(self._hours, self._rows_at_once):
            events, features = self._answers(start_ms, end_ms)
            for writer in self._writers:
                writer.write(table_rows(writer.view, events, features))
            yield self._rows_in(start_ms, end_ms)

    def commit(self) -> list[BackfilledView]:
        """Put the written days in the place of the period's old ones."""
        start_ms, end_ms = self._period
        return [
            BackfilledView(writer.view.name, writer.rows, writer.commit(start_ms, end_ms), folder)
            for writer in self._writers
            for folder in (writer.folder,)
        ]

    def _rows_in(self, start_ms: int, end_ms: int) -> int:
        return sum(self._hours[hour] for hour in range(start_ms, end_ms, _HOUR_MS))

    def _answers(self, start_ms: int, end_ms: int) -> tuple[EventColumns, pa.Table]:
        """Return the good events of some hours by time and their features, row by row."""
        # From files rows come in order of arrival, which is what breaks ties; from the lake by
        # time and place in Kafka already.
        table = history(
            None,
            self._pipeline,
            project=self._project,
            start=start_ms,
            end=end_ms,
        ).combine_chunks()
        events = event_columns(table, self._source)
        good = np.flatnonzero(check_rows(events, None) == 0)
        self.left_out += self._rows_in(start_ms, end_ms) - len(good)
        rows = good[np.argsort(events.event_time_ms[good], kind="stable")]
        if np.array_equal(rows, np.arange(table.num_rows)):
            return events, table
        return take(events, rows), table.take(pa.array(rows))


def _rows_by_hour(
    source: SourcePlan, reader: EventReader, start_ms: int | None, end_ms: int | None
) -> Counter[int]:
    """Return how many events each hour of the period has, by its start in epoch ms."""
    only = dataclasses.replace(
        source,
        columns=tuple(c for c in source.columns if c.name == source.event_time),
        known_at=None,
        key=source.event_time,
        checked=(),
        checked_expressions=(),
    )
    hours: Counter[int] = Counter()
    for part in reader.parts([source.event_time]):
        events = event_columns(part.batch, only)
        times = events.event_time_ms
        good = check_rows(events, None) == 0
        if start_ms is not None:
            good &= times >= start_ms
        if end_ms is not None:
            good &= times < end_ms
        found, counts = np.unique(times[good] // _HOUR_MS * _HOUR_MS, return_counts=True)
        hours.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
    return hours


def _parts(hours: Counter[int], rows_at_once: int) -> Iterator[tuple[int, int]]:
    """Yield periods of whole hours, in order, with about ``rows_at_once`` events each at most."""
    start, end, rows = None, 0, 0
    for hour in sorted(hours):
        if start is not None and rows + hours[hour] > rows_at_once:
            yield start, end
            start, rows = None, 0
        start = hour if start is None else start
        end, rows = hour + _HOUR_MS, rows + hours[hour]
    if start is not None:
        yield start, end
