"""Events at rest: Parquet and Arrow files, folders of them, tables and frames, batch by batch.

The order of the rows in a file, and of the files by name, is the order of arrival.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.lake.errors import HistoryError
from headrace.lake.tables import ARRIVAL_TIME
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    Data: TypeAlias = "pa.Table | pa.RecordBatch | pd.DataFrame | str | Path | FileEvents"

BATCH_ROWS = 262_144
#: The arrival of a row that has none: after every time that is asked about.
NEVER_MS: Final = 1 << 60
_PARQUET = (".parquet", ".pq")
_ARROW = (".arrow", ".feather", ".ipc")


@dataclass(frozen=True, slots=True)
class Span:
    """Event times from ``start_ms`` to ``end_ms``, both included."""

    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a source.

    ``position`` names each row of the source and orders rows of equal time (int64[n]).
    ``arrival_time_ms`` is when the broker got them (int64[n]), None where nobody knows.
    """

    batch: pa.RecordBatch | pa.Table
    position: NDArray[np.int64]
    arrival_time_ms: NDArray[np.int64] | None


class EventReader(Protocol):
    """A source's events at rest. Every pass gives the same rows in the same order."""

    @property
    def name(self) -> str:
        """The source's name."""
        ...

    @property
    def row_count(self) -> int:
        """How many rows a pass gives."""
        ...

    @property
    def ordered(self) -> bool:
        """Whether rows come in the order of their positions."""
        ...

    def narrow(self, span: Span) -> EventReader:
        """Return a reader that need not give rows outside the span."""
        ...

    def parts(self, columns: Sequence[str], *, whole: bool = False) -> Iterator[Part]:
        """Yield the rows with those of ``columns`` that there are; ``whole``: as one part."""
        ...

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all rows with those of ``columns`` that there are; None: with all."""
        ...


@dataclass(frozen=True, slots=True)
class FileEvents:
    """A table in memory, or files in the order of their names: the order of arrival."""

    name: str
    table: pa.Table | None
    files: tuple[Path, ...]
    row_count: int

    @property
    def ordered(self) -> bool:
        """Positions count rows."""
        return True

    def narrow(self, span: Span) -> FileEvents:
        """Return itself: files are read whole."""
        del span
        return self

    def parts(self, columns: Sequence[str], *, whole: bool = False) -> Iterator[Part]:
        """Yield the rows in the order of arrival."""
        position = 0
        # An empty source still has columns, which only reading it whole gives.
        alone = whole or self.row_count == 0
        wanted = list(dict.fromkeys([*columns, ARRIVAL_TIME]))
        for batch in [self.read(wanted)] if alone else self._batches(wanted):
            rows = np.arange(position, position + batch.num_rows, dtype=np.int64)
            arrival = arrival_ms(batch) if ARRIVAL_TIME in batch.schema.names else None
            yield Part(batch, rows, arrival)
            position += batch.num_rows

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if self.table is not None:
            names = _present(columns, self.table.schema.names)
            yield from self.table.select(names).to_batches(max_chunksize=BATCH_ROWS)
            return
        for file in self.files:
            yield from _file_batches(file, columns)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all events with those of ``columns`` that there are; None: with all."""
        if self.table is not None:
            return self.table.select(_present(columns, self.table.schema.names))
        tables = [_read_file(file, columns) for file in self.files]
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables)


def arrival_ms(batch: pa.RecordBatch | pa.Table) -> NDArray[np.int64]:
    """Return the broker's timestamps, epoch ms; a row without one arrived at the end of time."""
    column = batch.column(batch.schema.names.index(ARRIVAL_TIME))
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms", "UTC"), safe=False).view(pa.int64())
    times: NDArray[np.int64] = pc.fill_null(column, NEVER_MS).to_numpy(zero_copy_only=False)
    return times


def open_events(name: str, data: Data) -> FileEvents:
    """Return a reader of ``data``: a table, a pandas frame, a file or a folder of files.

    Raises:
        HistoryError: If it is none of these, or the file or folder holds no events.

    """
    where = f"source {name}"
    if isinstance(data, FileEvents):
        return data
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.Table):
        return FileEvents(name, data, (), data.num_rows)
    if isinstance(data, str | Path):
        return open_files(name, _files(Path(data), where))
    if hasattr(data, "columns") and hasattr(data, "index"):
        table = pa.Table.from_pandas(data, preserve_index=False)
        return FileEvents(name, table.replace_schema_metadata(None), (), table.num_rows)
    rule = "be an Arrow table, a pandas frame, or the path of Parquet or Arrow files"
    raise HistoryError(explain("data", rule, type(data).__name__, where))


def open_files(name: str, files: tuple[Path, ...]) -> FileEvents:
    """Return a reader of files in the given order."""
    return FileEvents(name, None, files, sum(map(_count_rows, files)))


def _files(path: Path, where: str) -> tuple[Path, ...]:
    known = _PARQUET + _ARROW
    if path.is_file():
        if path.suffix in known:
            return (path,)
        rule = f"end in one of {', '.join(known)}"
        raise HistoryError(explain("a file of events", rule, path.name, where))
    files = (
        sorted(file for file in path.rglob("*") if file.suffix in known) if path.is_dir() else []
    )
    if not files:
        rule = "be a file, or a folder with Parquet or Arrow files"
        raise HistoryError(explain("a path of events", rule, str(path), where))
    return tuple(files)


def _present(columns: Sequence[str] | None, names: Sequence[str]) -> list[str]:
    return list(names) if columns is None else [name for name in columns if name in names]


def _count_rows(file: Path) -> int:
    if file.suffix in _PARQUET:
        return int(pq.read_metadata(file).num_rows)
    with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
        return sum(reader.get_batch(index).num_rows for index in range(reader.num_record_batches))


def _file_batches(file: Path, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    if file.suffix in _PARQUET:
        with pq.ParquetFile(file) as reader:
            names = _present(columns, reader.schema_arrow.names)
            yield from reader.iter_batches(batch_size=BATCH_ROWS, columns=names)
        return
    with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
        names = _present(columns, reader.schema.names)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index).select(names)


def _read_file(file: Path, columns: Sequence[str] | None) -> pa.Table:
    if file.suffix in _PARQUET:
        with pq.ParquetFile(file) as reader:
            return reader.read(columns=_present(columns, reader.schema_arrow.names))
    return pa.Table.from_batches(list(_file_batches(file, columns)))
