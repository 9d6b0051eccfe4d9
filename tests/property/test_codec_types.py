"""Whatever a producer may write decodes as fastavro decodes it, by columns and by rows alike."""

from __future__ import annotations

import io
import json
import math
import struct
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import fastavro
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from headrace.schemas.arrays import batch_of
from headrace.schemas.avro import parse_record
from headrace.schemas.codec import SchemaDecoder
from headrace.schemas.resolver import compile_reader

if TYPE_CHECKING:
    from collections.abc import Callable

INT = st.integers(-(2**31), 2**31 - 1)
LONG = st.integers(-(2**63), 2**63 - 1)
# What Python's datetime can show; the columns themselves hold any number.
YEAR_1_MS, YEAR_9999_MS = -62_135_596_800_000, 253_402_300_799_999


def varint(value: int) -> bytes:
    zigzag = (value << 1) ^ (value >> 63)
    out = bytearray()
    while zigzag >= 128:
        out.append((zigzag & 127) | 128)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)


def prefixed(raw: bytes) -> bytes:
    return varint(len(raw)) + raw


@dataclass
class Kind:
    """A schema, and a strategy of encodings of its values."""

    schema: Any
    encoded: st.SearchStrategy[bytes]


def leaf(schema: Any, values: st.SearchStrategy[Any], encode: Callable[[Any], bytes]) -> Kind:
    return Kind(schema, values.map(encode))


def logical(kind: str, name: str, values: st.SearchStrategy[int]) -> Kind:
    return leaf({"type": kind, "logicalType": name}, values, varint)


def scaled_ms(factor: int) -> st.SearchStrategy[int]:
    return st.integers(YEAR_1_MS * factor, YEAR_9999_MS * factor)


TEXT = st.text(max_size=12)
LEAVES = [
    leaf("boolean", st.booleans(), lambda value: bytes([value])),
    leaf("int", INT, varint),
    leaf("long", LONG, varint),
    leaf("float", st.floats(width=32), struct.Struct("<f").pack),
    leaf("double", st.floats(), struct.Struct("<d").pack),
    leaf("bytes", st.binary(max_size=12), prefixed),
    leaf("string", TEXT, lambda value: prefixed(value.encode())),
    logical("int", "date", st.integers(-719_162, 2_932_896)),
    logical("int", "time-millis", st.integers(0, 86_399_999)),
    logical("long", "time-micros", st.integers(0, 86_399_999_999)),
    logical("long", "timestamp-millis", scaled_ms(1)),
    logical("long", "timestamp-micros", scaled_ms(1000)),
    logical("long", "local-timestamp-millis", scaled_ms(1)),
    logical("long", "local-timestamp-micros", scaled_ms(1000)),
    logical("long", "no-such-logical-type", LONG),
    leaf(
        {"type": "string", "logicalType": "uuid"},
        st.uuids(),
        lambda value: prefixed(str(value).encode()),
    ),
]


@st.composite
def decimals(draw: st.DrawFn, names: list[int]) -> Kind:
    precision = draw(st.integers(1, 60))
    scale = draw(st.integers(0, precision))
    kind: dict[str, Any] = {"logicalType": "decimal", "precision": precision, "scale": scale}
    values = st.integers(-(10**precision) + 1, 10**precision - 1)
    if draw(st.booleans()):
        size = 27
        kind |= {"type": "fixed", "name": new_name(names), "size": size}
        return leaf(kind, values, lambda value: value.to_bytes(size, "big", signed=True))
    kind["type"] = "bytes"
    return leaf(
        kind,
        values,
        lambda value: prefixed(value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)),
    )


def new_name(names: list[int]) -> str:
    names.append(len(names))
    return f"N{len(names)}"


@st.composite
def kinds(draw: st.DrawFn, names: list[int], depth: int, *, branch: bool = False) -> Kind:
    """Draw a type of which no value is empty (so that it may be an array's item)."""
    choices = ["leaf", "decimal", "enum", "fixed"]
    if depth:
        choices += ["record", "array", "map"] + ([] if branch else ["optional", "union"])
    choice = draw(st.sampled_from(choices))
    if choice == "leaf":
        return draw(st.sampled_from(LEAVES))
    if choice == "decimal":
        return draw(decimals(names))
    if choice == "enum":
        symbols = draw(st.lists(st.sampled_from("ABCDEFG"), min_size=1, unique=True))
        kind = {"type": "enum", "name": new_name(names), "symbols": symbols}
        return leaf(kind, st.integers(0, len(symbols) - 1), varint)
    if choice == "fixed":
        size = draw(st.sampled_from([1, 3, 4, 8, 12, 16, 64, 65]))
        kind = {"type": "fixed", "name": new_name(names), "size": size}
        return leaf(kind, st.binary(min_size=size, max_size=size), bytes)
    if choice == "record":
        return draw(records(names, depth - 1))
    if choice in {"array", "map"}:
        items = draw(kinds(names, depth - 1))
        return repeated(choice, items)
    return draw(unions(names, depth - 1, optional=choice == "optional"))


