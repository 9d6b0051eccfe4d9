"""Predictions and snapshots of scored rows: scored, encoded, ready to be sent.

Both carry the same ids; a prediction adds the score and whose it is, a snapshot the vector that was
scored and the age of each view. No row costs more Python than its place in the producer's list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from headrace.features.layouts import entity_keys
from headrace.features.vector import assemble
from headrace.runtime import topics
from headrace.schemas.outputs import MODEL_HASH_DIGITS
from headrace.streams.batch import BulkOutput
from headrace.streams.records import (
    Constant,
    Long,
    Number,
    RecordProgram,
    RowColumns,
    RowName,
    Text,
    text_buffers,
)

if TYPE_CHECKING:
    from headrace.features.plan import PipelinePlan
    from headrace.streams.batch import Outputs
    from headrace.streams.context import LiveModel, ProcessorContext, RegisteredSchema
    from headrace.streams.records import Binding
    from headrace.streams.rekey import StreamRows

OK = "ok"
NO_MODEL = "no_model"
NO_SCORE = "no_score"
INCOMPLETE = "incomplete"
"""A window reached further back than the state still held: the features are not exact."""

_PARTITION, _OFFSET, _EVENT_TIME = range(3)


@dataclass(frozen=True, slots=True)
class _Whose:
    """What a batch's predictions have in common; ``status`` is None where rows differ in it."""

    model: str | None
    version: str | None
    role: str
    revision: int
    model_hash: str | None
    status: str | None


class OutputWriter:
    """Scores rows and writes their predictions and snapshots, for one last-stage partition."""

    def __init__(self, plan: PipelinePlan, context: ProcessorContext) -> None:
        """Write for ``plan``."""
        self._plan = plan
        self._models = context.models
        self._columns = _Columns(plan)
        self._ids = self._columns.bindings(context.topic_ids[plan.source_plan(plan.source).topic])
        self._prediction_schema = context.predictions
        self._engine = context.engine
        self._programs: dict[_Whose, RecordProgram] = {}
        self._snapshots = self._snapshot_program(context.snapshots)
        names = (topics.predictions(plan.name), topics.snapshots(plan.name))
        self._targets = tuple((name, context.partition_counts[name]) for name in names)

    def write(self, rows: StreamRows, outputs: Outputs) -> None:
        """Add a prediction and a snapshot for each row to ``outputs``."""
        vector = assemble(self._plan, rows.events, rows.features)
        model = self._models.champion(self._plan.name)
        whose, score, status = _judge(model, vector, rows.incomplete)
        columns = self._columns.fill(rows, vector, score, status)
        assert rows.keys is not None
        keys = rows.keys if isinstance(rows.keys, list) else rows.keys.to_pylist()
        programs = (self._prediction_program(whose), self._snapshots)
        for (topic, partitions), program in zip(self._targets, programs, strict=True):
            blob, cuts = program.encode(columns)
            outputs.bulk.append(
                BulkOutput(topic, messages(blob, cuts, keys, rows.partition % partitions))
            )
        outputs.scored += len(rows)
        outputs.scored_arrival_time_ms = rows.arrival_time_ms

    def _prediction_program(self, whose: _Whose) -> RecordProgram:
        """Return the program for these common values; there are as many as models were live."""
        program = self._programs.get(whose)
        if program is None:
            status = whose.status
            bindings: dict[str, Binding] = {
                **self._ids,
                "score": self._columns.score,
                "status": self._columns.status if status is None else Constant(status),
                "model": Constant(whose.model),
                "model_version": Constant(whose.version),
                "role": Constant(whose.role),
                "revision": Constant(whose.revision),
                "model_hash": Constant(whose.model_hash),
                "engine": Constant(self._engine),
            }
            registered = self._prediction_schema
            program = RecordProgram(registered.schema, registered.schema_id, bindings)
            self._programs[whose] = program
        return program

    def _snapshot_program(self, registered: RegisteredSchema) -> RecordProgram:
        bindings = {**self._ids, **self._columns.snapshot_bindings()}
        return RecordProgram(registered.schema, registered.schema_id, bindings)


