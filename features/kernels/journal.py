"""The undo journal's ends: commit frees what the transaction replaced, abort puts all back.

What is saved while a transaction is open: the header row of each key on first touch, pool words
before they are overwritten, and which blocks were taken and given. Appended cells need nothing:
the old header's count hides them. Trees are not saved but computed anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.features.kernels.compiled import entry
from headrace.features.kernels.layout import COUNT, R_HEAD, R_TREE, R_TREE_END, Layout, view_layout
from headrace.features.kernels.memory import (
    GIVEN,
    M_BASE_KEYS,
    M_BLOCKS,
    M_LOG,
    M_OPEN,
    M_SAVED,
    TAKEN,
    Memory,
    push_free,
    view_memory,
)
from headrace.features.kernels.rings import ring_clock
from headrace.features.kernels.slots import forget_keys
from headrace.features.kernels.trees import rebuild_trees

if TYPE_CHECKING:
    from collections.abc import Callable


def _make_commit(stamp: int) -> Callable[..., Any]:
    def commit(memory: Memory) -> None:
        """Keep all changes; blocks that were given back can be used again."""
        state, meta = view_memory(memory), memory.meta
        for at in range(meta[M_BLOCKS] if stamp >= 0 else 0):
            block, kind, size_class, what = memory.block_log[at]
            if what == GIVEN:
                push_free(state, block, kind, size_class)
        meta[M_OPEN] = 0
        meta[M_LOG] = meta[M_SAVED] = meta[M_BLOCKS] = 0

    return commit


commit_journal = entry(_make_commit)


def _make_abort(stamp: int) -> Callable[..., Any]:
    def abort(layout: Layout, memory: Memory) -> None:
        """Undo all changes since the transaction began."""
        plan, state, meta = view_layout(layout), view_memory(memory), memory.meta
        width = layout.header.shape[0]
        at = meta[M_LOG] if stamp >= 0 else 0
        while at > 0:
            start, count = state.log[at - 2], state.log[at - 1]
            at -= count + 2
            for word in range(count):
                state.pool[start + word] = state.log[at + word]
        forget_keys(memory, meta[M_BASE_KEYS])
        for index in range(meta[M_SAVED]):
            header = state.saved_slots[index] * width
            for word in range(width):
                state.heads[header + word] = state.saved[index * width + word]
            for ring in range(layout.rings.shape[0]):
                has_trees = layout.rings[ring, R_TREE] < layout.rings[ring, R_TREE_END]
                if has_trees and state.heads[header + layout.rings[ring, R_HEAD] + COUNT] > 0:
                    clock = ring_clock(plan, state, header, ring)
                    rebuild_trees(plan, state, header, ring, 0, clock)
        for index in range(meta[M_BLOCKS]):
            block, kind, size_class, what = memory.block_log[index]
            if what == TAKEN:
                push_free(state, block, kind, size_class)
        meta[M_OPEN] = 0
        meta[M_LOG] = meta[M_SAVED] = meta[M_BLOCKS] = 0

    return abort


abort_journal = entry(_make_abort)
