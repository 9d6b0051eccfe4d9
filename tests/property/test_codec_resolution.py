"""A record written with one schema and read with another comes out as fastavro resolves it."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import fastavro
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from headrace.schemas.arrays import batch_of
from headrace.schemas.avro import parse_record
from headrace.schemas.codec import SchemaDecoder
from headrace.schemas.compatibility import unreadable
from headrace.schemas.resolver import Unfit, Unresolvable, compile_reader

INT = st.integers(-(2**31), 2**31 - 1)
LONG = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(max_size=5)
SINGLE = st.floats(width=32, allow_nan=False)
E1 = {"type": "enum", "name": "E", "symbols": ["a", "b", "c"]}
E2 = {"type": "enum", "name": "E", "symbols": ["b", "a", "z"], "default": "z"}
E3 = {"type": "enum", "name": "E", "symbols": ["b", "a"]}
TS = {"type": "long", "logicalType": "timestamp-millis"}


def inner(*fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": "I", "fields": list(fields)}


X, Y = {"name": "x", "type": "int"}, {"name": "y", "type": "string"}
X_LONG, Z = {"name": "x", "type": "long"}, {"name": "z", "type": "int", "default": 5}
INNER = st.fixed_dictionaries({"x": INT, "y": TEXT})

# Writer's type, reader's type, values of the writer's.
PAIRS: list[tuple[Any, Any, st.SearchStrategy[Any]]] = [
    ("int", "int", INT),
    ("int", "long", INT),
    ("int", "double", INT),
    ("long", "double", LONG),
    ("float", "double", SINGLE),
    ("int", ["null", "long"], INT),
    ("string", ["null", "string"], TEXT),
    ("string", ["long", "null", "string"], TEXT),
    (["null", "int"], ["null", "int"], st.none() | INT),
    (["null", "int"], ["double", "null"], st.none() | INT),
    (["null", "int"], "long", st.none() | INT),
    (
        ["null", "string", "boolean"],
        ["boolean", "null", "string"],
        st.none() | TEXT | st.booleans(),
    ),
    (["null", "string", "boolean"], ["null", "string"], st.none() | TEXT | st.booleans()),
    (E1, E2, st.sampled_from("abc")),
    (E1, E3, st.sampled_from("abc")),
    (
        {"type": "array", "items": "int"},
        {"type": "array", "items": "double"},
        st.lists(INT, max_size=3),
    ),
    (
        {"type": "map", "values": ["null", "int"]},
        {"type": "map", "values": ["null", "long"]},
        st.dictionaries(TEXT, st.none() | INT, max_size=3),
    ),
    (inner(X, Y), inner(Z, Y, X_LONG), INNER),
    (inner(X, Y), inner(X), INNER),
    ("boolean", "string", st.booleans()),
    (TS, TS, st.integers(0, 2**41)),
    (
        {"type": "fixed", "name": "F", "size": 2},
        {"type": "fixed", "name": "F", "size": 2},
        st.just(b"ab"),
    ),
]
DEFAULTS = [
    ("int", 3),
    (["null", "string"], None),
    ("string", "text"),
    ({"type": "array", "items": "int"}, []),
]


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, str, list[dict[str, Any]]]:
    chosen = draw(st.lists(st.sampled_from(PAIRS), min_size=1, max_size=4))
    # A name is defined once in a schema.
    chosen = [pair for i, pair in enumerate(chosen) if pair[0] not in [p[0] for p in chosen[:i]]]
    named = [pair for pair in chosen if pair[0] == E1]
    chosen = [pair for pair in chosen if pair[0] != E1] + named[:1]
    inners = [pair for pair in chosen if isinstance(pair[0], dict) and pair[0].get("name") == "I"]
    chosen = [pair for pair in chosen if pair not in inners[1:]]
    writer = [{"name": f"f{i}", "type": pair[0]} for i, pair in enumerate(chosen)]
    reader = []
    for i, pair in enumerate(chosen):
        if draw(st.integers(0, 5)) or len(chosen) == 1:
            renamed = draw(st.booleans())
            names = {"name": f"g{i}", "aliases": [f"f{i}"]} if renamed else {"name": f"f{i}"}
            reader.append({**names, "type": pair[1]})
    for i, (kind, default) in enumerate(draw(st.lists(st.sampled_from(DEFAULTS), max_size=2))):
        reader.append({"name": f"new{i}", "type": kind, "default": default})
    if not reader:
        reader.append({"name": "new", "type": "int", "default": 0})
    reader = draw(st.permutations(reader))
    row = st.fixed_dictionaries({f"f{i}": pair[2] for i, pair in enumerate(chosen)})
    rows = draw(st.lists(row, max_size=4))
    schemas = [
        json.dumps({"type": "record", "name": "R", "fields": fields}) for fields in (writer, reader)
    ]
    return schemas[0], schemas[1], rows


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()} or []
    if isinstance(value, list):
        if value and isinstance(value[0], tuple):
            return {key: plain(item) for key, item in value}
        return [plain(item) for item in value]
    return value


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(cases())
def test_resolution_is_that_of_fastavro(case: tuple[str, str, list[dict[str, Any]]]) -> None:
    writer, reader, rows = case
    note(f"{writer}\n{reader}")
    parsed = [fastavro.parse_schema(json.loads(schema)) for schema in (writer, reader)]
    payloads, expected = [], []
    for row in rows:
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, parsed[0], row)
        payloads.append(stream.getvalue())
        stream.seek(0)
        try:
            expected.append(plain(fastavro.schemaless_reader(stream, *parsed)))
        except fastavro.read.SchemaResolutionError:
            expected.append(None)
    decoder = SchemaDecoder(writer, reader)

    decoded = decoder.decode(payloads)

    decoded.batch.validate(full=True)
    assert decoded.batch.schema.equals(decoder.arrow_schema)
    got: list[Any] = [None] * len(rows)
    for place, row in zip(decoded.rows.tolist(), decoded.batch.to_pylist(), strict=True):
        got[place] = plain(row)
    assert got == expected
    assert {one.reason for one in decoded.rejected} <= {"wrong_type"}
    # What the rules call readable is read, whatever the values.
    if not unreadable(parse_record(writer), parse_record(reader)):
        assert decoded.rejected == []


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(cases())
def test_columns_resolve_as_rows_do(case: tuple[str, str, list[dict[str, Any]]]) -> None:
    writer, reader, rows = case
    parsed = fastavro.parse_schema(json.loads(writer))
    payloads = []
    for row in rows:
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, parsed, row)
        payloads.append(stream.getvalue())
    record = parse_record(reader)
    read = compile_reader(parse_record(writer), record)
    values = []
    for payload in payloads:
        try:
            values.append(read(payload, 0)[0])
        except (Unresolvable, Unfit):
            continue

    decoded = SchemaDecoder(writer, reader).decode(payloads)

    slow = batch_of(record, values)
    assert slow.schema.equals(decoded.batch.schema)
    assert repr(slow.to_pylist()) == repr(decoded.batch.to_pylist())


def test_a_long_may_become_a_single_with_what_precision_it_has() -> None:
    schemas = [
        json.dumps({"type": "record", "name": "R", "fields": [{"name": "f", "type": kind}]})
        for kind in ("long", ["null", "float"])
    ]
    decoder = SchemaDecoder(*schemas)

    decoded = decoder.decode([b"\x02", b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f"])

    assert decoder.fast
    largest = struct.unpack("<f", struct.pack("<f", 2**62))[0]
    assert decoded.batch.to_pylist() == [{"f": 1.0}, {"f": largest}]
