"""Appends to Delta tables, rows and positions in one commit; and what two tables of a topic mean.

A topic has a main table and one of rejected records. *The main table's position is the topic's*:
below it every record stands in exactly one of the two. So an append writes the rejected records
first, then the rows with the position. A crash between the two leaves rejected records at or above
the position: a start reads which ones these are (``TopicTables.settled``), and the reader passes
over them, whatever the registry says of them by now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.lake.errors import SecondWriterError, TableBusyError, UnstorableError
from headrace.lake.storable import check_names, misfits
from headrace.lake.tables import (
    ARRIVAL_TIME,
    OFFSET,
    PARTITION,
    RECORD_FIELDS,
    REJECTED_FIELDS,
    TOPIC_ID,
    Lake,
    progress_id,
    rejected_table,
)
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

#: Readers may need old log files as long as they keep a version open; see ``maintenance``.
TABLE_PROPERTIES: Final[Mapping[str, str | None]] = {
    "delta.dataSkippingNumIndexedCols": "-1",
    "delta.checkpointInterval": "50",
    "delta.logRetentionDuration": "interval 1 days",
    "delta.enableExpiredLogCleanup": "true",
}
ROW_GROUP_ROWS: Final = 131_072
_COMMIT_RETRIES: Final = 15


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a commit moves a partition: from what the table must say to what it will say."""

    topic_id: str
    partition: int
    before: int | None
    after: int

    @property
    def progress_id(self) -> str:
        """Return the application id that keeps it."""
        return progress_id(self.topic_id, self.partition)


class TableWriter:
    """The one writer of a table. The folder is made with the first append."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._path = folder / name
        self._lake = Lake(folder)
        self._delta: Any = None
        self._schema: pa.Schema = pa.schema([])
        self.reload()

    @property
    def delta(self) -> Any:
        """Return the open Delta table, None if there is none yet."""
        return self._delta

    @property
    def schema(self) -> pa.Schema:
        """Return the table's columns; none if there is no table yet."""
        return self._schema

    def reload(self) -> None:
        """Look at the table as it is on disk."""
        self._delta = self._lake.table(self.name).delta if self._lake.has(self.name) else None
        self._note_schema()

    def position(self, topic_id: str, partition: int) -> int | None:
        """Return the first offset of a partition that the table's rows do not cover."""
        if self._delta is None:
            return None
        found = self._delta.transaction_version(progress_id(topic_id, partition))
        return None if found is None else int(found)

    def append(self, rows: pa.Table, advances: Iterable[Advance]) -> None:
        """Append rows and move positions, both or nothing.

        Args:
            rows: As ``aligned`` gives them. New columns are added to the table. May be empty.
            advances: The partitions that move.

        Raises:
            SecondWriterError: If the table's positions are not those that ``advances`` start from.
            TableBusyError: If it did not go through; the same call can be made again.

        """
        from deltalake import CommitProperties, Transaction, write_deltalake
        from deltalake.exceptions import DeltaError

        moved = list(advances)
        properties = CommitProperties(
            app_transactions=[Transaction(one.progress_id, one.after) for one in moved],
            max_commit_retries=_COMMIT_RETRIES,
        )
        try:
            self._refresh(rows.schema)
            self._check(moved)
            write_deltalake(
                self._delta,
                # Chunks are written by several threads, in any order: one chunk stays in its order.
                rows.combine_chunks(),
                mode="append",
                schema_mode="merge" if self._is_wider(rows.schema) else None,
                commit_properties=properties,
                writer_properties=parquet_properties(),
            )
        except (DeltaError, OSError) as error:
            if not self._came_through(moved):
                message = f"table {self.name} must take an append; got {first_line(error)!r}"
                raise TableBusyError(message) from error
        self._note_schema()

    def _refresh(self, schema: pa.Schema) -> None:
        from deltalake import DeltaTable

        if self._delta is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._delta = DeltaTable.create(
                str(self._path), schema, mode="ignore", configuration=dict(TABLE_PROPERTIES)
            )
            self._note_schema()
        else:
            self._delta.update_incremental()

    def _check(self, moved: list[Advance]) -> None:
        for one in moved:
            there = self.position(one.topic_id, one.partition)
            if there != one.before:
                hint = "stop the other 'headrace lake' that writes to this folder"
                rule = f"be at offset {one.before} of {one.progress_id}, as this writer left it"
                raise SecondWriterError(explain("table", rule, there, self.name, hint))

    def _came_through(self, moved: list[Advance]) -> bool:
        """Return whether a commit that gave an error was made all the same.

        Raises:
            SecondWriterError: If another's was made.

        """
        from deltalake.exceptions import DeltaError

        try:
            self.reload()
        except (DeltaError, OSError):
            return False
        moves = any(one.before != one.after for one in moved)
        if moves and all(self.position(o.topic_id, o.partition) == o.after for o in moved):
            return True
        self._check(moved)
        return False

    def _is_wider(self, schema: pa.Schema) -> bool:
        return not set(schema.names) <= set(self._schema.names)

    def _note_schema(self) -> None:
        if self._delta is None:
            self._schema = pa.schema([])
        else:
            self._schema = pa.schema(self._delta.schema().to_arrow())

    def aligned(self, rows: pa.Table) -> tuple[pa.Table, np.ndarray, str]:
        """Return the rows as the table wants them, which ones cannot be, and why not.

        Columns come in the table's order, new ones behind; what the rows lack is null; a column
        whose type has grown since the table was made is cast back where the value allows.

        Shape: the second is (rows,) bool; those rows are left out of the first.

        Raises:
            UnstorableError: If a name differs by case alone from another, or a type has changed so
                that no value fits.

        """
        check_names(
            [*self._schema.names, *(n for n in rows.column_names if n not in self._schema.names)]
        )
        bad = np.zeros(rows.num_rows, np.bool_)
        why = ""
        for field in self._schema:
            index = rows.schema.get_field_index(field.name)
            if index < 0 or same_type(rows.schema.field(index).type, field.type):
                continue
            column = rows.column(index)
            wrong = misfits(column, field.type)
            if wrong is None:
                rule = f"stay {field.type}, or get a new name"
                got = str(column.type)
                raise UnstorableError(explain(f"field {field.name}", rule, got, self.name))
            if wrong.any():
                why = f"field {field.name}: the value does not fit the table's {field.type}"
                bad |= wrong
            narrow = column.cast(field.type, safe=False)
            rows = rows.set_column(index, pa.field(field.name, field.type), narrow)
        if bad.any():
            rows = rows.filter(pa.array(~bad))
        names = [
            *self._schema.names,
            *(n for n in rows.column_names if n not in self._schema.names),
        ]
        return _select(rows, names, self._schema), bad, why


