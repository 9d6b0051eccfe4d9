"""Keys forgotten: their cells, headers and bytes go, and nothing else of the state changes.

Rare, so it is numpy on the kernels' arrays. In a transaction only what finds the key changes; the
cells stand until its commit, so that an abort brings all back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headrace.features.kernels.layout import (
    BLOCK,
    CAPACITY,
    FIRST_CAPACITY,
    LAG_BLOCK,
    LAG_CAPACITY,
    R_HEAD,
    R_KNOWN,
    R_STRIDE,
    R_TREE,
    R_TREE_END,
    Layout,
)
from headrace.features.kernels.memory import M_KEYS, Memory
from headrace.features.kernels.slots import rehash_slots

if TYPE_CHECKING:
    from collections.abc import Sequence

_DEAD = np.uint64(0)


class Block(NamedTuple):
    """A block of the pool: where it is, of which kind, with room for how many cells."""

    start: int
    kind: int
    capacity: int


class Forgotten(NamedTuple):
    """A slot that no key finds any more, the hash that found it, and the blocks it had."""

    slot: int
    key_hash: np.uint64
    blocks: tuple[Block, ...]


def forget_slot(layout: Layout, memory: Memory, slot: int) -> Forgotten:
    """Let no key find the slot, and make its header that of a key that never was.

    The slot's place in the table stays taken: those behind it are found past it. No key has hash 0.
    """
    key_hash = memory.key_hashes[slot]
    place = np.flatnonzero(memory.table[:, 1] == np.uint64(slot + 1))
    assert place.size == 1, (slot, place)
    memory.table[place[0], 0] = _DEAD
    memory.key_hashes[slot] = _DEAD
    blocks = _blocks(layout, memory.heads[slot])
    memory.heads[slot] = layout.header
    return Forgotten(slot, key_hash, blocks)


def wipe(
    layout: Layout, memory: Memory, forgotten: Sequence[Forgotten], *, are_integers: bool
) -> None:
    """Give the keys' blocks back, and zero all that is left of them, outside a transaction.

    A key that grew has left copies of its cells in blocks that are free now.
    """
    for slot, _, blocks in forgotten:
        for block in blocks:
            size_class = (block.capacity // FIRST_CAPACITY).bit_length() - 1
            memory.pool[block.start] = memory.free[block.kind, size_class]
            memory.free[block.kind, size_class] = block.start
        if are_integers:
            memory.keys[slot] = 0
        else:
            # Place and length stay: the keys' bytes lie in the order of their slots.
            start, length = memory.keys[slot]
            memory.arena[start : start + length] = 0
    for kind, size_class in np.argwhere(memory.free >= 0).tolist():
        words = (FIRST_CAPACITY << size_class) * _cell_words(layout, kind)
        start = int(memory.free[kind, size_class])
        while start >= 0:
            memory.pool[start + 1 : start + words] = 0
            start = int(memory.pool[start])
    memory.log[:] = 0
    memory.saved[:] = 0


def find_again(memory: Memory, forgotten: Sequence[Forgotten]) -> None:
    """Give slots the hashes back that found them; ``rebuild_table`` makes them found."""
    for slot, key_hash, _ in forgotten:
        memory.key_hashes[slot] = key_hash


def rebuild_table(memory: Memory) -> None:
    """Fill the table anew from the slots' hashes."""
    memory.table[:] = 0
    rehash_slots(memory.table, memory.key_hashes, int(memory.meta[M_KEYS]))


def _blocks(layout: Layout, header: np.ndarray) -> tuple[Block, ...]:
    found = []
    for ring, row in enumerate(layout.rings):
        head = int(row[R_HEAD])
        if capacity := int(header[head + CAPACITY]):
            found.append(Block(int(header[head + BLOCK]), 2 * ring, capacity))
        if row[R_KNOWN] and (capacity := int(header[head + LAG_CAPACITY])):
            found.append(Block(int(header[head + LAG_BLOCK]), 2 * ring + 1, capacity))
    return tuple(found)


def _cell_words(layout: Layout, kind: int) -> int:
    """As ``memory.block_words``, for one cell."""
    row = layout.rings[kind >> 1]
    trees = 0 if kind & 1 else int(row[R_TREE_END] - row[R_TREE])
    return int(row[R_STRIDE]) + trees
