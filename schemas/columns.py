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
        self.verdicts = np.empty(len(starts), dtype=np.uint8)
        self.places = np.zeros((len(starts), 2), dtype=np.int64)
        slots = len(program.widths)
        if program.flat:
            cells = np.full(slots, len(starts), dtype=np.int64)
            data = np.where(program.variable, len(payload), 0)
        else:
            cells, data = np.zeros((2, slots), dtype=np.int64)
            bases = np.zeros((slots, 3), dtype=np.int64)
            self._walk(
                payload, starts, ends, bases, cells, data, np.zeros(8, np.uint8), write=False
            )
        self._bases, size = _layout(program, cells, data)
        self._arena = np.empty(size, dtype=np.uint8)
        self.cells, self.data = np.zeros((2, slots), dtype=np.int64)
        main = self._bases[program.variable, 1]
        self._arena.view(np.int32)[main] = 0
        self.good = self._walk(
            payload, starts, ends, self._bases, self.cells, self.data, self._arena, write=True
        )

    def _walk(  # noqa: PLR0913 - the kernel's own operands.
        self,
        payload: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        bases: np.ndarray,
        cells: np.ndarray,
        data: np.ndarray,
        arena: np.ndarray,
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
            bases,
            cells,
            data,
            arena,
            arena.view(np.int32),
            arena.view(np.int64),
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
        _, main, data = self._bases[slot]
        width = self._program.widths[slot]
        validity, nulls = self._validity(slot, length) if column.nullable else (None, 0)
        if column.layout == "boolean":
            bits = _pack(self._arena[main : main + length])
            return pa.Array.from_buffers(column.type, length, [validity, bits], nulls)
        unit = self._program.units[slot]
        if column.layout == "variable":
            offsets = self._buffer.slice(main * unit, (length + 1) * 4)
            values = self._buffer.slice(data, self.data[slot])
            return pa.Array.from_buffers(column.type, length, [validity, offsets, values], nulls)
        values = self._buffer.slice(main * unit, length * width)
        if column.layout == "enum":
            index = pa.Array.from_buffers(pa.int32(), length, [validity, values], nulls)
            return pa.array(column.symbols, pa.string()).take(index)
        return pa.Array.from_buffers(column.type, length, [validity, values], nulls)

    def _validity(self, slot: int, length: int) -> tuple[pa.Buffer | None, int]:
        begin = self._bases[slot, 0]
        valid = self._arena[begin : begin + length]
        nulls = length - int(np.count_nonzero(valid))
        return (_pack(valid), nulls) if nulls else (None, 0)

    def _repeated(self, column: Column, length: int) -> pa.Array:
        slot = column.slot
        offsets = self._buffer.slice(self._bases[slot, 1] * 4, (length + 1) * 4)
        count = int(self.data[slot])
        children = [self._array(child, count) for child in column.children]
        if column.layout == "map":
            children = [
                pa.StructArray.from_arrays(children, fields=list(_entry_fields(column.type)))
            ]
        return pa.Array.from_buffers(column.type, length, [None, offsets], 0, children=children)

    def _option(self, column: Column, length: int) -> pa.Array:
        begin = self._bases[column.slot, 1]
        valid = self._arena[begin : begin + length].view(np.bool_)
        child = self._array(column.children[0], int(np.count_nonzero(valid)))
        return expand(child, valid)

    def _union(self, column: Column, length: int) -> pa.Array:
        begin = self._bases[column.slot, 1]
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


def _layout(program: Program, cells: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, int]:
    """Return where each slot's streams begin (as ``walk_record`` takes it), and the arena's size."""
    bases = np.zeros((len(cells), 3), dtype=np.int64)
    end = 0
    for slot, (width, count) in enumerate(
        zip(program.widths.tolist(), cells.tolist(), strict=True)
    ):
        if program.nullable[slot]:
            bases[slot, 0] = end
            end = _aligned(end + count)
        bases[slot, 1] = end // max(int(program.units[slot]), 1)
        end = _aligned(end + (count + 1) * width)
        if program.variable[slot]:
            bases[slot, 2] = end
            end = _aligned(end + int(data[slot]))
    return bases, max(end, _ALIGNMENT)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _pack(flags: np.ndarray) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))
