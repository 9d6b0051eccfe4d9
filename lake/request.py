"""From what a data scientist asks for to plans: a pipeline, views, or features by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.features.compiler import compile_pipeline
from headrace.features.definitions import FeatureView, Pipeline
from headrace.features.errors import did_you_mean
from headrace.features.plan import PipelinePlan
from headrace.features.project import DEFINITIONS_FILE, Project, load_project
from headrace.lake.errors import HistoryError
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from headrace.features.errors import Location
    from headrace.lake.events import Data

    Features = str | Pipeline | PipelinePlan | FeatureView | Sequence[FeatureView | str]


@dataclass(frozen=True, slots=True)
class Request:
    """The plans to run, one for each scored source; ``names`` None: all of their vectors."""

    plans: tuple[PipelinePlan, ...]
    names: tuple[str, ...] | None
    sources: Mapping[str, Data]


def plans_for(
    features: Features,
    project: Project | Path | str | None,
    sources: Mapping[str, Data] | None,
) -> Request:
    """Return what is to be run for ``features``.

    Raises:
        HistoryError: If a name or an object is not what can be asked for.
        DefinitionError: If the definitions break a rule.

    """
    if isinstance(features, PipelinePlan):
        return Request((features,), None, sources or {})
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
    schemas = loaded.schemas if loaded else {}
    if sources is None:
        sources = dict(loaded.settings.history) if loaded else {}
    if isinstance(features, Pipeline):
        name = loaded.name if loaded else "project"
        return Request((compile_pipeline(features, schemas, project=name),), None, sources)
    items = [features] if isinstance(features, FeatureView) else features
    views = _views(items, loaded)
    by_source: dict[str, list[FeatureView]] = {}
    for view in views:
        by_source.setdefault(view.source.name, []).append(view)
    plans = tuple(
        compile_pipeline(Pipeline("history", group[0].source, group), schemas)
        for group in by_source.values()
    )
    return Request(plans, _names(items, plans), sources)


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
