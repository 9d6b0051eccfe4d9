"""What a state keeps, as arrays: a pool of blocks, header rows, and the journal of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headrace.features.kernels.compiled import inlined, inner, pointer
from headrace.features.kernels.layout import (
    FIRST_CAPACITY,
    R_STRIDE,
    R_TREE,
    R_TREE_END,
    R_WIDTH,
    SIZE_CLASSES,
    Layout,
)

if TYPE_CHECKING:
    import numpy as np

# Words of ``Memory.meta``.
M_POOL, M_KEYS, M_ARENA, M_OPEN, M_BASE_KEYS, M_SAVED, M_LOG, M_BLOCKS = range(8)
M_NEED_POOL, M_NEED_LOG, M_BASE_ARENA = 8, 9, 10
M_POOL_ROOM, M_LOG_ROOM, M_SAVED_ROOM, M_BLOCKS_ROOM = 11, 12, 13, 14
META_WORDS = 16
TAKEN, GIVEN = 1, 0


class Memory(NamedTuple):
    """All that one ``EntityState`` keeps, and its undo journal.

    ``pool_floats`` is ``pool`` seen as float64. ``meta`` holds the counters (``M_*``); ``M_OPEN``
    is the number of the open transaction, 0 outside one.
    """

    pool: np.ndarray
    pool_floats: np.ndarray
    heads: np.ndarray
    table: np.ndarray
    keys: np.ndarray
    key_hashes: np.ndarray
    arena: np.ndarray
    free: np.ndarray
    touched: np.ndarray
    saved: np.ndarray
    saved_slots: np.ndarray
    log: np.ndarray
    block_log: np.ndarray
    meta: np.ndarray


@inner
def look_memory(memory: Memory) -> Memory:
    """Return the arrays as pointers, for kernels that add nothing."""
    return Memory(
        pointer(memory.pool),
        pointer(memory.pool_floats),
        pointer(memory.heads),
        pointer(memory.table),
        pointer(memory.keys),
        pointer(memory.key_hashes),
        pointer(memory.arena),
        pointer(memory.free),
        pointer(memory.touched),
        pointer(memory.saved),
        pointer(memory.saved_slots),
        pointer(memory.log),
        pointer(memory.block_log),
        pointer(memory.meta),
    )


@inner
def view_memory(memory: Memory) -> Memory:
    """Return the arrays as pointers, and note their lengths in ``meta``."""
    memory.meta[M_POOL_ROOM] = memory.pool.shape[0]
    memory.meta[M_LOG_ROOM] = memory.log.shape[0]
    memory.meta[M_SAVED_ROOM] = memory.saved.shape[0]
    memory.meta[M_BLOCKS_ROOM] = memory.block_log.shape[0]
    return look_memory(memory)


@inlined
def block_words(layout: Layout, kind: int, capacity: int) -> int:
    """Return the words of a block; ``kind`` is 2 * ring for cells, 2 * ring + 1 for a lag list."""
    ring = kind >> 1
    words = layout.rings[ring * R_WIDTH + R_STRIDE]
    if kind & 1 == 0:
        words += layout.rings[ring * R_WIDTH + R_TREE_END] - layout.rings[ring * R_WIDTH + R_TREE]
    return int(capacity * words)


@inner
def _size_class(capacity: int) -> int:
    size_class = 0
    while FIRST_CAPACITY << size_class < capacity:
        size_class += 1
    return size_class


@inner
def take_block(layout: Layout, memory: Memory, kind: int, capacity: int) -> int:
    """Return a block with room for ``capacity`` cells; the caller has seen to the pool's size."""
    meta = memory.meta
    size_class = _size_class(capacity)
    block = memory.free[kind * SIZE_CLASSES + size_class]
    if block >= 0:
        memory.free[kind * SIZE_CLASSES + size_class] = memory.pool[block]
    else:
        block = meta[M_POOL]
        meta[M_POOL] += block_words(layout, kind, capacity)
    if meta[M_OPEN] > 0:
        _log_block(memory, block, kind, size_class, TAKEN)
    return int(block)


@inner
def _log_block(memory: Memory, block: int, kind: int, size_class: int, what: int) -> None:
    at = memory.meta[M_BLOCKS]
    memory.block_log[4 * at + 0] = block
    memory.block_log[4 * at + 1] = kind
    memory.block_log[4 * at + 2] = size_class
    memory.block_log[4 * at + 3] = what
    memory.meta[M_BLOCKS] = at + 1


@inner
def push_free(memory: Memory, block: int, kind: int, size_class: int) -> None:
    """Put a block on its free list at once."""
    memory.pool[block] = memory.free[kind * SIZE_CLASSES + size_class]
    memory.free[kind * SIZE_CLASSES + size_class] = block


@inner
def give_block(memory: Memory, block: int, kind: int, capacity: int) -> None:
    """Free a block; inside a transaction only its commit does, so that an abort finds it whole."""
    if memory.meta[M_OPEN] > 0:
        _log_block(memory, block, kind, _size_class(capacity), GIVEN)
    else:
        push_free(memory, block, kind, _size_class(capacity))


@inlined
def log_words(memory: Memory, start: int, count: int) -> None:
    """Save ``count`` pool words that are about to be overwritten, if a transaction is open."""
    if memory.meta[M_OPEN] == 0 or count == 0:
        return
    at = memory.meta[M_LOG]
    for word in range(count):
        memory.log[at + word] = memory.pool[start + word]
    memory.log[at + count] = start
    memory.log[at + count + 1] = count
    memory.meta[M_LOG] = at + count + 2
