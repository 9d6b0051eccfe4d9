"""From what a data scientist asks for to plans and sources: pipelines, views, features by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from headrace.features.compiler import compile_pipeline
from headrace.features.definitions import FeatureView, Pipeline
from headrace.features.durations import duration_hint, duration_ms
from headrace.features.errors import did_you_mean
from headrace.features.plan import PipelinePlan
from headrace.features.project import DEFINITIONS_FILE, Project, load_project
from headrace.lake.errors import HistoryError
from headrace.lake.tables import Lake
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from headrace.features.errors import Location
    from headrace.lake.events import Data

    Features = str | Pipeline | PipelinePlan | FeatureView | Sequence[FeatureView | str]


@dataclass(frozen=True, slots=True)
class AsOf:
    """Which rows count as known: ``event``, ``served``, or ``lag`` with its milliseconds."""

    kind: Literal["event", "served", "lag"]
    lag_ms: int = 0
    text: str = "event"


def as_of_from(text: str) -> AsOf:
    """Return what ``as_of`` says.

    Raises:
        HistoryError: If it is neither ``event`` nor ``served`` nor a length of time.

    """
    if text == "event":
        return AsOf("event")
    if text == "served":
        return AsOf("served", text=text)
    lag_ms = duration_ms(text)
    if lag_ms is None:
        rule = "be 'event', 'served' or a lag"
        raise HistoryError(explain("as_of", rule, text, "history", duration_hint(text)))
    return AsOf("lag", lag_ms, text)


@dataclass(frozen=True, slots=True)
class Request:
    """The plans to run, one for each scored source; ``names`` None: all of their vectors.

    ``sources`` None: the events come from ``lake``. ``served_by`` names the pipelines whose
    snapshots may hold the features, best first.
    """

    plans: tuple[PipelinePlan, ...]
    names: tuple[str, ...] | None
    sources: Mapping[str, Data] | None
    lake: Lake | None
    served_by: tuple[str, ...]
    project: Project | None


def plans_for(
    features: Features,
    project: Project | Path | str | None,
    sources: Mapping[str, Data] | Literal["lake"] | None,
    as_of: AsOf | None = None,
) -> Request:
    """Return what is to be run for ``features``.

    Raises:
        HistoryError: If a name or an object is not what can be asked for, or the lake is asked for
            where there is no project.
        DefinitionError: If the definitions break a rule.

    """
    if isinstance(features, PipelinePlan):
        loaded = _project(project, ())
        given, lake = _origin(sources, loaded, as_of)
        return Request((features,), None, given, lake, (features.name,), loaded)
    if isinstance(features, str):
        project = _project(project or Path(), ())
        features = _called(features, project)
    if not (
        isinstance(features, Pipeline | FeatureView)
        or (isinstance(features, Sequence) and features)
    ):
        rule = "be a pipeline, a feature view, their name, or a list of views and feature names"
        raise HistoryError(explain("features", rule, features, "history"))
    made = [features] if isinstance(features, Pipeline | FeatureView) else [*features]
    loaded = _project(project, made)
    given, lake = _origin(sources, loaded, as_of)
    if isinstance(features, Pipeline):
        plan = _compiled(features, loaded)
        return Request((plan,), None, given, lake, (features.name,), loaded)
    items = [features] if isinstance(features, FeatureView) else features
    views = _views(items, loaded)
    by_source: dict[str, list[FeatureView]] = {}
    for view in views:
        by_source.setdefault(view.source.name, []).append(view)
    plans = tuple(
        _compiled(Pipeline("history", group[0].source, group), loaded)
        for group in by_source.values()
    )
    served_by = tuple(pipeline.name for pipeline in loaded.pipelines) if loaded else ()
    return Request(plans, _names(items, plans), given, lake, served_by, loaded)


def _compiled(pipeline: Pipeline, loaded: Project | None) -> PipelinePlan:
    if loaded is None:
        return compile_pipeline(pipeline)
    return compile_pipeline(
        pipeline,
        loaded.schemas,
        project=loaded.name,
        partitions=loaded.settings.topics.partitions,
        max_ahead_ms=loaded.max_ahead_ms,
    )


def _origin(
    sources: Mapping[str, Data] | Literal["lake"] | None,
    loaded: Project | None,
    as_of: AsOf | None,
) -> tuple[Mapping[str, Data] | None, Lake | None]:
    """Return where events come from: files and tables, or None and the lake.

    What is given wins, then the files of ``headrace.yaml``; but files seldom know when a row
    arrived or what was served, so for these questions the lake comes first.
    """
    lake = None if loaded is None else Lake(loaded.settings.lake.folder)
    if sources == "lake":
        if lake is None:
            rule = "come with a project"
            hint = "give project=, the folder with headrace.yaml"
            raise HistoryError(explain("sources='lake'", rule, None, "history", hint))
        return None, lake
    if sources is not None:
        assert not isinstance(sources, str), "the caller's type"
        return sources, lake
    files = dict(loaded.settings.history) if loaded else {}
    asks_lake = as_of is not None and as_of.kind != "event" and lake is not None and lake.names()
    if lake is None or (files and not asks_lake):
        return files, lake
    return None, lake


def _called(name: str, loaded: Project | None) -> Pipeline | FeatureView | list[FeatureView | str]:
    """Return the project's pipeline or view of this name, or the one feature that it names."""
    assert loaded is not None, "a project was asked for"
    known: dict[str, Pipeline | FeatureView] = {view.name: view for view in loaded.views}
    known |= {pipeline.name: pipeline for pipeline in loaded.pipelines}
    if name in known:
        return known[name]
    if "__" in name:
        return [name]
    rule = "name a pipeline, a view or a feature of the project"
    raise HistoryError(explain("features", rule, name, "history", did_you_mean(name, known)))


