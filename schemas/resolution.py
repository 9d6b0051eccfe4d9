"""Which columns of one schema become those of another by Arrow alone, without looking at rows.

What is not covered here (nulls that must not be, enums that differ, nested changes) is left to
``resolver``, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from headrace.schemas.arrays import array_of
from headrace.schemas.avro import AvroType, canonical
from headrace.schemas.compatibility import same_name, written_field
from headrace.schemas.program import arrow_schema, arrow_type
from headrace.schemas.resolver import shaped_default

_RAW: Final = {
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
}
_WIDER: Final = ("int", "long", "float", "double")
# Logical types in whose range every raw number is, so that the bits can be taken as they are.
_UNBOUNDED: Final = frozenset(
    {
        None,
        "date",
        "timestamp-millis",
        "timestamp-micros",
        "timestamp-nanos",
        "local-timestamp-millis",
        "local-timestamp-micros",
        "local-timestamp-nanos",
    }
)


@dataclass(frozen=True, slots=True)
class Cast:
    """Take a column of the writer: its bits as ``raw``, cast to ``wide``, its bits as ``to``."""

    index: int
    raw: pa.DataType | None
    wide: pa.DataType | None
    to: pa.DataType


@dataclass(frozen=True, slots=True)
class Constant:
    """A default: an array of one value, repeated."""

    value: pa.Array


@dataclass(frozen=True, slots=True)
class Projection:
    """From batches of the writer's schema to batches of the reader's."""

    columns: tuple[Cast | Constant, ...]
    schema: pa.Schema

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the batch as the reader wants it."""
        arrays = [_apply(column, batch) for column in self.columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def project(writer: AvroType, reader: AvroType) -> Projection | None:
    """Return how to turn the writer's columns into the reader's, None if rows must be looked at."""
    if not same_name(writer, reader):
        return None
    positions = {field.name: index for index, field in enumerate(writer.fields)}
    columns: list[Cast | Constant] = []
    for field in reader.fields:
        written = written_field(writer, field)
        if written is not None:
            cast = _cast(written.type, field.type, positions[written.name])
            if cast is None:
                return None
            columns.append(cast)
        elif field.has_default:
            value = shaped_default(field.type, field.default)
            columns.append(Constant(array_of(field.type, [value])))
        else:
            return None
    return Projection(tuple(columns), arrow_schema(reader))


def _cast(writer: AvroType, reader: AvroType, index: int) -> Cast | None:
    target = arrow_type(reader)
    if canonical(writer) == canonical(reader):
        return Cast(index, None, None, target)
    if writer.optional is not None and reader.optional is None:
        return None
    written, wanted = writer.optional or writer, reader.optional or reader
    if canonical(written) == canonical(wanted):
        return Cast(index, None, None, target)
    if written.kind not in _RAW or wanted.kind not in _RAW:
        return None
    changed = written.logical and wanted.logical and written.logical != wanted.logical
    if changed or not {written.logical, wanted.logical} <= _UNBOUNDED:
        return None
    promoted = written.kind != wanted.kind
    if _WIDER.index(written.kind) > _WIDER.index(wanted.kind) or (promoted and wanted.logical):
        return None
    return Cast(index, _RAW[written.kind], _RAW[wanted.kind], target)


def _apply(column: Cast | Constant, batch: pa.RecordBatch) -> pa.Array:
    if isinstance(column, Constant):
        index = pa.repeat(pa.scalar(0, pa.int32()), len(batch))
        return column.value.take(index)
    array = batch.column(column.index)
    if column.raw is not None:
        # A long beyond 2**53 loses digits as a double: Avro says so, and so does fastavro.
        array = array.view(column.raw).cast(column.wide, safe=False)
    return array.view(column.to) if array.type != column.to else array
