"""Drift of a period: snapshots and predictions in the lake against the model's training profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.drift.compare import compare
from headrace.drift.profile import DAY_MS, decode_profile
from headrace.drift.sketch import ColumnSketch, PeriodSketch
from headrace.features.compiler import compile_project
from headrace.features.project import load_project
from headrace.lake.tables import Lake, predictions_table, snapshots_table
from headrace.runtime.errors import HeadraceError, explain
from headrace.scoring.artefact import PROFILE_FILE, read_artefact
from headrace.training.errors import TrainingError
from headrace.training.registry import FileRegistry
from headrace.training.run import choose_pipeline
from headrace.training.split import Period

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from headrace.drift.findings import Comparison, Finding, Severity
    from headrace.drift.profile import Profile
    from headrace.features.plan import PipelinePlan
    from headrace.features.project import Project
    from headrace.lake.tables import LakeTable
    from headrace.scoring.artefact import Artefact

#: How much of the newest time is looked at when no period is given.
USUAL_DAYS: Final = 7
_TIME: Final = "event_time"
_TIME_TYPE: Final = pa.timestamp("us", "UTC")


class Progress(Protocol):
    """Is told what a comparison is doing."""

    def __call__(self, step: str, done: int, total: int) -> None:
        """Take note that of ``step`` so many rows are done; a total of 0 is not known."""
        ...


def _silent(step: str, done: int, total: int) -> None:
    del step, done, total


@dataclass(frozen=True, slots=True)
class Watched:
    """The model whose training set is the measure.

    ``note`` says why it is this one, where that is not plain; else it is empty.
    """

    model: str
    version: str
    artefact: Artefact
    note: str = ""


@dataclass(frozen=True, slots=True)
class DriftReport:
    """How a period of a pipeline compares with its model's training set.

    ``notes`` are what a reader must know beside the findings.
    """

    pipeline: str
    model: str
    version: str
    period: Period
    comparison: Comparison
    notes: tuple[str, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Every finding, worst first."""
        return self.comparison.findings

    @property
    def severity(self) -> Severity:
        """The worst of all findings."""
        return self.comparison.severity