def _views(items: Sequence[FeatureView | str], loaded: Project | None) -> list[FeatureView]:
    """Return the views that are meant, each once."""
    known = {view.name: view for view in loaded.views} if loaded else {}
    known |= {item.name: item for item in items if isinstance(item, FeatureView)}
    views: dict[str, FeatureView] = {}
    for item in items:
        if isinstance(item, FeatureView):
            views[item.name] = item
        elif isinstance(item, str) and item.partition("__")[0] in known:
            name = item.partition("__")[0]
            views[name] = known[name]
        else:
            hint = "give project=, the folder with the definitions" if loaded is None else ""
            if loaded is not None and isinstance(item, str):
                hint = did_you_mean(item.partition("__")[0], known)
            rule = "be a view, or <view>__<feature> of the project's"
            got = item if isinstance(item, str) else type(item).__name__
            raise HistoryError(explain("a feature", rule, got, "history", hint))
    return list(views.values())


def _names(items: Sequence[FeatureView | str], plans: Sequence[PipelinePlan]) -> tuple[str, ...]:
    """Return the features asked for, in the order asked for."""
    features = {f.name: f.view for plan in plans for stage in plan.stages for f in stage.features}
    names: list[str] = []
    for item in items:
        if isinstance(item, FeatureView):
            names += [name for name, view in features.items() if view == item.name]
        elif item in features:
            names.append(item)
        else:
            hint = did_you_mean(item, features)
            rule = "be defined by its view"
            raise HistoryError(explain("a feature", rule, item, "history", hint))
    return tuple(dict.fromkeys(names))


def _project(project: Project | Path | str | None, items: Sequence[object]) -> Project | None:
    """Return the project that is named, or the one whose definitions file made an item."""
    if isinstance(project, Project):
        return project
    if project is not None:
        return load_project(project)
    for item in items:
        location: Location | None = getattr(item, "location", None)
        if location is not None and Path(location.file).name == DEFINITIONS_FILE:
            folder = Path(location.file).parent
            if (folder / "headrace.yaml").is_file():
                return load_project(folder)
    return None
