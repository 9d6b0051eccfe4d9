"""The walker: one pass over the joined records that proves them and writes their columns.

It trusts nothing. A length is compared with the bytes that are left before it is used, an item
count with the bytes that its items need at least, so the work for a record is bounded by its size
whatever it declares. A record that fails leaves nothing behind: the cursors go back to where it
began, and the walk goes on with the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from numba import njit

from headrace.schemas.memory import address_of, load8, load64, store8, store32, store64

if TYPE_CHECKING:
    import numpy as np

# The operations, and the operands behind each. They stand here because numba's cache looks at this
# file alone: a number that changed elsewhere would meet code compiled with the old one.
END: Final = 0
BOOLEAN: Final = 1  # slot
INT: Final = 2  # slot, least, greatest
LONG: Final = 3  # slot, least, greatest
FLOAT: Final = 4  # slot
DOUBLE: Final = 5  # slot
STRING: Final = 6  # slot
BYTES: Final = 7  # slot, size (-1: a length precedes)
FIXED: Final = 8  # slot, size
UUID: Final = 9  # slot
DECIMAL: Final = 10  # slot, size (-1: a length precedes), limbs, first constant of the bound
NULL: Final = 11  # slot
NULLABLE: Final = 12  # slot, null branch, pc after the value, bytes of a cell (0: variable)
OPTION: Final = 13  # slot, null branch, pc after the value
UNION: Final = 14  # slot, branches, first constant of the jump table
JUMP: Final = 15  # 0, pc
REPEAT: Final = 16  # 0, 0, depth
NEXT: Final = 17  # slot, pc after the last item, depth, least bytes of an item, bytes if null

OPERANDS: Final = 6
# Arrays and maps inside each other: the parser refuses what is deeper.
MAX_REPEATS: Final = 40

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

# An instruction and a slot are rows of int64; these are the byte offsets of their columns.
_SLOT, _B, _C, _D, _E, OP_BYTES = 8, 16, 24, 32, 40, 48
# Where a slot's streams begin (addresses), its cells so far, its items or data bytes so far.
VALIDITY, MAIN, DATA, CELLS, FILLED, SLOT_COLUMNS = 0, 1, 2, 3, 4, 5
_VALIDITY, _MAIN, _DATA, _CELLS, _FILLED, SLOT_BYTES = 0, 8, 16, 24, 32, 40
# A frame per depth of arrays and maps: items left in the block, where the block must end, or 0.
_LEFT, _BLOCK_END, FRAME_BYTES = 0, 8, 16

_SIGN: Final = -(1 << 63)
_LOW63: Final = (1 << 63) - 1
_HIGH_BITS: Final = -0x7F7F7F7F7F7F7F80  # 0x80 in each of eight bytes.
_LAST_SHIFT: Final = 63

_kernel = njit(cache=True, nogil=True)


@_kernel
def read_varint(position: int, end: int) -> tuple[int, int]:
    """Return (value, next position); the position is minus a verdict if there is none."""
    if position >= end:
        return 0, -TRUNCATED
    byte = load8(position)
    position += 1
    value = byte & 127
    shift = 7
    while byte >= 128:
        if position >= end:
            return 0, -TRUNCATED
        byte = load8(position)
        position += 1
        # The tenth byte holds the last bit of 64.
        if shift == _LAST_SHIFT and byte > 1:
            return 0, -INVALID
        value |= (byte & 127) << shift
        shift += 7
    return ((value >> 1) & _LOW63) ^ -(value & 1), position


@_kernel
def is_utf8(position: int, end: int) -> bool:
    """Return whether the bytes are UTF-8 as the standard has it: no overlong form, no surrogate."""
    while position < end:
        lead = load8(position)
        position += 1
        if lead < 0x80:
            continue
        least, most = 0x80, 0xBF
        if 0xC2 <= lead <= 0xDF:
            more = 1
        elif 0xE0 <= lead <= 0xEF:
            more = 2
            if lead == 0xE0:
                least = 0xA0
            elif lead == 0xED:
                most = 0x9F
        elif 0xF0 <= lead <= 0xF4:
            more = 3
            if lead == 0xF0:
                least = 0x90
            elif lead == 0xF4:
                most = 0x8F
        else:
            return False
        if position + more > end:
            return False
        for index in range(more):
            byte = load8(position + index)
            if byte < least or byte > most:
                return False
            least, most = 0x80, 0xBF
        position += more
    return True


@_kernel
def is_uuid(position: int, end: int) -> bool:
    """Return whether the bytes are a UUID of the RFC 4122 form, 36 characters."""
    if end - position != 36:
        return False
    for index in range(36):
        byte = load8(position + index)
        if index in (8, 13, 18, 23):
            if byte != 0x2D:
                return False
        elif not (0x30 <= byte <= 0x39 or 0x41 <= byte <= 0x46 or 0x61 <= byte <= 0x66):
            return False
    return True


@_kernel
def copy_bytes(position: int, length: int, limit: int, target: int) -> bool:
    """Copy bytes in words; may write up to seven more behind them. True if all are below 128."""
    high = 0
    offset = 0
    if position + length + 8 <= limit:
        while offset < length:
            word = load64(position + offset)
            store64(target + offset, word)
            left = length - offset
            if left < 8:
                word &= (1 << (8 * left)) - 1
            high |= word
            offset += 8
        return (high & _HIGH_BITS) == 0
    while offset < length:
        byte = load8(position + offset)
        store8(target + offset, byte)
        high |= byte
        offset += 1
    return high < 128


@_kernel
def walk_integer(position: int, end: int, op: int, slot: int, write: bool) -> int:
    """Walk an int, long, date, time, timestamp or enum; return the next position."""
    value, position = read_varint(position, end)
    if position < 0:
        return position
    if value < load64(op + _B) or value > load64(op + _C):
        return -INVALID
    cell = load64(slot + _CELLS)
    if write:
        if load64(op) == LONG:
            store64(load64(slot + _MAIN) + 8 * cell, value)
        else:
            store32(load64(slot + _MAIN) + 4 * cell, value)
    store64(slot + _CELLS, cell + 1)
    return position


@_kernel
def walk_bytes(position: int, end: int, limit: int, op: int, slot: int, write: bool) -> int:
    """Walk a string, uuid, bytes or large fixed; return the next position."""
    operation = load64(op)
    length = load64(op + _B) if operation == BYTES else -1
    if length < 0:
        length, position = read_varint(position, end)
        if position < 0:
            return position
        if length < 0:
            return -INVALID
    if length > end - position:
        return -TRUNCATED
    following = position + length
    filled = load64(slot + _FILLED)
    cell = load64(slot + _CELLS)
    ascii_only = False
    if write:
        ascii_only = copy_bytes(position, length, limit, load64(slot + _DATA) + filled)
        store32(load64(slot + _MAIN) + 4 * cell + 4, filled + length)
    if operation == STRING:
        if not ascii_only and not is_utf8(position, following):
            return -INVALID_UTF8
    elif operation == UUID and not is_uuid(position, following):
        return -INVALID
    store64(slot + _FILLED, filled + length)
    store64(slot + _CELLS, cell + 1)
    return following


@_kernel
def walk_fixed(position: int, end: int, slot: int, size: int, write: bool) -> int:
    """Walk a value of so many bytes that Arrow keeps as they are; return the next position."""
    if size > end - position:
        return -TRUNCATED
    cell = load64(slot + _CELLS)
    if write:
        target = load64(slot + _MAIN) + size * cell
        for index in range(size):
            store8(target + index, load8(position + index))
    store64(slot + _CELLS, cell + 1)
    return position + size


@_kernel
def walk_double(position: int, end: int, slot: int, write: bool) -> int:
    """Walk a double; return the next position."""
    if end - position < 8:
        return -TRUNCATED
    cell = load64(slot + _CELLS)
    if write:
        store64(load64(slot + _MAIN) + 8 * cell, load64(position))
    store64(slot + _CELLS, cell + 1)
    return position + 8


@_kernel
def walk_boolean(position: int, end: int, slot: int, write: bool) -> int:
    """Walk a boolean; return the next position."""
    if position >= end:
        return -TRUNCATED
    if load8(position) > 1:
        return -INVALID
    cell = load64(slot + _CELLS)
    if write:
        store8(load64(slot + _MAIN) + cell, load8(position))
    store64(slot + _CELLS, cell + 1)
    return position + 1


@_kernel
def walk_decimal(position: int, end: int, op: int, slot: int, constants: int, write: bool) -> int:
    """Walk a big-endian two's complement number; return the next position.

    It becomes limbs, lowest first. The magnitude must stay below 10**precision, which stands in
    four limbs among the constants.
    """
    size, limbs = load64(op + _B), load64(op + _C)
    bound = constants + 8 * load64(op + _D)
    if size < 0:
        size, position = read_varint(position, end)
        if position < 0:
            return position
        if size < 0:
            return -INVALID
    if size > end - position:
        return -TRUNCATED
    negative = size > 0 and load8(position) >= 128
    fill = 255 if negative else 0
    for index in range(size - 8 * limbs):
        if load8(position + index) != fill:
            return -INVALID
    cell = load64(slot + _CELLS)
    target = load64(slot + _MAIN) + 8 * limbs * cell
    carry = negative
    order = 0
    word = 0
    for limb in range(limbs):
        word = 0
        for index in range(8):
            place = size - 1 - 8 * limb - index
            word |= (load8(position + place) if place >= 0 else fill) << (8 * index)
        if write:
            store64(target + 8 * limb, word)
        magnitude = word
        if negative:
            magnitude = ~word + (1 if carry else 0)
            carry = carry and magnitude == 0
        most = load64(bound + 8 * limb)
        if magnitude != most:
            order = -1 if (magnitude ^ _SIGN) < (most ^ _SIGN) else 1
    if order >= 0 or (word < 0) != negative:
        return -INVALID
    store64(slot + _CELLS, cell + 1)
    return position + size


@_kernel
def write_null(op: int, slot: int, cell: int) -> None:
    """Write a null cell of a nullable value: defined bytes, so that equal batches are equal."""
    store8(load64(slot + _VALIDITY) + cell, 0)
    width = load64(op + _D)
    main = load64(slot + _MAIN)
    if width == 8:
        store64(main + 8 * cell, 0)
    elif width == 0:
        store32(main + 4 * cell + 4, load64(slot + _FILLED))
    else:
        for index in range(width):
            store8(main + width * cell + index, 0)


@_kernel
def walk_branch(
    position: int, end: int, op: int, slot: int, pc: int, constants: int, write: bool
) -> tuple[int, int]:
    """Walk a union's branch number; return (next position, next pc)."""
    operation = load64(op)
    branch, position = read_varint(position, end)
    if position < 0:
        return position, pc
    if branch < 0 or branch >= (load64(op + _B) if operation == UNION else 2):
        return -INVALID, pc
    cell = load64(slot + _CELLS)
    if operation == UNION:
        if write:
            store8(load64(slot + _MAIN) + cell, branch)
        store64(slot + _CELLS, cell + 1)
        return position, load64(constants + 8 * (load64(op + _C) + branch))
    null = branch == load64(op + _B)
    if operation == NULLABLE:
        if not null:
            if write:
                store8(load64(slot + _VALIDITY) + cell, 1)
            return position, pc + 1
        if write:
            write_null(op, slot, cell)
        store64(slot + _CELLS, cell + 1)
        return position, load64(op + _C)
    if write:
        store8(load64(slot + _MAIN) + cell, 0 if null else 1)
    store64(slot + _CELLS, cell + 1)
    return position, (load64(op + _C) if null else pc + 1)


