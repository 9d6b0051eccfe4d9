"""A topic's bytes to columns, with a reader that grows with the schemas that turn up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from headrace.runtime.logging import get_logger
from headrace.schemas.errors import SchemaRefused
from headrace.schemas.wire import WireDecoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.lake.targets import Target
    from headrace.schemas.codec import Decoded
    from headrace.schemas.registry import SchemaRegistry

log = get_logger(__name__)

# The broker's own bound on what we write; a larger record cannot be in a topic of ours.
RECORD_BYTES_MAX = 64 << 20


class _NewWriterError(Exception):
    """A record names a schema that has not been seen: the reader may have to grow first."""


class TopicDecoder:
    """Decodes one topic's values as the newest schema of its subject, and nothing written is lost.

    The reader is the registry's newest schema, plus every field that the definitions or a writer
    that turned up have and it has not: a field that was taken away keeps its old values.
    """

    def __init__(self, target: Target, registry: SchemaRegistry) -> None:
        self._target = target
        self._registry = registry
        self._seen: set[int] = set()
        self._reader = ""
        self._decoder: WireDecoder | None = None

    def redefine(self, target: Target) -> None:
        """Take the definitions' new schema into account with the next records."""
        if target != self._target:
            self._target = target
            self._decoder = None

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """Decode message values.

        Raises:
            RegistryUnavailableError: Nothing is decoded, the call can be made again.

        """
        limit = self._target.max_record_bytes or RECORD_BYTES_MAX
        while True:
            decoder = self._decoder or self._grow([])
            try:
                return decoder.decode(values, limit)
            except _NewWriterError as news:
                # Once a schema id: the next round knows it.
                schema_id = int(news.args[0])
                self._grow([self._registry.schema(schema_id)])
                self._seen.add(schema_id)

    def _lookup(self, schema_id: int) -> str:
        schema = self._registry.schema(schema_id)
        if schema_id not in self._seen:
            raise _NewWriterError(schema_id)
        return schema

    def _grow(self, writers: list[str]) -> WireDecoder:
        latest = self._registry.latest(self._target.subject)
        reader = self._target.schema
        if latest is not None:
            reader = self._usable(latest[1], reader)
        for other in (self._target.schema, self._reader, *writers):
            if other:
                reader = self._usable(widened(reader, other), reader)
        if self._decoder is None or reader != self._reader:
            self._decoder = WireDecoder(reader, self._lookup)
            self._reader = reader
        return self._decoder

    def _usable(self, schema: str, otherwise: str) -> str:
        if schema == otherwise:
            return schema
        try:
            WireDecoder(schema, self._lookup)
        except SchemaRefused as error:
            log.warning("schema_not_used", topic=self._target.topic, reason=str(error))
            return otherwise
        return schema


def widened(reader: str, other: str) -> str:
    """Return the reader with the fields that only ``other`` has, nullable, null by default.

    Examples:
        >>> old = '{"type": "record", "name": "A", "fields": [{"name": "x", "type": "int"}]}'
        >>> new = '{"type": "record", "name": "A", "fields": [{"name": "y", "type": "int"}]}'
        >>> [field["name"] for field in json.loads(widened(new, old))["fields"]]
        ['y', 'x']

    """
    ours, theirs = json.loads(reader), json.loads(other)
    if not all(isinstance(one, dict) and "fields" in one for one in (ours, theirs)):
        return reader
    known = {
        name for field in ours["fields"] for name in (field["name"], *field.get("aliases", ()))
    }
    extra = [_optional(field) for field in theirs["fields"] if field["name"] not in known]
    if not extra:
        return reader
    ours["fields"] = [*ours["fields"], *extra]
    return json.dumps(ours)


def _optional(field: dict[str, Any]) -> dict[str, Any]:
    kind = field["type"]
    branches = kind if isinstance(kind, list) else [kind]
    rest = [branch for branch in branches if branch != "null"]
    return {"name": field["name"], "type": ["null", *rest], "default": None}
