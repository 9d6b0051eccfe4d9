"""Definitions to plans: names resolved, types checked, stages put in order, a fingerprint.

Pure: takes definitions and schema texts, gives frozen data. What is wrong is told with the line of
the definition, the rule and a hint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from typing import TYPE_CHECKING, Any, Literal, Protocol

from headrace.features.definitions import Aggregate, Ratio
from headrace.features.encoding import canonical_json, encode
from headrace.features.errors import PlanFormatError, refuse
from headrace.features.expressions import NUMERIC, Expression, features_of, from_data
from headrace.features.layouts import rekey_layout
from headrace.features.plan import (
    LabelPlan,
    PipelinePlan,
    ProjectPlan,
    SourcePlan,
    StagePlan,
    VectorColumn,
)
from headrace.features.resolution import Resolver
from headrace.features.staging import WHOLE, StageDraft
from headrace.runtime import topics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from headrace.features.definitions import FeatureView, Pipeline, Source
    from headrace.features.formulas import Formula

# Raised whenever the same plan would give other values: part of every fingerprint.
SEMANTICS_VERSION = 1
DEFAULT_PARTITIONS = 4

# Fields of predictions and snapshots that a column of the vector would collide with.
RESERVED = frozenset(
    {
        "prediction_id",
        "event_id",
        "source",
        "source_topic_id",
        "source_partition",
        "source_offset",
        "event_time",
        "fingerprint",
    }
)


class ProjectDefinitions(Protocol):
    """What the compiler needs of a loaded project."""

    @property
    def name(self) -> str:
        """The project's name."""
        ...

    @property
    def pipelines(self) -> Sequence[Pipeline]:
        """All that it defines."""
        ...

    @property
    def schemas(self) -> Mapping[str, str]:
        """Avro schemas as JSON, by source name."""
        ...

    @property
    def max_ahead_ms(self) -> int | None:
        """What stands in place of each source's own, if anything."""
        ...


def compile_project(
    project: ProjectDefinitions, partitions: int = DEFAULT_PARTITIONS
) -> ProjectPlan:
    """Return the plans of all pipelines of a project.

    Args:
        project: What ``load_project`` returned.
        partitions: Of the re-key topics.

    Raises:
        DefinitionError: If a definition breaks a rule.

    """
    compiled = tuple(
        compile_pipeline(
            pipeline,
            project.schemas,
            project=project.name,
            partitions=partitions,
            max_ahead_ms=project.max_ahead_ms,
        )
        for pipeline in project.pipelines
    )
    return ProjectPlan(project.name, compiled)


def compile_pipeline(
    pipeline: Pipeline,
    schemas: Mapping[str, str] | None = None,
    *,
    project: str = "project",
    partitions: int = DEFAULT_PARTITIONS,
    max_ahead_ms: int | None = None,
) -> PipelinePlan:
    """Return the plan of one pipeline.

    Args:
        pipeline: The definition.
        schemas: Avro schemas as JSON by source name, for sources that do not carry their own.
        project: The project's name.
        partitions: Of the re-key topics.
        max_ahead_ms: In place of each source's own ``max_ahead``; no part of the fingerprint.

    Raises:
        DefinitionError: If a definition breaks a rule.

    """
    resolver = Resolver(schemas or {})
    resolver.add(pipeline.source)
    stages = _stages(pipeline, _drafts(pipeline, resolver))
    vector = _vector(pipeline, resolver, stages)
    # What only the label reads cannot change a value.
    fingerprint = _fingerprint(pipeline, resolver.plans(), stages, vector, resolver)
    label = _label(pipeline, resolver)
    sources = resolver.plans()
    if max_ahead_ms is not None:
        sources = tuple(dataclasses.replace(s, max_ahead_ms=max_ahead_ms) for s in sources)
    plan = PipelinePlan(
        name=pipeline.name,
        project=project,
        source=pipeline.source.name,
        sources=sources,
        stages=stages,
        vector=vector,
        label=label,
        model=_model(pipeline),
        partitions=partitions,
        alignment_ms=pipeline.alignment_ms,
        fingerprint=fingerprint,
    )
    return dataclasses.replace(plan, stages=_with_topics(plan))


# --- Stages -----------------------------------------------------------------------------------


def _drafts(pipeline: Pipeline, resolver: Resolver) -> list[StageDraft]:
    """Return one draft per entity, in the order that events pass them."""
    views = _views_by_entity(pipeline)
    entities = {entity: drafted[0].entity for entity, drafted in views.items()}
    needs = {entity: _needs(drafted, pipeline) for entity, drafted in views.items()}
    _refuse_cycle(needs, {entity: drafted[0] for entity, drafted in views.items()})
    drafts: dict[str, StageDraft] = {}
    while len(drafts) < len(views):
        ready = [e for e in views if e not in drafts and drafts.keys() >= needs[e]]
        entity = next(
            (e for e in ready if not drafts and _can_be_direct(views[e], pipeline)), ready[0]
        )
        draft = StageDraft(entities[entity], pipeline.source, resolver)
        for view in views[entity]:
            draft.add(view)
        drafts[entity] = draft
    return list(drafts.values())


