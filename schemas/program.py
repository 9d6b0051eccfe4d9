"""A schema as a program for the walker, and as a plan to put the walker's output together.

Each row of ``Program.ops`` is one instruction; what its operands mean stands beside the operations
in ``walker``. A *slot* is one stream of cells that the walker appends to:
a column's values, the offsets of an array, the branch numbers of a union. A nullable struct, and
each branch of a union, is stored compactly: its slots hold the cells that exist, no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from headrace.schemas.avro import MAX_DEPTH, AvroType
from headrace.schemas.walker import (
    BOOLEAN,
    BYTES,
    DECIMAL,
    DOUBLE,
    END,
    FIXED,
    FLOAT,
    INT,
    JUMP,
    LONG,
    MAX_REPEATS,
    NEXT,
    NULL,
    NULLABLE,
    OPERANDS,
    OPTION,
    REPEAT,
    STRING,
    UNION,
    UUID,
)

assert MAX_DEPTH < MAX_REPEATS

# Beyond this a fixed type is stored as variable bytes, so that a null costs no more than an offset.
MAX_INLINE_FIXED: Final = 64
_INT_BOUND: Final = 1 << 31
_LONG_BOUND: Final = 1 << 63
_DAY_MS: Final = 86_400_000
_LIMB_MASK: Final = (1 << 64) - 1

_TEMPORAL: Final = {
    "date": pa.date32(),
    "time-millis": pa.time32("ms"),
    "time-micros": pa.time64("us"),
    "timestamp-millis": pa.timestamp("ms", "UTC"),
    "timestamp-micros": pa.timestamp("us", "UTC"),
    "timestamp-nanos": pa.timestamp("ns", "UTC"),
    "local-timestamp-millis": pa.timestamp("ms"),
    "local-timestamp-micros": pa.timestamp("us"),
    "local-timestamp-nanos": pa.timestamp("ns"),
}
_PRIMITIVE: Final = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
    "enum": pa.string(),
}


def arrow_type(kind: AvroType) -> pa.DataType:  # noqa: PLR0911 - one line per kind.
    """Return the Arrow type of a column of this Avro type.

    Enums are strings; a union of null and T is a nullable T; other unions are dense unions.
    """
    if kind.logical in _TEMPORAL:
        return _TEMPORAL[kind.logical]
    if kind.logical == "decimal":
        make = pa.decimal128 if kind.precision <= 38 else pa.decimal256
        return make(kind.precision, kind.scale)
    if kind.kind == "fixed":
        return pa.binary(kind.size) if 0 < kind.size <= MAX_INLINE_FIXED else pa.binary()
    if kind.kind == "record":
        return pa.struct([arrow_field(field.name, field.type) for field in kind.fields])
    if kind.kind == "array":
        return pa.list_(arrow_field("item", kind.element))
    if kind.kind == "map":
        return pa.map_(pa.string(), arrow_field("value", kind.element))
    if kind.kind == "union":
        optional = kind.optional
        if optional is not None:
            return arrow_type(optional)
        fields = [arrow_field(_branch_name(branch), branch) for branch in kind.branches]
        return pa.dense_union(fields)
    return _PRIMITIVE[kind.kind]


def arrow_field(name: str, kind: AvroType) -> pa.Field:
    """Return the Arrow field of an Avro field; nullable if and only if null is among its values."""
    nullable = kind.kind == "null" or kind.optional is not None
    return pa.field(name, arrow_type(kind), nullable=nullable or kind.kind == "union")


def arrow_schema(record: AvroType) -> pa.Schema:
    """Return the Arrow schema of batches of this record."""
    return pa.schema([arrow_field(field.name, field.type) for field in record.fields])


def _branch_name(branch: AvroType) -> str:
    return branch.name or branch.kind


@dataclass(frozen=True, slots=True)
class Column:
    """How the slots of one type become one Arrow array.

    ``layout`` is one of null, boolean, values, enum, variable, list, map, struct, option, union.
    ``nullable`` says that the slot has a validity stream of its own.
    """

    layout: str
    type: pa.DataType
    slot: int
    nullable: bool
    symbols: tuple[str, ...]
    children: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled schema.

    Shape: ``ops`` (instructions, 6); ``widths`` (slots,) bytes of a cell in the slot's main stream;
    ``variable`` (slots,) whether the slot has a data
    stream; ``nullable`` (slots,) whether a validity stream.
    ``flat``: no arrays or maps, so no slot ever has more cells than there are records.
    """

    ops: np.ndarray
    constants: np.ndarray
    widths: np.ndarray
    variable: np.ndarray
    nullable: np.ndarray
    paths: tuple[str, ...]
    columns: tuple[Column, ...]
    schema: pa.Schema
    flat: bool


