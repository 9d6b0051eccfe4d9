"""Receipts replayed: the score from the recorded vector, and the vector from the raw events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from headrace.lake.receipts import event_order_vectors, find_outputs
from headrace.runtime import topics
from headrace.runtime.errors import KafkaUnavailableError, explain
from headrace.runtime.kafka import admin, partition_counts, topic_ids
from headrace.schemas.codec import RecordEncoder
from headrace.schemas.wire import WireDecoder
from headrace.scoring.engine import engine_version
from headrace.scoring.receipts import as_matrix, rescore, same_bits
from headrace.streams.context import ProcessorContext
from headrace.streams.erasure_feed import ErasureLog
from headrace.streams.erasures import ErasureBook, forget_of
from headrace.streams.errors import ReceiptError
from headrace.streams.intake import batches, group
from headrace.streams.outputs import INCOMPLETE, NO_MODEL, NO_SCORE, OK
from headrace.streams.positions import OwnedPartition
from headrace.streams.processors import input_topics
from headrace.streams.rerun import Asked, Recomputed, rerun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from headrace.features.plan import PipelinePlan, SourcePlan, StagePlan
    from headrace.lake.receipts import OutputRows
    from headrace.lake.tables import Lake
    from headrace.schemas.outputs import PredictionId
    from headrace.scoring.receipts import Locate, Rescored
    from headrace.scoring.scorer import Column
    from headrace.streams.batch import EventBatch, Forget
    from headrace.streams.environment import Environment
    from headrace.streams.intake import Row

    #: Told what is being done, how much more of it was done, and how much there is (None: unknown).
    Progress = Callable[[str, int, int | None], None]

LOG = "log"
LAKE = "lake"
_READ_ROWS = 10_000
_STALL_S = 30.0
_POLL_S = 0.5
_END = KafkaError._PARTITION_EOF


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that came out otherwise; ``recorded`` and ``recomputed`` are None for null."""

    what: str
    recorded: object
    recomputed: object


@dataclass(slots=True)
class Replayed:
    """What became of one prediction row.

    ``vector_from`` is ``log`` (in served order) or ``lake`` (in event order, where a log is gone),
    None where there was neither. ``faults`` say what could not be computed again, and why.
    """

    id: PredictionId
    vector_from: str | None = None
    differences: list[Difference] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    other_engine: str | None = None

    @property
    def equal(self) -> bool:
        """Whether score and vector came out the same, to the last bit."""
        return not self.differences and not self.faults


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """All that was replayed, in id order, and the ids that the lake does not hold."""

    replayed: Sequence[Replayed]
    unknown: Sequence[PredictionId]
    engine: str

    @property
    def equal(self) -> bool:
        """Whether everything asked for was replayed and came out the same."""
        return not self.unknown and all(one.equal for one in self.replayed)


