"""From what a reader asks for to views and typed keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from headrace.features.definitions import FeatureView, Pipeline
from headrace.features.errors import did_you_mean
from headrace.features.kernels.canonical import canonical_keys
from headrace.features.store.errors import OnlineError
from headrace.features.store.layout import KEY_TYPES
from headrace.features.store.views import online_entities
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from headrace.features.plan import KeyKind, ProjectPlan
    from headrace.features.store.views import OnlineEntity, OnlineFeature, OnlineView

    Features = str | Pipeline | FeatureView | Sequence[str | FeatureView]
    # Or an Arrow table, or a pandas frame: both without types.
    Entities = Mapping[str, Any] | Sequence[Mapping[str, Any]] | Any


@dataclass(frozen=True, slots=True)
class WantedView:
    """A view with those of its features that are asked for."""

    entity: OnlineEntity
    view: OnlineView
    features: tuple[OnlineFeature, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What is read: views, and all their features in the order asked for."""

    views: tuple[WantedView, ...]
    names: tuple[str, ...]

    @property
    def join_keys(self) -> dict[str, KeyKind]:
        """Return the columns that find the entities, with what they hold."""
        return {wanted.entity.join_key: wanted.entity.key_kind for wanted in self.views}


def request_for(features: Features, plan: ProjectPlan) -> Request:
    """Return what is to be read for ``features``.

    Args:
        features: A pipeline, a view, their name or ``<view>__<feature>``; or a list of them.
        plan: The project that they belong to.

    Raises:
        OnlineError: If a name or an object is not what can be asked for.
        DefinitionError: If the project's views cannot be kept in the store.

    """
    served = {
        view.name: (entity, view)
        for stages in online_entities(plan).values()
        for entity in stages.values()
        for view in entity.views
    }
    known = {feature.name: feature for _, view in served.values() for feature in view.features}
    items: list[object] = [features]
    if isinstance(features, Sequence) and not isinstance(features, str):
        items = list(features)
    if not items:
        rule = "name a pipeline, views or features"
        raise OnlineError(explain("features", rule, [], "the online store"))
    names = list(dict.fromkeys(name for item in items for name in _names(item, plan, served)))
    _one_kind_a_column(served[known[name].view][0] for name in names)
    views = []
    for view_name in dict.fromkeys(known[name].view for name in names):
        entity, view = served[view_name]
        asked = tuple(known[name] for name in names if known[name].view == view_name)
        views.append(WantedView(entity, view, asked))
    return Request(tuple(views), tuple(names))


def _names(
    item: object, plan: ProjectPlan, served: Mapping[str, tuple[OnlineEntity, OnlineView]]
) -> list[str]:
    """Return the full names of the features that one item means."""
    name = item.name if isinstance(item, Pipeline | FeatureView) else item
    views = {view: [f.name for f in found.features] for view, (_, found) in served.items()}
    if not isinstance(item, FeatureView):
        for pipeline in plan.pipelines:
            if pipeline.name == name:
                return [column.name for column in pipeline.vector if column.kind == "feature"]
    if name in views and not isinstance(item, Pipeline):
        return views[name]
    if isinstance(name, str) and any(name in features for features in views.values()):
        return [name]
    known = [*(pipeline.name for pipeline in plan.pipelines), *views]
    if isinstance(name, str) and (near := views.get(name.partition("__")[0])):
        known = near
    rule = f"be a pipeline, a view or a feature of project {plan.project}"
    got = name if isinstance(name, str) else type(item).__name__
    raise OnlineError(explain("features", rule, got, "the online store", did_you_mean(got, known)))


def _one_kind_a_column(entities: Iterable[OnlineEntity]) -> None:
    kinds: dict[str, KeyKind] = {}
    for entity in entities:
        kind = kinds.setdefault(entity.join_key, entity.key_kind)
        if kind != entity.key_kind:
            rule = "be of one type in all views that are read at once"
            got = f"{kind} and {entity.key_kind}"
            hint = "read them one after the other"
            text = explain(f"key {entity.join_key}", rule, got, f"entity {entity.entity}", hint)
            raise OnlineError(text)


def key_columns(entities: Entities, join_keys: Mapping[str, KeyKind]) -> dict[str, pa.Array]:
    """Return the key columns of what a reader gives, typed; null where a key is null.

    Args:
        entities: One mapping of keys, a list of them, a mapping of columns, an Arrow table, or a
            pandas frame. Other columns are passed over.
        join_keys: The columns that are needed.

    Raises:
        OnlineError: If a column is absent, of another type, or they differ in length.

    """
    columns = _columns(entities, list(join_keys))
    found: dict[str, pa.Array] = {}
    for name, kind in join_keys.items():
        if name not in columns:
            hint = did_you_mean(name, columns)
            raise OnlineError(explain("entities", f"have {name}", "none", "their keys", hint))
        found[name] = _typed(name, columns[name], kind)
    if len({len(column) for column in found.values()}) > 1:
        got = ", ".join(f"{name}: {len(column)}" for name, column in found.items())
        raise OnlineError(explain("key columns", "be of one length", got, "entities"))
    return found


def _columns(entities: Entities, names: Sequence[str]) -> Mapping[str, Any]:
    if isinstance(entities, pa.Table | pa.RecordBatch):
        return {name: entities.column(name) for name in entities.schema.names}
    if isinstance(entities, Mapping):
        return {
            name: [value]
            if isinstance(value, str | bytes | int | float) or value is None
            else value
            for name, value in entities.items()
        }
    if isinstance(entities, Sequence) and all(isinstance(row, Mapping) for row in entities):
        there = [name for name in names if not entities or any(name in row for row in entities)]
        return {name: [row.get(name) for row in entities] for name in there}
    if hasattr(entities, "columns") and hasattr(entities, "to_dict"):
        return {str(name): pa.array(entities[name], from_pandas=True) for name in entities.columns}
    rule = "be keys by column: a mapping, a list of them, an Arrow table or a pandas frame"
    raise OnlineError(explain("entities", rule, type(entities).__name__, "the online store"))


def _typed(name: str, values: Any, kind: KeyKind) -> pa.Array:
    target = KEY_TYPES[kind]
    hint = "1 and '1' are different keys"
    try:
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
        if kind == "int64" and pa.types.is_floating(array.type):
            array = array.cast(pa.int64())  # What pandas makes of whole numbers and a null.
        keys = canonical_keys(array)
    except (pa.ArrowException, TypeError) as error:
        text = explain(f"key {name}", f"be {kind}", str(error), "entities", hint)
        raise OnlineError(text) from None
    if keys.null_count == len(keys):
        return pa.nulls(len(keys), target)
    if keys.type != target:
        raise OnlineError(explain(f"key {name}", f"be {kind}", str(keys.type), "entities", hint))
    return keys
