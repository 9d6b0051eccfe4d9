"""What the decoder refuses, how it says so, and that it never pays for what a record declares."""

from __future__ import annotations

import json
import resource
import time
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from headrace.schemas.avro import MAX_NODES, parse, parse_record
from headrace.schemas.codec import REASONS, RecordEncoder, SchemaDecoder
from headrace.schemas.errors import EncodeError, SchemaRefused

CARD = json.dumps(
    {
        "type": "record",
        "name": "Transaction",
        "namespace": "bank.cards",
        "fields": [
            {"name": "transaction_id", "type": "long"},
            {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "customer_id", "type": "string"},
            {"name": "amount", "type": "double"},
        ],
    }
)


def varint(value: int) -> bytes:
    zigzag = ((value << 1) ^ (value >> 63)) & (2**64 - 1)
    out = bytearray()
    while zigzag >= 128:
        out.append((zigzag & 127) | 128)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)


def record_of(*types: object) -> str:
    fields = [{"name": f"f{i}", "type": kind} for i, kind in enumerate(types)]
    return json.dumps({"type": "record", "name": "R", "fields": fields})


def card(number: int, customer: bytes = b"C1") -> bytes:
    text = varint(len(customer)) + customer
    return varint(number) + varint(1_700_000_000_000 + number) + text + np.float64(1.5).tobytes()


def reason_of(schema: str, payload: bytes) -> str:
    decoded = SchemaDecoder(schema).decode([payload])
    assert decoded.batch.num_rows == 0
    (rejected,) = decoded.rejected
    assert rejected.reason in REASONS
    return rejected.reason


def test_times_stay_times_and_rows_say_where_the_good_ones_stood() -> None:
    decoded = SchemaDecoder(CARD).decode([card(0), b"\x02", card(2)])

    assert decoded.rows.tolist() == [0, 2]
    assert decoded.rows.dtype == np.int64
    assert decoded.batch.schema.field("ts").type == pa.timestamp("ms", "UTC")
    assert decoded.batch["ts"][0].as_py() == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    (rejected,) = decoded.rejected
    assert (rejected.index, rejected.reason) == (1, "truncated")
    assert rejected.detail == "field 'ts': the record ends inside, at byte 1"


def test_the_card_schema_takes_the_fast_path() -> None:
    # A parity test that compares the slow path with itself proves nothing: this one is the guard.
    raw = CARD.replace('"logicalType": "timestamp-millis"', '"doc": ""')

    assert SchemaDecoder(CARD).fast
    assert SchemaDecoder(raw, CARD).fast


def test_no_records_make_an_empty_batch_of_the_same_schema() -> None:
    decoder = SchemaDecoder(CARD)

    decoded = decoder.decode([])

    assert decoded.batch.num_rows == 0
    assert decoded.batch.schema.equals(decoder.arrow_schema)


