"""The lake's tables: Delta folders that the lake's process writes and everybody else reads.

One table a topic: a source's events under the source's name, ``<pipeline>_predictions`` and
``<pipeline>_snapshots``. A row holds the record's own fields and where it stood in Kafka.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from headrace.features.errors import did_you_mean
from headrace.lake.errors import LakeError
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

TOPIC_ID: Final = "_topic_id"
PARTITION: Final = "_partition"
OFFSET: Final = "_offset"
ARRIVAL_TIME: Final = "_arrival_time"
#: Where a row stood in Kafka: the topic's own id (base64), the partition, the offset, and the
#: broker's timestamp. (topic id, partition, offset) is a row's identity.
RECORD_FIELDS: Final = pa.schema(
    [
        pa.field(TOPIC_ID, pa.string()),
        pa.field(PARTITION, pa.int32()),
        pa.field(OFFSET, pa.int64()),
        pa.field(ARRIVAL_TIME, pa.timestamp("us", "UTC")),
    ]
)
#: What a table of rejected records holds, before the record's fields: key and value are its bytes.
REJECTED_FIELDS: Final = pa.schema(
    [
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary()),
        *RECORD_FIELDS,
    ]
)
_LOG: Final = "_delta_log"
_BATCH_ROWS: Final = 262_144


def predictions_table(pipeline: str) -> str:
    """Return the name of the table with a pipeline's predictions."""
    return f"{pipeline}_predictions"


def snapshots_table(pipeline: str) -> str:
    """Return the name of the table with a pipeline's snapshots."""
    return f"{pipeline}_snapshots"


def rejected_table(name: str) -> str:
    """Return the name of the table with those of a topic's records that could not be decoded."""
    return f"{name}_rejected"


def progress_id(topic_id: str, partition: int) -> str:
    """Return the application id under which a table keeps its next offset of a partition.

    Delta commits it in the same transaction as the rows, so the two cannot differ.
    """
    return f"{topic_id}:{partition}"


def file_actions(delta: Any) -> pa.Table:
    """Return what an open Delta table's log says of its files; nested names have dots."""
    return pa.table(delta.get_add_actions(flatten=True))


@dataclass(frozen=True, slots=True)
class LakeTable:
    """One version of a table; open it again to see what was appended since.

    ``order`` of rows is undefined: sort by (topic id, partition, offset) where order matters.
    """

    name: str
    path: Path
    delta: Any

    @property
    def version(self) -> int:
        """Return Delta's version of the table."""
        return int(self.delta.version())

    @property
    def schema(self) -> pa.Schema:
        """Return the columns; those of the record first, ``RECORD_FIELDS`` among them."""
        return pa.schema(self.delta.schema().to_arrow())

    def files(self) -> list[str]:
        """Return the Parquet files that make up this version."""
        return list(self.delta.file_uris())

    def file_actions(self) -> pa.Table:
        """Return what the log says of each file: path, size, rows, min and max by column."""
        return file_actions(self.delta)

    def next_offset(self, topic_id: str, partition: int) -> int | None:
        """Return the first offset of a partition that the table does not hold; None: no offset."""
        found = self.delta.transaction_version(progress_id(topic_id, partition))
        return None if found is None else int(found)

    def count_rows(self) -> int:
        """Return the number of rows, from the files' metadata."""
        return int(self.delta.to_pyarrow_dataset().count_rows())

    def batches(
        self, columns: Sequence[str] | None = None, where: Any = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows, file by file, with those of ``columns``; ``where`` is an Arrow filter."""
        dataset = self.delta.to_pyarrow_dataset()
        yield from dataset.to_batches(
            columns=None if columns is None else list(columns),
            filter=where,
            batch_size=_BATCH_ROWS,
        )


@dataclass(frozen=True, slots=True)
class Lake:
    """The tables below one folder."""

    folder: Path

    def names(self) -> list[str]:
        """Return the tables that there are."""
        if not self.folder.is_dir():
            return []
        return sorted(path.parent.name for path in self.folder.glob(f"*/{_LOG}"))

    def has(self, name: str) -> bool:
        """Return whether there is a table of this name."""
        return (self.folder / name / _LOG).is_dir()

    def table(self, name: str) -> LakeTable:
        """Return the newest version of a table.

        Raises:
            LakeError: If there is none of this name.

        """
        from deltalake import DeltaTable

        path = self.folder / name
        if not self.has(name):
            hint = f"{did_you_mean(name, self.names())}; 'headrace lake' writes them"
            raise LakeError(explain("a table", "be in the lake", name, str(self.folder), hint))
        return LakeTable(name, path, DeltaTable(str(path)))