@_kernel
def walk_block(  # noqa: PLR0911 - each lie that a block can tell.
    position: int, end: int, op: int, frame: int, allowance: int
) -> tuple[int, int]:
    """Walk the head of a block of items; return (next position, allowance left)."""
    block_end = load64(frame + _BLOCK_END)
    if block_end not in (0, position):
        return -INVALID, allowance
    store64(frame + _BLOCK_END, 0)
    count, position = read_varint(position, end)
    if position < 0:
        return position, allowance
    if count < 0:
        if count < -MAX_ITEMS:
            return -TOO_MANY_ITEMS, allowance
        count = -count
        size, position = read_varint(position, end)
        if position < 0:
            return position, allowance
        if size < 0:
            return -INVALID, allowance
        if size > end - position:
            return -TRUNCATED, allowance
        store64(frame + _BLOCK_END, position + size)
    if count > MAX_ITEMS:
        return -TOO_MANY_ITEMS, allowance
    if count * load64(op + _D) > end - position:
        return -TRUNCATED, allowance
    allowance -= count * load64(op + _E)
    if allowance < 0:
        return -TOO_MANY_ITEMS, allowance
    store64(frame + _LEFT, count)
    return position, allowance


@_kernel
def walk_next(
    position: int, end: int, op: int, slot: int, pc: int, frame: int, allowance: int, write: bool
) -> tuple[int, int, int]:
    """Go to the next item of an array or map, or behind it; return (position, pc, allowance)."""
    left = load64(frame + _LEFT)
    if left == 0:
        position, allowance = walk_block(position, end, op, frame, allowance)
        if position < 0:
            return position, pc, allowance
        left = load64(frame + _LEFT)
        if left == 0:
            cell = load64(slot + _CELLS)
            if write:
                store32(load64(slot + _MAIN) + 4 * cell + 4, load64(slot + _FILLED))
            store64(slot + _CELLS, cell + 1)
            return position, load64(op + _B), allowance
    store64(frame + _LEFT, left - 1)
    store64(slot + _FILLED, load64(slot + _FILLED) + 1)
    return position, pc + 1, allowance


