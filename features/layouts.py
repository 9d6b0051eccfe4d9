"""What travels in a re-key topic, and the fingerprint of it that is part of the topic's name.

Two plans whose fingerprints are equal write the same rows in the same form, so that they may share
a topic and all that was made of it; any other plan gets a topic of its own.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from headrace.features.encoding import canonical_json, encode
from headrace.features.expressions import columns_of

if TYPE_CHECKING:
    from headrace.features.plan import PipelinePlan, SourcePlan

# Raised whenever the same plan would write other bytes.
REKEY_FORMAT = 2


def rekey_layout(plan: PipelinePlan, stage_index: int) -> str:
    """Return 8 hex characters for what the re-key topic of a stage holds, and in which form.

    It covers the sources with all that decides which of their rows are taken, the columns that
    travel, every stage before (its features travel), and the number of partitions. What only this
    stage or a later one computes of that is no part of it.
    """
    stage = plan.stages[stage_index]
    scored = any(stage_input.scored for stage_input in stage.inputs)
    before = plan.stages[:stage_index] if scored else ()
    read = {item.source for part in (*before, stage) for item in part.inputs}
    content = {
        "format": REKEY_FORMAT,
        "partitions": plan.partitions,
        "alignment_ms": plan.alignment_ms if any(not one.direct for one in before) else None,
        "key_kind": stage.key_kind,
        "inputs": [
            {**_data(stage_input), "columns": needed_columns(plan, stage_index, index)}
            for index, stage_input in enumerate(stage.inputs)
        ],
        "before": [{**_data(one), "topic": None} for one in before],
        "sources": [_source(source) for source in plan.sources if source.name in read],
    }
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:8]


def needed_columns(plan: PipelinePlan, stage_index: int, input_index: int) -> tuple[str, ...]:
    """Return the event's columns that this input of a stage, or what comes after it, still reads.

    The times are left out: they travel on their own.
    """
    stage_input = plan.stages[stage_index].inputs[input_index]
    source = plan.source_plan(stage_input.source)
    stages = plan.stages[stage_index:] if stage_input.scored else [plan.stages[stage_index]]
    needed = {stage_input.key}
    for stage in stages:
        for value in stage.values:
            if value.source == source.name:
                needed.update(columns_of(value.expression))
    if stage_input.scored:
        needed.update(entity_keys(plan).values())
        needed.update(filter(None, [source.event_id]))
        for column in plan.vector:
            if column.expression is not None:
                needed.update(columns_of(column.expression))
    needed -= {source.event_time, source.known_at}
    return tuple(column.name for column in source.columns if column.name in needed)


def entity_keys(plan: PipelinePlan) -> dict[str, str]:
    """Return, by entity in stage order, the scored event's column that holds its key."""
    return {
        stage.entity: stage_input.key
        for stage in plan.stages
        for stage_input in stage.inputs
        if stage_input.scored
    }


def _source(source: SourcePlan) -> dict[str, object]:
    """Return what decides about a source's rows; of its schema, the fields that are read."""
    read = {column.name for column in source.columns}
    fields = [field for field in json.loads(source.schema)["fields"] if field["name"] in read]
    plain = [{name: field[name] for name in field if name != "doc"} for field in fields]
    return {**_data(source), "schema": plain}


def _data(value: object) -> dict[str, object]:
    data = encode(value)
    assert isinstance(data, dict)
    return data
