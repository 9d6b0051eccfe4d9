"""Records that were refused: read from the DLQ, and sent to their source again.

A replay leaves a marker in the DLQ that names what it sent, so that the same record is not sent
twice by accident: an event that comes twice counts twice.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from headrace.runtime import topics
from headrace.runtime.errors import explain
from headrace.runtime.kafka import end_offsets
from headrace.streams.batch import SingleOutput
from headrace.streams.errors import ReplayError
from headrace.streams.sieve import ATTEMPT_HEADER, ERROR_HEADER_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from headrace.streams.commit import CheckedProducer
    from headrace.streams.intake import Row

REPLAYED_HEADER = "headrace.dlq.replayed"
FLUSH_S = 60.0
POLL_S = 1.0
BROKER_TIMEOUT_S = 15.0
ATTEMPTS_MAX = 3
_END = KafkaError._PARTITION_EOF


@dataclass(frozen=True, slots=True)
class Refused:
    """A record in a DLQ: where it lies there, where it came from, and why it was refused.

    ``headers`` are the original ones; ``attempt`` counts how often it was refused.
    """

    partition: int
    offset: int
    reason: str
    message: str
    source_topic: str
    source_partition: int
    source_offset: int
    stage: str
    attempt: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]

    def summary(self) -> dict[str, Any]:
        """Return what can be shown as JSON: no payload, its size instead."""
        shown = asdict(self)
        value = shown.pop("value")
        del shown["headers"]
        shown["key"] = None if self.key is None else self.key.decode(errors="replace")
        shown["value_bytes"] = None if value is None else len(value)
        return shown


@dataclass(slots=True)
class ReplayReport:
    """What a replay sent, by reason, and what it left because it was refused too often."""

    sent: Counter[str] = field(default_factory=Counter)
    exhausted: int = 0


def read_dlq(client: Mapping[str, Any], source_topic: str, partitions: int) -> Iterator[Refused]:
    """Yield the records of a source's DLQ that no replay has sent yet, partition by partition.

    The topic is read twice: for the markers, then for the records; payloads are not kept. What is
    refused after the call's first step is not seen, or a replay would chase its own records.

    Raises:
        ReplayError: If the DLQ cannot be read.

    """
    topic = topics.dlq(source_topic)
    ends = end_offsets(client, [(topic, partition) for partition in range(partitions)])
    done = _replayed(_messages(client, topic, ends))
    for row in _messages(client, topic, ends):
        if (row.partition(), row.offset()) not in done:
            refused = _refused(row)
            if refused is not None:
                yield refused


def replay(
    producer: CheckedProducer,
    source_topic: str,
    records: Iterable[Refused],
    *,
    reason: str | None = None,
    count_max: int | None = None,
    attempts_max: int = ATTEMPTS_MAX,
    dry_run: bool = False,
) -> ReplayReport:
    """Send refused records to their source again, as they came, with the number of attempts.

    Args:
        producer: Takes the records.
        source_topic: The source's topic.
        records: What ``read_dlq`` yields.
        reason: Only those refused for it; None: all.
        count_max: At most so many; None: all.
        attempts_max: One refused so often stays where it is.
        dry_run: Count only.

    Raises:
        DeliveryError: If the broker refused a record.
        ReplayError: If delivery took too long.

    """
    report = ReplayReport()
    marks: dict[int, list[int]] = {}
    for record in records:
        if reason is not None and record.reason != reason:
            continue
        if record.attempt >= attempts_max:
            report.exhausted += 1
            continue
        if count_max is not None and report.sent.total() >= count_max:
            break
        report.sent[record.reason] += 1
        if not dry_run:
            producer.send_single(_again(source_topic, record))
            marks.setdefault(record.partition, []).append(record.offset)
    if marks:
        _flush(producer)
        for partition, offsets in marks.items():
            producer.send_single(_marker(source_topic, partition, offsets))
        _flush(producer)
    return report


def _again(topic: str, record: Refused) -> SingleOutput:
    headers = [*record.headers, (ATTEMPT_HEADER, str(record.attempt).encode())]
    return SingleOutput(topic, record.value, record.key, record.source_partition, headers)


def _marker(source_topic: str, partition: int, offsets: list[int]) -> SingleOutput:
    value = orjson.dumps({"partition": partition, "ranges": _ranges(offsets)})
    header = (REPLAYED_HEADER, str(len(offsets)).encode())
    return SingleOutput(topics.dlq(source_topic), value, None, partition, [header])


def _ranges(offsets: list[int]) -> list[list[int]]:
    """Return ascending offsets as ``[first, last]`` pairs."""
    ranges: list[list[int]] = []
    for offset in offsets:
        if ranges and ranges[-1][1] == offset - 1:
            ranges[-1][1] = offset
        else:
            ranges.append([offset, offset])
    return ranges


def _replayed(rows: Iterable[Row]) -> set[tuple[int, int]]:
    done: set[tuple[int, int]] = set()
    for row in rows:
        if not _is_marker(row):
            continue
        content = orjson.loads(row.value() or b"{}")
        for first, last in content.get("ranges", []):
            done.update((content["partition"], offset) for offset in range(first, last + 1))
    return done


def _is_marker(row: Row) -> bool:
    return any(name == REPLAYED_HEADER for name, _ in row.headers() or ())


def _refused(row: Row) -> Refused | None:
    """Return the record as it came, None for a marker."""
    if _is_marker(row):
        return None
    headers = row.headers() or []
    errors = {
        name.removeprefix(ERROR_HEADER_PREFIX): value.decode(errors="replace")
        for name, value in headers
        if name.startswith(ERROR_HEADER_PREFIX)
    }
    return Refused(
        partition=row.partition(),
        offset=row.offset(),
        reason=errors.get("reason", "unknown"),
        message=errors.get("message", ""),
        source_topic=errors.get("topic", ""),
        source_partition=int(errors.get("partition", row.partition())),
        source_offset=int(errors.get("offset", -1)),
        stage=errors.get("stage", ""),
        attempt=int(errors.get("attempt", 1)),
        timestamp_ms=row.timestamp()[1],
        key=row.key(),
        value=row.value(),
        headers=[pair for pair in headers if not pair[0].startswith(ERROR_HEADER_PREFIX)],
    )


def _messages(
    client: Mapping[str, Any], topic: str, ends: Mapping[tuple[str, int], int]
) -> Iterator[Row]:
    """Yield a topic's messages below ``ends``, partition by partition as far as they come."""
    consumer = Consumer(
        {
            **client,
            "group.id": f"{topic}.reader",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    left = {partition: end for (_, partition), end in ends.items() if end > 0}
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in left])
        while left:
            message = cast("Row | None", consumer.poll(POLL_S))
            if message is None:
                continue
            error = message.error()
            if error is not None and error.code() != _END:
                raise ReplayError(explain("the DLQ", "be readable", error.str(), topic))
            partition = message.partition()
            if error is None and message.offset() < left.get(partition, 0):
                yield message
            # The end can be a control record's: then only the event of the end tells.
            if error is not None or message.offset() + 1 >= left.get(partition, 0):
                left.pop(partition, None)
    except KafkaException as error:
        raise ReplayError(explain("the DLQ", "be readable", str(error), topic)) from error
    finally:
        consumer.close()


def _flush(producer: CheckedProducer) -> None:
    if not producer.flush(FLUSH_S):
        message = explain("replayed records", "be delivered", f"{len(producer)} waiting", "replay")
        raise ReplayError(message)
