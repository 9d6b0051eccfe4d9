"""Rows of numbers and ids to Avro records in wire format, for the outputs of a pipeline.

A record is flat: constants, numbers, ids and texts. Its fields become a short program that one
kernel runs over all rows; what is the same in every row is encoded once, when the program is made.
An encoder of Arrow columns costs the columns first: 0.5 ms a batch, too much for a batch of one.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from headrace.runtime.errors import explain
from headrace.schemas.errors import EncodeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

# Operations of a program: [operation, a, b].
_CONSTANT = 0  # constants[a:b]
_LONG = 1  # longs[:, a]
_DOUBLE = 2  # nullable, numbers[:, a]; null where NaN
_WHOLE = 3  # nullable long, numbers[:, a]; null where not finite
_TEXT = 4  # nullable string, text a; b: its place in ``valid``, -1 for never null
_DIGITS = 5  # nullable string, longs[:, a] in decimal; b as above
_PLAIN_TEXT = 6  # string, text a
_NAME = 7  # string, constants[a:b] then the partition, "-" and the offset in decimal

_NULL_BRANCH, _VALUE_BRANCH = 0, 2
_LONG_BYTES, _DOUBLE_BYTES, _DIGITS_BYTES, _NAME_BYTES = 10, 9, 24, 48
PARTITION, OFFSET = 0, 1
"""Where a row's partition and offset stand in ``longs``."""


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value in every row."""

    value: str | int | float | None


@dataclass(frozen=True, slots=True)
class Long:
    """Column ``index`` of the longs; ``as_text`` writes it in decimal, ``valid`` says where."""

    index: int
    as_text: bool = False
    valid: int = -1


@dataclass(frozen=True, slots=True)
class Number:
    """Column ``index`` of the numbers; NaN is null, and an infinity where the field is a long."""

    index: int


@dataclass(frozen=True, slots=True)
class Text:
    """Text column ``index``; ``valid`` says where it is not null."""

    index: int
    valid: int = -1
    nullable: bool = True


@dataclass(frozen=True, slots=True)
class RowName:
    """``<prefix><partition>-<offset>``."""

    prefix: str


Binding = Constant | Long | Number | Text | RowName


@dataclass(slots=True)
class RowColumns:
    """What the rows hold.

    Shapes: ``longs`` int64 (n, k), ``numbers`` float64 (n, m), ``valid`` bool (c, n); ``texts``
    UTF-8 of all text columns one after the other, ``ends`` int64 (t, n + 1): row i's text c is
    ``texts[ends[c, i]:ends[c, i + 1]]``.
    """

    longs: np.ndarray
    numbers: np.ndarray
    valid: np.ndarray
    texts: np.ndarray
    ends: np.ndarray


class RecordProgram:
    """Encodes rows of one schema with fixed bindings and constants."""

    def __init__(self, schema: str, schema_id: int, bindings: Mapping[str, Binding]) -> None:
        """Compile the schema's fields, each bound by its name.

        Raises:
            EncodeError: If a field is not bound, or bound to what its type cannot hold.

        """
        record = json.loads(schema)
        constants = bytearray(struct.pack(">bI", 0, schema_id))
        operations = [(_CONSTANT, 0, len(constants))]
        self._row_bytes = len(constants)
        for field in record["fields"]:
            binding = bindings.get(field["name"])
            operation = _compile(field, binding, constants)
            if operation is None:
                kind = _kind(field["type"])
                where = f"field {field['name']} of {record['name']}"
                rule = f"be bound to what a {kind[0]} holds"
                raise EncodeError(explain("a field", rule, binding, where))
            last = operations[-1]
            if operation[0] == _CONSTANT == last[0] and last[2] == operation[1]:
                operations[-1] = (_CONSTANT, last[1], operation[2])
            else:
                operations.append(operation)
            self._row_bytes += _bytes_max(operation)
        self._operations = np.array(operations, np.int64)
        self._constants = np.frombuffer(bytes(constants), np.uint8)

    def encode(self, columns: RowColumns) -> tuple[bytes, list[int]]:
        """Return all records in one piece, and where each begins (and the last one ends)."""
        count = len(columns.longs)
        out = np.empty(count * self._row_bytes + len(columns.texts), np.uint8)
        cuts = np.zeros(count + 1, np.int64)
        _write(
            self._operations,
            self._constants,
            columns.longs,
            columns.numbers,
            columns.valid,
            columns.texts,
            columns.ends,
            out,
            cuts,
        )
        return out[: cuts[-1]].tobytes(), cuts.tolist()


def text_buffers(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return (ends int64[n + 1] from 0, data uint8) of a string column."""
    count = len(column)
    if not count:
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32, count + 1, column.offset * 4).astype(np.int64)
    first, last = int(ends[0]), int(ends[-1])
    if first:
        ends -= first
    if data is None or first == last:
        return ends, np.zeros(0, np.uint8)
    return ends, np.frombuffer(data, np.uint8, last - first, first)