def drift_report(
    folder: Path,
    pipeline: str | None = None,
    start_ms: int | None = None,
    end_ms: int | None = None,
    *,
    model: str | None = None,
    progress: Progress = _silent,
) -> DriftReport:
    """Return how a period's snapshots compare with what the model was trained on.

    Reads the lake batch by batch: memory does not grow with the period.

    Args:
        folder: The project's folder.
        pipeline: Which one; None names the only one.
        start_ms: Where the period begins, epoch ms; None: a week before its end.
        end_ms: Where it ends; None: after the newest snapshot.
        model: ``fraud/3`` or ``fraud@champion``; None: what is live, else the newest.
        progress: Is told how far it is.

    Raises:
        LakeError: If the lake has no snapshots of the pipeline.
        TrainingError: If the period holds none, or the model keeps no profile.
        HeadraceError: If project or registry are not in order.

    """
    project = load_project(folder)
    settings = project.settings
    plans = compile_project(project, settings.topics.partitions).pipelines
    plan = choose_pipeline(plans, pipeline)
    progress("which model is live", 0, 0)
    watched = _find_model(project, plan, model)
    profile = _profile_of(watched)
    lake = Lake(settings.lake.folder)
    snapshots = lake.table(snapshots_table(plan.name))
    period = _period(snapshots, start_ms, end_ms)
    sketch, notes = _read_snapshots(snapshots, period, profile, watched, progress)
    score = None
    if profile.score is not None and lake.has(predictions_table(plan.name)):
        predictions = lake.table(predictions_table(plan.name))
        score, about = _read_scores(predictions, period, profile, watched, progress)
        notes += about
    days = max(-(-period.length_ms // DAY_MS), 1)
    if period.length_ms < DAY_MS:
        notes.append("the period is shorter than a day: what changes with the hour may look moved")
    first = [watched.note] if watched.note else []
    comparison = compare(sketch, days, score)
    return DriftReport(
        plan.name, watched.model, watched.version, period, comparison, (*first, *notes)
    )


def _find_model(project: Project, plan: PipelinePlan, reference: str | None) -> Watched:
    """Return the model that is asked for, that is live, or else the newest."""
    registry = FileRegistry(project.settings.registry_folder)
    if reference is not None:
        entry = registry.resolve(reference)
        return Watched(entry.model, str(entry.version), read_artefact(entry.folder))
    note = ""
    try:
        live = _live(project, plan)
    except HeadraceError as error:
        live, note = None, f"the live model could not be found ({error})"
    else:
        if live is not None:
            return live
        note = "no model is live"
    entry = registry.resolve(plan.name)
    note += f"; compared with the newest, {entry.model}/{entry.version}"
    return Watched(entry.model, str(entry.version), read_artefact(entry.folder), note)


def _live(project: Project, plan: PipelinePlan) -> Watched | None:
    from headrace.runtime import topics
    from headrace.runtime.dev.stack import endpoints
    from headrace.runtime.kafka import client_properties
    from headrace.training.deploy import read_deployments

    found = endpoints(project.settings, project.folder)
    client = client_properties(project.settings, found.bootstrap_servers)
    newest = read_deployments(client, topics.deployments(plan.project)).get(plan.name)
    if newest is None:
        return None
    artefact = read_artefact(newest.folder, sha256=newest.sha256)
    return Watched(newest.model, newest.version, artefact)


def _profile_of(watched: Watched) -> Profile:
    name = f"model {watched.model}/{watched.version}"
    raw = watched.artefact.profile_json
    if raw is None:
        hint = "it was trained before profiles were kept: train it again, or give --model"
        raise TrainingError(explain("artefact", f"hold {PROFILE_FILE}", "none", name, hint))
    return decode_profile(raw, name)


def _period(table: LakeTable, start_ms: int | None, end_ms: int | None) -> Period:
    if end_ms is None:
        newest = [
            pc.max(batch[_TIME].cast(pa.int64())).as_py()
            for batch in table.batches([_TIME])
            if batch.num_rows
        ]
        if not newest:
            raise TrainingError(explain("table", "hold rows", 0, table.name))
        end_ms = max(newest) // 1000 + 1
    start_ms = end_ms - USUAL_DAYS * DAY_MS if start_ms is None else start_ms
    if not start_ms < end_ms:
        raise TrainingError(explain("--from", "be before --to", start_ms, f"end {end_ms}"))
    return Period(start_ms, end_ms)


def _batches(
    table: LakeTable, period: Period, names: list[str], step: str, progress: Progress
) -> Iterator[pa.RecordBatch]:
    """Yield the period's rows; tell how far it is by the rows of all of the table's files."""
    from pyarrow.dataset import field

    start, end = (
        pa.scalar(time_ms * 1000, pa.int64()).cast(_TIME_TYPE)
        for time_ms in (period.start_ms, period.end_ms)
    )
    done = 0
    for batch in table.batches(names, (field(_TIME) >= start) & (field(_TIME) < end)):
        if batch.num_rows:
            done += batch.num_rows
            progress(step, done, 0)
            yield batch


def _read_snapshots(
    table: LakeTable, period: Period, profile: Profile, watched: Watched, progress: Progress
) -> tuple[PeriodSketch, list[str]]:
    """Return the period's vectors, counted, and what is to be said of them."""
    names = [column.name for column in profile.columns]
    there = set(table.schema.names)
    missing = [name for name in names if name not in there]
    if missing:
        hint = "the model is of other definitions: give --model"
        raise TrainingError(explain("snapshots", f"hold {missing}", "none", table.name, hint))
    sketch = PeriodSketch(profile.columns)
    foreign = 0
    for batch in _batches(table, period, [*names, "fingerprint"], "snapshots", progress):
        sketch.add([_floats(batch[name]) for name in names])
        same = pc.equal(batch["fingerprint"], watched.artefact.manifest.fingerprint)
        foreign += batch.num_rows - (pc.sum(same).as_py() or 0)
    if not sketch.rows:
        rule = f"hold rows from {period}"
        raise TrainingError(explain("table", rule, "none", table.name, "give --from and --to"))
    notes = []
    if foreign:
        notes.append(
            f"{foreign:,} of {sketch.rows:,} snapshots are of other definitions than the model's"
        )
    return sketch, notes


def _read_scores(
    table: LakeTable, period: Period, profile: Profile, watched: Watched, progress: Progress
) -> tuple[ColumnSketch | None, list[str]]:
    """Return the scores that the watched model gave in the period, counted."""
    assert profile.score is not None
    sketch = ColumnSketch(profile.score)
    names = ["score", "model", "model_version", "role"]
    others = 0
    for batch in _batches(table, period, names, "predictions", progress):
        ours = pc.and_(
            pc.and_(pc.equal(batch["model"], watched.model), pc.equal(batch["role"], "champion")),
            pc.equal(batch["model_version"], watched.version),
        )
        kept = batch.filter(ours)
        others += batch.num_rows - kept.num_rows
        if kept.num_rows:
            sketch.add(_floats(kept["score"]))
    name = f"{watched.model}/{watched.version}"
    if not sketch.rows:
        return None, [f"{name} scored nothing in the period: its scores are not compared"]
    if others:
        return sketch, [f"{others:,} predictions are not of {name}: their scores are left out"]
    return sketch, []


def _floats(column: pa.Array) -> Any:
    """Return a column as float64, null as NaN.

    Shape: (n,).
    """
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
