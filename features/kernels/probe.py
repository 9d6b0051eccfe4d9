"""Looking at keys without touching them: their aggregates at a time, and when those change next.

A probe moves a key's windows as a scored row would, reads, and puts every word back: the header row
from a copy, the trees by letting the same cells become unknown again. Nothing is journaled, so it
may happen inside a transaction and outside of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headrace.features.kernels.compiled import entry, inner, pointer
from headrace.features.kernels.layout import (
    BLOCK,
    CLOCK,
    COUNT,
    G_KIND,
    G_WINDOW,
    HIGH,
    LAG_BLOCK,
    LAG_COUNT,
    LAG_KNOWN,
    LOW,
    NEVER,
    NEWEST,
    R_GRAIN,
    R_HEAD,
    R_KNOWN,
    R_STRIDE,
    R_TREE,
    R_TREE_END,
    R_WIDTH,
    READ_AGE,
    W_DELAY,
    W_HEAD,
    W_LENGTH,
    W_RING,
    W_WIDTH,
    Layout,
    view_layout,
)
from headrace.features.kernels.memory import Memory, look_memory
from headrace.features.kernels.rings import floor_to
from headrace.features.kernels.windows import read_aggregate, read_empty, seek, seek_known

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

#: Later than any event: what is due then never changes by itself.
FAR = 1 << 62
_TICK_MS_MIN = 1_000
_TICKS_PER_WINDOW = 1_000


class Ticks(NamedTuple):
    """How finely changes over time are told, by row of ``Layout.windows``.

    ``grain_ms`` int64[w]: changes are told at multiples of it; 0: not at all. ``ages`` int8[w]:
    an age over the window is read, which changes with every moment.
    """

    grain_ms: np.ndarray
    ages: np.ndarray


class Probe(NamedTuple):
    """What a probe writes, one row a slot; see ``EntityState.probe``."""

    aggregates: np.ndarray
    event_time_ms: np.ndarray
    as_of_ms: np.ndarray
    due_ms: np.ndarray


def build_ticks(layout: Layout, without: Collection[int]) -> Ticks:
    """Return the grains for all aggregates but those whose indices are in ``without``."""
    count = len(layout.windows)
    grain_ms, ages = np.zeros(count, np.int64), np.zeros(count, np.int8)
    for aggregate, row in enumerate(layout.aggregates):
        if aggregate in without:
            continue
        window = row[G_WINDOW]
        length_ms = int(layout.windows[window, W_LENGTH])
        grain_ms[window] = max(_TICK_MS_MIN, length_ms // _TICKS_PER_WINDOW)
        ages[window] |= row[G_KIND] == READ_AGE
    return Ticks(grain_ms, ages)


@inner
def _ceil_to(time: int, grain: int) -> int:
    return -floor_to(-time, grain)


@inner
def _window_due(layout: Layout, memory: Memory, header: int, window: int, time: int) -> int:
    """Return the first time after ``time``, where the window stands, at which it holds others."""
    heads, pool = memory.heads, memory.pool
    row = layout.windows[window * W_WIDTH + W_RING] * R_WIDTH
    head, stride = header + layout.rings[row + R_HEAD], layout.rings[row + R_STRIDE]
    at = header + layout.windows[window * W_WIDTH + W_HEAD]
    delay = layout.windows[window * W_WIDTH + W_DELAY]
    low, high = heads[at + LOW], heads[at + HIGH]
    due = FAR
    if low < high:
        oldest = pool[heads[head + BLOCK] + low * stride]
        due = oldest + delay + layout.windows[window * W_WIDTH + W_LENGTH]
    if high < heads[head + COUNT]:
        due = min(due, pool[heads[head + BLOCK] + high * stride] + delay)
    if layout.rings[row + R_KNOWN] and heads[head + LAG_KNOWN] < heads[head + LAG_COUNT]:
        due = min(due, pool[heads[head + LAG_BLOCK] + heads[head + LAG_KNOWN] * stride])
    return FAR if due == FAR else max(_ceil_to(due, layout.rings[row + R_GRAIN]), time + 1)


@inner
def _due(
    layout: Layout,
    memory: Memory,
    header: int,
    windows: int,
    grains: np.ndarray,
    ages: np.ndarray,
    time: int,
) -> int:
    """Return when any told aggregate of the key changes next, rounded up to its grain."""
    due = FAR
    for window in range(windows):
        grain = grains[window]
        if grain == 0:
            continue
        changed = _window_due(layout, memory, header, window, time)
        at = header + layout.windows[window * W_WIDTH + W_HEAD]
        if ages[window] and memory.heads[at + LOW] < memory.heads[at + HIGH]:
            changed = time + 1
        if changed < FAR:
            due = min(due, _ceil_to(changed, grain))
    return due


@inner
def _hide_again(layout: Layout, memory: Memory, header: int, rings: int, clock: int) -> None:
    """Let the trees say again what they said at ``clock``; the header row is restored after."""
    for ring in range(rings):
        row = ring * R_WIDTH
        if (
            layout.rings[row + R_KNOWN]
            and layout.rings[row + R_TREE] < layout.rings[row + R_TREE_END]
        ):
            seek_known(layout, memory, header, ring, floor_to(clock, layout.rings[row + R_GRAIN]))


def _make_probe(stamp: int) -> Callable[..., Any]:
    def probe(
        layout: Layout, memory: Memory, slots: np.ndarray, at_ms: int, ticks: Ticks, found: Probe
    ) -> None:
        """Fill ``found`` for each slot at ``at_ms``, or its newest time where that is later."""
        rings, windows, width = layout.rings.shape[0], layout.windows.shape[0], len(layout.header)
        scratch = np.zeros(width, np.int64)
        kept = pointer(scratch)
        grains, ages = pointer(ticks.grain_ms), pointer(ticks.ages)
        plan, state = view_layout(layout), look_memory(memory)
        heads = state.heads
        for row in range(slots.shape[0] if stamp >= 0 else 0):
            header = slots[row] * width
            clock, newest = heads[header + CLOCK], heads[header + NEWEST]
            found.event_time_ms[row] = newest
            if newest == NEVER:
                found.as_of_ms[row], found.due_ms[row] = NEVER, FAR
                for aggregate in range(found.aggregates.shape[1]):
                    found.aggregates[row, aggregate] = read_empty(plan, aggregate)
                continue
            time = max(at_ms, newest)
            if time != clock:
                for word in range(width):
                    kept[word] = heads[header + word]
                seek(plan, state, header, rings, time)
            for aggregate in range(found.aggregates.shape[1]):
                found.aggregates[row, aggregate] = read_aggregate(plan, state, header, aggregate)
            found.as_of_ms[row] = time
            found.due_ms[row] = _due(plan, state, header, windows, grains, ages, time)
            if time != clock:
                _hide_again(plan, state, header, rings, clock)
                for word in range(width):
                    heads[header + word] = kept[word]

    return probe


probe_slots = entry(_make_probe)


def _make_distinct(stamp: int) -> Callable[..., Any]:
    def distinct(slots: np.ndarray, marks: np.ndarray, found: np.ndarray) -> int:
        """Write each slot >= 0 once, in the order of first sight; return how many there are.

        ``marks`` int8 by slot is all zero before and after.
        """
        count = 0
        for row in range(slots.shape[0] if stamp >= 0 else 0):
            slot = slots[row]
            if slot >= 0 and marks[slot] == 0:
                marks[slot] = 1
                found[count] = slot
                count += 1
        for row in range(count):
            marks[found[row]] = 0
        return count

    return distinct


distinct_slots = entry(_make_distinct)
