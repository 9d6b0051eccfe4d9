"""From the values of the slow path and of defaults to the Arrow arrays that the fast path makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from headrace.schemas.columns import dense_union, expand
from headrace.schemas.program import arrow_schema, arrow_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.schemas.avro import AvroType


def array_of(kind: AvroType, values: Sequence[Any]) -> pa.Array:
    """Return the column of an Avro type with these values, as ``resolver`` gives them."""
    target = arrow_type(kind)
    value = kind.optional
    if value is not None:
        valid = np.array([item is not None for item in values], dtype=np.bool_)
        return expand(array_of(value, [item for item in values if item is not None]), valid)
    if kind.kind == "union":
        return _union(kind, values)
    if kind.kind == "record":
        children = [array_of(f.type, [item[f.name] for item in values]) for f in kind.fields]
        return pa.Array.from_buffers(target, len(values), [None], 0, children=children)
    if kind.kind in {"array", "map"}:
        return _repeated(kind, values)
    return pa.array(values, target)


def batch_of(record: AvroType, values: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    """Return the batch of a record schema with these rows."""
    arrays = [array_of(f.type, [row[f.name] for row in values]) for f in record.fields]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(record))


def _union(kind: AvroType, values: Sequence[tuple[int, Any]]) -> pa.Array:
    branches = np.array([branch for branch, _ in values], dtype=np.int8)
    offsets = np.zeros(len(values), dtype=np.int32)
    children = []
    for index, branch in enumerate(kind.branches):
        mine = [value for number, value in values if number == index]
        offsets[branches == index] = np.arange(len(mine), dtype=np.int32)
        children.append(array_of(branch, mine))
    return dense_union(arrow_type(kind), branches, offsets, children)


def _repeated(kind: AvroType, values: Sequence[Any]) -> pa.Array:
    target = arrow_type(kind)
    ends = np.cumsum([0, *(len(item) for item in values)], dtype=np.int32)
    offsets = pa.py_buffer(ends)
    items = [item for one in values for item in one]
    if kind.kind == "array":
        child = array_of(kind.element, items)
    else:
        keys = pa.array([key for key, _ in items], pa.string())
        held = array_of(kind.element, [value for _, value in items])
        fields = [target.key_field, target.item_field]
        child = pa.StructArray.from_arrays([keys, held], fields=fields)
    return pa.Array.from_buffers(target, len(values), [None, offsets], 0, children=[child])
