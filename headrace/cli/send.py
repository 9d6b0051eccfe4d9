"""``headrace send``: publish events from Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from headrace.cli.options import Folder


def send(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="A folder with <source>.parquet files, or name=path for single files. "
            "Without any: the files under `history` in headrace.yaml.",
        ),
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Events per second.")] = None,
    speedup: Annotated[
        float | None, typer.Option(min=0.001, help="Event time over wall time.")
    ] = None,
    max_events: Annotated[
        int | None, typer.Option("--max", min=1, help="At most so many events to be scored.")
    ] = None,
    reports: Annotated[
        Literal["known_at", "first"],
        typer.Option(help="Sources that only update: each row when it became known, or all first."),
    ] = "known_at",
    project: Folder = Path(),
) -> None:
    """Publish events to the topics of their sources."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from headrace.streams.publish_order import Pace
    from headrace.streams.publisher import count_rows, publish
    from headrace.streams.publishing import open_publication

    console = Console(stderr=True)
    publication = open_publication(project, data or [])
    rows = {
        feed.source.name: min(count_rows(feed.path), max_events or 1 << 62)
        if feed.scored
        else count_rows(feed.path)
        for feed in publication.feeds
    }
    pace = None if rate is None and speedup is None else Pace(rate, speedup)
    columns = (
        TextColumn("publishing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]:,.0f} events/s"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=sum(rows.values()), speed=0.0)

        def advance(count: int) -> None:
            state = progress.tasks[task]
            speed = state.completed / state.elapsed if state.elapsed else 0.0
            progress.update(task, advance=count, speed=speed)

        report = publish(
            publication.producer,
            publication.feeds,
            updates=reports,
            pace=pace,
            scored_max=max_events,
            on_progress=advance,
        )
    for topic, count in report.events.items():
        console.print(f"{count:,} events to {topic}")
    console.print(f"{report.seconds:.1f} s, {report.rate:,.0f} events/s")