def _views_by_entity(pipeline: Pipeline) -> dict[str, list[FeatureView]]:
    names: dict[str, FeatureView] = {}
    result: dict[str, list[FeatureView]] = {}
    where = f"pipeline {pipeline.name}"
    for view in pipeline.views:
        if view.name in names:
            hint = f"the other one stands at {names[view.name].location}"
            raise refuse(
                view.location, "the name of a view", "be used once", view.name, where, hint
            )
        names[view.name] = view
        others = result.setdefault(view.entity.name, [])
        if others and others[0].entity is not view.entity:
            hint = f"the other one stands at {others[0].entity.location}"
            at, name = view.entity.location, view.entity.name
            raise refuse(at, "the name of an entity", "be used once", name, where, hint)
        others.append(view)
    return result


def _needs(views: Sequence[FeatureView], pipeline: Pipeline) -> set[str]:
    """Return the entities whose features the values of these views are made of."""
    entity_of = {view.name: view.entity.name for view in pipeline.views}
    read = [
        name.split("__")[0]
        for view in views
        for item in view.features
        if isinstance(item, Aggregate) and item.value is not None
        for name in features_of(item.value)
    ]
    return {entity_of[view] for view in read if view in entity_of}


def _refuse_cycle(needs: Mapping[str, set[str]], views: Mapping[str, FeatureView]) -> None:
    """Refuse entities that wait for each other's features: an event passes each stage once."""
    done: set[str] = set()

    def visit(entity: str, path: tuple[str, ...]) -> None:
        if entity in path:
            cycle = (*path[path.index(entity) :], entity)
            raise refuse(
                views[entity].location,
                "stages",
                "not wait for each other's features",
                " -> ".join(cycle),
                "the values that are aggregated",
                "an event passes the stage of each entity once",
            )
        if entity not in done:
            for other in sorted(needs[entity]):
                visit(other, (*path, entity))
            done.add(entity)

    for entity in needs:
        visit(entity, ())


def _can_be_direct(views: Sequence[FeatureView], pipeline: Pipeline) -> bool:
    """Return whether the entity's state may follow the producers' own partitions."""
    source = pipeline.source
    return (
        source.partitioner is not None
        and views[0].entity.key == source.key
        and all(part in {None, source} for view in views for part in _sources_of(view))
    )


def _sources_of(view: FeatureView) -> Iterator[Source | None]:
    yield view.source
    for item in view.features:
        if isinstance(item, Ratio):
            yield item.numerator.source
            yield item.denominator.source
        else:
            yield item.source


def _stages(pipeline: Pipeline, drafts: Sequence[StageDraft]) -> tuple[StagePlan, ...]:
    stages = []
    for index, draft in enumerate(drafts):
        views = [view for view in pipeline.views if view.entity is draft.entity]
        direct = index == 0 and _can_be_direct(views, pipeline)
        topic = pipeline.source.topic or pipeline.source.name
        stages.append(draft.plan(topic, direct, pipeline.alignment_ms))
    return tuple(stages)


def _with_topics(plan: PipelinePlan) -> tuple[StagePlan, ...]:
    """Return the stages, those that are re-keyed with the topic that is named after its layout."""
    return tuple(
        stage
        if stage.direct
        else dataclasses.replace(
            stage, topic=topics.rekey(plan.name, stage.entity, rekey_layout(plan, index))
        )
        for index, stage in enumerate(plan.stages)
    )


# --- The vector, the label, the model -----------------------------------------------------------


def _vector(
    pipeline: Pipeline, resolver: Resolver, stages: Sequence[StagePlan]
) -> tuple[VectorColumn, ...]:
    """Return request columns, the views' features, derived columns: each in the order written."""
    vector = [
        _expression_column("request", name, formula, pipeline, resolver)
        for name, formula in pipeline.request.items()
    ]
    for view in pipeline.views:
        vector += [
            VectorColumn(feature.name, "feature", feature.dtype, None)
            for stage in stages
            for feature in stage.features
            if feature.view == view.name
        ]
    vector += [
        _expression_column("derived", name, formula, pipeline, resolver)
        for name, formula in pipeline.derived.items()
    ]
    taken = {*RESERVED, *(f"{stage.entity}_key" for stage in stages)}
    taken |= {f"{age.view}__age_ms" for stage in stages for age in stage.ages}
    for column in vector:
        if column.name in taken:
            formula = {**pipeline.request, **pipeline.derived}.get(column.name)
            at = formula.location if formula is not None else pipeline.location
            rule = "be used once, and not be a field that every snapshot has"
            where = f"the vector of pipeline {pipeline.name}"
            raise refuse(at, "the name of a column", rule, column.name, where, "call it otherwise")
        taken.add(column.name)
    return tuple(vector)


