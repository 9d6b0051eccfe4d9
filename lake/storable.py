"""Avro's columns as Delta can hold them: a type that Delta lacks becomes one that keeps it. Pure.

=======================  =====================================================
Avro                     in the table
=======================  =====================================================
timestamps               microseconds (nanoseconds are floored)
time-millis, -micros     the number itself: milliseconds (int), microseconds (long)
decimal of > 38 digits   its decimal text
fixed                    binary
union of several types   a struct with one nullable field a branch
record without fields    boolean: whether it is there
null                     left out at the top, text inside another type
=======================  =====================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from headrace.lake.errors import UnstorableError
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Iterable


def stored_type(kind: pa.DataType) -> pa.DataType:  # noqa: PLR0911 - one line per kind.
    """Return the type that a column has in the table; every part of it is nullable."""
    if pt.is_null(kind) or pt.is_decimal256(kind):
        return pa.string()
    if pt.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if pt.is_time32(kind):
        return pa.int32()
    if pt.is_time64(kind):
        return pa.int64()
    if pt.is_fixed_size_binary(kind):
        return pa.binary()
    if pt.is_list(kind):
        return pa.list_(pa.field("element", stored_type(kind.value_type)))
    if pt.is_map(kind):
        return pa.map_(pa.string(), pa.field("value", stored_type(kind.item_type)))
    if pt.is_struct(kind) or pt.is_union(kind):
        if kind.num_fields == 0:
            return pa.bool_()
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return pa.struct([pa.field(one.name, stored_type(one.type)) for one in fields])
    return kind


def stored_batch(batch: pa.RecordBatch) -> pa.Table:
    """Return the batch with every column as the table holds it; columns of type null are left out.

    Raises:
        UnstorableError: If two names differ by case alone, which Delta does not tell apart.

    """
    check_names(batch.schema.names)
    kept = [field for field in batch.schema if not pt.is_null(field.type)]
    arrays = [stored_array(batch.column(batch.schema.get_field_index(f.name))) for f in kept]
    fields = [pa.field(f.name, a.type) for f, a in zip(kept, arrays, strict=True)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def check_names(names: Iterable[str]) -> None:
    """Refuse columns that Delta takes for one.

    Raises:
        UnstorableError: With both names.

    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            rule = "differ by more than case"
            raise UnstorableError(explain("columns", rule, f"{other}, {name}", "a Delta table"))


def stored_array(array: pa.Array) -> pa.Array:
    """Return an array as ``stored_type`` says."""
    kind, target = array.type, stored_type(array.type)
    if kind == target:
        return array
    if pt.is_union(kind):
        return _union(array, target)
    if pt.is_struct(kind):
        return _struct(array, target)
    if pt.is_list(kind):
        items = stored_array(array.values)
        return pa.ListArray.from_arrays(array.offsets, items, type=target, mask=_nulls(array))
    if pt.is_map(kind):
        items = stored_array(array.items)
        plain = pa.MapArray.from_arrays(array.offsets, array.keys, items, target)
        return plain if not array.null_count else pc.if_else(array.is_valid(), plain, None)
    if pt.is_decimal256(kind):
        return pa.array([None if v is None else str(v) for v in array.to_pylist()], pa.string())
    # Nanoseconds lose three digits: Delta's finest is the microsecond.
    return array.cast(target, safe=False)


def _union(array: pa.UnionArray, target: pa.StructType) -> pa.Array:
    """Return the branches side by side: in each row one is set at most."""
    codes, offsets = np.asarray(array.type_codes), np.asarray(array.offsets)
    children = []
    for code in range(array.type.num_fields):
        index = pa.array(offsets, pa.int32(), mask=codes != code)
        children.append(stored_array(array.field(code)).take(index))
    return pa.StructArray.from_arrays(children, fields=list(target))


def _struct(array: pa.StructArray, target: pa.DataType) -> pa.Array:
    if array.type.num_fields == 0:
        return pa.array(np.ones(len(array), np.bool_), mask=np.asarray(array.is_null()))
    children = [stored_array(array.field(index)) for index in range(array.type.num_fields)]
    return pa.StructArray.from_arrays(children, fields=list(target), mask=_nulls(array))


def _nulls(array: pa.Array) -> pa.Array | None:
    return array.is_null() if array.null_count else None


def misfits(array: pa.ChunkedArray, kind: pa.DataType) -> np.ndarray | None:
    """Return which values change if the column is cast to ``kind``, a table's older type.

    Avro lets a field grow from int to long or to double, Delta does not.

    Shape: (rows,) bool; None: no cast between the two is known.
    """
    numbers = (pt.is_integer, pt.is_floating)
    if not all(any(test(one) for test in numbers) for one in (array.type, kind)):
        return None
    back = array.cast(kind, safe=False).cast(array.type, safe=False)
    same = pc.equal(back, array)
    if pt.is_floating(array.type):
        same = pc.or_(same, pc.and_(pc.is_nan(back), pc.is_nan(array)))
    return ~np.asarray(pc.fill_null(same, fill_value=True))
