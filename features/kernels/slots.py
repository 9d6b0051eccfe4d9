"""From a key to its slot: open addressing on the 64-bit hash, and the keys' bytes to be certain.

Slots are numbered in the order in which keys come and are never reused yet, so an abort forgets
the newest keys by emptying their places in reverse order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headrace.features.kernels.compiled import entry, inner
from headrace.features.kernels.memory import M_ARENA, M_KEYS, Memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.features.kernels.layout import Layout

_ZERO = np.uint64(0)
_ONE = np.uint64(1)


class Keys(NamedTuple):
    """A batch's keys: hash 0 is the null key. Integers are compared as such, others as bytes."""

    hashes: np.ndarray
    integers: np.ndarray
    offsets: np.ndarray
    data: np.ndarray
    are_integers: bool


@inner
def _place(table: np.ndarray, key_hash: np.uint64) -> np.int64:
    """Return where the probing for a hash starts: its high bits, as partitions use the low."""
    return np.int64((key_hash >> np.uint64(20)) & np.uint64(table.shape[0] - 1))


@inner
def _is_key(memory: Memory, slot: np.int64, keys: Keys, row: int) -> bool:
    if keys.are_integers:
        return bool(memory.keys[slot, 0] == keys.integers[row])
    start, length = keys.offsets[row], keys.offsets[row + 1] - keys.offsets[row]
    if memory.keys[slot, 1] != length:
        return False
    stored = memory.keys[slot, 0]
    for byte in range(length):  # noqa: SIM110 - numba compiles loops, not generators
        if memory.arena[stored + byte] != keys.data[start + byte]:
            return False
    return True


@inner
def _find(memory: Memory, keys: Keys, row: int) -> tuple[np.int64 | int, np.int64]:
    """Return (slot or -1, place in the table where it is or would be)."""
    table, key_hash = memory.table, keys.hashes[row]
    at = _place(table, key_hash)
    while table[at, 1] != _ZERO:
        if table[at, 0] == key_hash:
            slot = np.int64(table[at, 1]) - 1
            if _is_key(memory, slot, keys, row):
                return slot, at
        at = (at + 1) & (table.shape[0] - 1)
    return -1, at


@inner
def _create(layout: Layout, memory: Memory, keys: Keys, row: int, at: np.int64) -> int:
    meta = memory.meta
    slot = int(meta[M_KEYS])
    meta[M_KEYS] = slot + 1
    memory.table[at, 0] = keys.hashes[row]
    memory.table[at, 1] = np.uint64(slot + 1)
    if keys.are_integers:
        memory.keys[slot, 0] = keys.integers[row]
    else:
        start, length = keys.offsets[row], keys.offsets[row + 1] - keys.offsets[row]
        memory.keys[slot, 0] = meta[M_ARENA]
        memory.keys[slot, 1] = length
        for byte in range(length):
            memory.arena[meta[M_ARENA] + byte] = keys.data[start + byte]
        meta[M_ARENA] += length
    memory.key_hashes[slot] = keys.hashes[row]
    for word in range(layout.header.shape[0]):
        memory.heads[slot, word] = layout.header[word]
    memory.touched[slot] = 0
    return slot


def _make_resolve(stamp: int) -> Callable[..., Any]:
    def resolve(
        layout: Layout,
        memory: Memory,
        keys: Keys,
        insert: np.ndarray,
        slots: np.ndarray,
        start: int,
    ) -> int:
        """Fill ``slots`` from row ``start`` on; return the row that needs more room, or the end.

        Null keys and unknown keys that only ask get -1.
        """
        rows = keys.hashes.shape[0] if stamp >= 0 else 0
        for row in range(start, rows):
            slots[row] = -1
            if keys.hashes[row] == _ZERO:
                continue
            slot, at = _find(memory, keys, row)
            if slot < 0 and insert[row] != 0:
                used = memory.meta[M_KEYS]
                length = 0 if keys.are_integers else keys.offsets[row + 1] - keys.offsets[row]
                if (
                    used >= memory.heads.shape[0]
                    or 2 * (used + 1) > memory.table.shape[0]
                    or memory.meta[M_ARENA] + length > memory.arena.shape[0]
                ):
                    return row
                slot = _create(layout, memory, keys, row, at)
            slots[row] = slot
        return rows

    return resolve


resolve_slots = entry(_make_resolve)


def _make_rehash(stamp: int) -> Callable[..., Any]:
    def rehash(table: np.ndarray, key_hashes: np.ndarray, count: int) -> None:
        """Fill an empty table with slots 0..count in that order, so that an abort can undo it."""
        for slot in range(count if stamp >= 0 else 0):
            at = _place(table, key_hashes[slot])
            while table[at, 1] != _ZERO:
                at = (at + 1) & (table.shape[0] - 1)
            table[at, 0] = key_hashes[slot]
            table[at, 1] = np.uint64(slot) + _ONE

    return rehash


rehash_slots = entry(_make_rehash)


@inner
def forget_keys(memory: Memory, keep: int) -> None:
    """Empty the places of all slots from ``keep`` on, newest first: exactly what adding undid."""
    table = memory.table
    for slot in range(memory.meta[M_KEYS] - 1, keep - 1, -1):
        at = _place(table, memory.key_hashes[slot])
        while table[at, 1] != np.uint64(slot + 1):
            at = (at + 1) & (table.shape[0] - 1)
        table[at, 0] = _ZERO
        table[at, 1] = _ZERO
    memory.meta[M_KEYS] = keep