def _expression_column(
    kind: Literal["request", "derived"],
    name: str,
    formula: Formula,
    pipeline: Pipeline,
    resolver: Resolver,
) -> VectorColumn:
    at, where = formula.location, f"{kind} column {name}"
    if kind == "request" and (features := features_of(formula.node)):
        rule = "read the event's own columns"
        hint = f"write it under derived={{{name!r}: …}}"
        raise refuse(at, "a request column", rule, features[0], where, hint)
    number = resolver.number(formula.node, pipeline.source, at, where)
    return VectorColumn(name, kind, "int64" if number in WHOLE else "float64", formula.node)


def _label(pipeline: Pipeline, resolver: Resolver) -> LabelPlan | None:
    label = pipeline.label
    if label is None:
        if pipeline.model is not None:
            rule, hint = "come with a label", "write label=hr.Label(…), or leave the model out"
            at = pipeline.location
            raise refuse(at, "a model", rule, None, f"pipeline {pipeline.name}", hint)
        return None
    resolver.add(label.source)
    at, where = label.location, f"label of pipeline {pipeline.name}"
    column = resolver.column(label.source, label.column, at, where)
    if column.type not in NUMERIC:
        rule = "be a number or a boolean"
        raise refuse(at, f"column {label.column}", rule, column.avro, where)
    theirs = resolver.key(label.source, label.on, at, where)
    ours = resolver.key(pipeline.source, label.on, at, where)
    if theirs.kind != ours.kind:
        rule = f"be {ours.kind} as in source {pipeline.source.name}"
        raise refuse(at, f"column {label.on} of {label.source.name}", rule, theirs.kind, where)
    return LabelPlan(label.source.name, label.column, label.on, label.delay_ms)


def _model(pipeline: Pipeline) -> tuple[tuple[str, object], ...]:
    if pipeline.model is None:
        return ()
    return (("kind", pipeline.model.kind), *pipeline.model.parameters.items())


# --- Fingerprint --------------------------------------------------------------------------------


def _fingerprint(
    pipeline: Pipeline,
    sources: Iterable[SourcePlan],
    stages: Iterable[StagePlan],
    vector: Iterable[VectorColumn],
    resolver: Resolver,
) -> str:
    """Return a hash of what can change a value, and of nothing else.

    Left out: names of topics and files, the partitioner and direct reading, partition counts,
    label and model, documentation in schemas; the event id, unless duplicates are found by it.
    """
    content = {
        "semantics": SEMANTICS_VERSION,
        "source": pipeline.source.name,
        "alignment_ms": pipeline.alignment_ms,
        "sources": [
            {
                **_without(source, *_left_out(source)),
                "columns": resolver.declarations(source),
            }
            for source in sorted(sources, key=lambda s: s.name)
        ],
        "stages": [
            _without(stage, "topic", "direct") for stage in sorted(stages, key=lambda s: s.entity)
        ],
        "vector": [encode(column) for column in vector],
    }
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]


def _left_out(source: SourcePlan) -> tuple[str, ...]:
    """Return what of a source cannot change a value: ids only where nobody looks at them."""
    always = ("topic", "schema", "columns", "partitioner")
    return always if source.dedupe_ms else (*always, "event_id", "dedupe_ms")


def _without(value: SourcePlan | StagePlan, *names: str) -> dict[str, object]:
    data = encode(value)
    assert isinstance(data, dict)
    return {name: item for name, item in data.items() if name not in names}


# --- JSON -------------------------------------------------------------------------------------


def plan_to_json(plan: ProjectPlan | PipelinePlan) -> str:
    """Return the plan as JSON that ``plan_from_json`` reads back equal."""
    return json.dumps({type(plan).__name__: encode(plan)}, indent=1, allow_nan=False)


def plan_from_json(text: str) -> ProjectPlan | PipelinePlan:
    """Return the plan that ``plan_to_json`` wrote.

    Raises:
        PlanFormatError: If the text is none, or of a version that this one does not read.

    """
    try:
        ((name, data),) = json.loads(text).items()
        plan = _decode({"ProjectPlan": ProjectPlan, "PipelinePlan": PipelinePlan}[name], data)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        message = f"a stored plan must be one that this version wrote; {error}"
        raise PlanFormatError(message) from error
    assert isinstance(plan, ProjectPlan | PipelinePlan)
    return plan


def _decode(kind: Any, data: Any) -> Any:
    """Return ``data`` as the type that a plan's field is declared to be."""
    if data is None or kind is object:
        return data
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if arguments[-1] is ...:
            return tuple(_decode(arguments[0], item) for item in data)
        return tuple(_decode(a, item) for a, item in zip(arguments, data, strict=True))
    if origin in {types.UnionType, typing.Union}:
        return _decode(next(a for a in arguments if a is not type(None)), data)
    if kind is Expression:
        return from_data(data)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        names = {f.name for f in dataclasses.fields(kind)}
        if set(data) - names:
            message = f"it holds {', '.join(sorted(set(data) - names))}"
            raise ValueError(message)
        return kind(**{name: _decode(hints[name], item) for name, item in data.items()})
    return data


def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, localns={"Expression": Expression})
