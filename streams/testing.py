"""A broker-free driver: a pipeline's topics in memory, its processors, and a seeded scheduler.

What a test or simulation can do with it: send records, let the partitions be read in any order and
in batches of any size, hold a partition back, crash a processor and start it again from what it
had committed (so that part of its output comes twice), abort a batch and process it again, keep
checkpoints while it goes on, and start from one of them.
"""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import fastavro
import numpy as np
import pyarrow as pa

from headrace.features.capture import SLICE_WORDS, SlotRecords
from headrace.features.kernels.keys import crc32_partitions, murmur2_partitions
from headrace.features.output_schemas import output_schemas
from headrace.runtime import topics
from headrace.schemas.codec import RecordEncoder
from headrace.schemas.errors import UnknownSchemaError
from headrace.schemas.wire import WireDecoder
from headrace.streams.batch import EventBatch, Keep, SingleOutput
from headrace.streams.context import ProcessorContext
from headrace.streams.flow import feeds_of, joined, marked
from headrace.streams.parts import pack, unpack
from headrace.streams.processors import build, input_topics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.features.plan import PipelinePlan, SourcePlan
    from headrace.features.store.views import OnlineEntity
    from headrace.streams.batch import Outputs, Processor
    from headrace.streams.context import LiveModel

ARRIVAL_TIME_MS = 4_000_000_000_000
"""Broker time of what is sent without one: later than any event time that a test may use."""
MAX_RECORD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Message:
    """A record of a topic partition; its offset is its place."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp_ms: int


@dataclass(slots=True)
class Checkpoint:
    """What was kept of a processor at ``offset``, as the bytes of files: one, newest first.

    ``whole``: nothing older is needed.
    """

    offset: int
    key_count: int
    whole: bool
    parts: bytes = b""
    records: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Owned:
    """A topic partition that is read: its processor, how far it is, what is committed.

    ``noted`` is what the commit says of the re-key topics that hold all below it.
    """

    topic: str
    partition: int
    processor: Processor
    sends_to: frozenset[str]
    position: int = 0
    committed: int = 0
    emit_from: int = 0
    end_told: bool = False
    paused: bool = False
    noted: frozenset[str] = frozenset()
    unsent: frozenset[str] = frozenset()
    kept: list[Checkpoint] = field(default_factory=list)
    keeping: Checkpoint | None = None
    lost: bool = False

    def commit(self) -> None:
        """Commit the position, unless the silent replay up to the last commit still goes on."""
        if self.position >= self.emit_from:
            self.committed = max(self.committed, self.position)
            self.noted = self.sends_to

    def start(self) -> None:
        """Go back to the beginning, to replay up to what is committed."""
        self.position, self.emit_from, self.end_told = 0, self.committed, False
        lacking = self.sends_to - self.noted
        self.unsent = lacking if self.committed else frozenset()


@dataclass(slots=True)
class FixedModels:
    """A table of models that only the test changes."""

    live: dict[str, LiveModel] = field(default_factory=dict)

    def champion(self, pipeline: str) -> LiveModel | None:
        """Return the pipeline's live model, or None."""
        return self.live.get(pipeline)


