"""``hr.sql``: SQL over the lake's tables, by DuckDB, each table a view of its name."""

from __future__ import annotations

import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from headrace.features.errors import did_you_mean
from headrace.lake.errors import QueryError
from headrace.lake.tables import Lake
from headrace.runtime.errors import explain
from headrace.runtime.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa

    from headrace.lake.tables import LakeTable

_MEMORY: Final = re.compile(r"\d+(\.\d+)?\s*([KMGT]i?B|%)\Z", re.IGNORECASE)
_MISSING: Final = re.compile(r"Table with name (\S+) does not exist")


def sql(
    query: str,
    /,
    *,
    project: Path | str = ".",
    threads: int | None = None,
    memory: str | None = None,
    **parameters: Any,
) -> pa.Table:
    """Return what a query over the lake gives: events, predictions and snapshots at rest.

    Tables are the sources under their names, ``<pipeline>_predictions``, ``<pipeline>_snapshots``
    and ``<table>_rejected``. A query sees one version of each. Times are in UTC.

    Args:
        query: DuckDB's SQL. ``$name`` stands for a parameter.
        project: The project's folder.
        threads: How many to use; None: one a core.
        memory: How much to use before going to disk, such as ``"2GB"``; None: DuckDB's default,
            80 % of the machine's.
        **parameters: Values for the query's ``$name``.

    Raises:
        QueryError: If the query is wrong, or something in it cannot be computed.
        SettingsError: If the project's settings cannot be used.

    Examples:
        >>> hr.sql("select count(*) from fraud_predictions where score > $least", least=0.9)
        ... # doctest: +SKIP

    """
    lake = Lake(load_settings(Path(project)).lake.folder)
    with opened(lake, query, threads=threads, memory=memory) as connection, told(lake):
        return run(lake, connection, query, parameters).to_arrow_table()


@contextmanager
def opened(
    lake: Lake, query: str | None = None, *, threads: int | None = None, memory: str | None = None
) -> Iterator[Any]:
    """Return a connection with a view for each table that the query names; None: for every one.

    Raises:
        QueryError: If a limit cannot be used.

    """
    import duckdb

    config: dict[str, Any] = {"autoinstall_known_extensions": "false"}
    if threads is not None:
        if threads < 1:
            raise QueryError(explain("threads", "be at least 1", threads, "a query"))
        config["threads"] = str(threads)
    if memory is not None:
        if _MEMORY.match(memory) is None:
            raise QueryError(explain("memory", "be a size", memory, "a query", "write '2GB'"))
        config["memory_limit"] = memory
    with tempfile.TemporaryDirectory(prefix="headrace-sql-") as spill:
        connection = duckdb.connect(":memory:", config={**config, "temp_directory": spill})
        try:
            connection.execute("set TimeZone = 'UTC'")
            for name in _named(connection, query, lake.names()):
                _add_view(connection, lake.table(name))
            yield connection
        finally:
            connection.close()


def run(lake: Lake, connection: Any, query: str, parameters: Mapping[str, Any]) -> Any:
    """Return DuckDB's relation of a query's result.

    Raises:
        QueryError: In one line, with the names that were perhaps meant.

    """
    with told(lake):
        found = connection.sql(query, params=dict(parameters) or None)
    if found is None:
        raise QueryError(explain("a query", "give rows", query[:80], "the lake"))
    return found


@contextmanager
def told(lake: Lake) -> Iterator[None]:
    """Turn DuckDB's errors into one line."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise QueryError(_told(str(error), lake.names())) from error


def _told(text: str, names: list[str]) -> str:
    # What follows is a copy of the query, or general advice.
    lines = [line.strip() for line in text.partition("\n\n")[0].splitlines()]
    line = "; ".join(line.rstrip("!") for line in lines if line)
    missing = _MISSING.search(text)
    if missing:
        line = line.partition("; ")[0]
        hint = (
            did_you_mean(missing[1], names) if names else "the lake has none yet: run 'headrace up'"
        )
        return f"a query must be valid; {line}; {hint}"
    return f"a query must be valid; {line}"


def _named(connection: Any, query: str | None, names: list[str]) -> list[str]:
    """Return which of the tables a query reads; opening one costs time."""
    import duckdb

    if query is None:
        return names
    try:
        found = {name.lower() for name in connection.get_table_names(query)}
    except duckdb.Error:
        return names  # It is told when the query runs.
    return [name for name in names if name.lower() in found]


def _add_view(connection: Any, table: LakeTable) -> None:
    """Make a table a view over its files: DuckDB passes over what their statistics exclude."""
    rows = empty = connection.from_arrow(table.schema.empty_table())
    files = [uri.removeprefix("file://") for uri in table.files()]
    if files:
        rows = connection.read_parquet(files, union_by_name=True)
        if not set(table.schema.names) <= set(rows.columns):
            # No file holds the newest columns yet.
            names = [name for name in table.schema.names if name not in rows.columns]
            nulls = [
                f'null::{kind} as "{name}"'
                for name, kind in zip(empty.columns, empty.types, strict=True)
                if name in names
            ]
            rows = rows.project(", ".join(["*", *nulls]))
    rows.create_view(table.name)


def listing(lake: Lake) -> list[dict[str, Any]]:
    """Return each table with its rows, files, bytes and columns."""
    found = []
    for name in lake.names():
        table = lake.table(name)
        actions = table.file_actions()
        found.append(
            {
                "table": name,
                "rows": sum(actions.column("num_records").to_pylist()),
                "files": actions.num_rows,
                "bytes": sum(actions.column("size_bytes").to_pylist()),
                "columns": {field.name: str(field.type) for field in table.schema},
            }
        )
    return found
