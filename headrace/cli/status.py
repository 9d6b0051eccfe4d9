"""``headrace status``: what runs, and where."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from headrace.cli.options import AsJson, Folder

if TYPE_CHECKING:
    from headrace.runtime.dev.stack import ServiceStatus

_STYLES = {"running": "green", "starting": "yellow", "stopped": "red", "external": "cyan"}


def status(*, project: Folder = Path(), as_json: AsJson = False) -> None:
    """Show each service; the exit code is 4 unless all of the embedded ones run."""
    from headrace.runtime.dev.stack import statuses
    from headrace.runtime.errors import EmbeddedError
    from headrace.runtime.settings import load_settings

    services = statuses(load_settings(project), project)
    if as_json:
        found = [dataclasses.asdict(service) for service in services]
        typer.echo(json.dumps({"services": found}))
    else:
        _print_table(services)
    if any(service.state in {"starting", "stopped"} for service in services):
        raise typer.Exit(EmbeddedError.exit_code)


def _print_table(services: list[ServiceStatus]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("service", "state", "address", "pid"):
        table.add_column(column, overflow="fold")
    for service in services:
        style = _STYLES[service.state]
        table.add_row(
            service.name,
            f"[{style}]{service.state}[/{style}]",
            service.address or "-",
            str(service.pid or "-"),
        )
    Console().print(table)
    for service in services:
        if service.state == "starting":
            typer.echo(f"{service.name} does not answer; see {service.log}")
    if any(service.state == "stopped" for service in services):
        typer.echo("start what is stopped with 'headrace up'")