def compile_record(record: AvroType) -> Program:
    """Compile a record schema (as ``avro.parse_record`` gives it)."""
    compiler = _Compiler()
    columns = tuple(compiler.emit(field.type, field.name) for field in record.fields)
    compiler.op("", END)
    return Program(
        ops=np.array(compiler.ops, dtype=np.int64),
        constants=np.array(compiler.constants or [0], dtype=np.int64),
        widths=np.array(compiler.widths, dtype=np.int64),
        variable=np.array(compiler.variable, dtype=np.bool_),
        nullable=np.array(compiler.nullable, dtype=np.bool_),
        paths=tuple(compiler.paths),
        columns=columns,
        schema=arrow_schema(record),
        flat=compiler.depth_max == 0,
    )


class _Compiler:
    def __init__(self) -> None:
        self.ops: list[list[int]] = []
        self.paths: list[str] = []
        self.constants: list[int] = []
        self.widths: list[int] = []
        self.variable: list[bool] = []
        self.nullable: list[bool] = []
        self.depth = 0
        self.depth_max = 0

    def op(self, path: str, operation: int, *operands: int) -> int:
        self.ops.append([operation, *operands, *([0] * (OPERANDS - 1 - len(operands)))])
        self.paths.append(path)
        return len(self.ops) - 1

    def slot(self, width: int, *, variable: bool = False, nullable: bool = False) -> int:
        self.widths.append(width)
        self.variable.append(variable)
        self.nullable.append(nullable)
        return len(self.widths) - 1

    def emit(self, kind: AvroType, path: str) -> Column:
        if kind.kind == "record":
            children = tuple(self.emit(f.type, f"{path}.{f.name}") for f in kind.fields)
            return Column("struct", arrow_type(kind), -1, False, (), children)
        if kind.kind in {"array", "map"}:
            return self._repeated(kind, path)
        if kind.kind == "union":
            return self._union(kind, path)
        return self._leaf(kind, path, -1)

    def _union(self, kind: AvroType, path: str) -> Column:
        value = kind.optional
        if value is None:
            return self._tagged(kind, path)
        if value.kind in {"record", "array", "map", "null"}:
            slot = self.slot(1)
            at = self.op(path, OPTION, slot, kind.null_branch)
            child = self.emit(value, path)
            self.ops[at][3] = len(self.ops)
            return Column("option", arrow_type(kind), slot, False, (), (child,))
        return self._leaf(value, path, kind.null_branch)

    def _tagged(self, kind: AvroType, path: str) -> Column:
        slot = self.slot(1)
        table = len(self.constants)
        self.constants.extend([0] * len(kind.branches))
        self.op(path, UNION, slot, len(kind.branches), table)
        children, exits = [], []
        for index, branch in enumerate(kind.branches):
            self.constants[table + index] = len(self.ops)
            children.append(self.emit(branch, path))
            exits.append(self.op(path, JUMP))
        for at in exits:
            self.ops[at][2] = len(self.ops)
        return Column("union", arrow_type(kind), slot, False, (), tuple(children))

    def _repeated(self, kind: AvroType, path: str) -> Column:
        slot = self.slot(4, variable=True)
        self.op(path, REPEAT, 0, 0, self.depth)
        least = kind.element.min_bytes + (kind.kind == "map")
        head = self.op(path, NEXT, slot, 0, self.depth, least, _null_bytes(kind.element))
        self.depth += 1
        self.depth_max = max(self.depth_max, self.depth)
        children: tuple[Column, ...] = ()
        if kind.kind == "map":
            text = AvroType("string", 1)
            children = (self._leaf(text, f"{path}{{key}}", -1),)
        children = (*children, self.emit(kind.element, f"{path}[]"))
        self.depth -= 1
        self.op(path, JUMP, 0, head)
        self.ops[head][2] = len(self.ops)
        layout = "list" if kind.kind == "array" else "map"
        return Column(layout, arrow_type(kind), slot, False, (), children)

    def _leaf(self, kind: AvroType, path: str, null_branch: int) -> Column:
        """Emit a value without children; with ``null_branch`` >= 0 the null shares its slot."""
        operation, layout, width, operands = self._leaf_code(kind)
        nullable = null_branch >= 0
        slot = self.slot(width, variable=layout == "variable", nullable=nullable)
        if nullable:
            cell = 0 if layout == "variable" else width
            self.op(path, NULLABLE, slot, null_branch, len(self.ops) + 2, cell)
        self.op(path, operation, slot, *operands)
        return Column(layout, arrow_type(kind), slot, nullable, kind.symbols, ())

    def _leaf_code(self, kind: AvroType) -> tuple[int, str, int, tuple[int, ...]]:
        """Return operation, layout, bytes of a cell and the operands after the slot."""
        if kind.logical == "decimal":
            limbs = 2 if kind.precision <= 38 else 4
            size = kind.size if kind.kind == "fixed" else -1
            return DECIMAL, "values", 8 * limbs, (size, limbs, self._bound(10**kind.precision))
        if kind.kind == "fixed":
            if 0 < kind.size <= MAX_INLINE_FIXED:
                return FIXED, "values", kind.size, (kind.size,)
            return BYTES, "variable", 4, (kind.size,)
        if kind.kind == "enum":
            return INT, "enum", 4, (0, len(kind.symbols) - 1)
        if kind.kind == "int":
            day = kind.logical == "time-millis"
            return INT, "values", 4, (0, _DAY_MS - 1) if day else (-_INT_BOUND, _INT_BOUND - 1)
        if kind.kind == "long":
            day = kind.logical == "time-micros"
            least, greatest = (0, _DAY_MS * 1000 - 1) if day else (-_LONG_BOUND, _LONG_BOUND - 1)
            return LONG, "values", 8, (least, greatest)
        if kind.kind == "string":
            return (UUID if kind.logical == "uuid" else STRING), "variable", 4, ()
        return _SIMPLE[kind.kind]

    def _bound(self, bound: int) -> int:
        """Store an unsigned 256-bit number as four limbs, lowest first; return where."""
        first = len(self.constants)
        for shift in range(0, 256, 64):
            limb = (bound >> shift) & _LIMB_MASK
            self.constants.append(limb - (1 << 64) if limb >> 63 else limb)
        return first


_SIMPLE: Final[dict[str, tuple[int, str, int, tuple[int, ...]]]] = {
    "null": (NULL, "null", 0, ()),
    "boolean": (BOOLEAN, "boolean", 1, ()),
    "float": (FLOAT, "values", 4, ()),
    "double": (DOUBLE, "values", 8, ()),
    "bytes": (BYTES, "variable", 4, (-1,)),
}


def _null_bytes(kind: AvroType) -> int:
    """Return how many Arrow bytes the nullable structs in one array item take when all are null.

    A null costs the sender one byte and us the struct's full width: the walker keeps account.
    """
    if kind.kind == "record":
        return sum(_null_bytes(field.type) for field in kind.fields)
    if kind.kind == "union":
        value = kind.optional
        if value is not None:
            return _width(value) if value.kind == "record" else 0
        return max(_null_bytes(branch) for branch in kind.branches)
    return 0


def _width(kind: AvroType) -> int:
    if kind.kind == "record":
        return sum(_width(field.type) for field in kind.fields)
    if kind.kind == "union":
        value = kind.optional
        return 5 if value is None else 1 + _width(value)
    if kind.kind == "fixed":
        return min(kind.size, MAX_INLINE_FIXED)
    return 32 if kind.logical == "decimal" else 8
