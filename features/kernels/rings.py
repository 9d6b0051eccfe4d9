"""Blocks of cells: room for them, search, late inserts, drops, and the trees behind them.

Nothing here knows of windows' accumulators; ``windows`` keeps those in step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headrace.features.kernels.compiled import inlined, inner, pointer
from headrace.features.kernels.layout import (
    BLOCK,
    CAPACITY,
    COUNT,
    DROPPED,
    FIRST_CAPACITY,
    LAG_BLOCK,
    LAG_CAPACITY,
    LAG_COUNT,
    LAG_KNOWN,
    LOW,
    NEWEST,
    R_GRAIN,
    R_HEAD,
    R_KNOWN,
    R_RETENTION,
    R_STRIDE,
    R_TREE,
    R_TREE_END,
    R_WIDTH,
    R_WINDOW,
    R_WINDOW_END,
    SIZE_CLASSES,
    T_FIELD,
    T_KIND,
    T_WIDTH,
    TREE_ANY,
    TREE_LAST,
    TREE_MIN,
    W_HEAD,
    W_WIDTH,
    Layout,
)

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
def view_memory(memory: Memory) -> Memory:
    """Return the arrays as pointers, and note their lengths in ``meta``."""
    memory.meta[M_POOL_ROOM] = memory.pool.shape[0]
    memory.meta[M_LOG_ROOM] = memory.log.shape[0]
    memory.meta[M_SAVED_ROOM] = memory.saved.shape[0]
    memory.meta[M_BLOCKS_ROOM] = memory.block_log.shape[0]
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


@inlined
def block_words(layout: Layout, kind: int, capacity: int) -> int:
    """Return the words of a block; ``kind`` is 2 * ring for cells, 2 * ring + 1 for a lag list."""
    ring = kind >> 1
    words = layout.rings[ring * R_WIDTH + R_STRIDE]
    if kind & 1 == 0:
        words += layout.rings[ring * R_WIDTH + R_TREE_END] - layout.rings[ring * R_WIDTH + R_TREE]
    return capacity * words


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
    return block


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


@inlined
def upper_bound(pool: np.ndarray, block: int, stride: int, count: int, time: int) -> int:
    """Return the index of the first cell whose first word is > ``time``; gallops from the end."""
    if count == 0 or pool[block + (count - 1) * stride] <= time:
        return count
    step = 1
    high = count - 1
    low = high - step
    while low >= 0 and pool[block + low * stride] > time:
        high = low
        step *= 2
        low = high - step
    low = max(low + 1, 0)
    while low < high:
        middle = (low + high) >> 1
        if pool[block + middle * stride] > time:
            high = middle
        else:
            low = middle + 1
    return low


@inlined
def floor_to(time: int, grain: int) -> int:
    """Return ``time`` floored to ``grain`` (0: as it is)."""
    return time if grain == 0 else time - time % grain


@inner
def _copy_words(pool: np.ndarray, source: int, target: int, count: int) -> None:
    for word in range(count):
        pool[target + word] = pool[source + word]


@inner
def open_gap(memory: Memory, block: int, stride: int, at: int, count: int) -> None:
    """Move the cells from ``at`` on up by one place, journaled."""
    start = block + at * stride
    words = (count - at) * stride
    log_words(memory, start, words)
    pool = memory.pool
    for word in range(words - 1, -1, -1):
        pool[start + stride + word] = pool[start + word]


@inner
def _kept_capacity(kept: int, capacity: int) -> int:
    """Return the capacity after a drop that leaves ``kept`` cells: at least half of it is free."""
    if kept * 2 > capacity:
        return capacity * 2
    while capacity > FIRST_CAPACITY and kept * 4 < capacity:
        capacity >>= 1
    return capacity


@inner
def make_room(layout: Layout, memory: Memory, header: int, ring: int) -> None:
    """See to it that the ring's block has room for one more cell.

    A full block is copied to a new one without the cells that no query within the retention can
    need: older than retention behind the newest time, and behind every window as it stands.
    """
    heads, pool = memory.heads, memory.pool
    row = ring * R_WIDTH
    head = layout.rings[row + R_HEAD]
    count, capacity = heads[header + head + COUNT], heads[header + head + CAPACITY]
    if count < capacity:
        return
    if capacity == 0:
        heads[header + head + BLOCK] = take_block(layout, memory, 2 * ring, FIRST_CAPACITY)
        heads[header + head + CAPACITY] = FIRST_CAPACITY
        return
    stride, old = layout.rings[row + R_STRIDE], heads[header + head + BLOCK]
    grain = layout.rings[row + R_GRAIN]
    cut = floor_to(heads[header + NEWEST], grain) - layout.rings[row + R_RETENTION] - grain
    drop = upper_bound(pool, old, stride, count, cut)
    for window in range(layout.rings[row + R_WINDOW], layout.rings[row + R_WINDOW_END]):
        drop = min(drop, heads[header + layout.windows[window * W_WIDTH + W_HEAD] + LOW])
    kept = count - drop
    new_capacity = _kept_capacity(kept, capacity)
    block = take_block(layout, memory, 2 * ring, new_capacity)
    _copy_words(pool, old + drop * stride, block, kept * stride)
    if drop > 0:
        heads[header + head + DROPPED] = pool[old + (drop - 1) * stride]
        for window in range(layout.rings[row + R_WINDOW], layout.rings[row + R_WINDOW_END]):
            low = layout.windows[window * W_WIDTH + W_HEAD] + LOW
            heads[header + low] -= drop
            heads[header + low + 1] -= drop
    give_block(memory, old, 2 * ring, capacity)
    heads[header + head + BLOCK] = block
    heads[header + head + CAPACITY] = new_capacity
    heads[header + head + COUNT] = kept
    rebuild_trees(layout, memory, header, ring, 0, ring_clock(layout, memory, header, ring))


@inner
def make_lag_room(layout: Layout, memory: Memory, header: int, ring: int) -> None:
    """See to it that the lag list has room for one more; copies of dropped cells go."""
    heads, pool = memory.heads, memory.pool
    head, stride = layout.rings[ring * R_WIDTH + R_HEAD], layout.rings[ring * R_WIDTH + R_STRIDE]
    count, capacity = heads[header + head + LAG_COUNT], heads[header + head + LAG_CAPACITY]
    if count < capacity:
        return
    if capacity == 0:
        heads[header + head + LAG_BLOCK] = take_block(layout, memory, 2 * ring + 1, FIRST_CAPACITY)
        heads[header + head + LAG_CAPACITY] = FIRST_CAPACITY
        return
    old, known = heads[header + head + LAG_BLOCK], heads[header + head + LAG_KNOWN]
    dropped = heads[header + head + DROPPED]
    kept = 0
    for index in range(count):
        if pool[old + index * stride + 1] > dropped:
            kept += 1
    new_capacity = _kept_capacity(kept, capacity)
    block = take_block(layout, memory, 2 * ring + 1, new_capacity)
    kept, kept_known = 0, 0
    for index in range(count):
        if pool[old + index * stride + 1] > dropped:
            _copy_words(pool, old + index * stride, block + kept * stride, stride)
            kept += 1
            if index < known:
                kept_known += 1
    give_block(memory, old, 2 * ring + 1, capacity)
    heads[header + head + LAG_BLOCK] = block
    heads[header + head + LAG_CAPACITY] = new_capacity
    heads[header + head + LAG_COUNT] = kept
    heads[header + head + LAG_KNOWN] = kept_known


@inlined
def ring_clock(layout: Layout, memory: Memory, header: int, ring: int) -> int:
    """Return the time that the ring's windows stand at, floored to its grain."""
    return floor_to(memory.heads[header + 0], layout.rings[ring * R_WIDTH + R_GRAIN])