def _kind(avro: Any) -> tuple[str, bool]:
    """Return a field's plain type and whether it may be null."""
    nullable = isinstance(avro, list)
    if nullable:
        avro = avro[1] if avro[0] == "null" and len(avro) == 2 else "union"
    if isinstance(avro, dict):
        avro = avro["type"]
    return str(avro), nullable


def _compile(
    field: Mapping[str, Any], binding: Binding | None, constants: bytearray
) -> tuple[int, int, int] | None:
    """Return the field's operation, None where the binding does not fit."""
    kind, nullable = _kind(field["type"])
    match binding:
        case Constant(value):
            encoded = _encoded(kind, value, nullable=nullable)
            return None if encoded is None else (_CONSTANT, *_append(constants, encoded))
        case Long(index, as_text=True, valid=valid) if kind == "string" and nullable:
            return (_DIGITS, index, valid)
        case Long(index, as_text=False) if kind in {"int", "long"} and not nullable:
            return (_LONG, index, 0)
        case Number(index) if kind == "double" and nullable:
            return (_DOUBLE, index, 0)
        case Number(index) if kind == "long" and nullable:
            return (_WHOLE, index, 0)
        case Text(index, valid, nullable=needed) if kind == "string" and nullable == needed:
            return (_TEXT if nullable else _PLAIN_TEXT, index, valid)
        case RowName(prefix) if kind == "string" and not nullable:
            return (_NAME, *_append(constants, prefix.encode()))
        case _:
            return None


def _append(constants: bytearray, data: bytes) -> tuple[int, int]:
    start = len(constants)
    constants += data
    return start, len(constants)


def _encoded(kind: str, value: str | float | None, *, nullable: bool) -> bytes | None:
    if value is None:
        return bytes([_NULL_BRANCH]) if nullable else None
    branch = bytes([_VALUE_BRANCH]) if nullable else b""
    if kind == "string" and isinstance(value, str):
        text = value.encode()
        return branch + _varint(len(text)) + text
    if kind in {"int", "long"} and isinstance(value, int):
        return branch + _varint(value)
    return None


def _varint(value: int) -> bytes:
    left, out = (value << 1) ^ (value >> 63), bytearray()
    while left >= 128:
        out.append(left & 127 | 128)
        left >>= 7
    out.append(left)
    return bytes(out)


def _bytes_max(operation: tuple[int, int, int]) -> int:
    """Return how many bytes a field takes at most, the bytes of a text not counted."""
    code, first, last = operation
    if code == _CONSTANT:
        return last - first
    if code == _NAME:
        return last - first + _NAME_BYTES
    return {
        _LONG: _LONG_BYTES,
        _DOUBLE: _DOUBLE_BYTES,
        _WHOLE: 1 + _LONG_BYTES,
        _TEXT: 1 + _LONG_BYTES,
        _PLAIN_TEXT: _LONG_BYTES,
        _DIGITS: _DIGITS_BYTES,
    }[code]


