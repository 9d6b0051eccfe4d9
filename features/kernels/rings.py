"""Blocks of cells: room for them, search, late inserts and drops.

Nothing here knows of windows' accumulators; ``windows`` keeps those in step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.features.kernels.compiled import inlined, inner
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
    R_RETENTION,
    R_STRIDE,
    R_WIDTH,
    R_WINDOW,
    R_WINDOW_END,
    W_HEAD,
    W_WIDTH,
    Layout,
)
from headrace.features.kernels.memory import Memory, give_block, log_words, take_block
from headrace.features.kernels.trees import rebuild_trees

if TYPE_CHECKING:
    import numpy as np


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
