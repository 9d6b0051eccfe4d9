"""The hot loop: rows in log order go into the rings, and scored rows read their aggregates.

The loop never allocates. Before a row changes anything it is measured; if the memory at hand could
run out, the loop returns the row and what it needs, and goes on from there when it is called again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headrace.features.kernels.compiled import entry, inlined, inner, pointer
from headrace.features.kernels.exact import limbs_of
from headrace.features.kernels.layout import (
    ALWAYS,
    ARRIVALS,
    BLOCK,
    CAPACITY,
    COUNT,
    DROPPED,
    F_AT,
    F_KIND,
    F_VALUE,
    F_WIDTH,
    FIELD_COUNT,
    FIELD_EVENTS,
    FIELD_LAST,
    FIELD_MIN,
    FIELD_SUM,
    FIRST_CAPACITY,
    HIGH,
    LAG_BLOCK,
    LAG_CAPACITY,
    LAG_COUNT,
    LAG_KNOWN,
    LOW,
    R_FIELD,
    R_FIELD_END,
    R_GRAIN,
    R_HEAD,
    R_KNOWN,
    R_MIN_DELAY,
    R_STRIDE,
    R_TREE,
    R_TREE_END,
    R_WIDTH,
    R_WINDOW,
    R_WINDOW_END,
    W_DELAY,
    W_HEAD,
    W_LENGTH,
    W_WIDTH,
    Layout,
    view_layout,
)
from headrace.features.kernels.memory import (
    M_BASE_KEYS,
    M_BLOCKS,
    M_BLOCKS_ROOM,
    M_LOG,
    M_LOG_ROOM,
    M_NEED_LOG,
    M_NEED_POOL,
    M_OPEN,
    M_POOL,
    M_POOL_ROOM,
    M_SAVED,
    M_SAVED_ROOM,
    Memory,
    block_words,
    log_words,
    view_memory,
)
from headrace.features.kernels.rings import (
    floor_to,
    make_lag_room,
    make_room,
    open_gap,
    ring_clock,
    upper_bound,
)
from headrace.features.kernels.trees import rebuild_trees, refresh_leaf
from headrace.features.kernels.windows import add_cell, read_aggregate, read_empty, seek

if TYPE_CHECKING:
    from collections.abc import Callable


# What becomes of a cell that is to be stored.
_STORED, _MERGED, _DROPPED = range(3)


class Rows(NamedTuple):
    """A batch in log order, columns of one length; ``slots`` is -1 where a row has no state.

    ``scored`` and ``insert`` are int8: numba cannot load booleans through a pointer.
    """

    slots: np.ndarray
    inputs: np.ndarray
    event_time_ms: np.ndarray
    known_at_ms: np.ndarray
    values: np.ndarray
    scored: np.ndarray
    insert: np.ndarray
    value_count: int


@inner
def _view_rows(rows: Rows) -> Rows:
    return Rows(
        pointer(rows.slots),
        pointer(rows.inputs),
        pointer(rows.event_time_ms),
        pointer(rows.known_at_ms),
        pointer(rows.values),
        pointer(rows.scored),
        pointer(rows.insert),
        rows.value_count,
    )


@inlined
def _known_word(layout: Layout, ring: int, time: int, known_at: int) -> int:
    """Return what a cell stores as known_at: ``ALWAYS`` if no window can meet it unknown.

    With a grain, known_at is rounded up to it: a tile is known when all of it is.
    """
    grain = layout.rings[ring * R_WIDTH + R_GRAIN]
    if grain > 0:
        known_at = -floor_to(-known_at, grain)
    return known_at if known_at > time + layout.rings[ring * R_WIDTH + R_MIN_DELAY] else ALWAYS


@inlined
def _fill_cell(
    layout: Layout,
    ring: int,
    time: int,
    known: int,
    arrival: int,
    rows: Rows,
    row: int,
    words: np.ndarray,
    floats: np.ndarray,
) -> None:
    """Write the event as a cell of the ring into the scratch arrays."""
    words[0] = time
    if layout.rings[ring * R_WIDTH + R_KNOWN]:
        words[1] = known
    for field in range(
        layout.rings[ring * R_WIDTH + R_FIELD], layout.rings[ring * R_WIDTH + R_FIELD_END]
    ):
        kind, at = layout.fields[field * F_WIDTH + F_KIND], layout.fields[field * F_WIDTH + F_AT]
        if kind == FIELD_EVENTS:
            words[at] = 1
            continue
        # Adding 0.0 turns -0.0 into 0.0, whose order min and max could not tell.
        x = rows.values[row * rows.value_count + layout.fields[field * F_WIDTH + F_VALUE]] + 0.0
        if kind == FIELD_COUNT:
            words[at] = 0 if np.isnan(x) else 1
        elif kind == FIELD_SUM:
            whole, middle, low = limbs_of(0.0 if np.isnan(x) else x)
            words[at], words[at + 1], words[at + 2] = whole, middle, low
        else:
            floats[at] = x
            if kind == FIELD_LAST:
                words[at + 1] = rows.event_time_ms[row]
                words[at + 2] = arrival


@inlined
def _merge_cell(
    layout: Layout, memory: Memory, ring: int, cell: int, words: np.ndarray, floats: np.ndarray
) -> None:
    """Add the scratch event to a tile, journaled."""
    pool, pool_floats = memory.pool, memory.pool_floats
    log_words(memory, cell, layout.rings[ring * R_WIDTH + R_STRIDE])
    for field in range(
        layout.rings[ring * R_WIDTH + R_FIELD], layout.rings[ring * R_WIDTH + R_FIELD_END]
    ):
        kind, at = layout.fields[field * F_WIDTH + F_KIND], layout.fields[field * F_WIDTH + F_AT]
        if kind in (FIELD_EVENTS, FIELD_COUNT):
            pool[cell + at] += words[at]
        elif kind == FIELD_SUM:
            pool[cell + at] += words[at]
            pool[cell + at + 1] += words[at + 1]
            pool[cell + at + 2] += words[at + 2]
        elif not np.isnan(floats[at]):
            old = pool_floats[cell + at]
            if kind == FIELD_LAST:
                if np.isnan(old) or words[at + 1] >= pool[cell + at + 1]:
                    pool_floats[cell + at] = floats[at]
                    pool[cell + at + 1] = words[at + 1]
                    pool[cell + at + 2] = words[at + 2]
            elif np.isnan(old):
                pool_floats[cell + at] = floats[at]
            elif kind == FIELD_MIN:
                pool_floats[cell + at] = min(old, floats[at])
            else:
                pool_floats[cell + at] = max(old, floats[at])


@inlined
def _find_tile(
    pool: np.ndarray, block: int, stride: int, count: int, first: int, second: int, known: bool
) -> int:
    """Return the index of the cell with these leading words, -1 if there is none."""
    index = upper_bound(pool, block, stride, count, first) - 1
    while index >= 0 and pool[block + index * stride] == first:
        if not known or pool[block + index * stride + 1] == second:
            return index
        index -= 1
    return -1


@inner
def _store_lag(
    layout: Layout,
    memory: Memory,
    header: int,
    ring: int,
    clock: int,
    merge: bool,
    words: np.ndarray,
    floats: np.ndarray,
) -> None:
    """Keep the lag list's copy of a cell that is known late."""
    heads, pool = memory.heads, memory.pool
    head, stride = layout.rings[ring * R_WIDTH + R_HEAD], layout.rings[ring * R_WIDTH + R_STRIDE]
    time, known = words[0], words[1]
    if merge:
        block, count = heads[header + head + LAG_BLOCK], heads[header + head + LAG_COUNT]
        index = _find_tile(pool, block, stride, count, known, time, True)
        _merge_cell(layout, memory, ring, block + index * stride, words, floats)
        return
    make_lag_room(layout, memory, header, ring)
    block, count = heads[header + head + LAG_BLOCK], heads[header + head + LAG_COUNT]
    index = upper_bound(pool, block, stride, count, known)
    open_gap(memory, block, stride, index, count)
    for word in range(stride):
        pool[block + index * stride + word] = words[word]
    pool[block + index * stride] = known
    pool[block + index * stride + 1] = time
    heads[header + head + LAG_COUNT] = count + 1
    if known <= clock:
        heads[header + head + LAG_KNOWN] += 1


