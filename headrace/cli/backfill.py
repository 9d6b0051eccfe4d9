"""``headrace backfill``: write the tables from which Feast reads history."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.options import AsJson, Folder


def backfill(
    views: Annotated[
        list[str] | None, typer.Argument(help="Feature views; none: all that are served.")
    ] = None,
    *,
    start: Annotated[
        str | None, typer.Option("--from", help="First day (UTC, 2018-07-25).")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="The day after the last one.")] = None,
    project: Folder = Path(),
    as_json: AsJson = False,
) -> None:
    """Write Feast's offline tables: every view's values at each event.

    The days of the period are replaced as a whole, so a second run changes nothing. Without dates
    all days are written anew.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from headrace.features.project import load_project
    from headrace.lake.backfill import backfill as run
    from headrace.runtime.logging import configure

    start_ms, end_ms = _day(start), _day(end)
    configure()
    loaded = load_project(project)
    columns = TextColumn("events"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # On stderr: what the command prints is the result.
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)
        result = run(
            loaded,
            views or (),
            start_ms=start_ms,
            end_ms=end_ms,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    if as_json:
        import orjson

        written = [
            {"view": v.view, "rows": v.rows, "days": v.days, "folder": str(v.folder)}
            for v in result.views
        ]
        content = {"views": written, "left_out": result.left_out, "applied": result.applied}
        typer.echo(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())
        return
    console = Console(soft_wrap=True, highlight=False)
    for view in result.views:
        console.print(f"{view.view}: {view.rows:,} rows on {view.days:,} days in {view.folder}")
    if result.left_out:
        console.print(f"{result.left_out:,} events are bad input and left out")
    if not result.applied:
        console.print("Feast does not know these tables yet: run 'headrace apply'")


def _day(text: str | None) -> int | None:
    """Return the epoch milliseconds of a day's UTC midnight."""
    if text is None:
        return None
    try:
        moment = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        message = f"{text!r} is no day: write 2018-07-25"
        raise typer.BadParameter(message) from error
    return int(moment.timestamp() * 1000)
