"""A stage's log at rest: its inputs merged by canonical order, key bucket by key bucket.

Canonical order: event time, then the input's rank (update-only inputs first), then the order of
arrival or what the user declares instead. Bare asks stand behind the events of their time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from headrace.features.kernels.canonical import canonical_keys
from headrace.features.kernels.keys import hash_keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

NOT_ASKED = -1


@dataclass(slots=True)
class LogRows:
    """Rows of one input, or bare asks, columns of one length.

    ``order`` breaks ties of event time and input; ``position`` is the row in its source. ``ask`` is
    the index of what the row answers, ``NOT_ASKED`` for rows that only update state.
    """

    keys: pa.Array
    input: NDArray[np.int8]
    event_time_ms: NDArray[np.int64]
    known_at_ms: NDArray[np.int64]
    values: NDArray[np.float64]
    order: NDArray[np.int64]
    position: NDArray[np.int64]
    ask: NDArray[np.int64]
    insert: NDArray[np.bool_]

    def take(self, indices: NDArray[np.int64]) -> LogRows:
        """Return the rows at ``indices``, in that order."""
        return LogRows(
            self.keys.take(pa.array(indices)),
            self.input[indices],
            self.event_time_ms[indices],
            self.known_at_ms[indices],
            self.values[indices],
            self.order[indices],
            self.position[indices],
            self.ask[indices],
            self.insert[indices],
        )


class StageLog:
    """Takes a stage's rows, input by input in the order of their rank; gives them back in order.

    With one bucket the rows stay in memory; with more they lie in ``folder``, a file per bucket,
    and only one bucket is in memory at a time.
    """

    def __init__(self, buckets: int, folder: Path | None, has_order: bool) -> None:
        assert buckets == 1 or folder is not None, "buckets need a folder"
        self._buckets = buckets
        self._folder = folder
        self._has_order = has_order
        self._parts: list[LogRows] = []
        self._writers: dict[int, pa.RecordBatchFileWriter] = {}

    def add(self, rows: LogRows) -> None:
        """Append rows; of equal time, input and order those added first come first."""
        rows.keys = canonical_keys(rows.keys)
        if self._buckets == 1:
            self._parts.append(rows)
            return
        # Other bits than those that choose a key's place in its state's table and its partition.
        bucket_of = (hash_keys(rows.keys) >> np.uint64(48)) % np.uint64(self._buckets)
        by_bucket = np.argsort(bucket_of, kind="stable")
        edges = np.searchsorted(bucket_of[by_bucket], np.arange(self._buckets + 1))
        for bucket in range(self._buckets):
            indices = by_bucket[edges[bucket] : edges[bucket + 1]]
            if len(indices):
                self._write(bucket, rows.take(indices))

    def parts(self) -> Iterator[LogRows]:
        """Yield the rows of each bucket in canonical order; the log is empty afterwards."""
        if self._buckets == 1:
            parts, self._parts = self._parts, []
            if parts:
                yield self._in_order(parts)
            return
        for bucket, writer in self._writers.items():
            writer.close()
            path = self._path(bucket)
            # Read, not mapped: the file goes before its rows do.
            with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
                parts = [
                    _from_batch(reader.get_batch(index))
                    for index in range(reader.num_record_batches)
                ]
            path.unlink()
            yield self._in_order(parts)
        self._writers = {}

    def _path(self, bucket: int) -> Path:
        assert self._folder is not None, "buckets need a folder"
        return self._folder / f"bucket-{bucket:05}.arrow"

    def _write(self, bucket: int, rows: LogRows) -> None:
        batch = _to_batch(rows)
        if bucket not in self._writers:
            self._writers[bucket] = pa.ipc.new_file(str(self._path(bucket)), batch.schema)
        self._writers[bucket].write_batch(batch)

    def _in_order(self, parts: list[LogRows]) -> LogRows:
        rows = _concatenated(parts)
        times = rows.event_time_ms
        if not self._has_order:
            # Inputs were added by rank, each in its order: a stable sort by time is enough.
            if (times[1:] >= times[:-1]).all():
                return rows
            return rows.take(np.argsort(times, kind="stable"))
        rank = np.where(rows.insert, rows.input, np.iinfo(np.int8).max)
        return rows.take(np.lexsort((rows.order, rank, times)))


def _concatenated(parts: list[LogRows]) -> LogRows:
    if len(parts) == 1:
        return parts[0]
    return LogRows(
        pa.concat_arrays([part.keys for part in parts]),
        np.concatenate([part.input for part in parts]),
        np.concatenate([part.event_time_ms for part in parts]),
        np.concatenate([part.known_at_ms for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.order for part in parts]),
        np.concatenate([part.position for part in parts]),
        np.concatenate([part.ask for part in parts]),
        np.concatenate([part.insert for part in parts]),
    )


def _to_batch(rows: LogRows) -> pa.RecordBatch:
    columns = {
        "key": rows.keys,
        "input": pa.array(rows.input),
        "event_time_ms": pa.array(rows.event_time_ms),
        "known_at_ms": pa.array(rows.known_at_ms),
        "order": pa.array(rows.order),
        "insert": pa.array(rows.insert.view(np.int8)),
        "position": pa.array(rows.position),
        "ask": pa.array(rows.ask),
    }
    for index in range(rows.values.shape[1]):
        columns[f"value_{index}"] = pa.array(np.ascontiguousarray(rows.values[:, index]))
    return pa.RecordBatch.from_pydict(columns)


def _from_batch(batch: pa.RecordBatch) -> LogRows:
    columns = [column.to_numpy() for column in batch.columns[1:]]
    values = np.empty((batch.num_rows, len(columns) - 7))
    for index, column in enumerate(columns[7:]):
        values[:, index] = column
    return LogRows(
        keys=batch.column(0),
        input=columns[0],
        event_time_ms=columns[1],
        known_at_ms=columns[2],
        values=values,
        order=columns[3],
        position=columns[5],
        ask=columns[6],
        insert=columns[4].view(np.bool_),
    )