@inner
def _leaf(
    layout: Layout, memory: Memory, ring: int, tree: int, cell: int, index: int, clock: int
) -> float:
    """Return what a cell says to a tree: its value, or its index; the identity if it says nothing.

    Whether a cell is known at the clock does not depend on the window: cells that every window
    meets known have known_at ``NEVER``.
    """
    kind = layout.trees[tree * T_WIDTH + T_KIND]
    hidden = layout.rings[ring * R_WIDTH + R_KNOWN] == 1 and memory.pool[cell + 1] > clock
    if kind == TREE_ANY:
        return -1.0 if hidden else float(index)
    x = memory.pool_floats[cell + layout.trees[tree * T_WIDTH + T_FIELD]]
    hidden = hidden or np.isnan(x)
    if kind == TREE_LAST:
        return -1.0 if hidden else float(index)
    if kind == TREE_MIN:
        return np.inf if hidden else x
    return -np.inf if hidden else x


@inner
def _node(
    layout: Layout, memory: Memory, header: int, ring: int, tree: int, at: int, clock: int
) -> float:
    """Return node ``at`` of the tree; nodes from ``capacity`` on are the cells themselves."""
    head, stride = layout.rings[ring * R_WIDTH + R_HEAD], layout.rings[ring * R_WIDTH + R_STRIDE]
    block, capacity = memory.heads[header + head + BLOCK], memory.heads[header + head + CAPACITY]
    if at >= capacity:
        index = at - capacity
        return _leaf(layout, memory, ring, tree, block + index * stride, index, clock)
    place = stride + tree - layout.rings[ring * R_WIDTH + R_TREE]
    return memory.pool_floats[block + place * capacity + at]


