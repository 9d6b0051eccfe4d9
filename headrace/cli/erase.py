"""``headrace erase``: forget one key of an entity, in states, online store and lake."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import AsJson, Folder

if TYPE_CHECKING:
    from headrace.streams.erasing import ErasureReceipt


def erase(
    entity: Annotated[str, typer.Argument(help="Such as customer.")],
    key: Annotated[str, typer.Argument(help="As predictions spell it; bytes in hex.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only.")] = False,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds for workers and lake to come as far, each.")
    ] = 120,
    project: Folder = Path(),
    as_json: AsJson = False,
) -> None:
    """Erase what is kept of a key up to now; events of it that come later start from nothing.

    Workers must run. What this cannot reach (Kafka's topics, models) is named at the end.
    """
    import dataclasses

    import orjson
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from headrace.runtime.clock import SystemClock
    from headrace.streams.environment import open_environment
    from headrace.streams.erasing import Erasing

    environment = open_environment(project)
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, object] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        erasing = Erasing(environment, entity, key, SystemClock(), show)
        if not dry_run and not yes:
            bars.stop()
            typer.confirm(f"forget {entity} {key!r} for good?", abort=True, err=True)
            bars.start()
        if dry_run:
            _show_preview(erasing.preview(), as_json)
            return
        receipt = erasing.run(wait)
    environment.registry.close()
    if as_json:
        options = orjson.OPT_INDENT_2
        typer.echo(orjson.dumps(dataclasses.asdict(receipt), option=options).decode())
    else:
        _show(receipt)


def _show_preview(rows: dict[str, int], as_json: bool) -> None:
    import orjson

    if as_json:
        typer.echo(orjson.dumps({"lake_rows": rows}, option=orjson.OPT_INDENT_2).decode())
        return
    for table, count in rows.items():
        typer.echo(f"{count:,} rows of {table} would be deleted")
    typer.echo("and the key's state in the workers, and what the online store holds of it")


def _show(receipt: ErasureReceipt) -> None:
    typer.echo(f"erasure {receipt.id} of {receipt.entity} {receipt.key!r}")
    for pipeline, partitions in receipt.states.items():
        typer.echo(f"  states of {pipeline}: {partitions} partitions have forgotten it")
    typer.echo(f"  {receipt.keys} of them had it")
    if receipt.online is not None:
        typer.echo(f"  online store: {receipt.online} keys deleted")
    for table, count in receipt.lake_rows.items():
        typer.echo(f"  lake: {count:,} rows of {table} deleted")
    typer.echo("what remains is its owners' to delete:")
    for text in receipt.left:
        typer.echo(f"  {text}")
