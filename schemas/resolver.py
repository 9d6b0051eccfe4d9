"""The slow path: one record at a time, written with one schema and read with another.

Only records that the walker has proved come here, so nothing is bounds-checked again. Values come
out as ``arrays.array_of`` takes them: raw numbers for dates and times, ``Decimal`` for decimals,
pairs for maps, ``(branch, value)`` for unions that are not just nullable.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from decimal import Context, Decimal
from typing import Any, Final
from uuid import UUID

from headrace.schemas.avro import MAX_DECIMAL_PRECISION, AvroType, default_value
from headrace.schemas.compatibility import same_name, unreadable, written_field

Reader = Callable[[bytes, int], tuple[Any, int]]
Finish = Callable[[Any], Any]

_FLOAT: Final = struct.Struct("<f")
_DOUBLE: Final = struct.Struct("<d")
_NESTING: Final = frozenset({"record", "enum", "array", "map"})
_DAY: Final = {"time-millis": 86_400_000, "time-micros": 86_400_000_000}
_DECIMALS: Final = Context(prec=MAX_DECIMAL_PRECISION)


class Unresolvable(ValueError):  # noqa: N818 - a verdict on a row.
    """The record is sound, but the reader's schema has no place for a value in it."""


class Unfit(ValueError):  # noqa: N818 - a verdict on a row.
    """A value is out of its logical type's range."""


def compile_reader(writer: AvroType, reader: AvroType, path: str = "") -> Reader:
    """Return a function from (payload, position) to (value, next position).

    It raises ``Unresolvable`` or ``Unfit`` for the records that cannot be read; ``path`` is where
    the type stands, for their messages.
    """
    if writer.kind == "union":
        return _from_union([compile_reader(branch, reader, path) for branch in writer.branches])
    if reader.kind == "union":
        return _into_union(writer, reader, path)
    if writer.kind != reader.kind or writer.kind not in _NESTING:
        if unreadable(writer, reader):
            return _refuse(writer, reader, path)
        return _converted(_plain(writer), _promotion(writer, reader), finish(reader))
    if writer.items is not None:
        items = compile_reader(writer.element, reader.element, f"{path}[]")
        return _array(items) if writer.kind == "array" else _map(items)
    if not same_name(writer, reader):
        return _refuse(writer, reader, path)
    return (_record if writer.kind == "record" else _enum)(writer, reader, path)


def shaped_default(kind: AvroType, default: Any) -> Any:
    """Return a JSON default as the value that a compiled reader would give."""
    if kind.kind == "union":
        value = shaped_default(kind.branches[0], default)
        return value if kind.optional is not None else (0, value)
    if kind.kind == "record":
        return {
            field.name: shaped_default(field.type, default.get(field.name, field.default))
            for field in kind.fields
        }
    if kind.kind == "array":
        return [shaped_default(kind.element, item) for item in default]
    if kind.kind == "map":
        return [(key, shaped_default(kind.element, item)) for key, item in default.items()]
    return finish(kind)(default_value(kind, default))


def finish(kind: AvroType) -> Finish:
    """Return what turns a raw value into one that fits the column of this type."""
    if kind.logical == "decimal":
        return _decimal(kind)
    if kind.logical in _DAY:
        return _within(kind, _DAY[kind.logical])
    if kind.logical == "uuid":
        return _uuid
    return _same


def _decimal(kind: AvroType) -> Finish:
    bound = 10**kind.precision

    def convert(raw: bytes) -> Decimal:
        unscaled = int.from_bytes(raw, "big", signed=True)
        if not -bound < unscaled < bound:
            message = f"{kind.describe()} has more than {kind.precision} digits"
            raise Unfit(message)
        return Decimal(unscaled).scaleb(-kind.scale, _DECIMALS)

    return convert


def _within(kind: AvroType, day: int) -> Finish:
    def check(raw: int) -> int:
        if not 0 <= raw < day:
            message = f"{kind.describe()} is outside of the day"
            raise Unfit(message)
        return raw

    return check


def _uuid(raw: str) -> str:
    try:
        form = str(UUID(raw))
    except ValueError:
        form = ""
    if form != raw.lower():
        message = "uuid has not the 36 characters of RFC 4122"
        raise Unfit(message)
    return raw


def _same(raw: Any) -> Any:
    return raw


def _refuse(writer: AvroType, reader: AvroType, path: str) -> Reader:
    problems = unreadable(writer, reader, path)
    message = problems[0] if problems else f"{writer.describe()} is not {reader.describe()}"

    def read(payload: bytes, position: int) -> tuple[Any, int]:  # noqa: ARG001 - a Reader.
        raise Unresolvable(message)

    return read


def _from_union(branches: list[Reader]) -> Reader:
    def read(payload: bytes, position: int) -> tuple[Any, int]:
        branch, position = _long(payload, position)
        return branches[branch](payload, position)

    return read


