"""Copying slots out of a state and into an empty one: what checkpoints are made of.

A record holds all of a key that is not found again from the rest: its header row, whose block
addresses are zeroed, and its live cells, ring by ring: the cells, then the lag list's. Capacities
stay as they are, since they decide when cells are dropped; trees are computed anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.features.kernels.compiled import entry, inner, pointer
from headrace.features.kernels.layout import (
    BLOCK,
    CAPACITY,
    COUNT,
    LAG_BLOCK,
    LAG_CAPACITY,
    LAG_COUNT,
    R_HEAD,
    R_KNOWN,
    R_STRIDE,
    R_TREE,
    R_TREE_END,
    R_WIDTH,
    Layout,
    view_layout,
)
from headrace.features.kernels.memory import M_POOL, Memory, block_words, look_memory
from headrace.features.kernels.rings import ring_clock
from headrace.features.kernels.trees import rebuild_trees

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np


@inner
def _live_words(layout: Layout, heads: np.ndarray, header: int, rings: int) -> int:
    """Return the words of all live cells of a key."""
    words = 0
    for ring in range(rings):
        row = ring * R_WIDTH
        head, stride = layout.rings[row + R_HEAD], layout.rings[row + R_STRIDE]
        words += heads[header + head + COUNT] * stride
        if layout.rings[row + R_KNOWN]:
            words += heads[header + head + LAG_COUNT] * stride
    return int(words)


def _make_note(stamp: int) -> Callable[..., Any]:
    def note(
        slots: np.ndarray, changed: np.ndarray, wanted: np.ndarray, limit: int, found: np.ndarray
    ) -> int:
        """Mark slots as changed; take those that are still wanted, once each; return how many.

        ``changed`` and ``wanted`` are int8 by slot; slots from ``limit`` on are not wanted.
        """
        count = 0
        for row in range(slots.shape[0] if stamp >= 0 else 0):
            slot = slots[row]
            if slot < 0:
                continue
            changed[slot] = 1
            if slot < limit and wanted[slot] != 0:
                wanted[slot] = 0
                found[count] = slot
                count += 1
        return count

    return note


note_slots = entry(_make_note)


def _make_pick(stamp: int) -> Callable[..., Any]:
    def pick(
        layout: Layout,
        memory: Memory,
        wanted: np.ndarray,
        start: int,
        words_max: int,
        found: np.ndarray,
    ) -> tuple[int, int]:
        """Take wanted slots from ``start`` on until they have ``words_max`` words or more.

        Returns:
            How many were taken, and where to go on.

        """
        rings, width = layout.rings.shape[0], layout.header.shape[0]
        plan, state = view_layout(layout), look_memory(memory)
        count, words = 0, 0
        slot = start if stamp >= 0 else wanted.shape[0]
        while slot < wanted.shape[0] and words < words_max and count < found.shape[0]:
            if wanted[slot] != 0:
                wanted[slot] = 0
                found[count] = slot
                count += 1
                words += width + _live_words(plan, state.heads, slot * width, rings)
            slot += 1
        return count, slot

    return pick


pick_slots = entry(_make_pick)


def _make_measure(stamp: int) -> Callable[..., Any]:
    def measure(layout: Layout, memory: Memory, slots: np.ndarray, ends: np.ndarray) -> None:
        """Write to ``ends`` int64[n + 1] where the cells of each slot end among those of all."""
        rings, width = layout.rings.shape[0], layout.header.shape[0]
        plan, state = view_layout(layout), look_memory(memory)
        ends[0] = 0
        for row in range(slots.shape[0] if stamp >= 0 else 0):
            ends[row + 1] = ends[row] + _live_words(plan, state.heads, slots[row] * width, rings)

    return measure


measure_slots = entry(_make_measure)


@inner
def _copy(source: np.ndarray, start: int, target: np.ndarray, at: int, words: int) -> int:
    for word in range(words):
        target[at + word] = source[start + word]
    return at + words


def _make_copy(stamp: int) -> Callable[..., Any]:
    def copy(
        layout: Layout, memory: Memory, slots: np.ndarray, heads: np.ndarray, cells: np.ndarray
    ) -> None:
        """Write header rows (int64[n, width]) and live cells (int64, back to back) of slots."""
        rings, width = layout.rings.shape[0], layout.header.shape[0]
        plan, state = view_layout(layout), look_memory(memory)
        out, rows = pointer(cells), pointer(heads)
        at = 0
        for row in range(slots.shape[0] if stamp >= 0 else 0):
            header, to = slots[row] * width, row * width
            _copy(state.heads, header, rows, to, width)
            for ring in range(rings):
                place = ring * R_WIDTH
                head, stride = plan.rings[place + R_HEAD], plan.rings[place + R_STRIDE]
                block, count = rows[to + head + BLOCK], rows[to + head + COUNT]
                at = _copy(state.pool, block, out, at, count * stride)
                rows[to + head + BLOCK] = 0
                if plan.rings[place + R_KNOWN]:
                    block, count = rows[to + head + LAG_BLOCK], rows[to + head + LAG_COUNT]
                    at = _copy(state.pool, block, out, at, count * stride)
                    rows[to + head + LAG_BLOCK] = 0

    return copy


copy_slots = entry(_make_copy)


def _make_room(stamp: int) -> Callable[..., Any]:
    def room(layout: Layout, slots: np.ndarray, heads: np.ndarray, done: np.ndarray) -> int:
        """Return the pool words that the blocks of the slots take that are not ``done``."""
        width = layout.header.shape[0]
        plan, rows = view_layout(layout), pointer(heads)
        words = 0
        for row in range(slots.shape[0] if stamp >= 0 else 0):
            if done[slots[row]] != 0:
                continue
            for ring in range(layout.rings.shape[0]):
                head = row * width + plan.rings[ring * R_WIDTH + R_HEAD]
                words += block_words(plan, 2 * ring, rows[head + CAPACITY])
                if plan.rings[ring * R_WIDTH + R_KNOWN]:
                    words += block_words(plan, 2 * ring + 1, rows[head + LAG_CAPACITY])
        return words

    return room


room_of = entry(_make_room)


def _make_place(stamp: int) -> Callable[..., Any]:
    def place(
        layout: Layout,
        memory: Memory,
        slots: np.ndarray,
        heads: np.ndarray,
        ends: np.ndarray,
        cells: np.ndarray,
        done: np.ndarray,
    ) -> None:
        """Put records into a state without those keys, in new blocks; mark their slots ``done``.

        The caller has seen to it that pool and header rows have room for them (``room_of``).
        """
        rings, width = layout.rings.shape[0], layout.header.shape[0]
        plan, state = view_layout(layout), look_memory(memory)
        rows, source = pointer(heads), pointer(cells)
        free = memory.meta[M_POOL]
        for row in range(slots.shape[0] if stamp >= 0 else 0):
            slot = slots[row]
            if done[slot] != 0:
                continue
            done[slot] = 1
            header, at = slot * width, ends[row]
            _copy(rows, row * width, state.heads, header, width)
            for ring in range(rings):
                row_of = ring * R_WIDTH
                head, stride = header + plan.rings[row_of + R_HEAD], plan.rings[row_of + R_STRIDE]
                count, capacity = state.heads[head + COUNT], state.heads[head + CAPACITY]
                if capacity > 0:
                    state.heads[head + BLOCK] = free
                    _copy(source, at, state.pool, free, count * stride)
                    at += count * stride
                    free += block_words(plan, 2 * ring, capacity)
                if plan.rings[row_of + R_KNOWN] and state.heads[head + LAG_CAPACITY] > 0:
                    count = state.heads[head + LAG_COUNT]
                    state.heads[head + LAG_BLOCK] = free
                    _copy(source, at, state.pool, free, count * stride)
                    at += count * stride
                    free += block_words(plan, 2 * ring + 1, state.heads[head + LAG_CAPACITY])
                has_trees = plan.rings[row_of + R_TREE] < plan.rings[row_of + R_TREE_END]
                if has_trees and state.heads[head + COUNT] > 0:
                    clock = ring_clock(plan, state, header, ring)
                    rebuild_trees(plan, state, header, ring, 0, clock)
        memory.meta[M_POOL] = free

    return place


place_records = entry(_make_place)


def _make_gather(stamp: int) -> Callable[..., Any]:
    def gather(data: np.ndarray, starts: np.ndarray, ends: np.ndarray, out: np.ndarray) -> None:
        """Write the bytes of ``data`` from each start to ``out``, up to where each ends there."""
        for row in range(starts.shape[0] if stamp >= 0 else 0):
            start, first = starts[row], ends[row]
            for byte in range(ends[row + 1] - first):
                out[first + byte] = data[start + byte]

    return gather


gather_bytes = entry(_make_gather)


def _make_scatter(stamp: int) -> Callable[..., Any]:
    def scatter(data: np.ndarray, ends: np.ndarray, targets: np.ndarray, arena: np.ndarray) -> None:
        """Write piece i of ``data`` (up to ``ends[i + 1]``) to ``arena`` from ``targets[i]`` on.

        A target below 0: the piece is left out.
        """
        for row in range(targets.shape[0] if stamp >= 0 else 0):
            target, first = targets[row], ends[row]
            if target < 0:
                continue
            for byte in range(ends[row + 1] - first):
                arena[target + byte] = data[first + byte]

    return scatter


scatter_bytes = entry(_make_scatter)