@_kernel
def walk_value(
    position: int, end: int, limit: int, op: int, slot: int, constants: int, write: bool
) -> int:
    """Walk a value that has no parts; return the next position."""
    operation = load64(op)
    if operation in (LONG, INT):
        return walk_integer(position, end, op, slot, write)
    if operation in (STRING, BYTES, UUID):
        return walk_bytes(position, end, limit, op, slot, write)
    if operation == DOUBLE:
        return walk_double(position, end, slot, write)
    if operation == BOOLEAN:
        return walk_boolean(position, end, slot, write)
    if operation == FLOAT:
        return walk_fixed(position, end, slot, 4, write)
    if operation == FIXED:
        return walk_fixed(position, end, slot, load64(op + _B), write)
    if operation == DECIMAL:
        return walk_decimal(position, end, op, slot, constants, write)
    store64(slot + _CELLS, load64(slot + _CELLS) + 1)
    return position


@_kernel
def walk_record(
    start: int, end: int, limit: int, ops: int, constants: int, slots: int, frames: int, write: bool
) -> tuple[int, int, int]:
    """Walk one record; return (verdict, pc, position) of where it ended or failed."""
    pc = 0
    position = start
    allowance = EXPANSION_START + EXPANSION * (end - start)
    while True:
        op = ops + OP_BYTES * pc
        operation = load64(op)
        slot = slots + SLOT_BYTES * load64(op + _SLOT)
        begin = position
        following = pc + 1
        if operation < NULLABLE:
            if operation == END:
                return (OK if position == end else TRAILING_BYTES), pc, position
            position = walk_value(position, end, limit, op, slot, constants, write)
        elif operation <= UNION:
            position, following = walk_branch(position, end, op, slot, pc, constants, write)
        elif operation == JUMP:
            following = load64(op + _B)
        else:
            frame = frames + FRAME_BYTES * load64(op + _C)
            if operation == REPEAT:
                store64(frame + _LEFT, 0)
                store64(frame + _BLOCK_END, 0)
            else:
                position, following, allowance = walk_next(
                    position, end, op, slot, pc, frame, allowance, write
                )
        if position < 0:
            return -position, pc, begin
        pc = following


