"""What the lake holds of single predictions: rows by their ids, by event, or drawn at random.

An id is looked for by numbers (partition and offset), whose smallest and largest each file knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.lake.history import event_vectors
from headrace.lake.tables import (
    ARRIVAL_TIME,
    OFFSET,
    PARTITION,
    TOPIC_ID,
    predictions_table,
    snapshots_table,
)
from headrace.schemas.outputs import PredictionId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from headrace.features.plan import PipelinePlan
    from headrace.lake.tables import Lake, LakeTable

_SOURCE_TOPIC_ID, _SOURCE_PARTITION, _SOURCE_OFFSET = (
    "source_topic_id",
    "source_partition",
    "source_offset",
)
_ID_COLUMNS = (_SOURCE_TOPIC_ID, _SOURCE_PARTITION, _SOURCE_OFFSET)
_RECORD_COLUMNS = (TOPIC_ID, PARTITION, OFFSET)
# Up to here a filter names the offsets themselves, so that whole row groups are passed over.
_NAMED_OFFSETS_MAX = 2_000
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class OutputRows:
    """Every row of the ids asked for, in the order of (source partition, offset).

    At least once means that an event can have several rows: each is there. The columns are the
    tables' own. ``snapshot_of`` int64[predictions] is each prediction's first snapshot, -1: none.
    """

    predictions: pa.Table
    snapshots: pa.Table
    snapshot_of: NDArray[np.int64]

    def ids(self) -> list[PredictionId]:
        """Return each prediction's id."""
        columns = (self.predictions.column(name).to_pylist() for name in _ID_COLUMNS)
        return [PredictionId(*row) for row in zip(*columns, strict=True)]


def find_outputs(
    lake: Lake,
    pipeline: str,
    ids: Iterable[PredictionId],
    progress: Callable[[int], None] = lambda _: None,
) -> OutputRows:
    """Return the predictions and snapshots of the ids; of those that the lake holds.

    Args:
        lake: The lake.
        pipeline: Whose predictions.
        ids: Which.
        progress: Told how many rows were looked at, as it goes on.

    Raises:
        LakeError: If a table is not there.

    """
    wanted = _by_partition(ids)
    predictions = _rows(lake.table(predictions_table(pipeline)), wanted, _ID_COLUMNS, progress)
    snapshots = _rows(lake.table(snapshots_table(pipeline)), wanted, _ID_COLUMNS, progress)
    first: dict[tuple[object, ...], int] = {}
    for row, key in enumerate(_keys(snapshots)):
        first.setdefault(key, row)
    found = [first.get(key, -1) for key in _keys(predictions)]
    return OutputRows(predictions, snapshots, np.array(found, np.int64))


def find_event(lake: Lake, source: str, one: PredictionId) -> dict[str, Any] | None:
    """Return the record of a source that a prediction is about, as the lake holds it; or None."""
    if not lake.has(source):
        return None
    table = lake.table(source)
    rows = _rows(table, _by_partition([one]), _RECORD_COLUMNS, lambda _: None)
    return rows.slice(0, 1).to_pylist()[0] if rows.num_rows else None


def ids_of_event(lake: Lake, pipeline: str, event_id: str) -> list[PredictionId]:
    """Return the predictions about events of this id; a producer may send an id twice.

    Raises:
        LakeError: If there are no predictions.

    """
    table = lake.table(predictions_table(pipeline))
    where = pc.field("event_id") == pa.scalar(event_id)
    rows = {
        PredictionId(*key)
        for batch in table.batches(_ID_COLUMNS, where)
        for key in _keys(pa.Table.from_batches([batch]))
    }
    return sorted(rows)


