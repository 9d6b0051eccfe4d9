"""Options that several commands share, so that they are called the same everywhere."""

from __future__ import annotations

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
