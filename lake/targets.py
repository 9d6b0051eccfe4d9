"""Which topics the lake reads, and the tables that they go to. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.features.output_schemas import output_schemas
from headrace.lake.errors import LakeError
from headrace.lake.tables import predictions_table, rejected_table, snapshots_table
from headrace.runtime import topics
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from headrace.features.plan import PipelinePlan, ProjectPlan


@dataclass(frozen=True, slots=True)
class Target:
    """A topic and its table.

    ``schema`` is the definitions' own, as JSON; the registry may know more.
    ``max_record_bytes``: larger records are rejected, as the workers do; None: there is no bound.
    """

    table: str
    topic: str
    schema: str
    max_record_bytes: int | None

    @property
    def subject(self) -> str:
        """Return the registry's name for the topic's schemas."""
        return f"{self.topic}-value"


def targets_of(plan: ProjectPlan, max_record_bytes: int) -> tuple[Target, ...]:
    """Return what is read: the sources of all pipelines (labels too), predictions and snapshots.

    Raises:
        LakeError: If two topics would go to one table.

    """
    found: dict[str, Target] = {}
    for pipeline in plan.pipelines:
        for target in _of_pipeline(pipeline, max_record_bytes):
            other = found.setdefault(target.table, target)
            if other.topic != target.topic:
                got = f"{other.topic} and {target.topic}"
                hint = "give the source another name"
                message = explain("a table of the lake", "hold one topic", got, target.table, hint)
                raise LakeError(message)
    for name in found:
        if rejected_table(name) in found:
            rule = "not have the name of another one's rejected records"
            raise LakeError(explain("a table of the lake", rule, rejected_table(name), "the lake"))
    return tuple(found.values())


def _of_pipeline(plan: PipelinePlan, max_record_bytes: int) -> list[Target]:
    schemas = output_schemas(plan)
    predictions, snapshots = topics.predictions(plan.name), topics.snapshots(plan.name)
    return [
        *(
            Target(source.name, source.topic, source.schema, max_record_bytes)
            for source in plan.sources
        ),
        Target(predictions_table(plan.name), predictions, schemas[predictions], None),
        Target(snapshots_table(plan.name), snapshots, schemas[snapshots], None),
    ]
