"""What a state looked like at one moment, copied bit by bit while it goes on changing.

A capture is opened between two batches, which costs nothing that grows with the state. Its slots
are then copied in slices between later batches; those that a batch is about to change first are
copied just before. So all records show the moment of the opening. No I/O, no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from headrace.features.kernels.keys import byte_buffers
from headrace.features.kernels.memory import M_KEYS, Memory
from headrace.features.kernels.records import (
    copy_slots,
    gather_bytes,
    measure_slots,
    note_slots,
    pick_slots,
)

if TYPE_CHECKING:
    from headrace.features.kernels.layout import Layout

#: So many words are copied in a slice: some milliseconds' work.
SLICE_WORDS = 1 << 19
#: And no more than so many slots.
SLICE_SLOTS = 1 << 15
_FIRST_SLOTS = 64


class SlotRecords(NamedTuple):
    """Slots as they were at a capture's opening, in any order.

    Attributes:
        slots: int64[n], the slots' numbers.
        hashes: uint64[n], of their keys; 0: no key finds the slot any more.
        keys: int64, or large binary.
        heads: int64[n, width], header rows without block addresses.
        ends: int64[n + 1], where each slot's cells end in ``cells``.
        cells: int64, live cells by ring, back to back.

    """

    slots: np.ndarray
    hashes: np.ndarray
    keys: pa.Array
    heads: np.ndarray
    ends: np.ndarray
    cells: np.ndarray

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def nbytes(self) -> int:
        """Bytes of the larger columns."""
        return int(self.heads.nbytes + self.cells.nbytes + self.keys.nbytes)

    def to_arrow(self) -> pa.RecordBatch:
        """Return the records as a batch of ``records_schema``, without a copy."""
        width = self.heads.shape[1]
        return pa.RecordBatch.from_arrays(
            [
                pa.array(self.slots),
                pa.array(self.hashes),
                self.keys,
                pa.FixedSizeListArray.from_arrays(pa.array(self.heads.reshape(-1)), width),
                pa.LargeListArray.from_arrays(pa.array(self.ends), pa.array(self.cells)),
            ],
            schema=records_schema(width, self.keys.type),
        )

    @classmethod
    def from_arrow(cls, batch: pa.RecordBatch) -> SlotRecords:
        """Return the records of a whole batch (no slice), without a copy."""
        heads = batch.column("head")
        cells = batch.column("cells")
        return cls(
            batch.column("slot").to_numpy(),
            batch.column("hash").to_numpy(),
            batch.column("key"),
            heads.values.to_numpy().reshape(len(heads), heads.type.list_size),
            cells.offsets.to_numpy(),
            cells.values.to_numpy(),
        )


def records_schema(width: int, key_type: pa.DataType) -> pa.Schema:
    """Return the schema of records whose header rows have ``width`` words."""
    return pa.schema(
        [
            pa.field("slot", pa.int64(), nullable=False),
            pa.field("hash", pa.uint64(), nullable=False),
            pa.field("key", key_type, nullable=False),
            pa.field("head", pa.list_(pa.int64(), width), nullable=False),
            pa.field("cells", pa.large_list(pa.int64()), nullable=False),
        ]
    )


class Captures:
    """Which slots have changed since the last capture was opened, and the one that is open.

    The owner hands in its memory with each call, since it grows into other arrays.
    """

    def __init__(self, layout: Layout, *, integer_keys: bool) -> None:
        """Keep track from now on: what is there already counts as unchanged."""
        self._layout = layout
        self._integer_keys = integer_keys
        self._changed = np.zeros(_FIRST_SLOTS, np.int8)
        self._wanted = np.zeros(0, np.int8)
        self._chosen = np.zeros(0, np.int8)
        self._limit = 0
        self._next = 0
        self._records: list[SlotRecords] = []

    @property
    def is_open(self) -> bool:
        """Whether slots are still to be copied."""
        return self._limit > 0

    def open(self, memory: Memory, *, whole: bool) -> None:
        """Open a capture of all slots, or of those that changed since the last one."""
        assert not self.is_open, "a capture is open"
        count = int(memory.meta[M_KEYS])
        self._changed = _wide(self._changed, count)
        self._chosen = np.ones(count, np.int8) if whole else self._changed[:count].copy()
        self._changed[:] = 0
        self._wanted = self._chosen.copy()
        self._limit, self._next = count, 0
        self._records = []

    def lose(self) -> None:
        """Count the last capture's slots as changed again: it came to nothing."""
        self._changed = _wide(self._changed, len(self._chosen))
        self._changed[: len(self._chosen)] |= self._chosen
        self._limit = 0
        self._wanted = self._chosen = np.zeros(0, np.int8)
        self._records = []

    def touch(self, memory: Memory, slots: np.ndarray) -> None:
        """Take note of slots (int64, below 0: none) that are about to change."""
        self._changed = _wide(self._changed, int(memory.meta[M_KEYS]))
        found = np.empty(len(slots) if self.is_open else 0, np.int64)
        count = note_slots(slots, self._changed, self._wanted, self._limit, found)
        if count:
            self._records.append(self._copied(memory, found[:count]))

    def go_on(self, memory: Memory, words_max: int = SLICE_WORDS) -> bool:
        """Copy a slice of some ``words_max`` of what is left; return whether that was all."""
        if self.is_open:
            found = np.empty(SLICE_SLOTS, np.int64)
            count, self._next = pick_slots(
                self._layout, memory, self._wanted, self._next, words_max, found
            )
            if count:
                self._records.append(self._copied(memory, found[:count]))
            if self._next >= self._limit:
                self._limit = 0
        return not self.is_open

    def take(self) -> list[SlotRecords]:
        """Return the records copied since this was called last."""
        records, self._records = self._records, []
        return records

    def _copied(self, memory: Memory, slots: np.ndarray) -> SlotRecords:
        count = len(slots)
        ends = np.empty(count + 1, np.int64)
        measure_slots(self._layout, memory, slots, ends)
        heads = np.empty((count, len(self._layout.header)), np.int64)
        cells = np.empty(int(ends[-1]), np.int64)
        copy_slots(self._layout, memory, slots, heads, cells)
        hashes = memory.key_hashes[slots]
        return SlotRecords(slots, hashes, self._keys(memory, slots, hashes), heads, ends, cells)

    def _keys(self, memory: Memory, slots: np.ndarray, hashes: np.ndarray) -> pa.Array:
        """Return the slots' keys; of a forgotten key no more than its length."""
        if self._integer_keys:
            return pa.array(np.where(hashes == 0, 0, memory.keys[slots, 0]))
        ends = np.zeros(len(slots) + 1, np.int64)
        np.cumsum(memory.keys[slots, 1], out=ends[1:])
        data = np.empty(int(ends[-1]), np.uint8)
        gather_bytes(memory.arena, memory.keys[slots, 0], ends, data)
        for row in np.flatnonzero(hashes == 0).tolist():
            data[ends[row] : ends[row + 1]] = 0
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(data)]
        return pa.Array.from_buffers(pa.large_binary(), len(slots), buffers)


def key_bytes(records: SlotRecords) -> tuple[np.ndarray, np.ndarray]:
    """Return (ends int64[n + 1], data uint8) of keys that are no integers."""
    return byte_buffers(records.keys)


def _wide(flags: np.ndarray, count: int) -> np.ndarray:
    """Return the flags, or a longer copy, with room for ``count`` and one more."""
    if count < len(flags):
        return flags
    grown = np.zeros(2 * (count + 1), np.int8)
    grown[: len(flags)] = flags
    return grown