@inlined
def _store_cell(
    layout: Layout,
    memory: Memory,
    header: int,
    ring: int,
    clock: int,
    words: np.ndarray,
    floats: np.ndarray,
) -> int:
    """Put the scratch cell into the ring's block; return what became of it."""
    heads, pool = memory.heads, memory.pool
    row = ring * R_WIDTH
    head, stride, has_known = (
        layout.rings[row + R_HEAD],
        layout.rings[row + R_STRIDE],
        layout.rings[row + R_KNOWN] == 1,
    )
    if layout.rings[row + R_GRAIN] > 0:
        block, count = heads[header + head + BLOCK], heads[header + head + COUNT]
        index = _find_tile(pool, block, stride, count, words[0], words[1], has_known)
        if index >= 0:
            _merge_cell(layout, memory, ring, block + index * stride, words, floats)
            refresh_leaf(layout, memory, header, ring, index, clock)
            return _MERGED
    make_room(layout, memory, header, ring)
    # Making room can drop all that is as old as the cell: then it comes too late itself.
    if words[0] <= heads[header + head + DROPPED]:
        return _DROPPED
    block, count = heads[header + head + BLOCK], heads[header + head + COUNT]
    index = upper_bound(pool, block, stride, count, words[0])
    open_gap(memory, block, stride, index, count)
    for word in range(stride):
        pool[block + index * stride + word] = words[word]
    heads[header + head + COUNT] = count + 1
    if layout.rings[row + R_TREE] < layout.rings[row + R_TREE_END]:
        if index == count:
            refresh_leaf(layout, memory, header, ring, index, clock)
        else:
            rebuild_trees(layout, memory, header, ring, index, clock)
    return _STORED


