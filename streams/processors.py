"""Which processor owns which topic partition of a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.streams.context import ModelTable, ProcessorContext
from headrace.streams.rekeyed import RekeyedStageProcessor
from headrace.streams.router import RouterProcessor
from headrace.streams.routes import roles_of
from headrace.streams.stage import DirectStageProcessor

if TYPE_CHECKING:
    from headrace.features.plan import PipelinePlan
    from headrace.streams.batch import Processor

__all__ = ["ModelTable", "ProcessorContext", "build", "input_topics"]


def input_topics(plan: PipelinePlan) -> tuple[str, ...]:
    """Return the topics that a worker of the pipeline reads, in the order that events flow."""
    sources = [source.topic for source in plan.sources if roles_of(plan, source.name)]
    rekeyed = [stage.topic for stage in plan.stages if not stage.direct]
    return tuple(dict.fromkeys([*sources, *rekeyed]))


def build(plan: PipelinePlan, topic: str, partition: int, context: ProcessorContext) -> Processor:
    """Make the processor of one topic partition, with empty state."""
    for index, stage in enumerate(plan.stages):
        if stage.topic == topic:
            if stage.direct:
                return DirectStageProcessor(plan, index, partition, context)
            return RekeyedStageProcessor(plan, index, partition, context)
    for source in plan.sources:
        if source.topic == topic:
            return RouterProcessor(plan, source, partition, context)
    raise AssertionError(topic)
