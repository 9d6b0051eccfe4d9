"""From aggregates to features, and from features to the model's vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headrace.features.expressions import evaluate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from headrace.features.columns import EventColumns
    from headrace.features.plan import FeaturePlan, PipelinePlan, StagePlan

    Floats = NDArray[np.float64]


def stage_features(stage: StagePlan, aggregates: Floats) -> dict[str, Floats]:
    """Return a stage's features by full name, defaults in place of null.

    Args:
        stage: The stage.
        aggregates: What the kernel computed; NaN is null.

    Shape: aggregates (n, len(stage.aggregates)); each feature (n,).

    """
    return {feature.name: _feature(feature, aggregates) for feature in stage.features}


def _feature(feature: FeaturePlan, aggregates: Floats) -> Floats:
    values = aggregates[:, feature.aggregates[0]]
    if feature.kind == "ratio":
        below = aggregates[:, feature.aggregates[1]]
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.where(below == 0.0, np.nan, values / below)
    if feature.default is not None:
        missing = np.isnan(values)
        if missing.any():
            values = np.where(missing, feature.default, values)
    return values


def stage_ages(stage: StagePlan, aggregates: Floats) -> dict[str, Floats]:
    """Return by view how old its values are: ms since the newest event in them, NaN for none."""
    return {age.view: aggregates[:, age.aggregate] for age in stage.ages}


def assemble(plan: PipelinePlan, events: EventColumns, features: Mapping[str, Floats]) -> Floats:
    """Return the model's input, in the plan's order; NaN is null.

    Args:
        plan: The pipeline.
        events: Rows of the scored source.
        features: Features of all stages by full name.

    Shape: (events.length, len(plan.vector)), rows contiguous.

    """
    vector = np.empty((events.length, len(plan.vector)))
    known = {**events.columns, **features}
    for index, column in enumerate(plan.vector):
        if column.expression is None:
            vector[:, index] = features[column.name]
        else:
            # A request column reads event columns only; the compiler has seen to it.
            vector[:, index] = evaluate(column.expression, known, events.length)
    return vector
