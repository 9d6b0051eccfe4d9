"""A prediction's receipt, and the first half of replaying one: its score from its own vector.

The rows come from the lake; this module reads models, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from headrace.runtime.errors import HeadraceError
from headrace.schemas.outputs import PredictionId
from headrace.scoring.artefact import read_artefact
from headrace.scoring.errors import ScoringError
from headrace.scoring.loaders import load_with_suspicion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from headrace.features.plan import PipelinePlan
    from headrace.scoring.scorer import Column, Scorer

    #: From a model's name and version to the folder that its registry keeps it in.
    Locate = Callable[[str, str], Path]


@dataclass(frozen=True, slots=True)
class Receipt:
    """All that was recorded of one prediction.

    ``keys`` are by entity, ``vector`` by column and ``ages_ms`` by view, None for null. ``event``
    is the source's record as decoded, None where it is not at hand. ``arrival_time_ms`` is when the
    broker got the event, ``predicted_at_ms`` when it got the prediction (None: not known).
    ``model_hash`` holds the first 16 digits of the manifest's sha256; it and ``engine`` are None in
    predictions of before they were recorded.
    """

    id: PredictionId
    event_id: str | None
    source: str
    keys: Mapping[str, str | None]
    event_time_ms: int
    arrival_time_ms: int | None
    predicted_at_ms: int | None
    event: Mapping[str, Any] | None
    vector: Mapping[str, float | int | None]
    ages_ms: Mapping[str, int | None]
    fingerprint: str
    engine: str | None
    score: float | None
    status: str
    model: str | None
    model_version: str | None
    model_hash: str | None
    role: str
    revision: int


def make_receipt(
    plan: PipelinePlan,
    prediction: Mapping[str, Any],
    snapshot: Mapping[str, Any],
    event: Mapping[str, Any] | None,
    *,
    arrival_time_ms: int | None,
    predicted_at_ms: int | None,
) -> Receipt:
    """Join the rows of one event into its receipt; columns that a row has not are None."""
    views = [age.view for stage in plan.stages for age in stage.ages]
    return Receipt(
        id=PredictionId.parse(prediction["prediction_id"]),
        event_id=prediction["event_id"],
        source=prediction["source"],
        keys={stage.entity: prediction.get(f"{stage.entity}_key") for stage in plan.stages},
        event_time_ms=_epoch_ms(prediction["event_time"]),
        arrival_time_ms=arrival_time_ms,
        predicted_at_ms=predicted_at_ms,
        event=event,
        vector={column.name: snapshot.get(column.name) for column in plan.vector},
        ages_ms={view: snapshot.get(f"{view}__age_ms") for view in views},
        fingerprint=prediction["fingerprint"],
        engine=prediction.get("engine"),
        score=prediction["score"],
        status=prediction["status"],
        model=prediction["model"],
        model_version=prediction["model_version"],
        model_hash=prediction.get("model_hash"),
        role=prediction["role"],
        revision=prediction["revision"],
    )


def _epoch_ms(moment: Any) -> int:
    return moment if isinstance(moment, int) else round(moment.timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class Rescored:
    """The scores that the recorded models give for the recorded vectors.

    ``scores`` float64[n], NaN where there is none; ``faults`` says by row why a score could not be
    computed (the model is gone, or is another one than recorded).
    """

    scores: NDArray[np.float64]
    faults: Mapping[int, str]


def rescore(
    predictions: pa.Table, vectors: Callable[[Sequence[Column]], pa.Table], locate: Locate
) -> Rescored:
    """Score recorded vectors again, each with the model that its prediction names.

    A model is found by name and version, must have the recorded hash, and is loaded with the same
    suspicion as a deployment.

    Args:
        predictions: One row each, with the columns of a pipeline's predictions.
        vectors: Given a model's columns, returns them for the same rows, float64, null = missing.
            Raises KeyError with the name of one that was not recorded.
        locate: Where the registry keeps a model.

    Cost: 1 to 2 s a model for its probe, then the scoring.
    """
    count = predictions.num_rows
    scores = np.full(count, np.nan)
    faults: dict[int, str] = {}
    groups: dict[tuple[str, str, str | None], list[int]] = {}
    for row, whose in enumerate(_whose(predictions)):
        if whose is not None:
            groups.setdefault(whose, []).append(row)
    for (model, version, recorded), members in groups.items():
        rows = np.array(members, np.int64)
        try:
            scorer = load_recorded(model, version, recorded, locate)
            matrix = as_matrix(vectors(scorer.columns))[rows]
        except HeadraceError as error:
            faults |= dict.fromkeys(members, str(error))
        except KeyError as error:
            reason = f"model {model}/{version} reads {error.args[0]!r}, which no snapshot holds"
            faults |= dict.fromkeys(members, reason)
        else:
            scores[rows] = scorer.score(matrix)
    return Rescored(scores, faults)


def load_recorded(model: str, version: str, recorded: str | None, locate: Locate) -> Scorer:
    """Return the model that a prediction names.

    Raises:
        ScoringError: If it is gone, was changed since, or does not stand the tests.
        HeadraceError: From the registry, if it has no such model.

    """
    folder = locate(model, version)
    artefact = read_artefact(folder)
    if recorded is not None and not artefact.sha256.startswith(recorded):
        message = (
            f"model {model}/{version} in the registry must be the one that scored, of hash "
            f"{recorded}; got {artefact.sha256[: len(recorded)]}: it was replaced since"
        )
        raise ScoringError(message)
    return load_with_suspicion(folder, artefact.manifest.columns, sha256=artefact.sha256)


def _whose(predictions: pa.Table) -> list[tuple[str, str, str | None] | None]:
    """Return by row the model's name, version and hash; None where nobody scored."""
    models = predictions.column("model").to_pylist()
    versions = predictions.column("model_version").to_pylist()
    hashes: list[str | None] = [None] * len(models)
    if "model_hash" in predictions.schema.names:
        hashes = predictions.column("model_hash").to_pylist()
    return [
        None if model is None else (model, version, recorded)
        for model, version, recorded in zip(models, versions, hashes, strict=True)
    ]


def as_matrix(table: pa.Table) -> NDArray[np.float64]:
    """Return columns side by side; NaN is null.

    Shape: (table.num_rows, table.num_columns), C-contiguous.
    """
    matrix = np.empty((table.num_rows, table.num_columns))
    for index, column in enumerate(table.columns):
        # Whole numbers stand in the model's vector as floats; all of ours are below 2**53.
        matrix[:, index] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return matrix


def same_bits(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where two arrays hold the same bits; any null equals any null."""
    same: NDArray[np.bool_] = left.view(np.int64) == right.view(np.int64)
    return same | (np.isnan(left) & np.isnan(right))
