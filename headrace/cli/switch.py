"""What happens when other definitions take over, in plain words: for ``headrace plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.features.changes import Fate, fates
from headrace.runtime.errors import HeadraceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headrace.cli.applied import Applied, Target
    from headrace.features.plan import PipelinePlan
    from headrace.features.project import Project
    from headrace.streams.cutover import Outlook

_MEANS: dict[Fate, str] = {
    "unchanged": "keeps its numbers",
    "new": "whole from its first event: the log is replayed",
    "changed": "another meaning under the same name, whole from its first event",
    "removed": "is written no more",
}


def switch_lines(project: Project, applied: Applied, target: Target) -> list[str]:
    """Return what happens to each pipeline whose definitions have changed; needs no broker.

    What only the broker knows is left out, and said to be, where it does not answer.
    """
    before = {plan.name: plan for plan in applied.plan.pipelines} if applied.plan else {}
    lines: list[str] = []
    for plan in target.plan.pipelines:
        old = before.get(plan.name)
        if old is not None and _runs_otherwise(old, plan):
            lines += _feature_lines(old, plan)
            lines += _topic_lines(old, plan)
            lines += _broker_lines(project, plan)
    return lines


def _runs_otherwise(old: PipelinePlan, new: PipelinePlan) -> bool:
    topics = [[stage.topic for stage in plan.stages] for plan in (old, new)]
    return old.fingerprint != new.fingerprint or topics[0] != topics[1]


def _feature_lines(old: PipelinePlan, new: PipelinePlan) -> Iterator[str]:
    yield f"when a worker starts with these definitions, of pipeline {new.name}"
    by_fate: dict[Fate, list[str]] = {}
    for name, fate in fates(old, new).items():
        by_fate.setdefault(fate, []).append(name)
    for fate, meaning in _MEANS.items():
        if names := by_fate.get(fate):
            yield f"  {fate} ({meaning}): {', '.join(names)}"


def _topic_lines(old: PipelinePlan, new: PipelinePlan) -> Iterator[str]:
    was = {stage.topic for stage in old.stages if not stage.direct}
    will = {stage.topic for stage in new.stages if not stage.direct}
    for topic in sorted(will - was):
        yield f"  re-key topic {topic}: new, filled by the replay"
    for topic in sorted(was & will):
        yield f"  re-key topic {topic}: goes on, what travels in it is the same"
    for topic in sorted(was - will):
        yield f"  re-key topic {topic}: is left, nobody reads it then"
    if was - will:
        yield "  stop the workers and run 'headrace worker --drain' before 'headrace apply'"


def _broker_lines(project: Project, plan: PipelinePlan) -> Sequence[str]:
    # Not at the top: a plan alone needs no client of Kafka.
    from headrace.runtime.dev.stack import endpoints
    from headrace.runtime.kafka import client_properties
    from headrace.streams.cutover import outlook

    try:
        found = endpoints(project.settings, project.folder)
        client = client_properties(project.settings, found.bootstrap_servers)
        return outlook_lines(outlook(client, plan))
    except HeadraceError as error:
        return [f"  how many rows that are cannot be said: {error}"]


def outlook_lines(found: Outlook) -> list[str]:
    """Return in words what the broker says about a start."""
    rows = f"  {found.replayed} rows of the sources are read again in silence"
    lines = [
        f"{rows}; nothing is scored meanwhile, and nothing twice",
        "  'headrace worker --prepare' reads them before, beside the workers that run",
    ]
    for topic in found.left:
        if not topic.is_finished:
            lines.append(
                f"  {topic.name} is not finished: {topic.unread} messages are unread and "
                f"{topic.held} rows held back; a worker refuses to start until "
                "'headrace worker --drain' of the former definitions has scored them"
            )
        else:
            lines.append(f"  {topic.name} is finished, and may be deleted")
    if found.dropped:
        lines.append(
            f"  {found.dropped} rows that were read once are no longer in the sources' logs: "
            "new features would begin with a gap, so a worker refuses to start; "
            "'headrace backfill' has their history from the lake"
        )
    return lines
