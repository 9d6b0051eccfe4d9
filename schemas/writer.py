"""The slow way to write: any Avro type, each array turned into the encodings of its items."""

from __future__ import annotations

import struct
from decimal import Context
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from headrace.schemas.avro import MAX_DECIMAL_PRECISION, AvroType

if TYPE_CHECKING:
    from collections.abc import Callable

_RAW: Final = {"int": pa.int32(), "long": pa.int64()}
_DECIMALS: Final = Context(prec=MAX_DECIMAL_PRECISION)


def encodings(kind: AvroType, array: pa.Array) -> list[bytes]:
    """Return the Avro encoding of each item of an array of ``program.arrow_type(kind)``.

    Raises:
        ValueError: If an item has no encoding: a null, an unknown symbol, too large a decimal.

    """
    value = kind.optional
    if value is not None:
        return _optional(kind, value, array)
    if kind.kind == "null":
        return [b""] * len(array)
    if kind.kind == "union":
        return _union(kind, array)
    if array.null_count:
        message = f"{kind.describe()} has no null"
        raise ValueError(message)
    if kind.kind == "record":
        # Unlike ``field``, ``flatten`` minds the array's offset.
        parts = zip(kind.fields, array.flatten(), strict=True)
        columns = [encodings(field.type, child) for field, child in parts]
        return [b"".join(row) for row in zip(*columns, strict=True)] or [b""] * len(array)
    if kind.kind == "array":
        return _blocks(array.offsets, encodings(kind.element, array.values))
    if kind.kind == "map":
        keys = encodings(AvroType("string", 1), array.keys)
        values = encodings(kind.element, array.items)
        items = [key + value for key, value in zip(keys, values, strict=True)]
        return _blocks(array.offsets, items)
    return [_leaf(kind)(item) for item in _items(kind, array)]


def varint(value: int) -> bytes:
    """Return a number as zigzag varint."""
    zigzag = (value << 1) ^ (value >> 63)
    out = bytearray()
    while zigzag > 127:
        out.append((zigzag & 127) | 128)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)


def _optional(kind: AvroType, value: AvroType, array: pa.Array) -> list[bytes]:
    null, present = varint(kind.null_branch), varint(1 - kind.null_branch)
    valid = array.is_valid().to_pylist()
    held = iter(encodings(value, array.drop_null()))
    return [present + next(held) if one else null for one in valid]


def _union(kind: AvroType, array: pa.Array) -> list[bytes]:
    # From the buffers: ``type_codes`` and ``offsets`` forget that an array may be a slice.
    _, codes, places = array.buffers()[:3]
    branches = np.frombuffer(codes, np.int8, len(array), array.offset).tolist()
    offsets = np.frombuffer(places, np.int32, len(array), 4 * array.offset).tolist()
    held = [encodings(branch, array.field(i)) for i, branch in enumerate(kind.branches)]
    return [
        varint(branch) + held[branch][offset]
        for branch, offset in zip(branches, offsets, strict=True)
    ]


def _blocks(offsets: pa.Array, items: list[bytes]) -> list[bytes]:
    bounds = offsets.to_pylist()
    out = []
    for start, end in pairwise(bounds):
        body = b"".join(items[start:end])
        out.append(varint(end - start) + body + b"\0" if end > start else b"\0")
    return out


def _items(kind: AvroType, array: pa.Array) -> list[Any]:
    """Return the raw values: dates and times as numbers."""
    raw = _RAW.get(kind.kind)
    plain: list[Any] = (array.view(raw) if raw is not None else array).to_pylist()
    return plain


def _leaf(kind: AvroType) -> Callable[[Any], bytes]:
    if kind.logical == "decimal":
        return _decimal(kind)
    if kind.kind == "enum":
        codes = {symbol: varint(index) for index, symbol in enumerate(kind.symbols)}
        return lambda symbol: codes[symbol]
    return _LEAVES[kind.kind]


def _decimal(kind: AvroType) -> Callable[[Any], bytes]:
    def encode(value: Any) -> bytes:
        unscaled = int(value.scaleb(kind.scale, _DECIMALS))
        if kind.kind == "fixed":
            return unscaled.to_bytes(kind.size, "big", signed=True)
        return _prefixed(unscaled.to_bytes(unscaled.bit_length() // 8 + 1, "big", signed=True))

    return encode


def _prefixed(raw: bytes) -> bytes:
    return varint(len(raw)) + raw


_LEAVES: Final[dict[str, Callable[[Any], bytes]]] = {
    "boolean": lambda value: b"\1" if value else b"\0",
    "int": varint,
    "long": varint,
    "float": struct.Struct("<f").pack,
    "double": struct.Struct("<d").pack,
    "bytes": _prefixed,
    "string": lambda value: _prefixed(value.encode()),
    "fixed": bytes,
}
