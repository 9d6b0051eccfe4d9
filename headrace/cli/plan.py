"""``headrace plan``: what the definitions compile to, and what an apply would change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import AsJson, Folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.cli.applied import Target
    from headrace.features.changes import Change

CHANGED = 2
# Of lines that no terminal breaks.
_WIDTH = 160


def plan(
    *,
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="End with 2 if something would change, 0 if nothing."),
    ] = False,
    project: Folder = Path(),
    as_json: AsJson = False,
) -> None:
    """Show the plan as a tree, what 'headrace apply' would change, and what a worker would do.

    Needs nothing that runs; what only the broker knows is told where it answers.
    """
    import dataclasses
    import json

    from headrace.cli.applied import feast_changes, read_applied, target_changes, target_of
    from headrace.cli.switch import switch_lines
    from headrace.features.compiler import plan_to_json
    from headrace.features.project import load_project

    loaded = load_project(project)
    target = target_of(loaded)
    applied = read_applied(loaded.settings)
    changes = (*target_changes(applied, target), *feast_changes(loaded))
    switch = switch_lines(loaded, applied, target)
    if as_json:
        content = {
            **json.loads(plan_to_json(target.plan)),
            "topics": [
                {"name": t.name, "partitions": t.partitions, "config": dict(t.config)}
                for t in target.topics
            ],
            "schemas": {subject: json.loads(s) for subject, s in target.schemas.items()},
            "decoders": dict(target.decoders),
            "changes": [dataclasses.asdict(change) for change in changes],
            "switch": switch,
        }
        typer.echo(json.dumps(content))
    else:
        _print(target, changes, switch, first=applied.plan is None)
    if exit_code and changes:
        raise typer.Exit(CHANGED)


def _print(
    target: Target, changes: Sequence[Change], switch: Sequence[str], *, first: bool
) -> None:
    from rich.console import Console

    from headrace.cli.plan_tree import change_lines, plan_tree

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(plan_tree(target))
    console.print()
    if not changes:
        console.print("no changes: this is what is applied")
    elif first:
        console.print(
            f"nothing is applied yet: 'headrace apply' would make {len(target.topics)} topics "
            f"and register {len(target.schemas)} schemas, and Feast's objects"
        )
    else:
        console.print("'headrace apply' would change:")
        for line in change_lines(changes):
            console.print(line)
    for line in switch:
        console.print(line, soft_wrap=True, markup=False)
