"""What a plan says to people, and how one plan differs from another.

Pure: ``headrace plan`` shows it, ``headrace apply`` acts on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from headrace.features.durations import duration_text
from headrace.features.expressions import OPERATORS, Column, Expression, Feature, Operation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.features.plan import (
        FeaturePlan,
        PipelinePlan,
        ProjectPlan,
        RingPlan,
        StagePlan,
        VectorColumn,
    )

Verb = Literal["added", "removed", "changed"]
Fate = Literal["unchanged", "new", "changed", "removed"]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. ``before`` and ``after`` are texts for people; None where there is none."""

    verb: Verb
    what: str
    name: str
    before: str | None
    after: str | None


def differences(
    what: str, before: Mapping[str, str], after: Mapping[str, str]
) -> tuple[Change, ...]:
    """Return what was added, removed and changed between two named sets of texts."""
    added = [Change("added", what, n, None, t) for n, t in after.items() if n not in before]
    removed = [Change("removed", what, n, t, None) for n, t in before.items() if n not in after]
    changed = [
        Change("changed", what, n, before[n], t)
        for n, t in after.items()
        if n in before and before[n] != t
    ]
    return (*added, *changed, *removed)


def plan_changes(before: ProjectPlan | None, after: ProjectPlan) -> tuple[Change, ...]:
    """Return how the pipelines of a project differ: sources, features, columns of the vector."""
    old = {p.name: p for p in before.pipelines} if before else {}
    new = {p.name: p for p in after.pipelines}
    changes = list(
        differences(
            "pipeline",
            {name: "" for name in old if name not in new},
            {name: _summary(plan) for name, plan in new.items() if name not in old},
        )
    )
    for name, plan in new.items():
        known = old.get(name)
        earlier = _texts(known) if known else {}
        parts = [
            change
            for what, texts in _texts(plan).items()
            for change in differences(what, earlier.get(what, {}), texts)
        ]
        if known:
            parts += _whole_changes(known, plan, silent=not parts)
        changes += parts
    for name, plan in old.items():
        if name not in new:
            changes += differences("feature", features(plan), {})
    return tuple(changes)


def _summary(plan: PipelinePlan) -> str:
    return f"{len(plan.stages)} stages, {len(plan.vector)} columns, fingerprint {plan.fingerprint}"


def _texts(plan: PipelinePlan) -> dict[str, dict[str, str]]:
    """Return by what it is and by name what people would see change."""
    return {
        "source": {source.name: source_text(plan, source.name) for source in plan.sources},
        "feature": features(plan),
        "column": {c.name: column_text(c) for c in plan.vector if c.expression is not None},
    }


def _whole_changes(
    before: PipelinePlan, after: PipelinePlan, *, silent: bool
) -> tuple[Change, ...]:
    """Return what differs of a pipeline as a whole; its fingerprint, if nothing else tells."""
    orders = []
    for plan, other in ((before, after), (after, before)):
        common = {column.name for column in other.vector}
        orders.append(", ".join(c.name for c in plan.vector if c.name in common))
    told = (
        *differences("order of the vector", {after.name: orders[0]}, {after.name: orders[1]}),
        *differences(
            "alignment",
            {after.name: duration_text(before.alignment_ms)},
            {after.name: duration_text(after.alignment_ms)},
        ),
    )
    if told or not silent:
        return told
    return differences(
        "fingerprint", {after.name: before.fingerprint}, {after.name: after.fingerprint}
    )


def features(plan: PipelinePlan) -> dict[str, str]:
    """Return by full name what each feature of a pipeline is."""
    return {
        feature.name: feature_text(stage, feature)
        for stage in plan.stages
        for feature in stage.features
    }


