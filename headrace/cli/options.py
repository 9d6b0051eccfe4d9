"""Options that several commands share, so that they are called the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Option("--project", "-p", help="The project's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
