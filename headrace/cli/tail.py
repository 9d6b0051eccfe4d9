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
    count: Annotated[
        int | None, typer.Option("--max", "-n", min=1, help="How many records; default 10.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Wait for more: until --max are there, or stopped."),
    ] = False,
    project: Folder = Path(),
) -> None:
    """Print a topic's newest records as JSON, one a line; with --follow the coming ones too."""
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
        for number, value in enumerate(newest(properties, topic, count or 10, follow), start=1):
            typer.echo(orjson.dumps(decode(value), default=str).decode())
            if number == count:
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


def newest(properties: Properties, topic: str, count: int, follow: bool) -> Iterator[bytes | None]:
    """Yield the values of a topic's newest ``count`` records, oldest first, then the coming ones.

    Raises:
        TopicError: If there is no such topic.

    """
    from confluent_kafka import Consumer, TopicPartition

    from headrace.runtime.errors import TopicError, explain
    from headrace.runtime.kafka import admin, end_offsets, partition_counts

    counts = partition_counts(admin(properties), [topic])
    if topic not in counts:
        text = explain("a topic", "exist", topic, "this broker", "run 'headrace apply'")
        raise TopicError(text)
    ends = end_offsets(properties, [(topic, number) for number in range(counts[topic])])
    left = {number: end for (_, number), end in ends.items() if end > 0}
    consumer = Consumer(
        {**properties, "group.id": "headrace.tail", "enable.auto.commit": False}
        | {"enable.partition.eof": True, "auto.offset.reset": "earliest"}
    )
    consumer.assign([TopicPartition(topic, n, max(0, end - count)) for (_, n), end in ends.items()])
    there: list[tuple[int, bytes | None]] = []
    try:
        while left or follow:
            if not left and there:
                yield from _last(there, count)
                there = []
            message = consumer.poll(_POLL_S)
            if message is None:
                continue
            number = message.partition() or 0
            if message.error():
                left.pop(number, None)
            elif number not in left and not left:
                yield message.value()
            else:
                there.append((message.timestamp()[1], message.value()))
                if (message.offset() or 0) + 1 >= left.get(number, 0):
                    left.pop(number, None)
        yield from _last(there, count)
    finally:
        consumer.close()


def _last(there: list[tuple[int, bytes | None]], count: int) -> list[bytes | None]:
    """Return the values of the ``count`` newest of (timestamp, value), oldest first."""
    return [value for _, value in sorted(there, key=lambda pair: pair[0])[-count:]]
