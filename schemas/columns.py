"""From the walker's arena to Arrow arrays: no bytes are copied but those of bits and null structs.

Does not look at the records; what it builds is valid because the walker proved it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from headrace.schemas import walker

if TYPE_CHECKING:
    from headrace.schemas.program import Column, Program

_ALIGNMENT: Final = 64
_MAX_BATCH_BYTES: Final = (1 << 31) - 1


class Walked:
    """What the walker made of one buffer of records: verdicts, and the columns of the good ones.

    Shape: ``verdicts`` (records,) walker verdicts; ``places`` (records, 2) pc and byte of refusals.
    """

    def __init__(
        self, program: Program, payload: np.ndarray, starts: np.ndarray, ends: np.ndarray
    ) -> None:
        assert len(payload) <= _MAX_BATCH_BYTES, "a batch must be cut by bytes before it comes here"
        self._program = program
        self.verdicts = np.zeros(len(starts), dtype=np.uint8)
        self.places = np.zeros((len(starts), 2), dtype=np.int64)
        self._slots = np.zeros((len(program.widths), walker.SLOT_COLUMNS), dtype=np.int64)
        records = (payload, starts, ends)
        if program.flat:
            self._slots[:, walker.CELLS] = len(starts)
            self._slots[:, walker.FILLED] = np.where(program.variable, len(payload), 0)
        else:
            self._walk(*records, write=False)
        self._arena = np.empty(_lay_out(program, self._slots), dtype=np.uint8)
        for base in self._slots[program.variable, walker.MAIN].tolist():
            self._arena[base : base + 4] = 0
        address = self._arena.ctypes.data
        self._slots[:, : walker.CELLS] += address
        self.good = self._walk(*records, write=True)
        self._slots[:, : walker.CELLS] -= address

    def _walk(
        self,
        payload: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        *,
        write: bool,
    ) -> int:
        program = self._program
        good: int = walker.walk(
            payload,
            starts,
            ends,
            program.ops,
            program.constants,
            self._slots,
            self._slots.copy(),
            np.empty((walker.MAX_REPEATS, 2), dtype=np.int64),
            write,
            self.verdicts,
            self.places,
        )
        return good

    def batch(self) -> pa.RecordBatch:
        """Return the good records, in order."""
        self._buffer = pa.py_buffer(self._arena)
        arrays = [self._array(column, self.good) for column in self._program.columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self._program.schema)

    def _array(self, column: Column, length: int) -> pa.Array:
        layout = column.layout
        if layout == "struct":
            children = [self._array(child, length) for child in column.children]
            return pa.Array.from_buffers(column.type, length, [None], 0, children=children)
        if layout == "option":
            return self._option(column, length)
        if layout == "union":
            return self._union(column, length)
        if layout == "null":
            return pa.nulls(length)
        if layout in {"list", "map"}:
            return self._repeated(column, length)
        return self._leaf(column, length)

    def _leaf(self, column: Column, length: int) -> pa.Array:
        slot = column.slot
        _, main, data, _, filled = self._slots[slot].tolist()
        width = self._program.widths[slot]
        validity, nulls = self._validity(slot, length) if column.nullable else (None, 0)
        if column.layout == "boolean":
            bits = _pack(self._arena[main : main + length])
            return pa.Array.from_buffers(column.type, length, [validity, bits], nulls)
        if column.layout == "variable":
            offsets = self._buffer.slice(main, (length + 1) * 4)
            values = self._buffer.slice(data, filled)
            return pa.Array.from_buffers(column.type, length, [validity, offsets, values], nulls)
        values = self._buffer.slice(main, length * width)
        if column.layout == "enum":
            index = pa.Array.from_buffers(pa.int32(), length, [validity, values], nulls)
            return pa.array(column.symbols, pa.string()).take(index)
        return pa.Array.from_buffers(column.type, length, [validity, values], nulls)

    def _validity(self, slot: int, length: int) -> tuple[pa.Buffer | None, int]:
        begin = self._slots[slot, walker.VALIDITY]
        valid = self._arena[begin : begin + length]
        nulls = length - int(np.count_nonzero(valid))
        return (_pack(valid), nulls) if nulls else (None, 0)

    def _repeated(self, column: Column, length: int) -> pa.Array:
        slot = column.slot
        offsets = self._buffer.slice(self._slots[slot, walker.MAIN], (length + 1) * 4)
        count = int(self._slots[slot, walker.FILLED])
        children = [self._array(child, count) for child in column.children]
        if column.layout == "map":
            children = [
                pa.StructArray.from_arrays(children, fields=list(_entry_fields(column.type)))
            ]
        return pa.Array.from_buffers(column.type, length, [None, offsets], 0, children=children)

    def _option(self, column: Column, length: int) -> pa.Array:
        begin = self._slots[column.slot, walker.MAIN]
        valid = self._arena[begin : begin + length].view(np.bool_)
        child = self._array(column.children[0], int(np.count_nonzero(valid)))
        return expand(child, valid)

    def _union(self, column: Column, length: int) -> pa.Array:
        begin = self._slots[column.slot, walker.MAIN]
        branches = self._arena[begin : begin + length].view(np.int8)
        offsets = np.zeros(length, dtype=np.int32)
        children = []
        for index, child in enumerate(column.children):
            mine = branches == index
            count = int(np.count_nonzero(mine))
            offsets[mine] = np.arange(count, dtype=np.int32)
            children.append(self._array(child, count))
        return dense_union(column.type, branches, offsets, children)


def expand(child: pa.Array, valid: np.ndarray) -> pa.Array:
    """Return an array as long as ``valid`` with the child's cells where it is true, else null."""
    if len(child) == len(valid):
        return child
    index = pa.array(np.cumsum(valid, dtype=np.int32) - 1, mask=~valid)
    return child.take(index)


def dense_union(
    kind: pa.DataType, branches: np.ndarray, offsets: np.ndarray, children: list[pa.Array]
) -> pa.Array:
    """Return a dense union of exactly this type (``from_dense`` alone forgets nullability)."""
    buffers = [None, pa.py_buffer(np.ascontiguousarray(branches)), pa.py_buffer(offsets)]
    return pa.Array.from_buffers(kind, len(branches), buffers, 0, children=children)


def _entry_fields(kind: pa.MapType) -> tuple[pa.Field, pa.Field]:
    return kind.key_field, kind.item_field


def _lay_out(program: Program, slots: np.ndarray) -> int:
    """Set where each slot's streams begin, reset its cursors; return the size of the arena."""
    end = 0
    for slot, width in zip(slots, program.widths.tolist(), strict=True):
        cells, filled = slot[walker.CELLS], slot[walker.FILLED]
        slot[walker.VALIDITY] = end
        end += _aligned(int(cells))
        slot[walker.MAIN] = end
        end += _aligned((int(cells) + 1) * width)
        slot[walker.DATA] = end
        # The walker copies in words of eight bytes: it may write some behind the last.
        end += _aligned(int(filled) + 8)
    slots[:, walker.CELLS :] = 0
    return end + _ALIGNMENT


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _pack(flags: np.ndarray) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))
