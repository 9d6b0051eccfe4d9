"""``headrace deploy``: a registered model goes live on the running workers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.options import AsJson, Folder


def deploy(
    model: Annotated[str, typer.Argument(help="fraud/3, fraud@champion, or fraud (the newest).")],
    *,
    pipeline: Annotated[str | None, typer.Option(help="Which one, if there are several.")] = None,
    any_plan: Annotated[
        bool,
        typer.Option(
            "--any-plan",
            help="Also a model that was trained before a definition behind its features changed.",
        ),
    ] = False,
    wait: Annotated[
        float,
        typer.Option(min=0, help="Wait so many seconds for a prediction of this revision."),
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check it, publish nothing.")] = False,
    project: Folder = Path(),
    as_json: AsJson = False,
) -> None:
    """Put a model live on the running workers, without a restart.

    It is looked at with suspicion first: hashes, structure, features, and a run in a process of
    its own. Workers do the same before they swap.
    """
    import orjson
    from rich.console import Console

    from headrace.cli.applied import read_applied
    from headrace.features.project import load_project
    from headrace.runtime.errors import explain
    from headrace.training.errors import TrainingError
    from headrace.training.golive import open_deployment
    from headrace.training.run import choose_pipeline

    console = Console(stderr=True)
    loaded = load_project(project)
    applied = read_applied(loaded.settings).plan
    if applied is None:
        hint = "run 'headrace apply'"
        raise TrainingError(explain("project", "be applied", "no plan", loaded.name, hint))
    plan = choose_pipeline(applied.pipelines, pipeline)
    with console.status("checking the model in a process of its own"):
        ready = open_deployment(loaded, plan, model, any_plan=any_plan)
    event = ready.event
    if not dry_run:
        with console.status("publishing"):
            seen = ready.publish(wait_s=wait)
    else:
        seen = False
    result = {
        "pipeline": event.pipeline,
        "model": event.model,
        "version": event.version,
        "revision": event.revision,
        "sha256": event.sha256,
        "published": not dry_run,
        "live": seen,
    }
    if as_json:
        typer.echo(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
    elif dry_run:
        typer.echo(f"{event.model}/{event.version} passes; nothing published")
    else:
        state = "live" if seen else "published"
        typer.echo(
            f"{event.model}/{event.version} {state} on {event.pipeline}, revision {event.revision}"
        )
    if wait and not dry_run and not seen:
        typer.echo(f"no prediction of revision {event.revision} within {wait:g} s", err=True)
        raise typer.Exit(1)