@numba.njit(nogil=True, error_model="numpy", inline="always")
def _put_varint(out: np.ndarray, at: int, value: int) -> int:
    left = np.uint64(value << 1) ^ np.uint64(value >> 63)
    while left >= np.uint64(128):
        out[at] = np.uint8(left & np.uint64(127)) | np.uint8(128)
        left >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(left)
    return at + 1


@numba.njit(nogil=True, error_model="numpy", inline="always")
def _copy(out: np.ndarray, at: int, data: np.ndarray, start: int, count: int) -> int:
    # Unsigned: a signed index is asked each time whether it counts from the end.
    to, source = np.uint64(at), np.uint64(start)
    for index in range(np.uint64(count)):
        out[to + index] = data[source + index]
    return at + count


@numba.njit(nogil=True, error_model="numpy", inline="always")
def _magnitude(value: int) -> np.uint64:
    return np.uint64(value) if value >= 0 else np.uint64(0) - np.uint64(value)


@numba.njit(nogil=True, error_model="numpy", inline="always")
def _decimal_bytes(value: int) -> int:
    """Count the characters of a number in decimal, its sign included."""
    left = _magnitude(value)
    count = 2 if value < 0 else 1
    while left >= np.uint64(10):
        left //= np.uint64(10)
        count += 1
    return count


@numba.njit(nogil=True, error_model="numpy", inline="always")
def _put_decimal(out: np.ndarray, at: int, value: int, count: int) -> int:
    """Write a number of ``count`` characters."""
    left = _magnitude(value)
    if value < 0:
        out[at] = 45
    end = at + count
    place = end - 1
    while True:
        tenth = left // np.uint64(10)
        out[place] = np.uint8(left - tenth * np.uint64(10)) + np.uint8(48)
        left = tenth
        if left == np.uint64(0):
            return end
        place -= 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _write(
    operations: np.ndarray,
    constants: np.ndarray,
    longs: np.ndarray,
    numbers: np.ndarray,
    valid: np.ndarray,
    texts: np.ndarray,
    ends: np.ndarray,
    out: np.ndarray,
    cuts: np.ndarray,
) -> None:
    bits = numbers.view(np.uint64)
    at = 0
    for row in range(longs.shape[0]):
        for step in range(operations.shape[0]):
            code, first, last = operations[step, 0], operations[step, 1], operations[step, 2]
            if code == _CONSTANT:
                at = _copy(out, at, constants, first, last - first)
            elif code == _LONG:
                at = _put_varint(out, at, longs[row, first])
            elif code == _NAME:
                partition, offset = longs[row, PARTITION], longs[row, OFFSET]
                partition_bytes, offset_bytes = _decimal_bytes(partition), _decimal_bytes(offset)
                at = _put_varint(out, at, last - first + partition_bytes + 1 + offset_bytes)
                at = _copy(out, at, constants, first, last - first)
                at = _put_decimal(out, at, partition, partition_bytes)
                out[at] = 45
                at = _put_decimal(out, at + 1, offset, offset_bytes)
            elif code <= _WHOLE:
                number = numbers[row, first]
                if np.isnan(number) or (code == _WHOLE and np.isinf(number)):
                    out[at] = _NULL_BRANCH
                    at += 1
                    continue
                out[at] = _VALUE_BRANCH
                at += 1
                if code == _WHOLE:
                    at = _put_varint(out, at, int(number))
                else:
                    word = bits[row, first]
                    for index in range(8):
                        out[at + index] = np.uint8(word >> np.uint64(8 * index))
                    at += 8
            else:
                if last >= 0 and not valid[last, row]:
                    out[at] = _NULL_BRANCH
                    at += 1
                    continue
                if code != _PLAIN_TEXT:
                    out[at] = _VALUE_BRANCH
                    at += 1
                if code == _DIGITS:
                    count = _decimal_bytes(longs[row, first])
                    at = _put_varint(out, at, count)
                    at = _put_decimal(out, at, longs[row, first], count)
                else:
                    begin, stop = ends[first, row], ends[first, row + 1]
                    at = _put_varint(out, at, int(stop - begin))
                    at = _copy(out, at, texts, begin, stop - begin)
        cuts[row + 1] = at
