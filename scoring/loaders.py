"""From an artefact's folder to a ``Scorer``: hash, structure, columns, probe, load, canary.

Nothing of the model's own runs in this process before a child has survived it; and where our
kernel gives LightGBM's very bits (``forest``), LightGBM does not run here at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headrace.runtime.errors import explain
from headrace.scoring.artefact import Artefact, read_artefact
from headrace.scoring.errors import ArtefactError, ModelRefusedError, ModelTextError
from headrace.scoring.forest import compile_forest
from headrace.scoring.lightgbm_native import load_native
from headrace.scoring.lightgbm_text import TextModel, check_model_text
from headrace.scoring.probe import TIMEOUT_S, ProbeReport, edge_rows, run_probe
from headrace.scoring.scorer import Scorer, ScorerIdentity, column_differences

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from headrace.features.plan import PipelinePlan
    from headrace.scoring.deployments import Deployment
    from headrace.scoring.scorer import Column, Model

FRAMEWORKS = ("lightgbm",)


def load_with_suspicion(
    folder: Path,
    vector: Sequence[Column],
    *,
    identity: ScorerIdentity | None = None,
    sha256: str | None = None,
    fingerprint: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Scorer:
    """Return a warmed scorer for an artefact that stood every test.

    Args:
        folder: The artefact's folder.
        vector: The plan's vector; names, dtypes and order must be the model's.
        identity: Name, version, role and revision for the predictions; by default the manifest's
            name and the folder's.
        sha256: What the manifest's hash must be (hex), from the deployment.
        fingerprint: The plan's fingerprint, if the model must have been trained on that plan.
        timeout_s: How long the probe may take.

    Raises:
        ModelRefusedError: With the step that refused it as ``reason``.

    Cost: 1 to 2 s, most of it the start of the probe's interpreter; blocks.
    """
    artefact, model = examine(folder, vector, sha256=sha256, fingerprint=fingerprint)
    report = run_probe(folder, timeout_s=timeout_s)
    _check_canary(report.canary_scores, artefact, "the probe")
    loaded = _load(artefact, model, report)
    _check_canary(loaded.predict(artefact.manifest.canary.rows), artefact, "this process")
    if identity is None:
        identity = ScorerIdentity(artefact.manifest.model, folder.name, artefact.sha256)
    scorer = Scorer(identity, artefact.manifest.columns, loaded)
    scorer.warm_up()
    return scorer


def load_deployment(
    deployment: Deployment, plan: PipelinePlan, *, timeout_s: float = TIMEOUT_S
) -> Scorer:
    """Return the scorer that a deployment names, for a worker that runs ``plan``.

    Raises:
        ModelRefusedError: As ``load_with_suspicion``; the caller keeps the scorer it has.
    """
    return load_with_suspicion(
        deployment.folder,
        plan.vector,
        identity=ScorerIdentity(
            deployment.model,
            deployment.version,
            deployment.sha256,
            deployment.role,
            deployment.revision,
        ),
        sha256=deployment.sha256,
        fingerprint=plan.fingerprint if deployment.fingerprint is not None else None,
        timeout_s=timeout_s,
    )


def examine(
    folder: Path,
    vector: Sequence[Column],
    *,
    sha256: str | None = None,
    fingerprint: str | None = None,
) -> tuple[Artefact, TextModel]:
    """Return the artefact if all that can be seen without running it is in order.

    Raises:
        ModelRefusedError: With ``artefact``, ``structure``, ``features`` or ``plan`` as reason.
    """
    try:
        artefact = read_artefact(folder, sha256=sha256)
    except ArtefactError as error:
        raise ModelRefusedError(str(error), "artefact") from error
    manifest = artefact.manifest
    if manifest.framework not in FRAMEWORKS:
        message = explain("framework", f"be one of {FRAMEWORKS}", manifest.framework, str(folder))
        raise ModelRefusedError(message, "artefact")
    try:
        model = check_model_text(artefact.model_text, [c.name for c in manifest.columns])
    except ModelTextError as error:
        raise ModelRefusedError(str(error), "structure") from error
    differences = column_differences(manifest.columns, vector)
    if differences:
        message = explain(
            f"model {manifest.model!r}",
            "read the plan's vector",
            "; ".join(differences),
            str(folder),
            "train it again on the applied plan",
        )
        raise ModelRefusedError(message, "features")
    if fingerprint is not None and fingerprint != manifest.fingerprint:
        message = explain(
            f"model {manifest.model!r}",
            f"be trained on the plan {fingerprint}",
            manifest.fingerprint,
            str(folder),
            "a definition behind its features has changed: train it again",
        )
        raise ModelRefusedError(message, "plan")
    return artefact, model


def _load(artefact: Artefact, model: TextModel, report: ProbeReport) -> Model:
    forest = compile_forest(model)
    if forest is not None:
        ours = forest.predict(edge_rows(model, artefact.manifest.canary.rows))
        if _same_bits(ours, report.edge_scores):
            return forest
    return load_native(artefact.model_text)


def _check_canary(scores: np.ndarray, artefact: Artefact, where: str) -> None:
    expected = artefact.manifest.canary.scores
    if _same_bits(scores, expected):
        return
    wrong = int(np.argmax(scores != expected)) if scores.shape == expected.shape else -1
    message = explain(
        "canary",
        f"score as it did at {artefact.manifest.framework_version}, bit for bit",
        f"row {wrong}: {scores[wrong]!r} instead of {expected[wrong]!r}",
        where,
        "the library or the machine computes otherwise: train it again here",
    )
    raise ModelRefusedError(message, "canary")


def _same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and left.tobytes() == right.tobytes()