class Driver:
    """Runs one pipeline in memory.

    Without a seed, partitions are read in turn, later stages first, in batches of ``batch_rows``.
    With one, everything is drawn: which partition comes next, how many rows, when offsets are
    committed; and, by their odds, crashes and aborts.
    """

    def __init__(
        self,
        plan: PipelinePlan,
        *,
        partitions: int | Mapping[str, int] = 4,
        output_partitions: int = 4,
        seed: int | None = None,
        batch_rows: int = 500,
        models: FixedModels | None = None,
        online: Mapping[int, OnlineEntity] | None = None,
    ) -> None:
        """Make the topics, empty.

        Args:
            plan: The pipeline.
            partitions: Of the source topics, by source name or for all.
            output_partitions: Of predictions, snapshots, DLQ and late topics.
            seed: Of everything that is drawn.
            batch_rows: Largest batch.
            models: Who scores; nobody at first.
            online: By index of the stage, what it serves online; nothing at first.

        """
        self.plan = plan
        self.models = models or FixedModels()
        self._online = dict(online or {})
        self._random = None if seed is None else random.Random(seed)  # noqa: S311 - no secrets.
        self._batch_rows = batch_rows
        self.crashes = self.aborts = self.restores = 0
        self._captures = 0
        self.broker_time_ms = ARRIVAL_TIME_MS
        self._sources = {source.name: source for source in plan.sources}
        schemas = {index: source.schema for index, source in enumerate(plan.sources, start=1)}
        self._schema_ids = {s.name: index for index, s in enumerate(plan.sources, start=1)}
        self._prediction_id, self._snapshot_id = len(schemas) + 1, len(schemas) + 2
        written = output_schemas(plan)
        schemas[self._prediction_id] = written[topics.predictions(plan.name)]
        schemas[self._snapshot_id] = written[topics.snapshots(plan.name)]
        self._schemas = schemas
        self._logs: dict[str, list[list[Message]]] = {}
        for source in plan.sources:
            count = partitions if isinstance(partitions, int) else partitions[source.name]
            self._logs[source.topic] = [[] for _ in range(count)]
            for keeper in (topics.dlq(source.topic), topics.late(source.topic)):
                self._logs[keeper] = [[] for _ in range(output_partitions)]
        for stage in plan.stages:
            if not stage.direct:
                self._logs[stage.topic] = [[] for _ in range(plan.partitions)]
        for topic in (topics.predictions(plan.name), topics.snapshots(plan.name)):
            self._logs[topic] = [[] for _ in range(output_partitions)]
        self.context = self._context()
        self._left: dict[tuple[str, int], Owned] = {}
        feeds = feeds_of(plan)
        self.owned = {
            (topic, partition): Owned(
                topic, partition, build(plan, topic, partition, self.context), feeds[topic]
            )
            for topic in input_topics(plan)
            for partition in range(len(self._logs[topic]))
        }

    # --- Sending ------------------------------------------------------------------------------

    def send(
        self,
        source: str,
        records: pa.Table | Sequence[Mapping[str, object]],
        partition: int | Sequence[int] | None = None,
        arrival_time_ms: int = ARRIVAL_TIME_MS,
    ) -> None:
        """Publish records as a producer would: Avro, the key as text, by the key's partition.

        Args:
            source: Name of the source.
            records: A table with the schema's columns, or dicts as fastavro takes them.
            partition: Where to, for all or one each; by the partitioner (murmur2) if None, records
                without a key in turn.
            arrival_time_ms: The broker's timestamp.

        """
        plan = self._sources[source]
        if isinstance(records, pa.Table):
            values, keys = self._encode_table(plan, records)
        else:
            values = [self._encode_record(plan, record) for record in records]
            keys = [key_bytes(record[plan.key]) for record in records]
        log = self._logs[plan.topic]
        if partition is None:
            crc32 = plan.partitioner == "crc32"
            chosen = (crc32_partitions if crc32 else murmur2_partitions)(keys, len(log))
            targets = np.where(chosen < 0, np.arange(len(keys)) % len(log), chosen).tolist()
        else:
            targets = np.broadcast_to(np.asarray(partition), len(keys)).tolist()
        for key, value, target in zip(keys, values, targets, strict=True):
            log[target].append(Message(key, value, [], arrival_time_ms))
            self._mark_grown(plan.topic, target)

    def send_raw(self, topic: str, partition: int, message: Message) -> None:
        """Append any message to a topic."""
        self._logs[topic][partition].append(message)
        self._mark_grown(topic, partition)

    def encode(self, source: str, record: Mapping[str, object]) -> bytes:
        """Return a record of a source in wire format, for tests that spoil it."""
        return self._encode_record(self._sources[source], record)

    # --- Running ------------------------------------------------------------------------------

    def run(
        self, *, crash_odds: float = 0.0, abort_odds: float = 0.0, keep_odds: float = 0.0
    ) -> None:
        """Read everything there is, until no processor has anything left to do.

        Args:
            crash_odds: How likely a processor crashes at a step, in the middle of its sending.
            abort_odds: How likely a batch is undone and processed again.
            keep_odds: How likely a checkpoint goes on by a slice; a crash then restores.

        """
        self._open()
        while True:
            waiting = [owned for owned in self.owned.values() if self._has_work(owned)]
            if not waiting:
                return
            owned = waiting[-1] if self._random is None else self._random.choice(waiting)
            left = len(self._log(owned)) - owned.position
            count = min(left, self._batch_rows)
            if self._random is None:
                self.step(owned, count)
                continue
            if keep_odds and self._random.random() < keep_odds:
                self.keep(
                    owned,
                    whole=self._random.random() < 0.2,
                    words_max=self._random.choice([1, 100, SLICE_WORDS]),
                )
            if self._random.random() < abort_odds:
                self._abort(owned, self._random.randint(min(1, count), count))
            count = self._random.randint(min(1, count), count)
            crashes = self._random.random() < crash_odds
            self.step(owned, count, sent=self._random.random() if crashes else 1.0)
            if crashes and keep_odds:
                self.restore(owned)
            elif crashes:
                self.crash(owned)
            elif self._random.random() < 0.3:
                owned.commit()

    def _open(self) -> None:
        """Tell of the backlogs before anything is read, as a worker does when it starts."""
        for owned in self.owned.values():
            if owned.position < len(self._log(owned)) and not owned.paused:
                self.step(owned, 0)

    def step(self, owned: Owned, count: int, sent: float = 1.0) -> Outputs:
        """Process the next ``count`` messages and send the first part ``sent`` of the outputs."""
        batch = self._batch(owned, count)
        outputs = owned.processor.process(batch)
        messages = _flatten(outputs)
        self._append(messages[: round(len(messages) * sent)])
        owned.position += count
        owned.end_told = batch.at_end
        return outputs

    def say_again(self) -> None:
        """Let what is at its end say so once more, as workers do each second while rows come."""
        for owned in self.owned.values():
            if owned.end_told and owned.position == len(self._log(owned)) and not owned.paused:
                batch = self._batch(owned, 0)
                batch.alive = b"echo"
                alive = owned.processor.process(batch)
                self._append(joined(marked(alive, batch.alive)))

    def crash(self, owned: Owned) -> None:
        """Lose a processor, and start it again: replay in silence up to what is committed."""
        self.crashes += 1
        owned.processor = build(self.plan, owned.topic, owned.partition, self.context)
        owned.start()
        owned.keeping, owned.lost = None, False

    def commit(self) -> None:
        """Commit every processor's position."""
        for owned in self.owned.values():
            owned.commit()

    def succeeded_by(self, plan: PipelinePlan, *, seed: int | None = None) -> Driver:
        """Return a driver of another plan over the same logs, which goes on from what is committed.

        Its predictions and snapshots begin empty: the schemas may be others. The sources must be
        the same, by name and in number.
        """
        counts = {source.name: len(self._logs[source.topic]) for source in self.plan.sources}
        follower = Driver(plan, partitions=counts, seed=seed, batch_rows=self._batch_rows)
        assert follower._schema_ids == self._schema_ids, "the same sources"
        written = {topics.predictions(plan.name), topics.snapshots(plan.name)}
        for topic, logs in self._logs.items():
            if topic not in written:
                follower._logs[topic] = logs
        known = {**self._left, **self.owned}
        for place, owned in follower.owned.items():
            before = known.get(place)
            if before is not None:
                owned.committed, owned.noted = before.committed, before.noted
                owned.start()
        follower._left = {p: o for p, o in known.items() if p not in follower.owned}
        return follower

    def keep(self, owned: Owned, *, whole: bool = False, words_max: int = SLICE_WORDS) -> bool:
        """Open a checkpoint or take its next slice; return whether it is complete."""
        opening = owned.keeping is None
        if owned.keeping is None:
            self._captures += 1
            owned.keeping = Checkpoint(owned.position, 0, whole or not owned.kept)
        keeping = owned.keeping
        keep = Keep(
            *(owned.topic, owned.partition, 0, self._captures, owned.position),
            opens=opening,
            whole=keeping.whole,
            lost=owned.lost,
            words_max=words_max,
        )
        owned.lost = owned.lost and not opening
        kept = owned.processor.keep(keep).kept  # type: ignore[attr-defined]
        if kept.cancelled:
            owned.keeping = None
            return False
        if kept.parts is not None:
            keeping.parts, keeping.key_count = pack(kept.parts), kept.key_count
        keeping.records += [_stream(one.to_arrow()) for one in kept.records]
        if kept.ended:
            owned.kept.append(keeping)
            owned.keeping = None
        return bool(kept.ended)

    def restore(self, owned: Owned) -> bool:
        """Lose a processor and start it from its newest checkpoint that is committed, if any."""
        self.crash(owned)
        usable = [n for n, one in enumerate(owned.kept) if one.offset <= owned.committed]
        owned.kept = owned.kept[: usable[-1] + 1] if usable else []
        if not usable:
            return False
        records = []
        for checkpoint in reversed(owned.kept):
            records += [SlotRecords.from_arrow(_batch_of(data)) for data in checkpoint.records]
            if checkpoint.whole:
                break
        newest = owned.kept[-1]
        owned.processor.restore(  # type: ignore[attr-defined]
            unpack(newest.parts), records, newest.key_count, newest.offset
        )
        owned.position = newest.offset
        self.restores += 1
        return True

    # --- Reading ------------------------------------------------------------------------------

    def predictions(self) -> pa.Table:
        """Return all predictions, in the order of partition and offset."""
        return self._read(topics.predictions(self.plan.name), self._prediction_id)

    def snapshots(self) -> pa.Table:
        """Return all snapshots, in the order of partition and offset."""
        return self._read(topics.snapshots(self.plan.name), self._snapshot_id)

    def logs(self, topic: str) -> list[list[Message]]:
        """Return a topic's messages by partition, in the order of offset."""
        return self._logs[topic]

    def messages(self, topic: str) -> list[Message]:
        """Return a topic's messages, in the order of partition and offset."""
        return [message for log in self._logs[topic] for message in log]

    def dlq(self, source: str) -> list[Message]:
        """Return a source's bad records."""
        return self.messages(topics.dlq(self._sources[source].topic))

    def late(self, source: str) -> list[Message]:
        """Return a source's late records."""
        return self.messages(topics.late(self._sources[source].topic))

    # --- Inside -------------------------------------------------------------------------------

    def _context(self) -> ProcessorContext:
        def lookup(schema_id: int) -> str:
            try:
                return self._schemas[schema_id]
            except KeyError as error:
                message = f"schema {schema_id} must be registered"
                raise UnknownSchemaError(message) from error

        return ProcessorContext(
            topic_ids={source.topic: f"id-of-{source.topic}" for source in self.plan.sources},
            partition_counts={topic: len(logs) for topic, logs in self._logs.items()},
            decoder=lambda source: WireDecoder(source.schema, lookup),
            predictions=RecordEncoder(self._schemas[self._prediction_id], self._prediction_id),
            snapshots=RecordEncoder(self._schemas[self._snapshot_id], self._snapshot_id),
            models=self.models,
            max_record_bytes=MAX_RECORD_BYTES,
            app_version="test",
            engine="test",
            online=self._online,
        )

    def _encode_table(
        self, plan: SourcePlan, table: pa.Table
    ) -> tuple[list[bytes], list[bytes | None]]:
        encoder = RecordEncoder(plan.schema, self._schema_ids[plan.name])
        names = encoder.arrow_schema.names
        batches = table.select(names).cast(encoder.arrow_schema).to_batches()
        values = [value for batch in batches for value in encoder.encode(batch)]
        return values, [key_bytes(key) for key in table.column(plan.key).to_pylist()]

    def _encode_record(self, plan: SourcePlan, record: Mapping[str, object]) -> bytes:
        body = io.BytesIO()
        schema = fastavro.parse_schema(json.loads(plan.schema))
        fastavro.schemaless_writer(body, schema, dict(record))
        schema_id = self._schema_ids[plan.name]
        return b"\0" + schema_id.to_bytes(4, "big") + body.getvalue()

    def _append(self, messages: Sequence[SingleOutput]) -> None:
        for output in messages:
            assert output.partition is not None
            log = self._logs[output.topic]
            timestamp_ms = output.timestamp_ms or self.broker_time_ms
            log[output.partition].append(
                Message(output.key, output.value, output.headers, timestamp_ms)
            )
            self._mark_grown(output.topic, output.partition)

    def _log(self, owned: Owned) -> list[Message]:
        return self._logs[owned.topic][owned.partition]

    def _mark_grown(self, topic: str, partition: int) -> None:
        owned = self.owned.get((topic, partition))
        if owned is not None:
            owned.end_told = False

    def _has_work(self, owned: Owned) -> bool:
        if owned.paused:
            return False
        return owned.position < len(self._log(owned)) or not owned.end_told

    def _batch(self, owned: Owned, count: int) -> EventBatch:
        log = self._log(owned)
        stop = owned.position + count
        messages = log[owned.position : stop]
        return EventBatch(
            topic=owned.topic,
            partition=owned.partition,
            epoch=0,
            offsets=np.arange(owned.position, stop, dtype=np.int64),
            arrival_time_ms=np.array([m.timestamp_ms for m in messages], np.int64),
            keys=[message.key for message in messages],
            values=[message.value for message in messages],
            headers=[message.headers for message in messages],
            emit_from=owned.emit_from,
            at_end=stop == len(log),
            unsent=owned.unsent,
        )

    def _abort(self, owned: Owned, count: int) -> None:
        self.aborts += 1
        owned.processor.begin()  # type: ignore[attr-defined]
        owned.processor.process(self._batch(owned, count))
        owned.processor.abort()  # type: ignore[attr-defined]
        owned.keeping = None

    def _read(self, topic: str, schema_id: int) -> pa.Table:
        decoder = WireDecoder(self._schemas[schema_id], self._schemas.__getitem__)
        decoded = decoder.decode([m.value for m in self.messages(topic)], MAX_RECORD_BYTES)
        assert not decoded.rejected, decoded.rejected[:3]
        return pa.Table.from_batches([decoded.batch])


def _stream(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _batch_of(data: bytes) -> pa.RecordBatch:
    (batch,) = pa.ipc.open_stream(pa.py_buffer(data))
    return batch


def once(table: pa.Table) -> pa.Table:
    """Return the records by prediction id, each once; those that came twice must be equal.

    Raises:
        AssertionError: If a record came twice and differently.

    """
    rows: dict[str, dict[str, object]] = {}
    for row in table.to_pylist():
        first = rows.setdefault(row["prediction_id"], row)
        assert first == row, (first, row)
    return pa.Table.from_pylist([rows[name] for name in sorted(rows)], schema=table.schema)


def key_bytes(key: object) -> bytes | None:
    """Return a key as producers send it: text in UTF-8, bytes as they are."""
    if key is None or isinstance(key, bytes):
        return key
    return str(key).encode()


def _flatten(outputs: Outputs) -> list[SingleOutput]:
    """Return all messages of a batch's outputs, one by one."""
    messages = [
        SingleOutput(bulk.topic, row["value"], row["key"], row["partition"], [])  # type: ignore[arg-type]
        for bulk in outputs.bulk
        for row in bulk.messages
    ]
    return messages + outputs.single
