"""Predictions and snapshots of scored rows: built by columns, encoded, ready to be sent.

Both carry the same ids; a prediction adds the score and whose it is, a snapshot the vector that was
scored and the age of each view. Columns are Arrow arrays from the start, so that no row costs
Python more than its place in the list that the producer takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.features.vector import assemble
from headrace.runtime import topics
from headrace.streams.batch import BulkOutput
from headrace.streams.rekey import entity_keys

if TYPE_CHECKING:
    from headrace.features.plan import PipelinePlan
    from headrace.streams.batch import Outputs
    from headrace.streams.context import LiveModel, ProcessorContext
    from headrace.streams.rekey import StreamRows

OK = "ok"
NO_MODEL = "no_model"
NO_SCORE = "no_score"
INCOMPLETE = "incomplete"
"""A window reached further back than the state still held: the features are not exact."""


class OutputWriter:
    """Scores rows and writes their predictions and snapshots, for one last-stage partition."""

    def __init__(self, plan: PipelinePlan, context: ProcessorContext) -> None:
        """Write for ``plan``."""
        self._plan = plan
        self._source = plan.source_plan(plan.source)
        self._topic_id = context.topic_ids[self._source.topic]
        self._models = context.models
        self._predictions, self._snapshots = context.predictions, context.snapshots
        self._topics = (topics.predictions(plan.name), topics.snapshots(plan.name))
        self._partitions = tuple(context.partition_counts[topic] for topic in self._topics)
        self._keys = entity_keys(plan)
        self._constants = ConstantColumns()

    def write(self, rows: StreamRows, outputs: Outputs) -> None:
        """Add a prediction and a snapshot for each row to ``outputs``."""
        vector = assemble(self._plan, rows.events, rows.features)
        model = self._models.champion(self._plan.name)
        ids = self._ids(rows)
        predictions = self._predictions.encode(self._prediction_batch(rows, ids, vector, model))
        snapshots = self._snapshots.encode(self._snapshot_batch(rows, ids, vector))
        assert rows.keys is not None
        keys = rows.keys.to_pylist()
        for topic, count, values in zip(
            self._topics, self._partitions, (predictions, snapshots), strict=True
        ):
            outputs.bulk.append(BulkOutput(topic, messages(values, keys, rows.partition, count)))
        outputs.scored += len(rows)
        outputs.scored_arrival_time_ms = rows.arrival_time_ms

    def _ids(self, rows: StreamRows) -> dict[str, pa.Array]:
        """Return the columns that predictions and snapshots have in common."""
        count, columns, constant = len(rows), rows.events.columns, self._constants
        offset = pa.array(rows.offset)
        ids = {
            "prediction_id": prediction_ids(self._topic_id, rows.partition, offset),
            "event_id": constant.nulls(count),
            "source": constant.text(self._source.name, count),
            "source_topic_id": constant.text(self._topic_id, count),
            "source_partition": pa.array(rows.partition, pa.int32()),
            "source_offset": offset,
            "event_time": pa.array(rows.events.event_time_ms).view(pa.timestamp("ms", "UTC")),
            "fingerprint": constant.text(self._plan.fingerprint, count),
        }
        if self._source.event_id is not None:
            ids["event_id"] = as_text(columns[self._source.event_id])
        for entity, column in self._keys.items():
            ids[f"{entity}_key"] = as_text(columns[column])
        return ids

    def _prediction_batch(
        self,
        rows: StreamRows,
        ids: dict[str, pa.Array],
        vector: np.ndarray,
        model: LiveModel | None,
    ) -> pa.RecordBatch:
        count, constant = len(rows), self._constants
        if model is None:
            scored = {
                "score": pa.nulls(count, pa.float64()),
                "status": constant.text(NO_MODEL, count),
                "model": constant.nulls(count),
                "model_version": constant.nulls(count),
                "role": constant.text("champion", count),
                "revision": pa.repeat(0, count),
            }
        else:
            score = model.score(vector)
            scored = {
                "score": floats(score),
                "status": self._status(score, rows.incomplete),
                "model": constant.text(model.model, count),
                "model_version": constant.text(model.version, count),
                "role": constant.text(model.role, count),
                "revision": pa.repeat(model.revision, count),
            }
        return pa.RecordBatch.from_pydict({**ids, **scored})

    def _status(self, score: np.ndarray, incomplete: np.ndarray) -> pa.Array:
        missing = ~np.isfinite(score)
        if not missing.any() and not incomplete.any():
            return self._constants.text(OK, score.size)
        return pa.array(np.where(missing, NO_SCORE, np.where(incomplete, INCOMPLETE, OK)))

    def _snapshot_batch(
        self, rows: StreamRows, ids: dict[str, pa.Array], vector: np.ndarray
    ) -> pa.RecordBatch:
        columns = dict(ids)
        by_column = np.ascontiguousarray(vector.T)
        for column, values in zip(self._plan.vector, by_column, strict=True):
            columns[column.name] = longs(values) if column.dtype == "int64" else floats(values)
        for view, values in rows.ages.items():
            columns[f"{view}__age_ms"] = longs(values)
        return pa.RecordBatch.from_pydict(columns)


class ConstantColumns:
    """Text columns of one value, kept and sliced instead of built for every batch."""

    def __init__(self) -> None:
        """Start with none."""
        self._texts: dict[str | None, pa.Array] = {}

    def text(self, value: str | None, count: int) -> pa.Array:
        """Return a column of ``count`` times ``value``."""
        column = self._texts.get(value)
        if column is None or len(column) < count:
            column = pa.repeat(pa.scalar(value, pa.string()), max(count, 1024))
            self._texts[value] = column
        return column.slice(0, count)

    def nulls(self, count: int) -> pa.Array:
        """Return a text column of ``count`` nulls."""
        return self.text(None, count)


def prediction_ids(topic_id: str, partition: np.ndarray, offset: pa.Array) -> pa.Array:
    """Return ``<topic id>-<partition>-<offset>`` for each row."""
    if partition.strides == (0,) or (partition == partition[0]).all():
        head = pa.scalar(f"{topic_id}-{int(partition[0])}")
    else:
        numbers = pa.array(partition).cast(pa.string())
        head = pc.binary_join_element_wise(pa.scalar(topic_id), numbers, "-")
    return pc.binary_join_element_wise(head, offset.cast(pa.string()), "-")


def as_text(column: pa.Array) -> pa.Array:
    """Return ids or keys as text: numbers in decimal, bytes in hex."""
    if pa.types.is_string(column.type):
        return column
    if pa.types.is_binary(column.type):
        texts = [None if value is None else value.hex() for value in column.to_pylist()]
        return pa.array(texts, pa.string())
    return column.cast(pa.string())


def floats(values: np.ndarray) -> pa.Array:
    """Return a float64 column, NaN and infinities as null."""
    known = np.isfinite(values)
    if known.all():
        return pa.array(values)
    return pa.array(values, mask=~known)


def longs(values: np.ndarray) -> pa.Array:
    """Return whole numbers held as float64 as an int64 column, NaN as null."""
    unknown = np.isnan(values)
    if not unknown.any():
        return pa.array(values.astype(np.int64))
    return pa.array(np.where(unknown, 0.0, values).astype(np.int64), mask=unknown)


def messages(
    values: list[bytes], keys: list[bytes | None], partition: np.ndarray, partitions: int
) -> list[dict[str, object]]:
    """Return what ``produce_batch`` takes: a source partition's rows stay on one partition."""
    if partition.strides == (0,):
        target = int(partition[0]) % partitions
        return [
            {"value": value, "key": key, "partition": target}
            for value, key in zip(values, keys, strict=True)
        ]
    targets = (partition % partitions).tolist()
    return [
        {"value": value, "key": key, "partition": target}
        for value, key, target in zip(values, keys, targets, strict=True)
    ]