@_kernel
def walk(
    payload: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    ops: np.ndarray,
    constants: np.ndarray,
    slots: np.ndarray,
    saved: np.ndarray,
    frames: np.ndarray,
    write: bool,
    verdicts: np.ndarray,
    places: np.ndarray,
) -> int:
    """Walk all records; return how many are good.

    Without ``write`` only the cursors move: that is how the size of nested columns is found. With
    it, records that already have a verdict are passed by: there is no room for what they declare.

    Shape: ``payload`` uint8; ``starts``, ``ends`` (records,) int64 positions in it; ``ops`` and
    ``constants`` as in ``program.Program``; ``slots`` and a copy, ``saved``, (slots, SLOT_COLUMNS)
    int64; ``frames`` (MAX_REPEATS, 2) int64, room to work in; ``verdicts`` (records,), zero at
    first; ``places`` (records, 2): pc and byte of a refusal. All C-contiguous.
    """
    base = address_of(payload)
    good = 0
    for row in range(len(starts)):
        if write and verdicts[row] != OK:
            continue
        start = base + starts[row]
        verdict, pc, position = walk_record(
            start,
            base + ends[row],
            base + len(payload),
            address_of(ops),
            address_of(constants),
            address_of(slots),
            address_of(frames),
            write,
        )
        verdicts[row] = verdict
        if verdict == OK:
            good += 1
            for slot in range(len(slots)):
                saved[slot, CELLS] = slots[slot, CELLS]
                saved[slot, FILLED] = slots[slot, FILLED]
        else:
            places[row, 0] = pc
            places[row, 1] = position - start
            for slot in range(len(slots)):
                slots[slot, CELLS] = saved[slot, CELLS]
                slots[slot, FILLED] = saved[slot, FILLED]
    return good