@inlined
def _insert_event(
    layout: Layout,
    memory: Memory,
    header: int,
    ring: int,
    rows: Rows,
    row: int,
    words: np.ndarray,
    floats: np.ndarray,
) -> None:
    """Put an event into one ring, and into the windows that cover it where they stand."""
    heads = memory.heads
    plan = ring * R_WIDTH
    time = floor_to(rows.event_time_ms[row], layout.rings[plan + R_GRAIN])
    if time <= heads[header + layout.rings[plan + R_HEAD] + DROPPED]:
        return
    known = ALWAYS
    if layout.rings[plan + R_KNOWN]:
        known = _known_word(layout, ring, time, rows.known_at_ms[row])
    clock = ring_clock(layout, memory, header, ring)
    arrivals = header + layout.rings[plan + R_HEAD] + ARRIVALS
    heads[arrivals] += 1
    _fill_cell(layout, ring, time, known, heads[arrivals], rows, row, words, floats)
    stored = _store_cell(layout, memory, header, ring, clock, words, floats)
    if stored == _DROPPED:
        return
    merged = stored == _MERGED
    if known != ALWAYS:
        _store_lag(layout, memory, header, ring, clock, merged, words, floats)
    for window in range(layout.rings[plan + R_WINDOW], layout.rings[plan + R_WINDOW_END]):
        at = layout.windows[window * W_WIDTH + W_HEAD]
        newest = clock - layout.windows[window * W_WIDTH + W_DELAY]
        if time > newest:
            continue
        if time <= newest - layout.windows[window * W_WIDTH + W_LENGTH]:
            if not merged:
                heads[header + at + LOW] += 1
                heads[header + at + HIGH] += 1
            continue
        if not merged:
            heads[header + at + HIGH] += 1
        if known <= clock:
            add_cell(layout, heads, header, window, words, floats, 0, 1)


@inlined
def _block_need(layout: Layout, kind: int, count: int, capacity: int) -> int:
    """Return the pool words that one more cell can take at worst."""
    if count < capacity:
        return 0
    return block_words(layout, kind, max(2 * capacity, FIRST_CAPACITY))