def fates(before: PipelinePlan, after: PipelinePlan) -> dict[str, Fate]:
    """Return by full name what becomes of each feature when other definitions take over.

    One is unchanged only if all that decides about its values is: its own definition, its stage's
    inputs, and the sources that these read.
    """
    old, new = _meanings(before), _meanings(after)
    kept: dict[str, Fate] = {
        name: "new" if name not in old else "unchanged" if old[name] == meaning else "changed"
        for name, meaning in new.items()
    }
    return kept | {name: "removed" for name in old if name not in new}


def _meanings(plan: PipelinePlan) -> dict[str, tuple[object, ...]]:
    return {
        feature.name: (
            feature_text(stage, feature),
            feature.dtype,
            stage.key_kind,
            stage.inputs,
            tuple(source_text(plan, one.source) for one in stage.inputs),
        )
        for stage in plan.stages
        for feature in stage.features
    }


# --- Texts ----------------------------------------------------------------------------------------


def feature_text(stage: StagePlan, feature: FeaturePlan) -> str:
    """Return a feature in words: ``mean of amount, last 7d``."""
    first = stage.aggregates[feature.aggregates[0]]
    window = stage.windows[first.window]
    parts = " / ".join(_aggregate_text(stage, index) for index in feature.aggregates)
    text = f"{parts}, last {duration_text(window.length_ms)}"
    if window.delay_ms:
        text += f" up to {duration_text(window.delay_ms)} ago"
    if grain_ms := stage.rings[window.ring].grain_ms:
        text += f" in tiles of {duration_text(grain_ms)}"
    # A bare count is never null.
    if feature.default is not None and (feature.kind == "ratio" or first.kind != "count"):
        text += f", else {feature.default:g}"
    return text


def _aggregate_text(stage: StagePlan, index: int) -> str:
    aggregate = stage.aggregates[index]
    ring = stage.rings[stage.windows[aggregate.window].ring]
    what = ring.source
    if aggregate.value >= 0:
        value = expression_text(stage.values[ring.values[aggregate.value]].expression)
        what = value if _is_scored(stage, ring) else f"{value} of {ring.source}"
    return f"{aggregate.kind} of {what}"


def _is_scored(stage: StagePlan, ring: RingPlan) -> bool:
    return any(item.scored and item.source == ring.source for item in stage.inputs)


def column_text(column: VectorColumn) -> str:
    """Return a request or derived column in words."""
    assert column.expression is not None
    return f"{column.kind} {expression_text(column.expression)}"


def expression_text(expression: Expression) -> str:
    """Return an expression as people write it on paper."""
    if isinstance(expression, Operation) and expression.name in OPERATORS:
        left, right = map(_operand_text, expression.arguments)
        return f"{left} {expression.name} {right}"
    return _operand_text(expression)


def _operand_text(expression: Expression) -> str:
    if isinstance(expression, Column | Feature):
        return expression.name
    if not isinstance(expression, Operation):
        return str(expression)
    if expression.name in OPERATORS:
        return f"({expression_text(expression)})"
    return f"{expression.name}({', '.join(map(expression_text, expression.arguments))})"


def source_text(plan: PipelinePlan, name: str) -> str:
    """Return how a source is read, in words."""
    source = plan.source_plan(name)
    parts = [f"key {source.key}", f"time {source.event_time}"]
    if source.known_at:
        parts.append(f"known at {source.known_at}")
    if source.event_id:
        parts.append(f"id {source.event_id}")
    if source.dedupe_ms:
        parts.append(f"each id once in {duration_text(source.dedupe_ms)}")
    parts.append(f"lateness {duration_text(source.lateness_ms)}")
    parts.append(f"max ahead {duration_text(source.max_ahead_ms)}")
    if source.partitioner:
        parts.append(f"partitioned by {source.partitioner}")
    if source.not_finite != "dlq":
        parts.append(f"not finite: {source.not_finite}")
    if source.null_key != "default":
        parts.append(f"null key: {source.null_key}")
    if source.topic != name:
        parts.append(f"topic {source.topic}")
    columns = ", ".join(f"{column.name}: {column.kind}" for column in source.columns)
    return f"{', '.join(parts)}; reads {columns}"
