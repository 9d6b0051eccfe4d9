"""Windows over rings: what a cell adds and removes, moving to a time, reading an aggregate.

A window stands at the key's clock: cells [low, high) are in (clock - delay - length, clock - delay]
and its accumulators hold those of them that are known at the clock. It can be moved to any time,
forward or back: accumulators are exact, so the way there leaves no trace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headrace.features.kernels.compiled import inlined, inner
from headrace.features.kernels.exact import float_of, limbs_of
from headrace.features.kernels.layout import (
    A_FIELD,
    A_HEAD,
    A_KIND,
    A_WIDTH,
    ADD_FLOAT,
    ADD_NOT_NULL,
    ADD_ONE,
    ADD_WORD,
    BLOCK,
    CLOCK,
    COUNT,
    DROPPED,
    G_COUNT,
    G_KIND,
    G_SUM,
    G_TREE,
    G_WIDTH,
    G_WINDOW,
    HIGH,
    LAG_BLOCK,
    LAG_COUNT,
    LAG_KNOWN,
    LOW,
    NEWEST,
    R_GRAIN,
    R_HEAD,
    R_KNOWN,
    R_STRIDE,
    R_TREE,
    R_TREE_END,
    R_WIDTH,
    R_WINDOW,
    R_WINDOW_END,
    READ_AGE,
    READ_COUNT,
    READ_LAST,
    READ_MEAN,
    READ_SPAN,
    READ_SUM,
    T_FIELD,
    T_WIDTH,
    W_ADD,
    W_ADD_END,
    W_DELAY,
    W_HEAD,
    W_LENGTH,
    W_RING,
    W_WIDTH,
    Layout,
)
from headrace.features.kernels.rings import floor_to, ring_clock, upper_bound
from headrace.features.kernels.trees import query_tree, refresh_leaf

if TYPE_CHECKING:
    from headrace.features.kernels.memory import Memory


@inlined
def add_cell(
    layout: Layout,
    heads: np.ndarray,
    header: int,
    window: int,
    words: np.ndarray,
    floats: np.ndarray,
    cell: int,
    sign: int,
) -> None:
    """Add (``sign`` 1) a cell to a window's accumulators, or remove it (-1)."""
    for add in range(
        layout.windows[window * W_WIDTH + W_ADD], layout.windows[window * W_WIDTH + W_ADD_END]
    ):
        kind = layout.adds[add * A_WIDTH + A_KIND]
        at = layout.adds[add * A_WIDTH + A_HEAD]
        field = cell + layout.adds[add * A_WIDTH + A_FIELD]
        if kind == ADD_ONE:
            heads[header + at] += sign
        elif kind == ADD_WORD:
            heads[header + at] += sign * words[field]
        elif kind == ADD_NOT_NULL:
            if not np.isnan(floats[field]):
                heads[header + at] += sign
        elif kind == ADD_FLOAT:
            if not np.isnan(floats[field]):
                whole, middle, low = limbs_of(floats[field])
                heads[header + at] += sign * whole
                heads[header + at + 1] += sign * middle
                heads[header + at + 2] += sign * low
        else:
            heads[header + at] += sign * words[field]
            heads[header + at + 1] += sign * words[field + 1]
            heads[header + at + 2] += sign * words[field + 2]


@inlined
def _move_cell(
    layout: Layout, memory: Memory, header: int, window: int, cell: int, clock: int, sign: int
) -> None:
    """Add or remove a cell that crosses a window's edge, unless it is not known yet."""
    if (
        layout.rings[layout.windows[window * W_WIDTH + W_RING] * R_WIDTH + R_KNOWN]
        and memory.pool[cell + 1] > clock
    ):
        return
    add_cell(layout, memory.heads, header, window, memory.pool, memory.pool_floats, cell, sign)