@pytest.mark.parametrize(
    ("schema", "payload", "reason"),
    [
        (CARD, b"", "truncated"),
        (CARD, card(1)[:-1], "truncated"),
        (CARD, card(1) + b"\0", "trailing_bytes"),
        (CARD, card(1, b"\xff\xfe"), "invalid_utf8"),
        (CARD, card(1, b"\xed\xa0\x80"), "invalid_utf8"),
        (CARD, card(1, b"\xc0\xaf"), "invalid_utf8"),
        (CARD, card(1, b"\xf4\x90\x80\x80"), "invalid_utf8"),
        (CARD, b"\xff" * 12, "invalid"),
        (CARD, varint(1) + varint(2) + varint(10**12) + b"abc", "truncated"),
        (CARD, varint(1) + varint(2) + varint(-5) + b"abc", "invalid"),
        # A varint of ten bytes whose last holds more than the 64th bit, and one of eleven.
        (record_of("long"), b"\x80" * 9 + b"\x02", "invalid"),
        (record_of("long"), b"\x80" * 10 + b"\x01", "invalid"),
        (record_of("boolean"), b"\x02", "invalid"),
        (record_of("int"), varint(2**31), "invalid"),
        (record_of(["null", "long"]), varint(2), "invalid"),
        (record_of(["null", "long"]), varint(-1), "invalid"),
        (record_of(["null", "long", "string"]), varint(3), "invalid"),
        (record_of({"type": "enum", "name": "E", "symbols": ["A"]}), varint(1), "invalid"),
        (record_of({"type": "enum", "name": "E", "symbols": ["A"]}), varint(-1), "invalid"),
        (record_of({"type": "int", "logicalType": "time-millis"}), varint(86_400_000), "invalid"),
        (record_of({"type": "string", "logicalType": "uuid"}), varint(1) + b"x", "invalid"),
        (record_of({"type": "fixed", "name": "F", "size": 9}), b"12345678", "truncated"),
        (
            record_of({"type": "bytes", "logicalType": "decimal", "precision": 2}),
            varint(1) + b"\x64",
            "invalid",
        ),
        (
            record_of({"type": "bytes", "logicalType": "decimal", "precision": 38}),
            varint(17) + b"\x01" + b"\0" * 16,
            "invalid",
        ),
        (record_of({"type": "array", "items": "long"}), varint(2) + b"\0\0", "truncated"),
        (record_of({"type": "array", "items": "long"}), varint(10**9), "too_many_items"),
        (record_of({"type": "array", "items": "long"}), varint(-(10**9)) + b"\0", "too_many_items"),
        (record_of({"type": "array", "items": "long"}), varint(-(2**63)), "too_many_items"),
        (record_of({"type": "map", "values": "null"}), varint(10**9), "too_many_items"),
        # The block says three bytes, its one item takes one.
        (
            record_of({"type": "array", "items": "long"}),
            varint(-1) + varint(3) + b"\0\0\0",
            "invalid",
        ),
    ],
)
def test_a_bad_record_is_refused_by_name(schema: str, payload: bytes, reason: str) -> None:
    assert reason_of(schema, payload) == reason


def test_decimals_at_the_edge_of_their_precision_are_exact() -> None:
    for precision, size in ((1, 1), (2, 1), (18, 8), (19, 9), (38, 16), (39, 17), (76, 32)):
        schema = record_of({"type": "bytes", "logicalType": "decimal", "precision": precision})
        for value in (10**precision - 1, -(10**precision) + 1, 0, -1):
            # One byte more than needed: padding is no error.
            raw = value.to_bytes(size + 1, "big", signed=True)

            decoded = SchemaDecoder(schema).decode([varint(len(raw)) + raw])

            assert int(decoded.batch["f0"][0].as_py()) == value
        for value in (10**precision, -(10**precision)):
            raw = value.to_bytes(size + 1, "big", signed=True)
            assert reason_of(schema, varint(len(raw)) + raw) == "invalid"


