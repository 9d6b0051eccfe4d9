"""A plan as a tree in the terminal, and changes as lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from headrace.features.changes import (
    Change,
    column_text,
    expression_text,
    feature_text,
    source_text,
)
from headrace.features.duplicates import BYTES_PER_ID
from headrace.features.durations import duration_text
from headrace.runtime import topics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import RenderableType

    from headrace.cli.applied import Target
    from headrace.features.plan import PipelinePlan, RingPlan, SourcePlan, StagePlan

_MARKS = {"added": "[green]+[/]", "removed": "[red]-[/]", "changed": "[yellow]~[/]"}


def plan_tree(target: Target) -> Tree:
    """Return everything that a project compiles to, for reading."""
    plan = target.plan
    tree = Tree(f"project [bold]{plan.project}[/]")
    for pipeline in plan.pipelines:
        _add_pipeline(tree, pipeline, target.decoders)
    single = {"deployments", "erasures"}
    partitions = {topic.partitions for topic in target.topics if topic.role not in single}
    branch = tree.add(f"topics: {len(target.topics)}, {_join(partitions)} partitions each")
    for topic in target.topics:
        config = ", ".join(f"{k}={v}" for k, v in topic.config.items())
        branch.add(f"{topic.name}  [dim]{escape(config)}[/]")
    return tree


def _add_pipeline(tree: Tree, plan: PipelinePlan, decoders: Mapping[str, str]) -> None:
    branch = tree.add(
        f"pipeline [bold]{plan.name}[/] scores every event of {plan.source}  "
        f"[dim]fingerprint {plan.fingerprint}[/]"
    )
    sources = branch.add("sources")
    for source in plan.sources:
        how, _, columns = source_text(plan, source.name).partition("; ")
        branch_of_source = sources.add(f"[bold]{source.name}[/]: {escape(how)}")
        branch_of_source.add(escape(columns))
        if source.dedupe_ms:
            branch_of_source.add(dedupe_text(source))
        branch_of_source.add(_DECODERS[decoders[source.name]])
    for number, stage in enumerate(plan.stages, start=1):
        _add_stage(branch, number, stage)
    vector = branch.add(f"vector: {len(plan.vector)} columns")
    vector.add(_vector_table(plan))
    if plan.label is not None:
        label = plan.label
        branch.add(
            f"label: {label.source}.{label.column} joined on {label.on}; "
            f"0 where none came within {duration_text(label.delay_ms)}"
        )
    if plan.model:
        given = dict(plan.model)
        kind = given.pop("kind", "model")
        branch.add(f"model: {kind} " + ", ".join(f"{k}={v}" for k, v in given.items()))
    branch.add(f"writes {topics.predictions(plan.name)} and {topics.snapshots(plan.name)}")


def dedupe_text(source: SourcePlan) -> str:
    """Return what it costs to count each event id once, in words."""
    kept_ms = source.dedupe_ms + source.lateness_ms
    ids = kept_ms  # At 1,000 new ids a second.
    gigabytes = ids * BYTES_PER_ID / 1e9
    odds = ids / 2**64
    return (
        f"duplicates: each {source.event_id} once in {duration_text(source.dedupe_ms)}; about "
        f"{BYTES_PER_ID} bytes an id, kept {duration_text(kept_ms)}: 1,000 ids a second take "
        f"{gigabytes:.2g} GB; odds that a new one is taken for another: {odds:.0e}, and then it "
        "goes to the DLQ"
    )


_DECODERS = {
    "fast": "decoder: fast, by columns",
    "fallback": "decoder: [yellow]fallback, record by record[/]",
}


def _add_stage(tree: Tree, number: int, stage: StagePlan) -> None:
    how = "directly" if stage.direct else "re-keyed"
    branch = tree.add(
        f"stage {number}: [bold]{stage.entity}[/] ({stage.key_kind} key) reads {stage.topic} {how}"
    )
    roles = [
        f"{item.source} by {item.key} ({'scored' if item.scored else 'only updates'})"
        for item in stage.inputs
    ]
    branch.add(f"inputs: {', '.join(roles)}")
    for ring in stage.rings:
        branch.add(_ring_text(stage, ring))
    branch.add(f"windows: {_windows_text(stage)}")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for feature in stage.features:
        table.add_row(feature.name, feature_text(stage, feature), f"[dim]{feature.dtype}[/]")
    branch.add("features").add(table)


def _windows_text(stage: StagePlan) -> str:
    lengths: dict[str, list[str]] = {}
    for window in stage.windows:
        ring = stage.rings[window.ring]
        delay = f" up to {duration_text(window.delay_ms)} ago" if window.delay_ms else ""
        grain = f" in tiles of {duration_text(ring.grain_ms)}" if ring.grain_ms else ""
        over = lengths.setdefault(f"of {ring.source}{delay}{grain}", [])
        over.append(duration_text(window.length_ms))
    return "; ".join(f"last {', '.join(over)} {what}" for what, over in lengths.items())


def _ring_text(stage: StagePlan, ring: RingPlan) -> str:
    values = [escape(expression_text(stage.values[index].expression)) for index in ring.values]
    cell = f"a cell per {duration_text(ring.grain_ms)}" if ring.grain_ms else "a cell per event"
    held = f" with {', '.join(values)}" if values else ""
    known = ", counted once known" if ring.known_at else ""
    return f"ring of {ring.source}: {cell}{held}{known}, kept {duration_text(ring.retention_ms)}"


def _vector_table(plan: PipelinePlan) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(plan.vector, start=1):
        text = "feature" if column.expression is None else column_text(column)
        table.add_row(f"[dim]{number:3}[/]", column.name, escape(text), f"[dim]{column.dtype}[/]")
    return table


def change_lines(changes: Iterable[Change]) -> list[RenderableType]:
    """Return a line for each change: ``+`` added, ``-`` removed, ``~`` changed."""
    lines: list[RenderableType] = []
    for change in changes:
        mark = _MARKS[change.verb]
        text = f"{mark} {change.what} [bold]{escape(change.name)}[/]"
        if change.what == "schema":
            lines.append(text)
        elif change.verb == "changed":
            lines.append(f"{text}: {escape(change.before or '')} → {escape(change.after or '')}")
        else:
            lines.append(f"{text}  [dim]{escape(change.after or change.before or '')}[/]")
    return lines


def _join(numbers: Iterable[int]) -> str:
    return " or ".join(str(number) for number in sorted(numbers))
