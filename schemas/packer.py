"""The packer: Arrow columns of plain values to Avro records, one after the other in one buffer.

Takes the columns as addresses (see ``memory``): the caller has checked their types and nulls, keeps
them alive, and gives a buffer in which the longest possible records fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from numba import njit

from headrace.schemas.memory import address_of, load8, load32, load64, store8, store32, store64

if TYPE_CHECKING:
    import numpy as np

# How a column's values are written. They stand here for numba's cache, as in ``walker``.
LONG: Final = 0
INT: Final = 1
DOUBLE: Final = 2
FLOAT: Final = 3
VARIABLE: Final = 4
BOOLEAN: Final = 5

# A column is a row of int64. OPERATION; VALIDITY: address of the bitmap, 0 if nothing is null;
# VALUES: address of the first value, offset or bitmap; DATA and LIMIT: begin and end of variable
# bytes; BIT: index of the first row's bit; NULL_BRANCH: -1 unless the type is a union with null.
OPERATION, VALIDITY, VALUES, DATA, LIMIT, BIT, NULL_BRANCH, COLUMN_FIELDS = range(8)
_OPERATION, _VALIDITY, _VALUES, _DATA, _LIMIT = 0, 8, 16, 24, 32
_BIT, _NULL_BRANCH, _COLUMN_BYTES = 40, 48, 56

# The most bytes of a value of each operation, the branch number apart; VARIABLE: of its length.
MOST_BYTES: Final = (10, 5, 8, 4, 5, 1)
HEADER_BYTES: Final = 5
# Variable bytes are copied in words: the buffer must be this much longer than the records.
SLACK_BYTES: Final = 8
_LOW57: Final = (1 << 57) - 1

_kernel = njit(cache=True, nogil=True)


@_kernel
def write_varint(value: int, target: int) -> int:
    """Write a number as zigzag varint; return the next address."""
    zigzag = (value << 1) ^ (value >> 63)
    while (zigzag & ~127) != 0:
        store8(target, (zigzag & 127) | 128)
        target += 1
        # Numbers are signed here: the mask makes the shift a logical one.
        zigzag = (zigzag >> 7) & _LOW57
    store8(target, zigzag)
    return target + 1


@_kernel
def copy_words(source: int, length: int, limit: int, target: int) -> int:
    """Copy bytes, in words where the source allows it; return the next address."""
    offset = 0
    if source + length + 8 <= limit:
        while offset < length:
            store64(target + offset, load64(source + offset))
            offset += 8
    else:
        while offset < length:
            store8(target + offset, load8(source + offset))
            offset += 1
    return target + length


@_kernel
def pack_value(column: int, operation: int, row: int, target: int) -> int:
    """Write one value; return the next address."""
    values = load64(column + _VALUES)
    if operation == LONG:
        return write_varint(load64(values + 8 * row), target)
    if operation == INT:
        return write_varint(load32(values + 4 * row), target)
    if operation == DOUBLE:
        store64(target, load64(values + 8 * row))
        return target + 8
    if operation == VARIABLE:
        start = load32(values + 4 * row)
        length = load32(values + 4 * row + 4) - start
        target = write_varint(length, target)
        return copy_words(load64(column + _DATA) + start, length, load64(column + _LIMIT), target)
    if operation == FLOAT:
        store32(target, load32(values + 4 * row))
        return target + 4
    bit = load64(column + _BIT) + row
    store8(target, (load8(values + (bit >> 3)) >> (bit & 7)) & 1)
    return target + 1


@_kernel
def pack_record(columns: int, count: int, row: int, target: int) -> int:
    """Write one record; return the next address."""
    for index in range(count):
        column = columns + _COLUMN_BYTES * index
        null_branch = load64(column + _NULL_BRANCH)
        if null_branch >= 0:
            validity = load64(column + _VALIDITY)
            bit = load64(column + _BIT) + row
            if validity != 0 and ((load8(validity + (bit >> 3)) >> (bit & 7)) & 1) == 0:
                store8(target, 2 * null_branch)
                target += 1
                continue
            store8(target, 2 * (1 - null_branch))
            target += 1
        target = pack_value(column, load64(column + _OPERATION), row, target)
    return target


@_kernel
def pack(columns: np.ndarray, rows: int, header: int, out: np.ndarray, ends: np.ndarray) -> int:
    """Write all rows, each behind the wire header; return how many bytes they take.

    Shape: ``columns`` (columns, COLUMN_FIELDS) int64; ``header`` its five bytes, first in the
    lowest; ``out`` uint8, long enough; ``ends`` (rows,) int64.
    """
    base = address_of(out)
    first = address_of(columns)
    target = base
    for row in range(rows):
        store64(target, header)
        target = pack_record(first, len(columns), row, target + HEADER_BYTES)
        ends[row] = target - base
    return target - base
