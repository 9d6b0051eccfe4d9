"""Opens what a plan's question is asked of: readers of its sources, and pipelines' snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.features.compiler import compile_project
from headrace.features.errors import did_you_mean
from headrace.lake.errors import HistoryError
from headrace.lake.events import open_events
from headrace.lake.served import open_snapshots
from headrace.lake.stored import LakeEvents, open_stored
from headrace.lake.tables import snapshots_table
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.features.plan import PipelinePlan
    from headrace.lake.events import EventReader
    from headrace.lake.request import Request
    from headrace.lake.served import Snapshots
    from headrace.lake.stored import OffsetRange, TopicChoice

    Ranges = Mapping[str, Sequence[OffsetRange]]


def open_readers(
    plan: PipelinePlan,
    request: Request,
    *,
    topics: TopicChoice = "current",
    ranges: Ranges | None = None,
    label: bool = False,
) -> dict[str, EventReader]:
    """Return the events of each source that a plan reads.

    Args:
        plan: The plan.
        request: Where they are.
        topics: Of a recreated topic: the current one or all.
        ranges: Read exactly these offsets, by table.
        label: The label's source too.

    Raises:
        HistoryError: If one is missing.

    """
    needed = {given.source for stage in plan.stages for given in stage.inputs} | {plan.source}
    if label:
        assert plan.label is not None, "the caller has looked"
        needed.add(plan.label.source)
    if request.sources is not None:
        given = request.sources
        for name in sorted(needed - given.keys()):
            raise _missing(name, sorted(given), plan)
        return {name: open_events(name, given[name]) for name in sorted(needed)}
    assert request.lake is not None, "sources come from somewhere"
    for name in sorted(needed):
        if not request.lake.has(name):
            raise _missing(name, request.lake.names(), plan)
    return {
        name: open_stored(
            request.lake.table(name),
            name,
            plan.source_plan(name).event_time,
            topics,
            None if ranges is None else ranges[name],
        )
        for name in sorted(needed)
    }


def _missing(name: str, got: list[str], plan: PipelinePlan) -> HistoryError:
    hint = (
        f"give sources={{{name!r}: …}}, name its files in headrace.yaml under history:, or let "
        "'headrace lake' write it"
    )
    return HistoryError(explain("history", f"hold source {name}", got, plan.name, hint))


def open_served(
    plan: PipelinePlan,
    request: Request,
    readers: Mapping[str, EventReader],
    ranges: Ranges | None = None,
) -> tuple[Snapshots, ...]:
    """Return the snapshots that may hold the plan's features, best first."""
    scored = readers[plan.source]
    if request.lake is None or not isinstance(scored, LakeEvents):
        return ()
    found = []
    for pipeline in request.served_by:
        fingerprint = _fingerprint(plan, request, pipeline)
        pinned = None
        if ranges is not None:
            pinned = ranges.get(snapshots_table(pipeline))
            if pinned is None:
                continue
        one = open_snapshots(request.lake, pipeline, scored.topic_ids, fingerprint, pinned)
        if one is not None:
            found.append(one)
    return tuple(found)


def _fingerprint(plan: PipelinePlan, request: Request, pipeline: str) -> str:
    if plan.name == pipeline or request.project is None:
        return plan.fingerprint
    project = request.project
    plans = compile_project(project, project.settings.topics.partitions).pipelines
    return next((one.fingerprint for one in plans if one.name == pipeline), plan.fingerprint)


def orders_of(plan: PipelinePlan, order_by: str | Mapping[str, str] | None) -> dict[str, str]:
    """Return by source the column that orders its events of equal time."""
    if order_by is None:
        return {}
    if isinstance(order_by, str):
        return {plan.source: order_by}
    names = {source.name for source in plan.sources}
    for name in order_by:
        if name not in names:
            hint = did_you_mean(name, names)
            raise HistoryError(explain("order_by", "name sources", name, plan.name, hint))
    return dict(order_by)
