"""Names to columns: what definitions read of each source, checked against its schema.

Part of the compiler. Collects on the way which columns a pipeline needs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from headrace.features.errors import DefinitionError, ExpressionError, did_you_mean, refuse
from headrace.features.expressions import (
    NUMERIC,
    Column,
    Constant,
    Expression,
    Feature,
    Operation,
    type_of,
)
from headrace.features.fields import Field, read_fields
from headrace.features.plan import ColumnPlan, SourcePlan
from headrace.schemas.errors import SchemaRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace.features.definitions import Source
    from headrace.features.errors import Location
    from headrace.features.expressions import ValueType

KEY_TYPES = frozenset({"int", "long", "string", "bytes"})
_TIMESTAMPS = ("timestamp-", "local-timestamp-")


class Resolver:
    """The sources of one pipeline: their fields, and which of them are read.

    Args:
        schemas: Avro schema as JSON, by source name; a schema given in the definition wins.

    Attributes:
        feature_types: The types of the features known so far, by full name; grows as views are
            compiled.

    """

    def __init__(self, schemas: Mapping[str, str]) -> None:
        self._schemas = schemas
        self._sources: dict[str, Source] = {}
        self._fields: dict[str, dict[str, Field]] = {}
        self._read: dict[str, set[str]] = {}
        self._checked: dict[str, dict[Expression, None]] = {}
        self._carried: dict[str, set[str]] = {}
        self.feature_types: dict[str, ValueType] = {}

    def add(self, source: Source) -> None:
        """Take a source into the pipeline and check what its own definition names."""
        known = self._sources.get(source.name)
        if known is source:
            return
        at, where = source.location, f"source {source.name}"
        if known is not None:
            hint = f"the other one stands at {known.location}"
            raise refuse(at, "the name of a source", "be used once", source.name, where, hint)
        self._sources[source.name] = source
        self._fields[source.name] = read_fields_of(source, self._schemas)
        self._read[source.name] = set()
        self._checked[source.name] = {}
        self._carried[source.name] = set()
        self.key(source, source.key, at, "key")
        for option in ("event_time", "known_at"):
            name = getattr(source, option)
            if name is not None:
                self._time(source, name, option)
        if source.event_id is not None and source.event_id not in self._read[source.name]:
            self.key(source, source.event_id, at, "event_id")
            self._read[source.name].remove(source.event_id)
            self._carried[source.name].add(source.event_id)

    def column(self, source: Source, name: str, at: Location | None, where: str) -> Field:
        """Return a field that the pipeline reads, or refuse an unknown or unreadable one."""
        fields = self._fields[source.name]
        if name not in fields:
            rule = f"be in the schema of source {source.name}"
            raise refuse(at, "a column", rule, name, where, did_you_mean(name, fields))
        field = fields[name]
        if field.type is None:
            rule = "be of a primitive, enum or logical type"
            hint = "publish what it holds as fields of the record itself"
            raise refuse(at, f"column {name} of {source.name}", rule, field.avro, where, hint)
        self._read[source.name].add(name)
        return field

    def key(self, source: Source, name: str, at: Location | None, where: str) -> Field:
        """Return a field that identifies something."""
        field = self.column(source, name, at, f"{where} of source {source.name}")
        if field.type not in KEY_TYPES:
            rule = "be a whole number, a text or bytes"
            raise refuse(at, f"column {name}", rule, field.avro, f"{where} of source {source.name}")
        return field

    def _time(self, source: Source, name: str, option: str) -> None:
        where = f"{option} of source {source.name}"
        field = self.column(source, name, source.location, where)
        if field.type != "long" and not field.avro.startswith(_TIMESTAMPS):
            rule = "be an Avro timestamp, or a long of epoch milliseconds"
            hint = 'declare {"type": "long", "logicalType": "timestamp-millis"}'
            raise refuse(source.location, f"column {name}", rule, field.avro, where, hint)

    def type_over(
        self, expression: Expression, source: Source, at: Location | None, where: str
    ) -> ValueType:
        """Return the type of an expression over a source's columns and the features so far.

        Raises:
            DefinitionError: If it reads what is not there, or combines what does not go together.

        """
        return type_of(expression, self._lookup(source, at, where), at)

    def _lookup(
        self, source: Source, at: Location | None, where: str
    ) -> Callable[[Column | Feature], ValueType]:
        def lookup(node: Column | Feature) -> ValueType:
            if isinstance(node, Feature):
                known = self.feature_types
                if node.name not in known:
                    hint = did_you_mean(node.name, known)
                    rule = "be a feature of this pipeline"
                    raise refuse(at, "hr.feature", rule, node.name, where, hint)
                return known[node.name]
            field = self.column(source, node.name, at, where)
            assert field.type is not None
            return "time" if node.name in {source.event_time, source.known_at} else field.type

        return lookup

    def number(
        self, expression: Expression, source: Source, at: Location | None, where: str
    ) -> ValueType:
        """Return the type of a value that is aggregated or stands in the vector: a number."""
        kind = self.type_over(expression, source, at, where)
        if kind not in NUMERIC:
            hint = {
                "time": "take hr.hour or hr.weekday of it",
                "string": "compare it: hr.col('country') == 'BE'",
            }.get(kind, "")
            error = refuse(at, str(expression), "be a number or a boolean", kind, where, hint)
            raise ExpressionError(str(error)) from None
        return kind

    def checked(self, expression: Expression, source: Source) -> None:
        """Remember that an aggregate reads the expression: bad numbers in it are bad input."""
        self._checked[source.name][expression] = None

    def plans(self) -> tuple[SourcePlan, ...]:
        """Return the sources with the columns that were read, in schema order."""
        return tuple(self._plan(source) for source in self._sources.values())

    def declarations(self, source: SourcePlan) -> list[str]:
        """Return what of the schema decides on values: not that of an id that is only passed on."""
        fields, read = self._fields[source.name], self._read[source.name]
        return [fields[c.name].declaration for c in source.columns if c.name in read]

    def _plan(self, source: Source) -> SourcePlan:
        fields = self._fields[source.name]
        read = self._read[source.name] | self._carried[source.name]
        columns = []
        for name, field in fields.items():
            if name in read:
                assert field.kind is not None
                columns.append(ColumnPlan(name, field.kind))
        checked = self._checked[source.name]
        return SourcePlan(
            name=source.name,
            topic=source.topic or source.name,
            schema=schema_text(source, self._schemas),
            columns=tuple(columns),
            checked=tuple(e.name for e in checked if isinstance(e, Column)),
            key=source.key,
            event_time=source.event_time,
            known_at=source.known_at,
            event_id=source.event_id,
            partitioner=source.partitioner,
            lateness_ms=source.lateness_ms,
            max_ahead_ms=source.max_ahead_ms,
            not_finite=source.not_finite,
            null_key=source.null_key,
            checked_expressions=tuple(e for e in checked if not isinstance(e, Column)),
            dedupe_ms=source.dedupe_ms,
        )


def schema_text(source: Source, schemas: Mapping[str, str]) -> str:
    """Return the Avro schema of a source as JSON, without insignificant differences in layout."""
    if source.schema is not None and not isinstance(source.schema, str):
        return json.dumps(dict(source.schema), separators=(",", ":"))
    text = schemas.get(source.name)
    if text is None:
        rule = "have an Avro schema"
        hint = f"write schemas/{source.name}.avsc, or give schema="
        raise refuse(source.location, "a source", rule, None, f"source {source.name}", hint)
    try:
        return json.dumps(json.loads(text), separators=(",", ":"))
    except json.JSONDecodeError as error:
        message = f"schema of source {source.name} must be JSON; {error}"
        raise DefinitionError(message, source.location) from None


def read_fields_of(source: Source, schemas: Mapping[str, str]) -> dict[str, Field]:
    """Return a source's fields; what is wrong with its schema is told at its definition's line."""
    try:
        return read_fields(schema_text(source, schemas))
    except SchemaRefused as error:
        message = f"schema of source {source.name}: {error}"
        raise DefinitionError(message, source.location) from error


def present(name: str) -> Expression:
    """Return 1 where a column of any kind has a value, null where it has none."""
    return Operation("/", (Constant(1), Operation("~", (Operation("is_null", (Column(name),)),))))
