"""The offline tables that Feast reads: a folder of Parquet files per view and definition.

``<offline folder>/<view>/<fingerprint>/2018-04-01.parquet`` holds the rows of one UTC day. Values
of two definitions never stand in one table: another definition has another folder. An empty file
gives a table its columns before there are rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.features.feast_repo.objects import CREATED_TIME, EVENT_TIME

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.features.feast_repo.objects import RepoView

#: Sorts before every day.
EMPTY_FILE: Final = "0000-empty.parquet"
_TIME: Final = pa.timestamp("us", "UTC")
_KEYS: Final = {"int64": pa.int64(), "string": pa.string(), "bytes": pa.binary()}
_VALUES: Final = {"Int64": pa.int64(), "Float64": pa.float64()}


def offline_folder(lake_folder: Path) -> Path:
    """Return where the offline tables of a project are: beside its lake."""
    return lake_folder.parent / "feast" / "offline"


def table_folder(offline: Path, view: RepoView) -> Path:
    """Return the folder with a view's files."""
    return offline / view.name / view.fingerprint


def table_schema(view: RepoView) -> pa.Schema:
    """Return the columns of a view's table: key, event time, created time, features.

    Rows of one key and event time differ in ``created_timestamp``, event time plus their place in
    canonical order in microseconds: Feast takes the last.
    """
    return pa.schema(
        [
            pa.field(view.entity.join_key, _KEYS[view.entity.key_kind], nullable=False),
            pa.field(EVENT_TIME, _TIME, nullable=False),
            pa.field(CREATED_TIME, _TIME, nullable=False),
            *(pa.field(field.name, _VALUES[field.dtype]) for field in view.fields),
        ]
    )


def ensure_table(offline: Path, view: RepoView) -> Path:
    """Return a view's folder, with a file in it that holds the columns and no row."""
    folder = table_folder(offline, view)
    file = folder / EMPTY_FILE
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder.parent / f"{view.fingerprint}.partial"
        pq.write_table(table_schema(view).empty_table(), partial)
        partial.replace(file)
    return folder