def choose_ids(
    lake: Lake,
    pipeline: str,
    count: int | None,
    seed: int,
    start_ms: int | None = None,
    end_ms: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[PredictionId]:
    """Return ``count`` ids drawn at random out of a period (None: all of them), in id order.

    The draw keeps the ids of the smallest seeded hashes, so that it depends on seed and rows alone:
    not on files, not on rows that came twice. Memory: O(count) while reading.

    Args:
        lake: The lake.
        pipeline: Whose predictions.
        count: How many at most.
        seed: Of the draw.
        start_ms: First event time, epoch ms.
        end_ms: The event time before which the period ends.
        progress: Told how many rows were looked at.

    Raises:
        LakeError: If there are no predictions.

    """
    table = lake.table(predictions_table(pipeline))
    kept: list[tuple[np.ndarray, pa.Table]] = []
    for batch in table.batches(_ID_COLUMNS, _period(start_ms, end_ms)):
        rows = pa.Table.from_batches([batch])
        kept.append((_hashes(rows, seed), rows))
        progress(batch.num_rows)
        if count is not None and sum(len(hashes) for hashes, _ in kept) > 4 * count + 100_000:
            kept = [_smallest(kept, count)]
    if not kept:
        return []
    _, rows = _smallest(kept, count)
    return sorted({PredictionId(*key) for key in _keys(rows)})


def event_order_vectors(
    lake: Lake, plan: PipelinePlan, ids: Sequence[PredictionId]
) -> NDArray[np.float64]:
    """Return what history gives for events: their vectors by event time with all that is known.

    For ids whose logs are gone. Rows that came late to the log make it differ from what was served.

    Shape: (len(ids), len(plan.vector)); rows of NaN for events that the lake does not hold.

    Raises:
        LakeError: If a source's table is not there.

    """
    tables = {source.name: _in_log_order(lake.table(source.name), plan, source.name)
              for source in plan.sources}  # fmt: skip
    scored = tables[plan.source]
    place = {key: row for row, key in enumerate(_keys(scored, _RECORD_COLUMNS))}
    rows = np.array([place.get(tuple(one), -1) for one in ids], np.int64)
    vectors = np.full((len(rows), len(plan.vector)), np.nan)
    there = rows >= 0
    if there.any():
        vectors[there] = event_vectors(plan, tables, rows[there])
    return vectors


# --- Rows of tables -----------------------------------------------------------------------------


def _by_partition(ids: Iterable[PredictionId]) -> dict[tuple[str, int], np.ndarray]:
    """Return the sorted offsets by (topic id, partition)."""
    offsets: dict[tuple[str, int], list[int]] = {}
    for one in ids:
        offsets.setdefault((one.topic_id, one.partition), []).append(one.offset)
    return {key: np.unique(np.array(values, np.int64)) for key, values in offsets.items()}


def _rows(
    table: LakeTable,
    wanted: Mapping[tuple[str, int], np.ndarray],
    names: Sequence[str],
    progress: Callable[[int], None],
) -> pa.Table:
    """Return the rows whose (topic id, partition, offset) is wanted, sorted by partition, offset.

    ``names`` are the three columns that hold it.
    """
    topic_name, partition_name, offset_name = names
    found: list[pa.Table] = []
    for (topic_id, partition), offsets in sorted(wanted.items()):
        where = pc.field(partition_name) == partition
        if offsets.size <= _NAMED_OFFSETS_MAX:
            where &= pc.field(offset_name).isin(offsets.tolist())
        where &= pc.field(offset_name) >= int(offsets[0])
        where &= pc.field(offset_name) <= int(offsets[-1])
        where &= pc.field(topic_name) == topic_id
        for batch in table.batches(None, where):
            progress(batch.num_rows)
            there = batch.column(offset_name).to_numpy(zero_copy_only=False)
            at = np.minimum(np.searchsorted(offsets, there), offsets.size - 1)
            mask = offsets[at] == there
            if mask.any():
                found.append(pa.Table.from_batches([batch.filter(pa.array(mask))]))
    if not found:
        return table.schema.empty_table()
    keys = [partition_name, offset_name]
    # Of an event's rows, those that were written first come first.
    keys += [name for name in (ARRIVAL_TIME, OFFSET) if name not in keys]
    return pa.concat_tables(found, promote_options="default").sort_by(
        [(name, "ascending") for name in keys]
    )


def _keys(rows: pa.Table, names: Sequence[str] = _ID_COLUMNS) -> list[tuple[Any, ...]]:
    return list(zip(*(rows.column(name).to_pylist() for name in names), strict=True))


def _in_log_order(table: LakeTable, plan: PipelinePlan, source: str) -> pa.Table:
    columns = [column.name for column in plan.source_plan(source).columns]
    batches = list(table.batches([*columns, *_RECORD_COLUMNS]))
    rows = pa.Table.from_batches(batches) if batches else table.schema.empty_table()
    return rows.sort_by([(name, "ascending") for name in _RECORD_COLUMNS])


def _period(start_ms: int | None, end_ms: int | None) -> Any:
    kind = pa.timestamp("us", "UTC")
    where = None
    if start_ms is not None:
        where = pc.field("event_time") >= pa.scalar(start_ms * 1000, kind)
    if end_ms is not None:
        before = pc.field("event_time") < pa.scalar(end_ms * 1000, kind)
        where = before if where is None else where & before
    return where


def _hashes(rows: pa.Table, seed: int) -> np.ndarray:
    """Return uint64[n]: a hash of each row's place (splitmix64), the same for the same seed."""
    offset = rows.column(_SOURCE_OFFSET).to_numpy().astype(np.uint64)
    partition = rows.column(_SOURCE_PARTITION).to_numpy().astype(np.uint64)
    start = np.array([seed], np.int64).astype(np.uint64)
    mixed: np.ndarray = offset + (partition << np.uint64(48)) + (start + np.uint64(1)) * _GOLDEN
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    hashes: np.ndarray = mixed ^ (mixed >> np.uint64(31))
    return hashes


def _smallest(
    parts: Sequence[tuple[np.ndarray, pa.Table]], count: int | None
) -> tuple[np.ndarray, pa.Table]:
    """Return the rows of the ``count`` smallest different hashes, those of one hash once."""
    hashes = np.concatenate([hashes for hashes, _ in parts])
    rows = pa.concat_tables([rows for _, rows in parts])
    unique, first = np.unique(hashes, return_index=True)
    return unique[:count], rows.take(pa.array(first[:count]))