@inlined
def _has_room(layout: Layout, memory: Memory, header: int, rows: Rows, row: int) -> bool:
    """Measure a row before it changes anything; ``meta`` says what it needs when this is False."""
    heads, pool, meta = memory.heads, memory.pool, memory.meta
    source = rows.inputs[row]
    words, log = 0, 0
    start, end = layout.input_start[source], layout.input_start[source + 1]
    for place in range(start, end):
        ring = layout.input_rings[place]
        head, stride = (
            layout.rings[ring * R_WIDTH + R_HEAD],
            layout.rings[ring * R_WIDTH + R_STRIDE],
        )
        count, lagging = heads[header + head + COUNT], heads[header + head + LAG_COUNT]
        words += _block_need(layout, 2 * ring, count, heads[header + head + CAPACITY])
        if layout.rings[ring * R_WIDTH + R_KNOWN]:
            capacity = heads[header + head + LAG_CAPACITY]
            words += _block_need(layout, 2 * ring + 1, lagging, capacity)
        if meta[M_OPEN] > 0:
            time = floor_to(rows.event_time_ms[row], layout.rings[ring * R_WIDTH + R_GRAIN])
            block = heads[header + head + BLOCK]
            moved = count - upper_bound(pool, block, stride, count, time)
            if layout.rings[ring * R_WIDTH + R_KNOWN]:
                known = _known_word(layout, ring, time, rows.known_at_ms[row])
                block = heads[header + head + LAG_BLOCK]
                moved += lagging - upper_bound(pool, block, stride, lagging, known)
            log += (moved + 2) * (stride + 2)
    meta[M_NEED_POOL] = words
    meta[M_NEED_LOG] = log
    return bool(
        meta[M_POOL] + words <= meta[M_POOL_ROOM]
        and meta[M_LOG] + log <= meta[M_LOG_ROOM]
        and meta[M_SAVED] < meta[M_SAVED_ROOM]
        and meta[M_BLOCKS] + 4 * (end - start) <= meta[M_BLOCKS_ROOM]
    )


@inlined
def _touch(memory: Memory, slot: int, width: int) -> None:
    """Save the key's header row the first time the open transaction meets it."""
    meta = memory.meta
    if meta[M_OPEN] == 0 or memory.touched[slot] == meta[M_OPEN] or slot >= meta[M_BASE_KEYS]:
        return
    memory.touched[slot] = meta[M_OPEN]
    at = meta[M_SAVED]
    memory.saved_slots[at] = slot
    for word in range(width):
        memory.saved[at * width + word] = memory.heads[slot * width + word]
    meta[M_SAVED] = at + 1


def _make_apply(stamp: int) -> Callable[..., Any]:
    def apply(
        layout: Layout,
        memory: Memory,
        rows: Rows,
        aggregates: np.ndarray,
        incomplete: np.ndarray,
        start: int,
    ) -> int:
        """Apply rows from ``start`` on; return the row that needs more room, or the end."""
        widest, ring_count, width = 1, layout.rings.shape[0], layout.header.shape[0]
        for ring in range(ring_count):
            widest = max(widest, layout.rings[ring, R_STRIDE])
        scratch = np.zeros(widest, np.int64)
        words, floats = pointer(scratch), pointer(scratch.view(np.float64))
        aggregate_count = aggregates.shape[1]
        count = rows.slots.shape[0] if stamp >= 0 else 0
        plan, state, batch = view_layout(layout), view_memory(memory), _view_rows(rows)
        for row in range(start, count):
            slot = batch.slots[row]
            if slot < 0:
                if batch.scored[row] != 0:
                    for aggregate in range(aggregate_count):
                        aggregates[row, aggregate] = read_empty(plan, aggregate)
                continue
            header = slot * width
            if not _has_room(plan, state, header, batch, row):
                return row
            _touch(state, slot, width)
            if batch.insert[row] != 0:
                source = batch.inputs[row]
                for place in range(plan.input_start[source], plan.input_start[source + 1]):
                    ring = plan.input_rings[place]
                    _insert_event(plan, state, header, ring, batch, row, words, floats)
            if batch.scored[row] != 0:
                time = batch.event_time_ms[row]
                incomplete[row] = seek(plan, state, header, ring_count, time)
                for aggregate in range(aggregate_count):
                    aggregates[row, aggregate] = read_aggregate(plan, state, header, aggregate)
        return count

    return apply


apply_rows = entry(_make_apply)
