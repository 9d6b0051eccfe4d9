"""What an Avro record schema says about its fields, as far as expressions and keys need it.

The schema is parsed by the same code that decodes with it; this only says what an expression may
make of a field, so that a wrong definition is refused before any event is seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.schemas.avro import canonical, parse_record

if TYPE_CHECKING:
    from headrace.features.expressions import ValueType
    from headrace.features.plan import ColumnKind
    from headrace.schemas.avro import AvroField, AvroType

KINDS: dict[ValueType, ColumnKind] = {
    "bool": "bool",
    "int": "int64",
    "long": "int64",
    "time": "int64",
    "float": "float64",
    "string": "string",
    "bytes": "bytes",
}

_MEANINGS: dict[str, ValueType] = {
    "boolean": "bool",
    "int": "int",
    "long": "long",
    "float": "float",
    "double": "float",
    "string": "string",
    "enum": "string",
    "bytes": "bytes",
    "fixed": "bytes",
}
# Logical types that mean something else than what they are written as; None is not read yet.
_LOGICAL: dict[str, ValueType | None] = {
    "date": "time",
    "timestamp-millis": "time",
    "timestamp-micros": "time",
    "timestamp-nanos": "time",
    "local-timestamp-millis": "time",
    "local-timestamp-micros": "time",
    "local-timestamp-nanos": "time",
    "decimal": "float",
    "time-millis": None,
    "time-micros": None,
}


@dataclass(frozen=True, slots=True)
class Field:
    """A top-level field: ``type`` is None for what no expression can read (records, arrays, …).

    ``declaration`` is what decides on values when a writer's schema is resolved into this one: the
    type without documentation, the default, the aliases.
    """

    name: str
    type: ValueType | None
    avro: str
    declaration: str

    @property
    def kind(self) -> ColumnKind | None:
        """What a column of this field holds."""
        return KINDS[self.type] if self.type else None


def read_fields(schema: str) -> dict[str, Field]:
    """Return the top-level fields of a record schema, in order.

    Args:
        schema: Avro schema as JSON.

    Raises:
        SchemaRefused: If it is no record schema, or one that cannot be decoded safely.

    """
    return {field.name: _field(field) for field in parse_record(schema).fields}


def _field(field: AvroField) -> Field:
    present = [branch for branch in field.type.branches if branch.kind != "null"]
    only = field.type if field.type.kind != "union" else None
    if len(present) == 1:
        only = present[0]
    declaration = {
        "type": canonical(field.type),
        "default": [field.default] if field.has_default else [],
        "aliases": field.aliases,
        "unknown_symbol": only.default_symbol if only else None,
    }
    return Field(
        name=field.name,
        type=_meaning(only) if only else None,
        avro=(only.logical or only.kind) if only else "union",
        declaration=json.dumps(declaration, sort_keys=True, separators=(",", ":")),
    )


def _meaning(kind: AvroType) -> ValueType | None:
    if kind.logical in _LOGICAL:
        return _LOGICAL[kind.logical]
    return _MEANINGS.get(kind.kind)
