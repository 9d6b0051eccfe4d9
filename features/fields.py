"""What an Avro record schema says about its fields, as far as expressions and keys need it.

Decoding is the codec's; this only reads types, so that a wrong definition is refused before any
event is seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.features.errors import FeatureError
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from headrace.features.expressions import ValueType
    from headrace.features.plan import ColumnKind

KINDS: dict[ValueType, ColumnKind] = {
    "bool": "bool",
    "int": "int64",
    "long": "int64",
    "time": "int64",
    "float": "float64",
    "string": "string",
    "bytes": "bytes",
}

_PRIMITIVE: dict[str, ValueType] = {
    "boolean": "bool",
    "int": "int",
    "long": "long",
    "float": "float",
    "double": "float",
    "string": "string",
    "bytes": "bytes",
    "enum": "string",
    "fixed": "bytes",
}
_LOGICAL: dict[tuple[str, str], ValueType | None] = {
    ("int", "date"): "time",
    ("int", "time-millis"): None,
    ("long", "time-micros"): None,
    ("long", "timestamp-millis"): "time",
    ("long", "timestamp-micros"): "time",
    ("long", "timestamp-nanos"): "time",
    ("long", "local-timestamp-millis"): "time",
    ("long", "local-timestamp-micros"): "time",
    ("long", "local-timestamp-nanos"): "time",
    ("bytes", "decimal"): "float",
    ("fixed", "decimal"): "float",
    ("fixed", "duration"): None,
    ("string", "uuid"): "string",
    ("fixed", "uuid"): "string",
}


class SchemaFileError(FeatureError):
    """A source's schema is no Avro record schema."""


@dataclass(frozen=True, slots=True)
class Field:
    """A top-level field: ``type`` is None for what no expression can read (records, arrays, …).

    ``declaration`` is what decides on values when a writer's schema is resolved into this one: the
    type without documentation, the default, the aliases.
    """

    name: str
    type: ValueType | None
    avro: str
    nullable: bool
    declaration: str

    @property
    def kind(self) -> ColumnKind | None:
        """What a column of this field holds."""
        return KINDS[self.type] if self.type else None


def read_fields(schema: str, where: str) -> dict[str, Field]:
    """Return the top-level fields of a record schema, in order.

    Args:
        schema: Avro schema as JSON.
        where: Which schema, for the message.

    Raises:
        SchemaFileError: If it is not JSON, not a record, or has a malformed field.

    """
    try:
        data = json.loads(schema)
    except json.JSONDecodeError as error:
        message = f"schema of {where} must be JSON; {error}"
        raise SchemaFileError(message) from error
    if not isinstance(data, dict) or data.get("type") != "record":
        got = data.get("type") if isinstance(data, dict) else type(data).__name__
        message = explain("schema", "be an Avro record", got, where, 'write {"type": "record", …}')
        raise SchemaFileError(message)
    named: dict[str, object] = {}
    fields: dict[str, Field] = {}
    for item in data.get("fields", ()):
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            message = explain("a field", "have a name and a type", item, where)
            raise SchemaFileError(message)
        if "type" not in item:
            message = explain("a field", "have a type", item["name"], where)
            raise SchemaFileError(message)
        if item["name"] in fields:
            message = explain("a field name", "be used once", item["name"], where)
            raise SchemaFileError(message)
        fields[item["name"]] = _field(item, named)
    return fields


def _field(item: dict[str, object], named: dict[str, object]) -> Field:
    declared = item["type"]
    branches = declared if isinstance(declared, list) else [declared]
    present = [b for b in branches if b != "null"]
    value_type, avro = None, json.dumps(declared)
    if len(present) == 1:
        value_type, avro = _type(present[0], named)
    else:
        for branch in present:
            _type(branch, named)
    declaration = {
        k: _without_docs(v) for k, v in item.items() if k in {"type", "default", "aliases"}
    }
    return Field(
        name=str(item["name"]),
        type=value_type,
        avro=avro,
        nullable=len(present) < len(branches),
        declaration=json.dumps(declaration, sort_keys=True, separators=(",", ":")),
    )


def _type(declared: object, named: dict[str, object]) -> tuple[ValueType | None, str]:
    """Return a type's meaning and its name; remember named types for later references."""
    if isinstance(declared, str):
        if declared in named:
            return _type(named[declared], {})
        return _PRIMITIVE.get(declared), declared
    if not isinstance(declared, dict):
        return None, "union"
    base = declared.get("type")
    if isinstance(base, dict):
        return _type(base, named)
    base = str(base)
    if base in {"record", "enum", "fixed"} and isinstance(declared.get("name"), str):
        named[str(declared["name"])] = declared
        if declared.get("namespace"):
            named[f"{declared['namespace']}.{declared['name']}"] = declared
    logical = declared.get("logicalType")
    if logical and (base, str(logical)) in _LOGICAL:
        return _LOGICAL[base, str(logical)], str(logical)
    return _PRIMITIVE.get(base), base


def _without_docs(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_docs(v) for k, v in value.items() if k not in {"doc", "order"}}
    if isinstance(value, list):
        return [_without_docs(v) for v in value]
    return value