class _Columns:
    """Which column of ``RowColumns`` holds what."""

    def __init__(self, plan: PipelinePlan) -> None:
        self._plan = plan
        self._source = source = plan.source_plan(plan.source)
        kinds = {column.name: column.kind for column in source.columns}
        ids = {} if source.event_id is None else {"event_id": source.event_id}
        ids |= {f"{entity}_key": column for entity, column in entity_keys(plan).items()}
        # Ids and keys by field: whole numbers are written in decimal by the kernel.
        self._ids = {field: (column, kinds[column] == "int64") for field, column in ids.items()}
        self._text_count = sum(not whole for _, whole in self._ids.values())
        self._views = [age.view for stage in plan.stages for age in stage.ages]
        self.score = Number(len(plan.vector))
        self.status = Text(self._text_count, nullable=False)

    def bindings(self, topic_id: str) -> dict[str, Binding]:
        """Return the bindings of the fields that every output has."""
        bindings: dict[str, Binding] = {
            "prediction_id": RowName(f"{topic_id}-"),
            "event_id": Constant(None),
            "source": Constant(self._source.name),
            "source_topic_id": Constant(topic_id),
            "source_partition": Long(_PARTITION),
            "source_offset": Long(_OFFSET),
            "event_time": Long(_EVENT_TIME),
            "fingerprint": Constant(self._plan.fingerprint),
        }
        wholes = texts = 0
        for place, (field, (_, whole)) in enumerate(self._ids.items()):
            if whole:
                bindings[field] = Long(_EVENT_TIME + 1 + wholes, as_text=True, valid=place)
                wholes += 1
            else:
                bindings[field] = Text(texts, valid=place)
                texts += 1
        return bindings

    def snapshot_bindings(self) -> dict[str, Binding]:
        """Return the bindings of the vector and the ages."""
        names = [column.name for column in self._plan.vector]
        bindings: dict[str, Binding] = {name: Number(place) for place, name in enumerate(names)}
        ages = [f"{view}__age_ms" for view in self._views]
        return bindings | {name: Number(len(names) + 1 + i) for i, name in enumerate(ages)}

    def fill(
        self, rows: StreamRows, vector: np.ndarray, score: np.ndarray, status: pa.Array | None
    ) -> RowColumns:
        """Return the rows' columns."""
        count, width = vector.shape
        numbers = np.empty((count, width + 1 + len(self._views)))
        numbers[:, :width] = vector
        numbers[:, width] = score
        for place, view in enumerate(self._views, start=width + 1):
            numbers[:, place] = rows.ages[view]
        wholes = [rows.partition, rows.offset, rows.events.event_time_ms]
        valid = np.ones((max(1, len(self._ids)), count), bool)
        texts = []
        for place, (column, whole) in enumerate(self._ids.values()):
            array = rows.events.columns[column]
            if array.null_count:
                valid[place] = array.is_valid().to_numpy(zero_copy_only=False)
            if whole:
                filled = array.fill_null(0) if array.null_count else array
                wholes.append(filled.to_numpy())
            else:
                texts.append(_as_text(array))
        if status is not None:
            texts.append(status)
        longs = np.empty((count, len(wholes)), np.int64)
        for place, values in enumerate(wholes):
            longs[:, place] = values
        return RowColumns(longs, numbers, valid, *_joined(texts, count))


def _judge(
    model: LiveModel | None, vector: np.ndarray, incomplete: np.ndarray
) -> tuple[_Whose, np.ndarray, pa.Array | None]:
    """Return whose predictions these are, the scores, and the rows' status where they differ."""
    if model is None:
        unknown = np.full(len(vector), np.nan)
        return _Whose(None, None, "champion", 0, None, NO_MODEL), unknown, None
    score = model.score(vector)
    status: str | None = OK
    by_row = None
    missing = ~np.isfinite(score)
    if missing.any() or incomplete.any():
        status = None
        score = np.where(missing, np.nan, score)
        by_row = pa.array(np.where(missing, NO_SCORE, np.where(incomplete, INCOMPLETE, OK)))
    short = model.sha256[:MODEL_HASH_DIGITS]
    whose = _Whose(model.model, model.version, model.role, model.revision, short, status)
    return whose, score, by_row


def _as_text(column: pa.Array) -> pa.Array:
    """Return ids or keys as text, bytes in hex."""
    if pa.types.is_string(column.type):
        return column
    if pa.types.is_binary(column.type):
        texts = [None if value is None else value.hex() for value in column.to_pylist()]
        return pa.array(texts, pa.string())
    return column.cast(pa.string())


def _joined(texts: list[pa.Array], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of text columns one after the other, and where each row's lie."""
    ends = np.zeros((max(1, len(texts)), count + 1), np.int64)
    pieces, used = [], 0
    for place, column in enumerate(texts):
        column_ends, data = text_buffers(column)
        np.add(column_ends, used, out=ends[place])
        pieces.append(data)
        used += data.size
    return (np.concatenate(pieces) if pieces else np.zeros(0, np.uint8)), ends


def messages(
    blob: bytes, cuts: list[int], keys: list[bytes | None], partition: np.ndarray
) -> list[dict[str, object]]:
    """Return what ``produce_batch`` takes; record i is ``blob[cuts[i]:cuts[i + 1]]``."""
    starts = cuts[:-1]
    stops = cuts[1:]
    target = int(partition[0])
    if (partition == target).all():
        return [
            {"value": blob[start:stop], "key": key, "partition": target}
            for start, stop, key in zip(starts, stops, keys, strict=True)
        ]
    return [
        {"value": blob[start:stop], "key": key, "partition": target}
        for start, stop, key, target in zip(starts, stops, keys, partition.tolist(), strict=True)
    ]
