"""``headrace down``: stop the embedded infrastructure of a project."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from headrace.cli.options import AsJson, Folder


def down(*, project: Folder = Path(), as_json: AsJson = False) -> None:
    """Stop the services that run; their data stays for the next 'headrace up'."""
    from headrace.runtime.dev.stack import stack_of
    from headrace.runtime.settings import load_settings

    ended = stack_of(load_settings(project), project).down()
    if as_json:
        stopped = [{"service": name, "clean": clean} for name, clean in ended.items()]
        typer.echo(json.dumps({"stopped": stopped}))
        return
    if not ended:
        typer.echo("nothing was running")
    for name, clean in ended.items():
        typer.echo(f"{name} stopped" if clean else f"{name} did not stop when asked; it was killed")
