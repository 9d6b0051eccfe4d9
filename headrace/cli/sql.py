"""``headrace sql``: query the lake's tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.options import AsJson, Folder

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.lake.tables import Lake

_SHOWN_ROWS = 40
_BATCH_ROWS = 131_072


def sql(
    query: Annotated[
        str | None, typer.Argument(help="DuckDB's SQL. Without one: the tables there are.")
    ] = None,
    *,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", help="name=value for the query's $name; a text."),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write Parquet to this file (.csv: CSV), any size.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one a core.")] = None,
    memory: Annotated[str | None, typer.Option(help="Before going to disk, such as 2GB.")] = None,
    as_json: AsJson = False,
    project: Folder = Path(),
) -> None:
    """Query events, predictions and snapshots; each table of the lake is a view of its name."""
    from headrace.lake.query import opened, run, told
    from headrace.lake.tables import Lake
    from headrace.runtime.settings import load_settings

    lake = Lake(load_settings(project).lake.folder)
    if query is None:
        _list(lake, as_json)
        return
    parameters = _parameters(parameter or [])
    with opened(lake, query, threads=threads, memory=memory) as connection, told(lake):
        reader = run(lake, connection, query, parameters).to_arrow_reader(_BATCH_ROWS)
        if out is not None:
            rows = _write(reader, out)
            typer.echo(f"{rows:,} rows in {out}")
        elif as_csv:
            _write_csv(reader, sys.stdout.buffer)
        elif as_json:
            for batch in reader:
                for row in batch.to_pylist():
                    typer.echo(json.dumps(row, default=_plain))
        else:
            _show(reader)


def _parameters(texts: list[str]) -> dict[str, str]:
    from headrace.lake.errors import QueryError
    from headrace.runtime.errors import explain

    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise QueryError(explain("--parameter", "be name=value", text, "this query"))
        found[name] = value
    return found


def _list(lake: Lake, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from headrace.lake.query import listing

    found = listing(lake)
    if as_json:
        typer.echo(json.dumps({"folder": str(lake.folder), "tables": found}))
        return
    if not found:
        typer.echo(f"no tables below {lake.folder} yet; 'headrace lake' writes them")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("table", overflow="fold")
    for column in ("rows", "files", "MB"):
        table.add_column(column, justify="right")
    table.add_column("columns", overflow="fold")
    for one in found:
        sizes = f"{one['rows']:,}", f"{one['files']:,}", f"{one['bytes'] / 1e6:,.1f}"
        table.add_row(one["table"], *sizes, ", ".join(one["columns"]))
    Console().print(table)


def _write(reader: pa.RecordBatchReader, out: Path) -> int:
    """Write batch by batch to a file that gets its name when it is whole; return the rows."""
    import pyarrow.parquet as pq

    partial = out.with_name(f"{out.name}.partial")
    if out.suffix == ".csv":
        with partial.open("wb") as file:
            rows = _write_csv(reader, file)
    else:
        rows = 0
        with pq.ParquetWriter(partial, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
                rows += batch.num_rows
    partial.replace(out)
    return rows


def _write_csv(reader: pa.RecordBatchReader, file: Any) -> int:
    from pyarrow import csv

    rows = 0
    with csv.CSVWriter(file, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _show(reader: pa.RecordBatchReader) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in reader.schema.names:
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    count = 0
    for batch in reader:
        for row in batch.slice(0, max(0, _SHOWN_ROWS - count)).to_pylist():
            table.add_row(*("-" if value is None else str(value) for value in row.values()))
        count += batch.num_rows
    Console().print(table)
    if count > _SHOWN_ROWS:
        typer.echo(f"{_SHOWN_ROWS} of {count:,} rows; --out, --csv or --json give all of them")


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
