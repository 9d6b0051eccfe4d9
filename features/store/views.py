"""Which entities and views each stage of a project's pipelines serves online. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headrace.features.errors import DefinitionError
from headrace.features.store.murmur3 import field_name
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Literal

    from headrace.features.plan import FeaturePlan, KeyKind, ProjectPlan, StagePlan

#: Features of one entity: they are written by one command, whose arguments stand on Lua's stack.
FEATURES_MAX: Final = 2_000


@dataclass(frozen=True, slots=True)
class OnlineFeature:
    """A feature in the store: ``name`` is ``<view>__<feature>``, ``feature`` its second part.

    ``default`` is what windows without events give; None: null.
    """

    name: str
    view: str
    feature: str
    dtype: Literal["int64", "float64"]
    default: float | None


@dataclass(frozen=True, slots=True)
class OnlineView:
    """A view in the store. An event is in none of its windows ``reach_ms`` after its time."""

    name: str
    features: tuple[OnlineFeature, ...]
    reach_ms: int


@dataclass(frozen=True, slots=True)
class OnlineEntity:
    """What one stage of a pipeline writes: views of one entity, one hash in Redis for each key.

    ``expiry_ms`` is how long after its newest event a key is freed. Another pipeline, or another
    entity with the same ``join_key``, may write other views into the same hashes: ``shared``.
    """

    project: str
    pipeline: str
    entity: str
    join_key: str
    key_kind: KeyKind
    views: tuple[OnlineView, ...]
    expiry_ms: int
    shared: bool

    @property
    def features(self) -> tuple[OnlineFeature, ...]:
        """Return the features of all views, in order: the columns of ``EntityRows.values``."""
        return tuple(feature for view in self.views for feature in view.features)

    @property
    def reach_ms(self) -> int:
        """Return the longest reach of the views."""
        return max(view.reach_ms for view in self.views)


def online_entities(plan: ProjectPlan) -> Mapping[str, Mapping[int, OnlineEntity]]:
    """Return what is served, by pipeline and by index of its stage.

    A view of several pipelines is served by the first of them. Stages that serve nothing are left
    out.

    Raises:
        DefinitionError: If two features of one key would stand in the same field of Redis, or
            there are too many of them.

    """
    served: set[str] = set()
    drafts: dict[tuple[str, int], tuple[StagePlan, str, tuple[OnlineView, ...]]] = {}
    for pipeline in plan.pipelines:
        own: set[str] = set()
        for index, stage in enumerate(pipeline.stages):
            views = tuple(view for view in _views(stage) if view.name not in served)
            own |= {view.name for view in views}
            if views:
                drafts[pipeline.name, index] = (stage, _hash(stage), views)
        served |= own
    by_hash: dict[str, list[OnlineView]] = {}
    for _, name, views in drafts.values():
        by_hash.setdefault(name, []).extend(views)
    for views_of_hash in by_hash.values():
        check_fields(feature for view in views_of_hash for feature in view.features)
    writers = [name for _, name, _ in drafts.values()]
    entities: dict[str, dict[int, OnlineEntity]] = {p.name: {} for p in plan.pipelines}
    for (pipeline_name, index), (stage, name, views) in drafts.items():
        entities[pipeline_name][index] = OnlineEntity(
            project=plan.project,
            pipeline=pipeline_name,
            entity=stage.entity,
            join_key=stage.inputs[0].key,
            key_kind=stage.key_kind,
            views=views,
            expiry_ms=2 * max(view.reach_ms for view in views),
            shared=writers.count(name) > 1,
        )
    return entities


def check_fields(features: Iterable[OnlineFeature]) -> None:
    """Refuse features of one key that cannot be told apart: a field is a hash of 32 bits.

    Raises:
        DefinitionError: With both names.

    """
    fields: dict[bytes, str] = {}
    for feature in features:
        other = fields.setdefault(field_name(feature.view, feature.feature), feature.name)
        if other != feature.name:
            rule = "have a field of its own in Redis, which Feast names by a hash of 32 bits"
            hint = "give one of them name="
            text = explain("a feature", rule, feature.name, f"the key of {other}", hint)
            raise DefinitionError(text)
    if len(fields) > FEATURES_MAX:
        rule = f"have at most {FEATURES_MAX} features in the online store"
        first = next(iter(fields.values()))
        text = explain("an entity", rule, len(fields), first, "split it, or drop views")
        raise DefinitionError(text)


def _hash(stage: StagePlan) -> str:
    """Return what tells apart the hashes in Redis: the typed join key."""
    return f"{stage.inputs[0].key}:{stage.key_kind}"


def _views(stage: StagePlan) -> list[OnlineView]:
    by_view: dict[str, list[FeaturePlan]] = {}
    for feature in stage.features:
        by_view.setdefault(feature.view, []).append(feature)
    return [
        OnlineView(
            name,
            tuple(_feature(feature) for feature in features),
            max(_reach(stage, aggregate) for f in features for aggregate in f.aggregates),
        )
        for name, features in by_view.items()
    ]


def _feature(plan: FeaturePlan) -> OnlineFeature:
    prefix = f"{plan.view}__"
    assert plan.name.startswith(prefix), plan.name
    return OnlineFeature(plan.name, plan.view, plan.name[len(prefix) :], plan.dtype, plan.default)


def _reach(stage: StagePlan, aggregate: int) -> int:
    """Return how long after its time an event may be in the aggregate's window."""
    window = stage.windows[stage.aggregates[aggregate].window]
    return window.length_ms + window.delay_ms + stage.rings[window.ring].grain_ms