def _select(rows: pa.Table, names: list[str], schema: pa.Schema) -> pa.Table:
    columns = [
        rows.column(name)
        if name in rows.column_names
        else pa.chunked_array([pa.nulls(rows.num_rows, schema.field(name).type)])
        for name in names
    ]
    return pa.Table.from_arrays(columns, names=names)


def same_type(one: pa.DataType, other: pa.DataType) -> bool:
    """Return whether two types are equal but for the names and nullability of their parts."""
    if one == other:
        return True
    if str(one).replace("item:", "element:").replace(" not null", "") == str(other).replace(
        " not null", ""
    ):
        return True
    return (
        one.num_fields == other.num_fields > 0
        and all(same_type(one.field(i).type, other.field(i).type) for i in range(one.num_fields))
        and one.id == other.id
    )


def parquet_properties() -> Any:
    """Return how files are written: small enough row groups that a reader can pass over most."""
    from deltalake import WriterProperties

    return WriterProperties(
        compression="ZSTD",
        compression_level=1,
        max_row_group_size=ROW_GROUP_ROWS,
        statistics_truncate_length=64,
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text; Rust's go on with a stack."""
    return str(error).partition("\n")[0] or type(error).__name__


class TopicTables:
    """A topic's two tables. See the module for what holds between them."""

    def __init__(self, folder: Path, name: str) -> None:
        self.main = TableWriter(folder, name)
        self.rejected = TableWriter(folder, rejected_table(name))

    def reload(self) -> None:
        """Look at both tables as they are on disk."""
        self.main.reload()
        self.rejected.reload()

    def settled(self, topic_id: str, partition: int, position: int) -> frozenset[int]:
        """Return the offsets at or above ``position`` that stand among the rejected already."""
        if self.rejected.delta is None:
            return frozenset()
        where = (
            (pc.field(TOPIC_ID) == topic_id)
            & (pc.field(PARTITION) == partition)
            & (pc.field(OFFSET) >= position)
        )
        dataset = self.rejected.delta.to_pyarrow_dataset()
        return frozenset(dataset.to_table(columns=[OFFSET], filter=where)[OFFSET].to_pylist())

    def append(self, rows: pa.Table, rejected: pa.Table | None, advances: list[Advance]) -> None:
        """Append a topic's records: the rejected first, then the rows with the positions.

        Args:
            rows: As ``TableWriter.aligned`` gives them.
            rejected: With ``REJECTED_FIELDS``; None if there are none.
            advances: The partitions that move, by the main table's positions.

        Raises:
            SecondWriterError: If somebody else moved a position.
            TableBusyError: If one of the two did not go through. Then nothing has moved, and the
                rejected ones may be there: ``settled`` says which.

        """
        if rejected is not None:
            # Their table has positions too, so that two writers of it collide.
            own = [
                Advance(o.topic_id, o.partition, self._rejected_position(o), o.after)
                for o in advances
            ]
            self.rejected.append(rejected, own)
        self.main.append(rows, advances)

    def _rejected_position(self, advance: Advance) -> int | None:
        return self.rejected.position(advance.topic_id, advance.partition)


def record_columns(
    topic_id: str, partition: int, offsets: np.ndarray, arrival_time_ms: np.ndarray
) -> pa.Table:
    """Return where records stood in Kafka, as columns.

    Shape: ``offsets`` and ``arrival_time_ms`` (rows,) int64.
    """
    count = len(offsets)
    columns = [
        pa.repeat(pa.scalar(topic_id), count),
        pa.repeat(pa.scalar(partition, pa.int32()), count),
        pa.array(offsets, pa.int64()),
        pa.array(arrival_time_ms * 1000, RECORD_FIELDS.field(ARRIVAL_TIME).type),
    ]
    return pa.Table.from_arrays(columns, schema=RECORD_FIELDS)


def rejected_rows(
    records: pa.Table,
    reasons: list[tuple[str, str]],
    keys: list[bytes | None],
    values: list[bytes | None],
) -> pa.Table:
    """Return rejected records with their reasons, as their table holds them."""
    columns = [
        pa.array([reason for reason, _ in reasons], pa.string()),
        pa.array([detail for _, detail in reasons], pa.string()),
        pa.array(keys, pa.binary()),
        pa.array(values, pa.binary()),
        *records.columns,
    ]
    return pa.Table.from_arrays(columns, schema=REJECTED_FIELDS)
