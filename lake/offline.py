"""Rows of Feast's offline tables, and the files of their days."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.features.feast_repo.tables import EMPTY_FILE, table_schema

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from headrace.features.columns import EventColumns
    from headrace.features.feast_repo.objects import RepoView

DAY_MS: Final = 86_400_000


def table_rows(view: RepoView, events: EventColumns, features: pa.Table) -> pa.Table:
    """Return a view's rows: one for each event that has the entity's key, in the events' order.

    Args:
        view: The view.
        events: Events by time, those of equal time in canonical order.
        features: Their features by full name, row by row.

    """
    keys = events.columns[view.entity.join_key]
    times = events.event_time_ms
    if keys.null_count:
        rows = pa.array(np.flatnonzero(keys.is_valid().to_numpy(zero_copy_only=False)))
        keys, features, times = keys.take(rows), features.take(rows), times[rows.to_numpy()]
    created_us = times * 1_000 + _places(keys, times)
    columns = [
        keys,
        pa.array(times * 1_000),
        pa.array(created_us),
        *(features.column(f"{view.name}__{field.name}") for field in view.fields),
    ]
    names = table_schema(view).names
    return pa.Table.from_arrays(columns, names=names).cast(table_schema(view))


def _places(keys: pa.Array, times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place of each row among those of its key and time, from 0.

    Shape: (rows,); ``times`` must not fall.
    """
    codes = keys.dictionary_encode().indices.to_numpy()
    order = np.lexsort((np.arange(len(times)), codes, times))
    first = np.ones(len(times), dtype=bool)
    first[1:] = (np.diff(codes[order]) != 0) | (np.diff(times[order]) != 0)
    starts = np.flatnonzero(first)
    places = np.empty(len(times), dtype=np.int64)
    places[order] = np.arange(len(times)) - np.repeat(
        starts, np.diff(np.append(starts, len(times)))
    )
    return places


class TableWriter:
    """Writes a view's days into a folder of its own, and puts them into the table at the end."""

    def __init__(self, view: RepoView, folder: Path) -> None:
        self.view = view
        self.folder = folder
        self.rows = 0
        self._staged = folder.with_name(f"{folder.name}.partial")
        # What a killed run left behind.
        shutil.rmtree(self._staged, ignore_errors=True)
        self._staged.mkdir()
        self._day: int | None = None
        self._writer: pq.ParquetWriter | None = None

    def write(self, rows: pa.Table) -> None:
        """Append rows by time; none may be of a day before those already written."""
        if not rows.num_rows:
            return
        times_ms = rows.column(1).cast(pa.int64()).to_numpy() // 1_000
        days, starts = np.unique(times_ms // DAY_MS, return_index=True)
        ends = [*starts[1:], len(times_ms)]
        for day, start, end in zip(days.tolist(), starts, ends, strict=True):
            if day != self._day:
                self._finish_day()
                self._day = day
                path = self._staged / _file_name(day)
                self._writer = pq.ParquetWriter(path, rows.schema, compression="zstd")
            assert self._writer is not None
            self._writer.write_table(rows.slice(start, end - start))
        self.rows += rows.num_rows

    def commit(self, start_ms: int | None, end_ms: int | None) -> int:
        """Put what was written in the place of the period's old files; return the days with rows.

        A reader that looks meanwhile may see some days old and some new, each of them whole.
        """
        self._finish_day()
        fresh = {path.name for path in self._staged.iterdir()}
        first = "" if start_ms is None else _file_name(start_ms // DAY_MS)
        last = "~" if end_ms is None else _file_name(end_ms // DAY_MS)
        for path in self.folder.iterdir():
            if first <= path.name < last and path.name not in {*fresh, EMPTY_FILE}:
                path.unlink()
        for name in sorted(fresh):
            (self._staged / name).replace(self.folder / name)
        self._staged.rmdir()
        return len(fresh)

    def _finish_day(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _file_name(day: int) -> str:
    return f"{datetime.fromtimestamp(day * DAY_MS / 1000, UTC):%Y-%m-%d}.parquet"
