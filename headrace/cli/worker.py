"""``headrace worker``: run a pipeline on the stream until it is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from headrace.cli.options import Folder


def worker(
    pipeline: Annotated[str | None, typer.Option(help="Which one, if there are several.")] = None,
    metrics_host: Annotated[str, typer.Option(help="Where /metrics listens.")] = "127.0.0.1",
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="0: any free one.")
    ] = None,
    on_mismatch: Annotated[
        Literal["stop", "replay", "skip"],
        typer.Option(
            help="If committed offsets do not fit a topic: stop; process and emit what it holds; "
            "or take what it holds as emitted."
        ),
    ] = "stop",
    prepare: Annotated[
        bool,
        typer.Option(
            "--prepare",
            help="Make the state of these definitions ready beside the running workers, and end.",
        ),
    ] = False,
    drain: Annotated[
        bool,
        typer.Option(
            "--drain",
            help="Finish what the sources hold now, commit and end: before other definitions.",
        ),
    ] = False,
    project: Folder = Path(),
) -> None:
    """Compute features and scores from the stream."""
    from headrace.cli.applied import check_applied
    from headrace.runtime.errors import explain
    from headrace.runtime.logging import configure
    from headrace.streams.launch import WorkerOptions, run_worker

    configure()
    if drain and prepare:
        message = explain("a worker", "either drain or prepare", "both", "the options")
        raise typer.BadParameter(message)
    if not drain:
        # To drain is what is left for definitions that are not the applied ones any more.
        check_applied(project, pipeline)
    options = WorkerOptions(pipeline, metrics_host, metrics_port, on_mismatch, drain, prepare)
    raise typer.Exit(run_worker(project, options, typer.echo))
