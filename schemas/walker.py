"""The walker: one pass over the joined records that proves them and writes their columns.

It trusts nothing. A length is compared with the bytes that are left before it is used, an item
count with the bytes that its items need at least, so the work for a record is bounded by its size
whatever it declares. A record that fails leaves nothing behind: the cursors go back to where it
began, and the walk goes on with the next one.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from headrace.schemas import program as code

OK: Final = 0
TRUNCATED: Final = 1
TRAILING_BYTES: Final = 2
INVALID_UTF8: Final = 3
INVALID: Final = 4
TOO_MANY_ITEMS: Final = 5

# An array cannot declare more items than this, whatever the size of the record.
MAX_ITEMS: Final = 1 << 24
# Arrow bytes that null structs may take, per byte of the record and as a start.
EXPANSION: Final = 64
EXPANSION_START: Final = 1 << 16

_BOOLEAN, _INT, _LONG, _FLOAT, _DOUBLE = code.BOOLEAN, code.INT, code.LONG, code.FLOAT, code.DOUBLE
_STRING, _BYTES, _FIXED, _UUID, _DECIMAL = (
    code.STRING,
    code.BYTES,
    code.FIXED,
    code.UUID,
    code.DECIMAL,
)
_NULL, _NULLABLE, _OPTION, _UNION = code.NULL, code.NULLABLE, code.OPTION, code.UNION
_JUMP, _REPEAT, _NEXT = code.JUMP, code.REPEAT, code.NEXT
_SIGN: Final = -(1 << 63)
_LOW63: Final = (1 << 63) - 1
_MAX_VARINT: Final = 10


@njit(cache=True, nogil=True)
def read_varint(payload, position, end):  # type: ignore[no-untyped-def]
    """Return (value, next position); the position is -1 if truncated, -2 if overlong."""
    value = np.int64(0)
    for index in range(_MAX_VARINT):
        if position >= end:
            return value, -1
        byte = np.int64(payload[position])
        position += 1
        if index == _MAX_VARINT - 1 and byte > 1:
            return value, -2
        value |= (byte & 127) << (7 * index)
        if byte < 128:  # noqa: PLR2004 - the continuation bit.
            return ((value >> 1) & _LOW63) ^ -(value & 1), position
    return value, -2


@njit(cache=True, nogil=True)
def is_utf8(payload, position, end):  # type: ignore[no-untyped-def]
    """Return whether the bytes are UTF-8 as the standard has it: no overlong form, no surrogate."""
    while position < end:
        lead = np.int64(payload[position])
        position += 1
        if lead < 0x80:
            continue
        least, most = np.int64(0x80), np.int64(0xBF)
        if 0xC2 <= lead <= 0xDF:
            more = 1
        elif 0xE0 <= lead <= 0xEF:
            more = 2
            if lead == 0xE0:
                least = np.int64(0xA0)
            elif lead == 0xED:
                most = np.int64(0x9F)
        elif 0xF0 <= lead <= 0xF4:
            more = 3
            if lead == 0xF0:
                least = np.int64(0x90)
            elif lead == 0xF4:
                most = np.int64(0x8F)
        else:
            return False
        if position + more > end:
            return False
        for index in range(more):
            byte = np.int64(payload[position + index])
            if byte < least or byte > most:
                return False
            least, most = np.int64(0x80), np.int64(0xBF)
        position += more
    return True


@njit(cache=True, nogil=True)
def is_uuid(payload, position, end):  # type: ignore[no-untyped-def]
    """Return whether the bytes are a UUID of the RFC 4122 form, 36 characters."""
    if end - position != 36:
        return False
    for index in range(36):
        byte = payload[position + index]
        if index in (8, 13, 18, 23):
            if byte != 0x2D:
                return False
        elif not (0x30 <= byte <= 0x39 or 0x41 <= byte <= 0x46 or 0x61 <= byte <= 0x66):
            return False
    return True


@njit(cache=True, nogil=True)
def read_decimal(payload, position, size, limbs, constants, bound, out, base):  # type: ignore[no-untyped-def]
    """Write a big-endian two's complement number as limbs, lowest first; False if out of range.

    ``constants[bound : bound + 4]`` holds 10**precision: the magnitude must stay below it.
    """
    negative = size > 0 and payload[position] >= 128
    fill = np.int64(-1) if negative else np.int64(0)
    for index in range(size - 8 * limbs):
        if np.int64(payload[position + index]) != (fill & 255):
            return False
    carry = np.int64(1)
    verdict = 0
    for limb in range(limbs):
        word = np.int64(0)
        for index in range(8):
            place = size - 1 - (8 * limb + index)
            byte = np.int64(payload[position + place]) if place >= 0 else fill & 255
            word |= byte << (8 * index)
        out[base + limb] = word
        if negative:
            word = ~word + carry
            carry = np.int64(1) if carry == 1 and word == 0 else np.int64(0)
        limit = constants[bound + limb]
        if word != limit:
            verdict = -1 if (word ^ _SIGN) < (limit ^ _SIGN) else 1
    top = out[base + limbs - 1]
    return verdict < 0 and (top < 0) == negative


@njit(cache=True, nogil=True)
def walk_record(  # type: ignore[no-untyped-def]
    payload, start, end, ops, constants, bases, cells, data, u8, i32, i64, write, stack
):
    """Walk one record; return (verdict, pc, position).

    Shape: ``bases`` (slots, 3): where the slot's validity (bytes), main stream (in units of its
    cell, bytes for odd widths) and data (bytes) begin in the arena that u8, i32 and i64 show.
    """
    pc = 0
    position = start
    expanded = np.int64(0)
    while True:
        operation = ops[pc, 0]
        slot = ops[pc, 1]
        if operation == _LONG or operation == _INT:
            value, following = read_varint(payload, position, end)
            if following < 0:
                return (TRUNCATED if following == -1 else INVALID), pc, position
            if value < ops[pc, 2] or value > ops[pc, 3]:
                return INVALID, pc, position
            position = following
            if write:
                if operation == _LONG:
                    i64[bases[slot, 1] + cells[slot]] = value
                else:
                    i32[bases[slot, 1] + cells[slot]] = value
            cells[slot] += 1
            pc += 1
        elif operation == _STRING or operation == _BYTES or operation == _UUID:
            if operation == _BYTES and ops[pc, 2] >= 0:
                length, following = ops[pc, 2], position
            else:
                length, following = read_varint(payload, position, end)
                if following < 0:
                    return (TRUNCATED if following == -1 else INVALID), pc, position
                if length < 0:
                    return INVALID, pc, position
            if length > end - following:
                return TRUNCATED, pc, position
            position = following
            high = np.uint8(0)
            if write:
                base = bases[slot, 2] + data[slot]
                for index in range(length):
                    byte = payload[position + index]
                    u8[base + index] = byte
                    high |= byte
                i32[bases[slot, 1] + cells[slot] + 1] = data[slot] + length
            else:
                for index in range(length):
                    high |= payload[position + index]
            if operation == _STRING:
                if high >= 128 and not is_utf8(payload, position, position + length):
                    return INVALID_UTF8, pc, position
            elif operation == _UUID and not is_uuid(payload, position, position + length):
                return INVALID, pc, position
            data[slot] += length
            cells[slot] += 1
            position += length
            pc += 1
        elif operation == _DOUBLE:
            if end - position < 8:
                return TRUNCATED, pc, position
            if write:
                word = np.int64(0)
                for index in range(8):
                    word |= np.int64(payload[position + index]) << (8 * index)
                i64[bases[slot, 1] + cells[slot]] = word
            cells[slot] += 1
            position += 8
            pc += 1
        elif operation == _NULLABLE:
            branch, following = read_varint(payload, position, end)
            if following < 0:
                return (TRUNCATED if following == -1 else INVALID), pc, position
            if branch < 0 or branch > 1:
                return INVALID, pc, position
            position = following
            cell = cells[slot]
            if branch != ops[pc, 2]:
                if write:
                    u8[bases[slot, 0] + cell] = 1
                pc += 1
                continue
            if write:
                u8[bases[slot, 0] + cell] = 0
                width, unit = ops[pc, 4], ops[pc, 5]
                if width == 0:
                    i32[bases[slot, 1] + cell + 1] = data[slot]
                elif unit == 8:
                    for index in range(width // 8):
                        i64[bases[slot, 1] + cell * (width // 8) + index] = 0
                elif unit == 4:
                    i32[bases[slot, 1] + cell] = 0
                else:
                    for index in range(width):
                        u8[bases[slot, 1] + cell * width + index] = 0
            cells[slot] += 1
            pc = ops[pc, 3]
        elif operation == _BOOLEAN:
            if position >= end:
                return TRUNCATED, pc, position
            if payload[position] > 1:
                return INVALID, pc, position
            if write:
                u8[bases[slot, 1] + cells[slot]] = payload[position]
            cells[slot] += 1
            position += 1
            pc += 1
        elif operation == _FLOAT:
            if end - position < 4:
                return TRUNCATED, pc, position
            if write:
                word = np.int64(0)
                for index in range(4):
                    word |= np.int64(payload[position + index]) << (8 * index)
                i32[bases[slot, 1] + cells[slot]] = word
            cells[slot] += 1
            position += 4
            pc += 1
        elif operation == _FIXED:
            size = ops[pc, 2]
            if end - position < size:
                return TRUNCATED, pc, position
            if write:
                base = bases[slot, 1] + cells[slot] * size
                for index in range(size):
                    u8[base + index] = payload[position + index]
            cells[slot] += 1
            position += size
            pc += 1
        elif operation == _DECIMAL:
            size = ops[pc, 2]
            if size < 0:
                size, following = read_varint(payload, position, end)
                if following < 0:
                    return (TRUNCATED if following == -1 else INVALID), pc, position
                if size < 0:
                    return INVALID, pc, position
                position = following
            if size > end - position:
                return TRUNCATED, pc, position
            limbs = ops[pc, 3]
            out = i64 if write else stack[0]
            base = bases[slot, 1] + cells[slot] * limbs if write else 0
            if not read_decimal(payload, position, size, limbs, constants, ops[pc, 4], out, base):
                return INVALID, pc, position
            cells[slot] += 1
            position += size
            pc += 1
        elif operation == _NEXT:
            depth = ops[pc, 3]
            if stack[1, depth] == 0:
                if stack[2, depth] >= 0 and stack[2, depth] != position:
                    return INVALID, pc, position
                count, following = read_varint(payload, position, end)
                if following < 0:
                    return (TRUNCATED if following == -1 else INVALID), pc, position
                stack[2, depth] = -1
                if count == _SIGN:
                    return INVALID, pc, position
                if count < 0:
                    count = -count
                    size, following = read_varint(payload, following, end)
                    if following < 0:
                        return (TRUNCATED if following == -1 else INVALID), pc, position
                    if size < 0:
                        return INVALID, pc, position
                    if count <= MAX_ITEMS and size > end - following:
                        return TRUNCATED, pc, position
                    stack[2, depth] = following + size
                if count > MAX_ITEMS:
                    return TOO_MANY_ITEMS, pc, position
                if count * ops[pc, 4] > end - following:
                    return TRUNCATED, pc, position
                expanded += count * ops[pc, 5]
                if expanded > EXPANSION_START + EXPANSION * (end - start):
                    return TOO_MANY_ITEMS, pc, position
                position = following
                if count == 0:
                    if write:
                        i32[bases[slot, 1] + cells[slot] + 1] = data[slot]
                    cells[slot] += 1
                    pc = ops[pc, 2]
                    continue
                stack[1, depth] = count
            stack[1, depth] -= 1
            data[slot] += 1
            pc += 1
        elif operation == _REPEAT:
            stack[1, ops[pc, 1]] = 0
            stack[2, ops[pc, 1]] = -1
            pc += 1
        elif operation == _JUMP:
            pc = ops[pc, 1]
        elif operation == _OPTION or operation == _UNION:
            branch, following = read_varint(payload, position, end)
            if following < 0:
                return (TRUNCATED if following == -1 else INVALID), pc, position
            if branch < 0 or branch >= (2 if operation == _OPTION else ops[pc, 2]):
                return INVALID, pc, position
            position = following
            cell = bases[slot, 1] + cells[slot]
            cells[slot] += 1
            if operation == _UNION:
                if write:
                    u8[cell] = branch
                pc = constants[ops[pc, 3] + branch]
            elif branch == ops[pc, 2]:
                if write:
                    u8[cell] = 0
                pc = ops[pc, 3]
            else:
                if write:
                    u8[cell] = 1
                pc += 1
        elif operation == _NULL:
            cells[slot] += 1
            pc += 1
        else:
            return (OK if position == end else TRAILING_BYTES), pc, position


@njit(cache=True, nogil=True)
def walk(  # type: ignore[no-untyped-def]
    payload, starts, ends, ops, constants, bases, cells, data, u8, i32, i64, write, verdicts, places
):
    """Walk all records; return how many are good. ``cells`` and ``data`` are the slots' cursors.

    Without ``write`` only the cursors move: that is how the size of nested columns is found.

    Shape: ``verdicts`` (records,), ``places`` (records, 2): pc and byte of the refusal.
    """
    stack = np.zeros((3, 64), dtype=np.int64)
    saved_cells = cells.copy()
    saved_data = data.copy()
    good = 0
    for row in range(len(starts)):
        verdict, pc, position = walk_record(
            payload,
            starts[row],
            ends[row],
            ops,
            constants,
            bases,
            cells,
            data,
            u8,
            i32,
            i64,
            write,
            stack,
        )
        verdicts[row] = verdict
        if verdict == OK:
            good += 1
            for slot in range(len(cells)):
                saved_cells[slot] = cells[slot]
                saved_data[slot] = data[slot]
        else:
            places[row, 0] = pc
            places[row, 1] = position - starts[row]
            for slot in range(len(cells)):
                cells[slot] = saved_cells[slot]
                data[slot] = saved_data[slot]
    return good
