"""``headrace apply``: make the topics, schemas and Feast objects that the plan needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.options import AsJson, Folder


def apply(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, change nothing.")
    ] = False,
    project: Folder = Path(),
    as_json: AsJson = False,
) -> None:
    """Make the topics, schemas and Feast objects that the definitions need; twice is as once.

    What was applied is kept in the state folder: 'headrace plan' compares with it.
    """
    import dataclasses
    import json

    from rich.console import Console

    from headrace.cli.applied import apply_feast, apply_project
    from headrace.cli.plan_tree import change_lines

    with Console(stderr=True).status("applying") as status:
        # What cannot be in Feast is told before anything is made.
        apply_feast(project, dry_run=True)
        outcome = apply_project(project, dry_run=dry_run)
        status.update("applying to Feast")
        feast = apply_feast(project, dry_run=dry_run)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "dry_run": dry_run,
                    "changes": [dataclasses.asdict(change) for change in outcome.changes],
                    "topics_created": list(outcome.created),
                    "topics_of_others": list(outcome.foreign),
                    "schemas": dict(outcome.schemas),
                    "feast": [dataclasses.asdict(change) for change in feast],
                }
            )
        )
        return
    console = Console(soft_wrap=True, highlight=False)
    if not outcome.first:
        for line in change_lines(outcome.changes):
            console.print(line)
    would = "would make" if dry_run else "made"
    for name in outcome.created:
        console.print(f"{would} topic {name}")
    for name in outcome.foreign:
        console.print(f"topic {name} is its owner's: left as it is")
    for subject, number in outcome.schemas.items():
        state = "not registered yet" if number is None else f"id {number}"
        console.print(f"schema {subject}: {state}")
    for line in change_lines(feast):
        console.print(line)
    if not outcome.changes and not outcome.created and not feast:
        console.print("nothing to do: applied as it is")
    elif dry_run:
        console.print("dry run: nothing was changed")