@inlined
def _seek_window(layout: Layout, memory: Memory, header: int, window: int, clock: int) -> bool:
    """Move one window to ``clock``; return whether cells that it needs were dropped before."""
    heads, pool = memory.heads, memory.pool
    ring = layout.windows[window * W_WIDTH + W_RING]
    ring_head, stride = (
        layout.rings[ring * R_WIDTH + R_HEAD],
        layout.rings[ring * R_WIDTH + R_STRIDE],
    )
    block, count = heads[header + ring_head + BLOCK], heads[header + ring_head + COUNT]
    at = layout.windows[window * W_WIDTH + W_HEAD]
    newest = clock - layout.windows[window * W_WIDTH + W_DELAY]
    oldest = newest - layout.windows[window * W_WIDTH + W_LENGTH]
    low, high = heads[header + at + LOW], heads[header + at + HIGH]
    while low < high and pool[block + low * stride] <= oldest:
        _move_cell(layout, memory, header, window, block + low * stride, clock, -1)
        low += 1
    while low < high and pool[block + (high - 1) * stride] > newest:
        high -= 1
        _move_cell(layout, memory, header, window, block + high * stride, clock, -1)
    if low == high:
        while high < count and pool[block + high * stride] <= oldest:
            high += 1
        while high > 0 and pool[block + (high - 1) * stride] > newest:
            high -= 1
        low = high
    while high < count and pool[block + high * stride] <= newest:
        _move_cell(layout, memory, header, window, block + high * stride, clock, 1)
        high += 1
    while low > 0 and pool[block + (low - 1) * stride] > oldest:
        low -= 1
        _move_cell(layout, memory, header, window, block + low * stride, clock, 1)
    heads[header + at + LOW] = low
    heads[header + at + HIGH] = high
    return bool(heads[header + ring_head + DROPPED] > oldest)


@inner
def _flip(
    layout: Layout, memory: Memory, header: int, ring: int, lag_cell: int, clock: int, sign: int
) -> None:
    """A cell becomes known (``sign`` 1) or unknown (-1) while the windows stand at the old clock.

    ``clock`` is the new one: leaves of trees are read as of it.
    """
    heads, pool = memory.heads, memory.pool
    row = ring * R_WIDTH
    time = pool[lag_cell + 1]
    head = layout.rings[row + R_HEAD]
    if time <= heads[header + head + DROPPED]:
        return
    old_clock = ring_clock(layout, memory, header, ring)
    for window in range(layout.rings[row + R_WINDOW], layout.rings[row + R_WINDOW_END]):
        newest = old_clock - layout.windows[window * W_WIDTH + W_DELAY]
        if newest - layout.windows[window * W_WIDTH + W_LENGTH] < time <= newest:
            add_cell(layout, heads, header, window, pool, memory.pool_floats, lag_cell, sign)
    if layout.rings[row + R_TREE] == layout.rings[row + R_TREE_END]:
        return
    block, stride = heads[header + head + BLOCK], layout.rings[row + R_STRIDE]
    index = upper_bound(pool, block, stride, heads[header + head + COUNT], time) - 1
    while index >= 0 and pool[block + index * stride] == time:
        refresh_leaf(layout, memory, header, ring, index, clock)
        index -= 1


@inlined
def seek_known(layout: Layout, memory: Memory, header: int, ring: int, clock: int) -> None:
    """Let the cells become known, or unknown again, that stand between the two clocks."""
    heads, pool = memory.heads, memory.pool
    head, stride = layout.rings[ring * R_WIDTH + R_HEAD], layout.rings[ring * R_WIDTH + R_STRIDE]
    block, count = heads[header + head + LAG_BLOCK], heads[header + head + LAG_COUNT]
    known = heads[header + head + LAG_KNOWN]
    while known < count and pool[block + known * stride] <= clock:
        _flip(layout, memory, header, ring, block + known * stride, clock, 1)
        known += 1
    while known > 0 and pool[block + (known - 1) * stride] > clock:
        known -= 1
        _flip(layout, memory, header, ring, block + known * stride, clock, -1)
    heads[header + head + LAG_KNOWN] = known


@inlined
def seek(layout: Layout, memory: Memory, header: int, rings: int, time: int) -> bool:
    """Move all windows of a key to ``time``; return whether any needs cells that were dropped."""
    heads = memory.heads
    incomplete = False
    for ring in range(rings):
        row = ring * R_WIDTH
        clock = floor_to(time, layout.rings[row + R_GRAIN])
        if layout.rings[row + R_KNOWN]:
            seek_known(layout, memory, header, ring, clock)
        for window in range(layout.rings[row + R_WINDOW], layout.rings[row + R_WINDOW_END]):
            if _seek_window(layout, memory, header, window, clock):
                incomplete = True
    heads[header + CLOCK] = time
    heads[header + NEWEST] = max(heads[header + NEWEST], time)
    return incomplete


