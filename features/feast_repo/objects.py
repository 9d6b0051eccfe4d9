"""Which Feast objects a project is: entities, views with fields and ttl, one service a pipeline.

Pure: reads definitions and plans. A view is served by the first pipeline that has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headrace.features.changes import feature_text
from headrace.features.compiler import compile_pipeline
from headrace.features.definitions import Pipeline, Ratio
from headrace.features.expressions import features_of
from headrace.features.feast_repo.errors import FeastError
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from headrace.features.compiler import ProjectDefinitions
    from headrace.features.definitions import FeatureView
    from headrace.features.plan import KeyKind, StagePlan

#: What a key kind is in Feast. It is part of the bytes of an online key, so it must be what the
#: worker writes: Avro int and long are int64, bytes are bytes.
VALUE_TYPES: Final[Mapping[KeyKind, str]] = {
    "int64": "INT64",
    "string": "STRING",
    "bytes": "BYTES",
}
FIELD_TYPES: Final = {"int64": "Int64", "float64": "Float64"}
EVENT_TIME: Final = "event_timestamp"
CREATED_TIME: Final = "created_timestamp"
#: Columns of every offline table.
_RESERVED: Final = frozenset({EVENT_TIME, CREATED_TIME})


@dataclass(frozen=True, slots=True)
class RepoEntity:
    """An entity: what its key column is called, and what it holds."""

    name: str
    join_key: str
    key_kind: KeyKind


@dataclass(frozen=True, slots=True)
class RepoField:
    """A feature. ``name`` is without the view; Feast's full name puts ``view__`` before it."""

    name: str
    dtype: str
    description: str


@dataclass(frozen=True, slots=True)
class RepoView:
    """A feature view.

    ``ttl_ms`` is the longest reach back of any of its windows, delay and tile included: a row older
    than that tells nothing of now. ``fingerprint`` covers all that can change one of its values.
    ``source`` is whose events its rows are values at.
    """

    name: str
    entity: RepoEntity
    source: str
    fields: tuple[RepoField, ...]
    ttl_ms: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class RepoService:
    """A pipeline's windowed features, under the pipeline's name."""

    name: str
    views: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RepoObjects:
    """Everything that a project is in Feast."""

    project: str
    entities: tuple[RepoEntity, ...]
    views: tuple[RepoView, ...]
    services: tuple[RepoService, ...]


def repo_objects(project: ProjectDefinitions) -> RepoObjects:
    """Return the Feast objects of a project.

    Raises:
        DefinitionError: If a definition breaks a rule.
        FeastError: If a name means something else in Feast.

    """
    views = tuple(
        _view(pipeline, view, project)
        for pipeline, served in serving(project.pipelines)
        for view in served
    )
    entities = {view.entity.name: view.entity for view in views}
    return RepoObjects(
        project=project.name,
        entities=tuple(entities.values()),
        views=views,
        services=tuple(
            RepoService(pipeline.name, tuple(view.name for view in pipeline.views))
            for pipeline in project.pipelines
        ),
    )


def serving(pipelines: Sequence[Pipeline]) -> Iterator[tuple[Pipeline, tuple[FeatureView, ...]]]:
    """Yield each pipeline with the views that it serves: those that no earlier one has."""
    seen: set[str] = set()
    for pipeline in pipelines:
        own = tuple(view for view in pipeline.views if view.name not in seen)
        seen |= {view.name for view in own}
        if own:
            yield pipeline, own


def pipeline_of(pipeline: Pipeline, views: Sequence[FeatureView]) -> Pipeline:
    """Return a pipeline with the features of ``views`` only, and of those that they read."""
    by_name = {view.name: view for view in pipeline.views}
    wanted: set[str] = set()
    open_ = [view.name for view in views]
    while open_:
        name = open_.pop()
        if name not in wanted:
            wanted.add(name)
            open_ += [other for other in _reads(by_name[name]) if other in by_name]
    # In the pipeline's own order, as the order of views decides the order of stages.
    kept = [view for view in pipeline.views if view.name in wanted]
    return Pipeline("offline", pipeline.source, kept)


def _reads(view: FeatureView) -> Iterator[str]:
    """Yield the views whose features a view's values are made of."""
    for item in view.features:
        parts = (item.numerator, item.denominator) if isinstance(item, Ratio) else (item,)
        for part in parts:
            if part.value is not None:
                yield from (name.partition("__")[0] for name in features_of(part.value))


def _view(pipeline: Pipeline, view: FeatureView, project: ProjectDefinitions) -> RepoView:
    plan = compile_pipeline(
        pipeline_of(pipeline, [view]),
        project.schemas,
        project=project.name,
        max_ahead_ms=project.max_ahead_ms,
    )
    stage = next(s for s in plan.stages if any(f.view == view.name for f in s.features))
    entity = RepoEntity(stage.entity, _join_key(stage), stage.key_kind)
    fields = tuple(
        RepoField(
            feature.name.removeprefix(f"{view.name}__"),
            FIELD_TYPES[feature.dtype],
            feature_text(stage, feature),
        )
        for feature in stage.features
        if feature.view == view.name
    )
    taken = _RESERVED | {entity.join_key}
    for field in fields:
        if field.name in taken or entity.join_key in _RESERVED:
            rule = f"not be called {', '.join(sorted(taken))}, as Feast's own columns are"
            where = f"view {view.name}"
            raise FeastError(explain("a feature", rule, field.name, where, "give it name="))
    reach_ms = _reach_ms(stage, view.name)
    return RepoView(view.name, entity, plan.source, fields, reach_ms, plan.fingerprint)


def _join_key(stage: StagePlan) -> str:
    return next(item.key for item in stage.inputs if item.scored)


def _reach_ms(stage: StagePlan, view: str) -> int:
    used = {i for f in stage.features if f.view == view for i in f.aggregates}
    used |= {age.aggregate for age in stage.ages if age.view == view}
    windows = [stage.windows[stage.aggregates[index].window] for index in used]
    return max(w.length_ms + w.delay_ms + stage.rings[w.ring].grain_ms for w in windows)