def repeated(kind: str, items: Kind) -> Kind:
    item = items.encoded
    if kind == "map":
        item = st.tuples(TEXT.map(lambda key: prefixed(key.encode())), item).map(b"".join)
    blocks = st.lists(st.tuples(st.lists(item, min_size=1, max_size=3), st.booleans()), max_size=3)
    schema = {"type": kind, ("items" if kind == "array" else "values"): items.schema}
    return leaf(schema, blocks, encode_blocks)


def encode_blocks(blocks: list[tuple[list[bytes], bool]]) -> bytes:
    out = b""
    for items, sized in blocks:
        body = b"".join(items)
        out += varint(-len(items)) + varint(len(body)) if sized else varint(len(items))
        out += body
    return out + varint(0)


@st.composite
def unions(draw: st.DrawFn, names: list[int], depth: int, *, optional: bool) -> Kind:
    branches = [Kind("null", st.just(b""))]
    count = 1 if optional else draw(st.integers(1, 4))
    taken = {"null"}
    for _ in range(count):
        kind = draw(kinds(names, depth, branch=True))
        base = kind.schema["type"] if isinstance(kind.schema, dict) else kind.schema
        base = kind.schema["name"] if base in {"record", "enum", "fixed"} else base
        if base not in taken:
            taken.add(base)
            branches.append(kind)
    order = draw(st.permutations(range(len(branches))))
    branches = [branches[index] for index in order]
    encoded = [
        kind.encoded.map(lambda body, number=number: varint(number) + body)
        for number, kind in enumerate(branches)
    ]
    return Kind([kind.schema for kind in branches], st.one_of(encoded))


@st.composite
def records(draw: st.DrawFn, names: list[int], depth: int) -> Kind:
    name = new_name(names)
    fields = [draw(kinds(names, depth)) for _ in range(draw(st.integers(1, 4)))]
    if draw(st.booleans()):
        fields.append(Kind("null", st.just(b"")))
    schema = {
        "type": "record",
        "name": name,
        "fields": [{"name": f"f{i}", "type": kind.schema} for i, kind in enumerate(fields)],
    }
    return Kind(schema, st.tuples(*(kind.encoded for kind in fields)).map(b"".join))


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    record = draw(records([], 3))
    return json.dumps(record.schema), draw(st.lists(record.encoded, max_size=4))


def comparable(value: Any) -> Any:
    """Return the value so that Arrow's and fastavro's forms of it are equal."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime):
        return (value.replace(tzinfo=None), value.tzinfo is None)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        if value and isinstance(value[0], tuple):
            return {key: comparable(item) for key, item in value}
        # An empty map is a list to Arrow.
        return [comparable(item) for item in value] or {}
    return value


def expected(schema: str, payload: bytes) -> Any:
    stream = io.BytesIO(payload)
    value = fastavro.schemaless_reader(stream, fastavro.parse_schema(json.loads(schema)))
    assert stream.tell() == len(payload)
    return empty_as_map(comparable(value))


def empty_as_map(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: empty_as_map(item) for key, item in value.items()}
    if isinstance(value, list):
        return [empty_as_map(item) for item in value] or {}
    return value


SETTINGS = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@SETTINGS
@given(cases())
def test_every_type_decodes_as_fastavro_decodes_it(case: tuple[str, list[bytes]]) -> None:
    schema, payloads = case
    note(schema)
    decoder = SchemaDecoder(schema)

    decoded = decoder.decode(payloads)

    assert decoder.fast
    assert decoded.rejected == []
    decoded.batch.validate(full=True)
    assert decoder.arrow_schema.equals(decoded.batch.schema)
    rows = [empty_as_map(comparable(row)) for row in decoded.batch.to_pylist()]
    assert [expected(schema, payload) for payload in payloads] == rows


@SETTINGS
@given(cases())
def test_rows_and_columns_give_the_same_batch(case: tuple[str, list[bytes]]) -> None:
    schema, payloads = case
    note(schema)
    record = parse_record(schema)
    read = compile_reader(record, record)

    slow = batch_of(record, [read(payload, 0)[0] for payload in payloads])

    fast = SchemaDecoder(schema).decode(payloads).batch
    slow.validate(full=True)
    assert fast.schema.equals(slow.schema)
    assert [repr(row) for row in fast.to_pylist()] == [repr(row) for row in slow.to_pylist()]


@SETTINGS
@given(cases(), st.data())
def test_a_cut_or_lengthened_record_is_refused_and_its_neighbours_are_not(
    case: tuple[str, list[bytes]], data: st.DataObject
) -> None:
    schema, payloads = case
    if not any(payloads):
        return
    bad = data.draw(st.sampled_from([i for i, payload in enumerate(payloads) if payload]))
    cut = data.draw(st.integers(0, len(payloads[bad]) - 1))
    damaged = list(payloads)
    damaged[bad] = payloads[bad][:cut]
    longer = list(payloads)
    longer[bad] += b"\0"
    decoder = SchemaDecoder(schema)
    whole = decoder.decode(payloads[:bad] + payloads[bad + 1 :]).batch

    for values, reason in ((damaged, "truncated"), (longer, "trailing_bytes")):
        decoded = decoder.decode(values)

        assert [(bad, reason)] == [(one.index, one.reason) for one in decoded.rejected]
        assert [i for i in range(len(values)) if i != bad] == decoded.rows.tolist()
        assert repr(whole.to_pylist()) == repr(decoded.batch.to_pylist())
