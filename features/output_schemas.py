"""The Avro schemas of what a plan's pipeline writes, by topic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.runtime import topics
from headrace.schemas.outputs import prediction_schema, snapshot_schema

if TYPE_CHECKING:
    from headrace.features.plan import PipelinePlan


def output_schemas(plan: PipelinePlan) -> dict[str, str]:
    """Return the schema of the predictions' and of the snapshots' topic, as JSON."""
    entities = [stage.entity for stage in plan.stages]
    vector = [(column.name, column.dtype) for column in plan.vector]
    views = [age.view for stage in plan.stages for age in stage.ages]
    return {
        topics.predictions(plan.name): prediction_schema(plan.name, entities),
        topics.snapshots(plan.name): snapshot_schema(plan.name, entities, vector, views),
    }