@pytest.mark.parametrize(
    "schema",
    [
        # A list of itself.
        {"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]},
        {
            "type": "record",
            "name": "R",
            "fields": [{"name": "f", "type": {"type": "array", "items": "null"}}],
        },
        {
            "type": "record",
            "name": "R",
            "fields": [
                {
                    "name": "f",
                    "type": {
                        "type": "array",
                        "items": {
                            "type": "record",
                            "name": "Nothing",
                            "fields": [{"name": "a", "type": "null"}],
                        },
                    },
                }
            ],
        },
        {
            "type": "record",
            "name": "R",
            "fields": [
                {
                    "name": "f",
                    "type": {"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}},
                }
            ],
        },
        {"type": "record", "name": "R", "fields": [{"name": "f", "type": "no_such_type"}]},
        {"type": "record", "name": "R", "fields": [{"name": "f", "type": "long", "default": "x"}]},
        {"type": "record", "name": "R", "fields": []},
        "string",
    ],
)
def test_a_schema_that_could_exhaust_the_reader_is_refused(schema: object) -> None:
    with pytest.raises(SchemaRefused):
        SchemaDecoder(json.dumps(schema))


def test_a_schema_that_unfolds_without_end_is_refused_in_no_time() -> None:
    # Each type names the one before twice: 2**30 nodes in 30 lines.
    fields = [
        {
            "name": "t0",
            "type": {"type": "record", "name": "T0", "fields": [{"name": "a", "type": "long"}]},
        }
    ]
    for i in range(1, 31):
        inner = [{"name": "a", "type": f"T{i - 1}"}, {"name": "b", "type": f"T{i - 1}"}]
        fields.append(
            {"name": f"t{i}", "type": {"type": "record", "name": f"T{i}", "fields": inner}}
        )
    schema = json.dumps({"type": "record", "name": "R", "fields": fields})

    with pytest.raises(SchemaRefused, match=str(MAX_NODES)):
        parse(schema)


def test_a_schema_nested_too_deep_for_json_is_refused() -> None:
    with pytest.raises(SchemaRefused):
        parse('{"type":"array","items":' * 100_000)


def test_names_are_found_by_their_namespace() -> None:
    schema = json.dumps(
        {
            "type": "record",
            "name": "Top",
            "namespace": "a.b",
            "fields": [
                {"name": "x", "type": {"type": "fixed", "name": "F", "size": 2}},
                {"name": "y", "type": "F"},
                {"name": "z", "type": "a.b.F"},
                {
                    "name": "n",
                    "type": {
                        "type": "record",
                        "name": "c.Inner",
                        "fields": [
                            {"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["q"]}},
                            {"name": "f", "type": "c.E"},
                        ],
                    },
                },
            ],
        }
    )

    decoded = SchemaDecoder(schema).decode([b"112233\0\0"])

    assert decoded.batch.to_pylist() == [
        {"x": b"11", "y": b"22", "z": b"33", "n": {"e": "q", "f": "q"}}
    ]
    assert parse_record(schema).fields[3].type.fields[0].type.name == "c.E"


def test_bombs_cost_no_time_and_no_memory() -> None:
    schema = record_of(
        "string",
        {"type": "array", "items": "boolean"},
        {"type": "map", "values": ["null", "string"]},
    )
    bombs = [
        varint(10**12),
        varint(0) + varint(10**9),
        varint(0) + varint(2**62),
        varint(0) + varint(-(10**9)) + varint(2**62),
        varint(0) + varint(0) + varint(10**9),
    ]
    decoder = SchemaDecoder(schema)
    decoder.decode(bombs)
    payloads = bombs * 1000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()

    decoded = decoder.decode(payloads)

    assert len(decoded.rejected) == len(payloads)
    # The bound is 1 ms a record; it takes some microseconds. Memory in KiB.
    assert time.monotonic() - start < len(payloads) * 0.001
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16_384


def test_nulls_of_wide_structs_cannot_blow_a_batch_up() -> None:
    wide = {
        "type": "record",
        "name": "Wide",
        "fields": [{"name": f"x{i}", "type": "double"} for i in range(100)],
    }
    schema = record_of({"type": "array", "items": ["null", wide]})

    def nulls(count: int) -> bytes:
        return varint(count) + b"\0" * count + b"\0"

    assert reason_of(schema, nulls(100_000)) == "too_many_items"
    assert SchemaDecoder(schema).decode([nulls(80)]).batch.to_pylist() == [{"f0": [None] * 80}]


def test_a_bad_record_leaves_no_trace_in_nested_columns() -> None:
    schema = record_of({"type": "array", "items": "string"}, "long")
    good = varint(2) + b"\x02a\x02b" + b"\0" + varint(7)
    bad = varint(2) + b"\x02x" + b"\x02\xff" + b"\0" + varint(9)

    decoded = SchemaDecoder(schema).decode([bad, good, bad, good])

    expected = {"f0": ["a", "b"], "f1": 7}
    assert decoded.batch.to_pylist() == [expected, expected]
    assert decoded.batch.column("f0").values.to_pylist() == ["a", "b", "a", "b"]


def test_what_is_encoded_decodes_to_the_same_batch() -> None:
    batch = SchemaDecoder(CARD).decode([card(i, b"C%d" % i) for i in range(100)]).batch

    values = RecordEncoder(CARD, 258).encode(batch)

    assert {value[:5] for value in values} == {b"\0\0\0\x01\x02"}
    assert SchemaDecoder(CARD).decode([value[5:] for value in values]).batch.equals(batch)
    assert RecordEncoder(CARD, 1).encode(batch.slice(0, 0)) == []


def test_a_batch_that_does_not_fit_is_not_encoded() -> None:
    batch = SchemaDecoder(CARD).decode([card(1)]).batch
    holes = pa.nulls(1, pa.string())

    for wrong in (
        batch.drop_columns(["amount"]),
        batch.set_column(3, "amount", pa.array(["much"])),
        batch.set_column(2, "customer_id", holes),
    ):
        with pytest.raises(EncodeError):
            RecordEncoder(CARD, 1).encode(wrong)
