"""One training run: set, fit, evaluation, artefact, registry."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from headrace.drift.profile import encode_profile, make_profile
from headrace.scoring.artefact import Canary, Manifest, read_artefact, write_artefact
from headrace.scoring.scorer import FeatureColumn
from headrace.training.datasets import (
    TrainingSet,
    build_training_set,
    canary_rows,
    keep_receipt,
)
from headrace.training.evaluate import Evaluation, evaluate, unknown_at_day_start
from headrace.training.fit import fit
from headrace.training.split import Period

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pyarrow as pa

    from headrace.features.plan import PipelinePlan
    from headrace.training.datasets import History
    from headrace.training.fit import FittedModel
    from headrace.training.registry import FileRegistry, RegistryEntry
    from headrace.training.split import TimeSplit


class Progress(Protocol):
    """Is told what a run is doing."""

    def __call__(self, step: str, done: int, total: int) -> None:
        """Take note that of ``step`` so much is done; a total of 0 is not known beforehand."""
        ...


class SetReader(Protocol):
    """Gives the training set of a period; ``Training.read_lake`` does."""

    def __call__(self, period: Period, progress: Callable[[int, int], None]) -> TrainingSet:
        """Return the set of a period; ``progress`` is told how many rows of how many are done."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What a run made."""

    entry: RegistryEntry
    manifest: Manifest
    split: TimeSplit
    train: Evaluation
    test: Evaluation
    receipt: Path | None = None


def train(
    plan: PipelinePlan,
    tables: Mapping[str, pa.Table],
    split: TimeSplit,
    history: History,
    registry: FileRegistry,
    *,
    name: str,
    at_ms: int,
    progress: Progress,
    read_set: SetReader | None = None,
) -> TrainingRun:
    """Train the pipeline's model and register it as its next version.

    Args:
        plan: A pipeline with a label.
        tables: All events of each of its sources.
        split: What to train and to test on.
        history: Computes the vectors.
        registry: Where the artefact goes.
        name: The model's name.
        at_ms: Now, for the manifest.
        progress: Is told of each step.
        read_set: Gives the set of a period instead of ``tables`` and ``history``.

    Raises:
        TrainingError: If the data or the parameters do not allow it.
    """
    whole = Period(split.train.start_ms, split.test.end_ms)
    gap = Period(split.train.end_ms, split.test.start_ms)
    progress("features as of each event", 0, 0)
    if read_set is None:
        data = build_training_set(plan, tables, whole, history, skip=gap)
    else:
        data = read_set(whole, lambda done, total: progress("the lake's history", done, total))
    rows = split.train.mask(data.event_time_ms)
    labels = data.labels(split.label_cutoff_ms)
    fitted = fit(
        dict(plan.model),
        data.vector[rows],
        labels[rows],
        data.names,
        progress=lambda done, total: progress("trees", done, total),
    )
    progress("evaluation", 0, 0)
    tested = unknown_at_day_start(
        data.keys, data.event_time_ms, data.positive_known_at_ms, split.test
    )
    train_figures = _evaluate(fitted, data, rows, labels)
    test_figures = _evaluate(fitted, data, tested, data.labels())
    progress("artefact", 0, 0)
    metrics = train_figures.as_metrics("train") | test_figures.as_metrics("test")
    canary = canary_rows(data, np.flatnonzero(rows))
    profile = _profile(fitted, data, rows, split.test.mask(data.event_time_ms))
    # Drafted beside the registry's models: it may be on another disk than the temporary folder.
    registry.folder.mkdir(parents=True, exist_ok=True)
    receipt = keep_receipt(registry.folder, data)
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=registry.folder) as draft:
        folder = Path(draft) / "artefact"
        write_artefact(
            folder,
            fitted.text,
            model=name,
            pipeline=plan.name,
            framework_version=fitted.framework_version,
            columns=[FeatureColumn(column.name, column.dtype) for column in plan.vector],
            fingerprint=plan.fingerprint,
            training_set_id=data.training_set_id,
            created_at_ms=at_ms,
            canary=Canary(canary, fitted.predict(canary)),
            metrics=metrics,
            parameters=fitted.parameters,
            profile_json=profile,
        )
        entry = registry.add(folder)
    manifest = read_artefact(entry.folder).manifest
    return TrainingRun(entry, manifest, split, train_figures, test_figures, receipt)


def _profile(
    fitted: FittedModel, data: TrainingSet, trained: np.ndarray, tested: np.ndarray
) -> bytes:
    """Return the profile of the vectors that the model learned from, and of its scores, as JSON.

    The scores are those of the test period: on rows that it knows a model is surer of itself than
    it will ever be in production.
    """
    times = data.event_time_ms
    scores = fitted.predict(data.vector[tested])
    return encode_profile(
        make_profile(data.names, data.vector[trained], times[trained], scores, times[tested])
    )


def _evaluate(
    fitted: FittedModel, data: TrainingSet, rows: np.ndarray, labels: np.ndarray
) -> Evaluation:
    scores = fitted.predict(data.vector[rows])
    return evaluate(scores, labels[rows], data.keys[rows], data.event_time_ms[rows])
