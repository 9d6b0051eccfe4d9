"""``headrace tail``: print what stands in a topic, decoded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.options import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.runtime.kafka import Properties

_POLL_S = 0.5
_HEADER_BYTES = 5


def tail(
    topic: Annotated[str, typer.Argument(help="Such as traffic.predictions.")],
    *,
    count: Annotated[int, typer.Option("--max", "-n", min=1, help="At most so many records.")] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for new records until stopped.")
    ] = False,
    project: Folder = Path(),
) -> None:
    """Print the first records of a topic as JSON, one a line; with --follow the coming ones."""
    import orjson

    from headrace.features.project import load_project
    from headrace.runtime.dev.stack import endpoints
    from headrace.runtime.kafka import client_properties
    from headrace.schemas.registry import SchemaRegistry

    settings = load_project(project).settings
    found = endpoints(settings, project)
    with SchemaRegistry(found.registry_url) as registry:
        decode = record_decoder(registry.schema)
        properties = client_properties(settings, found.bootstrap_servers)
        for number, value in enumerate(records(properties, topic, follow=follow), start=1):
            typer.echo(orjson.dumps(decode(value), default=str).decode())
            if number == count and not follow:
                break


def record_decoder(lookup: Callable[[int], str]) -> Callable[[bytes | None], Any]:
    """Return a function from a message's value to plain data; what is no Avro becomes a note."""
    import io
    import json

    import fastavro

    parsed: dict[int, Any] = {}

    def decode(value: bytes | None) -> Any:
        if value is None or len(value) < _HEADER_BYTES or value[0] != 0:
            return {"not_avro": None if value is None else value[:100].hex()}
        schema_id = int.from_bytes(value[1:_HEADER_BYTES], "big")
        if schema_id not in parsed:
            parsed[schema_id] = fastavro.parse_schema(json.loads(lookup(schema_id)))
        body = io.BytesIO(value[_HEADER_BYTES:])
        return fastavro.schemaless_reader(body, parsed[schema_id], None)

    return decode


def records(properties: Properties, topic: str, *, follow: bool) -> Iterator[bytes | None]:
    """Yield the values of a topic's records: those that are there now, or the coming ones."""
    from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, TopicPartition

    from headrace.runtime.kafka import admin, end_offsets, partition_counts

    counts = partition_counts(admin(properties), [topic])
    if topic not in counts:
        from headrace.runtime.errors import TopicError, explain

        text = explain("a topic", "exist", topic, "this broker", "run 'headrace apply'")
        raise TopicError(text)
    partitions = [(topic, number) for number in range(counts[topic])]
    left = {key: end for key, end in end_offsets(properties, partitions).items() if end > 0}
    consumer = Consumer(
        {**properties, "group.id": "headrace.tail", "enable.auto.commit": False}
        | {"enable.partition.eof": not follow}
    )
    start = OFFSET_END if follow else OFFSET_BEGINNING
    consumer.assign([TopicPartition(topic, number, start) for _, number in partitions])
    try:
        while follow or left:
            message = consumer.poll(_POLL_S)
            if message is None:
                continue
            key = (topic, message.partition() or 0)
            if message.error():
                left.pop(key, None)
                continue
            yield message.value()
            if not follow and (message.offset() or 0) + 1 >= left.get(key, 0):
                left.pop(key, None)
    finally:
        consumer.close()
