"""Options that several commands share, so that they are called the same everywhere."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Option("--project", "-p", help="The project's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FromLake = Annotated[
    bool, typer.Option("--lake", help="From the lake, even if headrace.yaml names files.")
]
AsOf = Annotated[
    str, typer.Option(help="What counts as known: event, served, or a lag such as 250ms.")
]


def epoch_ms(text: str | None) -> int | None:
    """Return the epoch milliseconds of a date or time, which is UTC unless it says otherwise."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        message = f"{text!r} is no date: write 2018-07-25 or 2018-07-25T12:00:00"
        raise typer.BadParameter(message) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)