def _into_union(writer: AvroType, reader: AvroType, path: str) -> Reader:
    matching = [i for i, branch in enumerate(reader.branches) if not unreadable(writer, branch)]
    if not matching:
        return _refuse(writer, reader, path)
    index = matching[0]
    inner = compile_reader(writer, reader.branches[index], path)
    if reader.optional is not None:
        return inner

    def read(payload: bytes, position: int) -> tuple[Any, int]:
        value, position = inner(payload, position)
        return (index, value), position

    return read


def _record(writer: AvroType, reader: AvroType, path: str) -> Reader:
    wanted = {}
    record: dict[str, Any] = {}
    for field in reader.fields:
        written = written_field(writer, field)
        if written is not None:
            wanted[written.name] = field
        elif field.has_default:
            record[field.name] = shaped_default(field.type, field.default)
        else:
            return _refuse(writer, reader, path)
    steps: list[tuple[str | None, Reader]] = []
    for field in writer.fields:
        target = wanted.get(field.name)
        if target is None:
            steps.append((None, compile_reader(field.type, field.type)))
        else:
            inner = f"{path}.{target.name}" if path else target.name
            steps.append((target.name, compile_reader(field.type, target.type, inner)))

    def read(payload: bytes, position: int) -> tuple[Any, int]:
        values = dict(record)
        for name, step in steps:
            value, position = step(payload, position)
            if name is not None:
                values[name] = value
        return values, position

    return read


def _enum(writer: AvroType, reader: AvroType, path: str) -> Reader:
    symbols = [
        symbol if symbol in reader.symbols else reader.default_symbol for symbol in writer.symbols
    ]

    def read(payload: bytes, position: int) -> tuple[Any, int]:
        index, position = _long(payload, position)
        if symbols[index] is None:
            message = f"{path}: symbol {writer.symbols[index]!r} is unknown to {reader.describe()}"
            raise Unresolvable(message)
        return symbols[index], position

    return read


def _array(items: Reader) -> Reader:
    def read(payload: bytes, position: int) -> tuple[Any, int]:
        values = []
        count, position = _block(payload, position)
        while count:
            for _ in range(count):
                value, position = items(payload, position)
                values.append(value)
            count, position = _block(payload, position)
        return values, position

    return read


def _map(items: Reader) -> Reader:
    def read(payload: bytes, position: int) -> tuple[Any, int]:
        values = []
        count, position = _block(payload, position)
        while count:
            for _ in range(count):
                key, position = _text(payload, position)
                value, position = items(payload, position)
                values.append((key, value))
            count, position = _block(payload, position)
        return values, position

    return read


def _converted(read_raw: Reader, promote: Finish, finish_value: Finish) -> Reader:
    if promote is _same and finish_value is _same:
        return read_raw

    def read(payload: bytes, position: int) -> tuple[Any, int]:
        raw, position = read_raw(payload, position)
        return finish_value(promote(raw)), position

    return read


def _promotion(writer: AvroType, reader: AvroType) -> Finish:
    if writer.kind in {"int", "long"} and reader.kind in {"float", "double"}:
        return float
    if writer.kind == "string" and reader.kind == "bytes":
        return str.encode
    if writer.kind == "bytes" and reader.kind == "string":
        return _as_text
    return _same


def _as_text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        message = f"bytes are not UTF-8: {error.reason}"
        raise Unfit(message) from error


def _plain(kind: AvroType) -> Reader:
    if kind.kind == "fixed":
        return _fixed(kind.size)
    return _PLAIN[kind.kind]


def _fixed(size: int) -> Reader:
    def read(payload: bytes, position: int) -> tuple[Any, int]:
        return payload[position : position + size], position + size

    return read


def _long(payload: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = payload[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return (value >> 1) ^ -(value & 1), position
        shift += 7


def _block(payload: bytes, position: int) -> tuple[int, int]:
    count, position = _long(payload, position)
    if count < 0:
        _, position = _long(payload, position)
    return abs(count), position


def _null(payload: bytes, position: int) -> tuple[None, int]:  # noqa: ARG001 - a Reader.
    return None, position


def _boolean(payload: bytes, position: int) -> tuple[bool, int]:
    return payload[position] == 1, position + 1


def _float(payload: bytes, position: int) -> tuple[float, int]:
    return _FLOAT.unpack_from(payload, position)[0], position + 4


def _double(payload: bytes, position: int) -> tuple[float, int]:
    return _DOUBLE.unpack_from(payload, position)[0], position + 8


def _bytes(payload: bytes, position: int) -> tuple[bytes, int]:
    length, position = _long(payload, position)
    return payload[position : position + length], position + length


def _text(payload: bytes, position: int) -> tuple[str, int]:
    raw, position = _bytes(payload, position)
    return raw.decode(), position


_PLAIN: Final[dict[str, Reader]] = {
    "null": _null,
    "boolean": _boolean,
    "int": _long,
    "long": _long,
    "float": _float,
    "double": _double,
    "bytes": _bytes,
    "string": _text,
}
