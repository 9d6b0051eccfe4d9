"""Implicit trees behind the cells of a block: min, max and last, with no removal needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headrace.features.kernels.compiled import inlined, inner
from headrace.features.kernels.layout import (
    BLOCK,
    CAPACITY,
    COUNT,
    R_HEAD,
    R_KNOWN,
    R_STRIDE,
    R_TREE,
    R_TREE_END,
    R_WIDTH,
    T_FIELD,
    T_KIND,
    T_WIDTH,
    TREE_ANY,
    TREE_LAST,
    TREE_MIN,
    Layout,
)

if TYPE_CHECKING:
    from headrace.features.kernels.memory import Memory


@inner
def _leaf(
    layout: Layout, memory: Memory, ring: int, tree: int, cell: int, index: int, clock: int
) -> float:
    """Return what a cell says to a tree: its value, or its index; the identity if it says nothing.

    Whether a cell is known at the clock does not depend on the window: cells that every window
    meets known have known_at ``ALWAYS``.
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
    return float(memory.pool_floats[block + place * capacity + at])


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
        nodes = (
            block + (layout.rings[row + R_STRIDE] + tree - layout.rings[row + R_TREE]) * capacity
        )
        level = 1
        while capacity >> level > 0:
            first = (capacity + start) >> level
            end = (capacity + count) >> level
            for at in range(first, end):
                left = _node(layout, memory, header, ring, tree, 2 * at, clock)
                right = _node(layout, memory, header, ring, tree, 2 * at + 1, clock)
                memory.pool_floats[nodes + at] = _join(
                    layout.trees[tree * T_WIDTH + T_KIND], left, right
                )
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
        nodes = (
            block + (layout.rings[row + R_STRIDE] + tree - layout.rings[row + R_TREE]) * capacity
        )
        level = 1
        at = (capacity + index) >> 1
        while at > 0 and ((at + 1) << level) - capacity <= count:
            left = _node(layout, memory, header, ring, tree, 2 * at, clock)
            right = _node(layout, memory, header, ring, tree, 2 * at + 1, clock)
            memory.pool_floats[nodes + at] = _join(
                layout.trees[tree * T_WIDTH + T_KIND], left, right
            )
            at >>= 1
            level += 1


@inner
def query_tree(
    layout: Layout,
    memory: Memory,
    header: int,
    ring: int,
    tree: int,
    low: int,
    high: int,
    clock: int,
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
