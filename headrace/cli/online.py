"""``headrace online``: the newest values of entities, with their age and status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.options import AsJson, Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.features.plan import KeyKind
    from headrace.features.store.answer import OnlineAnswer

_STYLES = {"FRESH": "green", "STALE": "yellow", "EXPIRED": "dim", "MISSING": "dim"}


def online(
    features: Annotated[
        str,
        typer.Argument(help="A pipeline, a view or <view>__<feature>; several with commas."),
    ],
    entities: Annotated[
        list[str],
        typer.Argument(help="customer_id=123; again for more entities.", metavar="KEY=VALUE..."),
    ],
    *,
    as_json: AsJson = False,
    project: Folder = Path(),
) -> None:
    """Print the newest values of entities from the online store."""
    from headrace.features.store.reader import online_reader

    names = [name.strip() for name in features.split(",")]
    with online_reader(names, project=project) as reader:
        answer = reader.read(_keys(entities, reader.join_keys))
    if as_json:
        import orjson

        for row in answer.to_dicts():
            typer.echo(orjson.dumps(row, default=bytes.hex).decode())
    else:
        _print_table(answer)


def _keys(entities: Sequence[str], kinds: Mapping[str, KeyKind]) -> dict[str, list[Any]]:
    """Return the keys by column; bytes are given in hexadecimal."""
    from headrace.features.errors import did_you_mean
    from headrace.features.store.errors import OnlineError
    from headrace.runtime.errors import explain

    parsers: dict[str, Callable[[str], Any]] = {
        "int64": int,
        "string": str,
        "bytes": bytes.fromhex,
    }
    found: dict[str, list[Any]] = {}
    for entity in entities:
        name, separator, text = entity.partition("=")
        if not separator or name not in kinds:
            rule = f"be {', '.join(f'{key}=VALUE' for key in kinds)}"
            raise OnlineError(
                explain("an entity", rule, entity, "these features", did_you_mean(name, kinds))
            )
        try:
            value = parsers[kinds[name]](text)
        except ValueError as error:
            hint = "bytes are written in hexadecimal" if kinds[name] == "bytes" else ""
            raise OnlineError(
                explain(f"key {name}", f"be {kinds[name]}", text, str(error), hint)
            ) from None
        found.setdefault(name, []).append(value)
    return found


def _print_table(answer: OnlineAnswer) -> None:
    """Print one line a feature: views can be wide, and few entities are asked for by hand."""
    from rich.console import Console
    from rich.table import Table

    rows = answer.to_dicts()
    table = Table(box=None, pad_edge=False)
    table.add_column("feature", overflow="fold")
    for row in rows:
        title = "\n".join(f"{key}={row[key]}" for key in answer.keys)
        table.add_column(title, justify="right", overflow="fold")
    for view in answer.views:
        cells = [_status(row[f"{view}__status"], row[f"{view}__age_ms"]) for row in rows]
        table.add_row(f"[bold]{view}[/bold]", *cells)
        for name in answer.types:
            if name.startswith(f"{view}__"):
                table.add_row(f"  {name}", *(_value(row[name]) for row in rows))
    Console().print(table)


def _status(status: str, age_ms: int | None) -> str:
    age = "" if age_ms is None else f", {age_ms / 1000:,.1f} s old"
    return f"[{_STYLES[status]}]{status}{age}[/{_STYLES[status]}]"


def _value(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