class KafkaLog:
    """A pipeline's topics on the broker, read from their beginning up to where they end now."""

    def __init__(
        self, properties: Mapping[str, Any], plan: PipelinePlan, ids: Mapping[str, str]
    ) -> None:
        """Read with these properties of the client; ``ids`` are those of the topics, by name."""
        self._plan, self._ids = plan, ids
        self._book = _erasures(properties, plan)
        self._properties = {
            **properties,
            "group.id": "headrace.replay",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
        }

    def forgets(self, stage: StagePlan, partition: int) -> list[Forget]:
        """Return what the stage's partition has forgotten, in the order of positions."""
        found = []
        for request in self._book.of_entity(stage.entity):
            place = (request.id, self._plan.name, stage.topic, self._ids[stage.topic], partition)
            position = self._book.positions.get(place)
            if position is not None:
                where = (partition, 0)
                found.append(forget_of(self._plan, stage, request, self._ids, where, position))
        return sorted(found, key=lambda forget: forget.position)

    def bounds(self, topic: str, count: int) -> list[tuple[int, int]]:
        """Return the first offset that each of a topic's partitions holds, and where it ends.

        Raises:
            KafkaUnavailableError: If the broker does not answer.

        """
        consumer = Consumer(self._properties)
        try:
            return [self._bounds(consumer, topic, partition) for partition in range(count)]
        finally:
            consumer.close()

    def batches(self, topic: str, partition: int) -> Iterator[EventBatch]:
        """Yield all that a partition holds, from offset 0 on, with ``emit_from`` 0.

        Raises:
            KafkaUnavailableError: If the broker gives nothing for a while.

        """
        consumer = Consumer(self._properties)
        owned = OwnedPartition(topic, partition, 0, "", emit_from=0, committed_offset=0)
        try:
            low, end = self._bounds(consumer, topic, partition)
            consumer.assign([TopicPartition(topic, partition, low)])
            position = low
            while position < end:
                rows, position = self._read(consumer, position, f"{topic}[{partition}]")
                if rows:
                    yield from batches(owned, rows, end)
        finally:
            consumer.close()

    def _bounds(self, consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
        try:
            low, high = consumer.get_watermark_offsets(
                TopicPartition(topic, partition), timeout=_STALL_S
            )
        except KafkaException as error:
            raise KafkaUnavailableError(str(error.args[0])) from error
        return low, high

    def _read(self, consumer: Consumer, position: int, where: str) -> tuple[list[Row], int]:
        """Return the next rows, and the offset that follows what was read."""
        waited_s = 0.0
        while waited_s < _STALL_S:
            messages = consumer.consume(_READ_ROWS, _POLL_S)
            rows, events = group(messages)  # type: ignore[arg-type]
            for event in events:
                error = event.error()
                if error is not None and error.code() == _END:
                    # Control records have offsets too: the end may lie beyond the last row.
                    position = max(position, event.offset())
                elif error is not None and not error.retriable():
                    raise KafkaUnavailableError(error.str())
            found = [row for part in rows.values() for row in part]
            if found:
                position = max(position, found[-1].offset() + 1)
            if found or events:
                return found, position
            waited_s += _POLL_S
        raise KafkaUnavailableError(
            explain("the broker", f"give records within {_STALL_S:g} s", "none", where)
        )


def _erasures(properties: Mapping[str, Any], plan: PipelinePlan) -> ErasureBook:
    """Return what was erased from the project's states; nothing where there is no such topic."""
    topic = topics.erasures(plan.project)
    if topic not in partition_counts(admin(properties), [topic]):
        return ErasureBook()
    log = ErasureLog(properties, topic)
    try:
        log.read_to_end()
        return log.book
    finally:
        log.close()


def replay_receipts(
    environment: Environment,
    plan: PipelinePlan,
    lake: Lake,
    locate: Locate,
    ids: Sequence[PredictionId],
    progress: Progress = lambda _what, _done, _of: None,
) -> ReplayReport:
    """Compute predictions again and say of each whether it came out the same.

    Args:
        environment: The project on its infrastructure.
        plan: The pipeline, as its definitions stand now.
        lake: Where the recorded rows are.
        locate: Where the registry keeps a model.
        ids: Which predictions.
        progress: Told what is done.

    Raises:
        LakeError: If the lake has no predictions of the pipeline.
        HeadraceError: If broker or registry do not answer.

    Cost: one pass over the logs of the partitions concerned, however many ids there are.
    """
    outputs = find_outputs(
        lake, plan.name, ids, lambda rows: progress("finding the rows", rows, None)
    )
    progress("scoring again", 0, None)
    rescored = rescore(outputs.predictions, lambda columns: _vectors(outputs, columns), locate)
    report = compare_scores(outputs, rescored)
    _check_vectors(environment, plan, lake, outputs, report, progress)
    found = set(outputs.ids())
    unknown = [one for one in dict.fromkeys(ids) if one not in found]
    return ReplayReport(report, unknown, engine_version())


def _vectors(outputs: OutputRows, columns: Sequence[Column]) -> pa.Table:
    """Return the recorded vectors of the predictions, those columns; null without a snapshot.

    Raises:
        KeyError: With the name of a column that no snapshot has.

    """
    names = [column.name for column in columns]
    for name in names:
        if name not in outputs.snapshots.schema.names:
            raise KeyError(name)
    places = pa.array(outputs.snapshot_of, mask=outputs.snapshot_of < 0)
    return outputs.snapshots.select(names).take(places)


def compare_scores(outputs: OutputRows, rescored: Rescored) -> list[Replayed]:
    """Return for each prediction row what its score's recomputation gave."""
    predictions = outputs.predictions
    recorded = as_matrix(predictions.select(["score"]))[:, 0]
    same = same_bits(recorded, rescored.scores)
    here = engine_version()
    engines: list[str | None] = [None] * predictions.num_rows
    if "engine" in predictions.schema.names:
        engines = predictions.column("engine").to_pylist()
    report = []
    for row, one in enumerate(outputs.ids()):
        found = Replayed(one, other_engine=None if engines[row] == here else engines[row])
        if outputs.snapshot_of[row] < 0:
            found.faults.append("the lake holds no snapshot of it")
        elif row in rescored.faults:
            found.faults.append(rescored.faults[row])
        elif not same[row]:
            found.differences.append(
                Difference("score", _number(recorded[row]), _number(rescored.scores[row]))
            )
        report.append(found)
    return report


# --- Vectors ------------------------------------------------------------------------------------


def _check_vectors(
    environment: Environment,
    plan: PipelinePlan,
    lake: Lake,
    outputs: OutputRows,
    report: list[Replayed],
    progress: Progress,
) -> None:
    """Add to the report what the recomputation of the vectors gave."""
    rows = []
    fingerprints = outputs.predictions.column("fingerprint").to_pylist()
    for row, (found, fingerprint) in enumerate(zip(report, fingerprints, strict=True)):
        if outputs.snapshot_of[row] < 0:
            continue
        if fingerprint != plan.fingerprint:
            found.faults.append(
                f"its vector was made by plan {fingerprint}, and the definitions give "
                f"{plan.fingerprint}: replay it in a checkout of the definitions of then"
            )
        else:
            rows.append(row)
    if not rows:
        return
    ids = topic_ids(admin(environment.client), input_topics(plan))
    log = KafkaLog(environment.client, plan, ids)
    current = ids[plan.source_plan(plan.source).topic]
    counts = environment.partitions(stage.topic for stage in plan.stages)
    bounds = {topic: log.bounds(topic, count) for topic, count in counts.items()}
    # State is a function of the log from its first record on.
    whole = all(first == 0 for found in bounds.values() for first, _ in found)
    there = [row for row in rows if whole and report[row].id.topic_id == current]
    if there:
        sizes = {s.entity: sum(end for _, end in bounds[s.topic]) for s in plan.stages}
        context = replay_context(environment, plan, ids)
        asked = _asked(plan, outputs, there)
        result = rerun(
            plan,
            context,
            log,
            asked,
            lambda entity, done: progress(f"the log of {entity}", done, sizes[entity]),
        )
        compare_vectors(plan, outputs, report, there, result)
    left = sorted(set(rows) - set(there))
    if left:
        progress("history from the lake", 0, None)
        _compare_with_lake(plan, lake, outputs, report, left)


def replay_context(
    environment: Environment, plan: PipelinePlan, ids: Mapping[str, str]
) -> ProcessorContext:
    """Return what the processors need to compute without sending anything."""
    predictions, snapshots = topics.predictions(plan.name), topics.snapshots(plan.name)
    kept = [name(s.topic) for s in plan.sources for name in (topics.dlq, topics.late)]
    names = [*input_topics(plan), predictions, snapshots, *kept]

    def decoder(source: SourcePlan) -> WireDecoder:
        return WireDecoder(source.schema, environment.registry.schema)

    def registered(topic: str) -> RecordEncoder:
        schema_id, schema = environment.registered(topic)
        return RecordEncoder(schema, schema_id)

    return ProcessorContext(
        topic_ids=ids,
        partition_counts=environment.partitions(names),
        decoder=decoder,
        predictions=registered(predictions),
        snapshots=registered(snapshots),
        models=_Nobody(),
        max_record_bytes=environment.project.settings.stream.max_record_bytes,
        app_version="",
    )


class _Nobody:
    """No model is live: vectors are all that is asked for."""

    def champion(self, pipeline: str) -> None:
        """Return no model."""
        del pipeline


def _asked(plan: PipelinePlan, outputs: OutputRows, rows: list[int]) -> Asked:
    """Return the events of prediction rows, each once, in the order of their first row."""
    first = {(one.partition, one.offset): row for row, one in _reversed(outputs, rows)}
    picked = outputs.predictions.take(pa.array(sorted(first.values())))
    return Asked(
        picked.column("source_partition").to_numpy(),
        picked.column("source_offset").to_numpy(),
        {stage.entity: picked.column(f"{stage.entity}_key").to_pylist() for stage in plan.stages},
    )


def _reversed(outputs: OutputRows, rows: list[int]) -> list[tuple[int, PredictionId]]:
    ids = outputs.ids()
    return [(row, ids[row]) for row in reversed(rows)]


def compare_vectors(
    plan: PipelinePlan,
    outputs: OutputRows,
    report: list[Replayed],
    rows: list[int],
    result: Recomputed,
) -> None:
    """Compare recorded vectors, ages and completeness with those computed from the log."""
    asked = _asked(plan, outputs, rows)
    places = zip(asked.partition.tolist(), asked.offset.tolist(), strict=True)
    at = {place: index for index, place in enumerate(places)}
    of_row = np.array([at[report[row].id[1:]] for row in rows], np.int64)
    names = [column.name for column in plan.vector]
    computed = {name: result.vector[of_row, index] for index, name in enumerate(names)}
    computed |= {f"{view}__age_ms": ages[of_row] for view, ages in result.ages_ms.items()}
    missing = {
        index: result.missing[asked_row]
        for index, asked_row in enumerate(of_row.tolist())
        if asked_row in result.missing
    }
    for index, row in enumerate(rows):
        if index in missing:
            report[row].faults.append(
                f"the log of {missing[index]}'s stage does not hold the event"
            )
        else:
            report[row].vector_from = LOG
    whole = [index for index in range(len(rows)) if index not in missing]
    _add_differences(outputs, report, rows, whole, computed)
    statuses = outputs.predictions.column("status").to_pylist()
    for index in whole:
        recorded = statuses[rows[index]]
        expected = INCOMPLETE if result.incomplete[of_row[index]] else OK
        if recorded not in {NO_MODEL, NO_SCORE, expected}:
            report[rows[index]].differences.append(Difference("status", recorded, expected))


def _compare_with_lake(
    plan: PipelinePlan, lake: Lake, outputs: OutputRows, report: list[Replayed], rows: list[int]
) -> None:
    ids = [report[row].id for row in rows]
    vectors = event_order_vectors(lake, plan, ids)
    names = [column.name for column in plan.vector]
    computed = {name: vectors[:, index] for index, name in enumerate(names)}
    empty = np.logical_and.reduce(np.isnan(vectors), axis=1)
    for index, row in enumerate(rows):
        if empty[index]:
            report[row].faults.append("its log is gone, and the lake does not hold its event")
        else:
            report[row].vector_from = LAKE
    _add_differences(outputs, report, rows, np.flatnonzero(~empty).tolist(), computed)


def _add_differences(
    outputs: OutputRows,
    report: list[Replayed],
    rows: list[int],
    compared: list[int],
    computed: Mapping[str, NDArray[np.float64]],
) -> None:
    """Note every column in which a recorded snapshot is not what was computed."""
    places = outputs.snapshot_of[np.array(rows, np.int64)]
    mask = np.zeros(len(rows), bool)
    mask[compared] = True
    for name, values in computed.items():
        if name not in outputs.snapshots.schema.names:
            raise ReceiptError(
                explain("snapshots", f"hold the column {name}", "none", "the lake's table")
            )
        recorded = as_matrix(outputs.snapshots.select([name]).take(pa.array(places)))[:, 0]
        wrong = mask & ~same_bits(recorded, np.ascontiguousarray(values))
        for index in np.flatnonzero(wrong).tolist():
            report[rows[index]].differences.append(
                Difference(name, _number(recorded[index]), _number(values[index]))
            )


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
