"""Compile and touch everything that the first events would otherwise wait for.

Made-up records run through throw-away processors of the whole pipeline: decoder, kernels, model and
encoders. Nothing of it is sent.
"""

from __future__ import annotations

import io
import json
import struct
from typing import TYPE_CHECKING, Any, cast

import fastavro
import fastavro.utils
import numpy as np
import pyarrow as pa

from headrace.features.kernels.keys import crc32_partitions, murmur2_partitions
from headrace.streams.batch import EventBatch, Keep, SingleOutput
from headrace.streams.partitioning import as_text
from headrace.streams.processors import build, input_topics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.features.plan import PipelinePlan, SourcePlan
    from headrace.streams.batch import Processor
    from headrace.streams.context import ProcessorContext
    from headrace.streams.keeping import Restorable

# One row and many take different paths through some libraries.
ROUNDS = (1, 200)
_KEYS: Mapping[str, Any] = {"int64": 1, "string": "warm", "bytes": b"warm"}


def warm_up(
    plan: PipelinePlan, context: ProcessorContext, schema_ids: Mapping[str, int], now_ms: int
) -> int:
    """Run made-up events through the pipeline and return how many were scored.

    Args:
        plan: The pipeline.
        context: What its processors are given.
        schema_ids: By source, the id under which its schema is registered.
        now_ms: The events' time, epoch ms UTC.

    """
    return sum(_round(plan, context, schema_ids, now_ms, rows) for rows in ROUNDS)


def _round(
    plan: PipelinePlan,
    context: ProcessorContext,
    schema_ids: Mapping[str, int],
    now_ms: int,
    rows: int,
) -> int:
    logs: dict[tuple[str, int], list[SingleOutput]] = {}
    sources = {source.topic: source for source in plan.sources}
    scored = 0
    for topic in input_topics(plan):
        source = sources.get(topic)
        records = None
        if source is not None:
            records = _records(source, schema_ids[source.name], now_ms, rows)
        for partition in range(context.partition_counts[topic]):
            if source is None or records is None:
                batch = _relay(topic, partition, logs.get((topic, partition), []), now_ms)
            else:
                key, values = records
                mine = partition == _partition(source, key, context.partition_counts[topic])
                batch = _batch(topic, partition, [key] * rows if mine else [], values, now_ms)
            processor = build(plan, topic, partition, context)
            outputs = processor.process(batch)
            scored += outputs.scored
            _keep(processor, build(plan, topic, partition, context), batch)
            for single in outputs.single:
                if single.partition is not None:
                    logs.setdefault((single.topic, single.partition), []).append(single)
    return scored


def _keep(processor: Processor, fresh: Processor, batch: EventBatch) -> None:
    """Make a checkpoint beside a batch, and start another processor from it."""
    place = batch.topic, batch.partition, batch.epoch, 1, len(batch)
    keeper = cast("Restorable", processor)
    opening = keeper.keep(Keep(*place, opens=True, whole=True, words_max=1)).kept
    assert opening is not None
    assert opening.parts is not None
    records, last = list(opening.records), opening
    processor.process(batch)
    while not last.ended:
        going_on = keeper.keep(Keep(*place, opens=False, whole=True)).kept
        assert going_on is not None
        records += going_on.records
        last = going_on
    cast("Restorable", fresh).restore(opening.parts, records, opening.key_count, len(batch))


def _records(
    source: SourcePlan, schema_id: int, now_ms: int, rows: int
) -> tuple[bytes, list[bytes | None]]:
    """Return a Kafka key and so many values of one made-up record."""
    schema = fastavro.parse_schema(json.loads(source.schema))
    record: dict[str, Any] = fastavro.utils.generate_one(schema)
    kinds = {column.name: column.kind for column in source.columns}
    record.update(dict.fromkeys(source.checked, 1))
    record[source.key] = _KEYS[kinds[source.key]]
    record[source.event_time] = now_ms
    if source.known_at is not None:
        record[source.known_at] = now_ms
    body = io.BytesIO()
    body.write(struct.pack(">bI", 0, schema_id))
    fastavro.schemaless_writer(body, schema, record)
    key = as_text(pa.array([record[source.key]]))[0].as_py()
    return key, [body.getvalue()] * rows


def _partition(source: SourcePlan, key: bytes, partitions: int) -> int:
    find = crc32_partitions if source.partitioner == "crc32" else murmur2_partitions
    return int(find([key], partitions)[0])


def _batch(
    topic: str, partition: int, keys: list[bytes | None], values: list[bytes | None], now_ms: int
) -> EventBatch:
    return EventBatch(
        topic=topic,
        partition=partition,
        epoch=0,
        offsets=np.arange(len(keys), dtype=np.int64),
        arrival_time_ms=np.full(len(keys), now_ms, dtype=np.int64),
        keys=keys,
        values=values[: len(keys)],
        headers=[None] * len(keys),
        emit_from=0,
        at_end=True,
    )


def _relay(topic: str, partition: int, sent: list[SingleOutput], now_ms: int) -> EventBatch:
    keys = [one.key for one in sent]
    batch = _batch(topic, partition, keys, [one.value for one in sent], now_ms)
    batch.headers = [one.headers for one in sent]
    return batch
