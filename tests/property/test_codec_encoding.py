"""What is encoded is what fastavro would write, and decodes to the same batch."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import pyarrow as pa
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from headrace.schemas.avro import parse_record
from headrace.schemas.codec import RecordEncoder, SchemaDecoder
from headrace.schemas.program import arrow_field
from headrace.schemas.writer import encodings

ENUM = {"type": "enum", "name": "E", "symbols": ["a", "b", "c"]}
PLAIN: list[tuple[Any, st.SearchStrategy[Any]]] = [
    ("boolean", st.booleans()),
    ("int", st.integers(-(2**31), 2**31 - 1)),
    ("long", st.integers(-(2**63), 2**63 - 1)),
    ("float", st.floats(width=32, allow_nan=False)),
    ("double", st.floats(allow_nan=False)),
    ("bytes", st.binary(max_size=30)),
    ("string", st.text(max_size=30)),
    (ENUM, st.sampled_from("abc")),
]
NESTED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    ({"type": "array", "items": "int"}, st.lists(st.integers(-9, 9), max_size=4)),
    (
        {"type": "map", "values": "string"},
        st.dictionaries(st.text(max_size=3), st.text(max_size=3)),
    ),
    ({"type": "fixed", "name": "F", "size": 3}, st.binary(min_size=3, max_size=3)),
    (
        {"type": "record", "name": "I", "fields": [{"name": "x", "type": ["null", "long"]}]},
        st.fixed_dictionaries({"x": st.none() | st.integers(-9, 9)}),
    ),
    (["null", "int", "string"], st.none() | st.integers(-9, 9) | st.text(max_size=3)),
]


@st.composite
def cases(draw: st.DrawFn, kinds: list[tuple[Any, Any]]) -> tuple[str, list[dict[str, Any]]]:
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=6))
    fields, values = [], {}
    for i, (kind, strategy) in enumerate(chosen):
        known = any(kind is earlier for earlier, _ in chosen[:i])
        named = kind["name"] if known and isinstance(kind, dict) and "name" in kind else kind
        form = 0 if isinstance(kind, list) else draw(st.integers(0, 2))
        fields.append({"name": f"f{i}", "type": [named, ["null", named], [named, "null"]][form]})
        values[f"f{i}"] = st.none() | strategy if form else strategy
    schema = json.dumps({"type": "record", "name": "R", "fields": fields})
    return schema, draw(st.lists(st.fixed_dictionaries(values), max_size=6))


def written_by_fastavro(schema: str, rows: list[dict[str, Any]]) -> list[bytes]:
    parsed = fastavro.parse_schema(json.loads(schema))
    out = []
    for row in rows:
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, parsed, row)
        out.append(stream.getvalue())
    return out


SETTINGS = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@SETTINGS
@given(cases(PLAIN), st.integers(0, 3))
def test_plain_records_are_packed_as_fastavro_writes_them(
    case: tuple[str, list[dict[str, Any]]], skip: int
) -> None:
    schema, rows = case
    note(schema)
    bodies = written_by_fastavro(schema, rows)
    batch = SchemaDecoder(schema).decode(bodies).batch
    encoder = RecordEncoder(schema, 7)

    # A slice has an offset into its buffers, which the packer must mind.
    values = encoder.encode(batch.slice(skip))

    assert encoder.fast
    assert values == [b"\0\0\0\0\7" + body for body in bodies[skip:]]
    record = parse_record(schema)
    columns = [
        encodings(field.type, batch.slice(skip).column(i)) for i, field in enumerate(record.fields)
    ]
    assert [b"".join(row) for row in zip(*columns, strict=True)] == bodies[skip:]


@SETTINGS
@given(cases(PLAIN + NESTED), st.integers(0, 3))
def test_any_record_is_written_as_fastavro_writes_it(
    case: tuple[str, list[dict[str, Any]]], skip: int
) -> None:
    schema, rows = case
    note(schema)
    bodies = written_by_fastavro(schema, rows)
    batch = SchemaDecoder(schema).decode(bodies).batch

    values = RecordEncoder(schema, 7).encode(batch.slice(skip))

    assert values == [b"\0\0\0\0\7" + body for body in bodies[skip:]]


def test_logical_types_and_decimals_come_back_as_they_were() -> None:
    kinds: list[dict[str, Any]] = [
        {"type": "int", "logicalType": "date"},
        {"type": "int", "logicalType": "time-millis"},
        {"type": "long", "logicalType": "time-micros"},
        {"type": "long", "logicalType": "timestamp-millis"},
        {"type": "long", "logicalType": "timestamp-nanos"},
        {"type": "long", "logicalType": "local-timestamp-micros"},
    ]
    kinds += [
        {"type": "bytes", "logicalType": "decimal", "precision": 40, "scale": 3},
        {"type": "fixed", "name": "D", "size": 8, "logicalType": "decimal", "precision": 9},
    ]
    fields = [{"name": f"f{i}", "type": kind} for i, kind in enumerate(kinds)]
    schema = json.dumps({"type": "record", "name": "R", "fields": fields})
    record = parse_record(schema)
    columns = [
        pa.array([0, 1, 86_399_999], arrow_field("f", field.type).type) for field in record.fields
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=SchemaDecoder(schema).arrow_schema)
    bodies = [value[5:] for value in RecordEncoder(schema, 1).encode(batch)]

    assert SchemaDecoder(schema).decode(bodies).batch.equals(batch)