@inlined
def _join(kind: int, left: float, right: float) -> float:
    return min(left, right) if kind == TREE_MIN else max(left, right)


@inner
def rebuild_trees(
    layout: Layout, memory: Memory, header: int, ring: int, start: int, clock: int
) -> None:
    """Compute anew the nodes over the cells from ``start`` on.

    A node is stored once its last cell is there: queries use only nodes that lie wholly inside
    [low, high), so an append completes one node on average and unfinished ones are never read.
    """
    heads = memory.heads
    row = ring * R_WIDTH
    head = layout.rings[row + R_HEAD]
    count, capacity = heads[header + head + COUNT], heads[header + head + CAPACITY]
    block = heads[header + head + BLOCK]
    for tree in range(layout.rings[row + R_TREE], layout.rings[row + R_TREE_END]):
        nodes = block + (layout.rings[row + R_STRIDE] + tree - layout.rings[row + R_TREE]) * capacity
        level = 1
        while capacity >> level > 0:
            first = (capacity + start) >> level
            end = (capacity + count) >> level
            for at in range(first, end):
                left = _node(layout, memory, header, ring, tree, 2 * at, clock)
                right = _node(layout, memory, header, ring, tree, 2 * at + 1, clock)
                memory.pool_floats[nodes + at] = _join(layout.trees[tree * T_WIDTH + T_KIND], left, right)
            level += 1


@inner
def refresh_leaf(
    layout: Layout, memory: Memory, header: int, ring: int, index: int, clock: int
) -> None:
    """Compute anew the finished nodes over one cell, as after an append or a change in place."""
    heads = memory.heads
    row = ring * R_WIDTH
    head = layout.rings[row + R_HEAD]
    count, capacity = heads[header + head + COUNT], heads[header + head + CAPACITY]
    block = heads[header + head + BLOCK]
    for tree in range(layout.rings[row + R_TREE], layout.rings[row + R_TREE_END]):
        nodes = block + (layout.rings[row + R_STRIDE] + tree - layout.rings[row + R_TREE]) * capacity
        level = 1
        at = (capacity + index) >> 1
        while at > 0 and ((at + 1) << level) - capacity <= count:
            left = _node(layout, memory, header, ring, tree, 2 * at, clock)
            right = _node(layout, memory, header, ring, tree, 2 * at + 1, clock)
            memory.pool_floats[nodes + at] = _join(layout.trees[tree * T_WIDTH + T_KIND], left, right)
            at >>= 1
            level += 1


@inner
def query_tree(
    layout: Layout, memory: Memory, header: int, ring: int, tree: int, low: int, high: int, clock: int
) -> float:
    """Return the tree's answer for the cells [low, high); the identity if they say nothing."""
    kind = layout.trees[tree * T_WIDTH + T_KIND]
    answer = -1.0
    if kind == TREE_MIN:
        answer = np.inf
    elif kind < TREE_LAST:
        answer = -np.inf
    capacity = memory.heads[header + layout.rings[ring * R_WIDTH + R_HEAD] + CAPACITY]
    left, right = capacity + low, capacity + high
    while left < right:
        if left & 1:
            answer = _join(kind, answer, _node(layout, memory, header, ring, tree, left, clock))
            left += 1
        if right & 1:
            right -= 1
            answer = _join(kind, answer, _node(layout, memory, header, ring, tree, right, clock))
        left >>= 1
        right >>= 1
    return answer