@inner
def _read_ordered(layout: Layout, memory: Memory, header: int, aggregate: int) -> float:
    """Read what an accumulator cannot hold: min, max, last and age."""
    heads, pool = memory.heads, memory.pool
    kind, window = (
        layout.aggregates[aggregate * G_WIDTH + G_KIND],
        layout.aggregates[aggregate * G_WIDTH + G_WINDOW],
    )
    tree = layout.aggregates[aggregate * G_WIDTH + G_TREE]
    ring = layout.windows[window * W_WIDTH + W_RING]
    at = layout.windows[window * W_WIDTH + W_HEAD]
    low, high = heads[header + at + LOW], heads[header + at + HIGH]
    head, stride = layout.rings[ring * R_WIDTH + R_HEAD], layout.rings[ring * R_WIDTH + R_STRIDE]
    block = heads[header + head + BLOCK]
    clock = ring_clock(layout, memory, header, ring)
    if kind == READ_AGE and tree < 0:
        index = high - 1 if high > low else -1
    else:
        found = query_tree(layout, memory, header, ring, tree, low, high, clock)
        if kind not in (READ_AGE, READ_LAST):
            return np.nan if np.isinf(found) else found
        index = int(found)
    if index < 0:
        return np.nan
    if kind == READ_AGE:
        return float(clock - pool[block + index * stride])
    field = layout.trees[tree * T_WIDTH + T_FIELD]
    if layout.rings[ring * R_WIDTH + R_GRAIN] > 0 and layout.rings[ring * R_WIDTH + R_KNOWN]:
        index = _last_of_tile(memory, block, stride, field, low, index, clock)
    return float(memory.pool_floats[block + index * stride + field])


@inner
def _last_of_tile(
    memory: Memory, block: int, stride: int, field: int, low: int, index: int, clock: int
) -> int:
    """Return which of a tile's cells holds its last value, by (event time, arrival).

    A tile has a cell for each time at which a part of it became known.
    """
    pool = memory.pool
    time, best = pool[block + index * stride], index
    while index > low and pool[block + (index - 1) * stride] == time:
        index -= 1
        cell, winner = block + index * stride, block + best * stride + field
        if pool[cell + 1] > clock or np.isnan(memory.pool_floats[cell + field]):
            continue
        own = cell + field
        if pool[own + 1] > pool[winner + 1] or (
            pool[own + 1] == pool[winner + 1] and pool[own + 2] > pool[winner + 2]
        ):
            best = index
    return best


@inlined
def read_aggregate(layout: Layout, memory: Memory, header: int, aggregate: int) -> float:
    """Return an aggregate as of the key's clock; NaN is null."""
    heads = memory.heads
    row = aggregate * G_WIDTH
    kind = layout.aggregates[row + G_KIND]
    if kind == READ_SPAN:
        at = layout.windows[layout.aggregates[row + G_WINDOW] * W_WIDTH + W_HEAD]
        return float(heads[header + at + HIGH] - heads[header + at + LOW])
    if kind == READ_COUNT:
        return float(heads[header + layout.aggregates[row + G_COUNT]])
    if kind in (READ_SUM, READ_MEAN):
        count = heads[header + layout.aggregates[row + G_COUNT]]
        if count == 0:
            return np.nan
        at = layout.aggregates[row + G_SUM]
        total = float_of(heads[header + at], heads[header + at + 1], heads[header + at + 2])
        return total if kind == READ_SUM else total / count
    return _read_ordered(layout, memory, header, aggregate)


@inlined
def read_empty(layout: Layout, aggregate: int) -> float:
    """Return an aggregate over no cells: 0 for a count, null for all others."""
    kind = layout.aggregates[aggregate * G_WIDTH + G_KIND]
    return 0.0 if kind in (READ_SPAN, READ_COUNT) else np.nan
