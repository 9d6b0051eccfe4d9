"""``headrace up``: start the embedded infrastructure of a project, and its lake."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from headrace.cli.options import AsJson, Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def up(*, project: Folder = Path(), as_json: AsJson = False) -> None:
    """Start those services that do not run; they outlive the command."""
    from headrace.runtime.dev.stack import endpoints, stack_of
    from headrace.runtime.settings import load_settings

    settings = load_settings(project)
    stack = stack_of(settings, project)
    if as_json:
        stack.up()
    else:
        with downloading() as show:
            stack.up(show)
    found = endpoints(settings, project)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found)))
        return
    typer.echo(f"kafka     {found.bootstrap_servers}")
    typer.echo(f"redis     {found.redis_url}")
    typer.echo(f"registry  {found.registry_url}")
    if settings.lake.enabled:
        typer.echo(f"lake      {settings.lake.folder}")
    typer.echo(f"data and logs are below {stack.folder}; 'headrace down' stops them")


@contextlib.contextmanager
def downloading() -> Iterator[Callable[[str, int, int], None]]:
    """Show a line on stderr while the body runs; what it yields is told (what, done, count)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    # On stderr: what the command prints is its result.
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def show(what: str, done: int, count: int) -> None:
            text = f"{what}, {done} of {count} files" if count else what
            progress.update(task, description=text, completed=done, total=count or None)

        yield show
