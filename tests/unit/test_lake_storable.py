"""What Avro can carry, through the codec and a Delta table, against fastavro's own reading."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid

import pyarrow as pa
import pytest
from lakes import record, wire

from headrace.lake.errors import UnstorableError
from headrace.lake.storable import misfits, stored_batch
from headrace.lake.tables import RECORD_FIELDS
from headrace.lake.writer import TableWriter
from headrace.schemas.codec import SchemaDecoder

TIME = dt.datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=dt.UTC)
DECIMAL = {"type": "bytes", "logicalType": "decimal"}
POINT = {
    "type": "record",
    "name": "Point",
    "fields": [
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "price", "type": ["null", {**DECIMAL, "precision": 45, "scale": 2}]},
    ],
}
HUGE = decimal.Decimal("1234567890123456789012345678901234567890123.45")

#: Avro type, value as written, value in the table.
CASES = {
    "boolean": ("boolean", True, True),
    "int": ("int", -7, -7),
    "long": ("long", 1 << 60, 1 << 60),
    "float": ("float", 1.5, 1.5),
    "double": ("double", float("inf"), float("inf")),
    "bytes": ("bytes", b"\x00\xff", b"\x00\xff"),
    "string": ("string", "ä\u0000b", "ä\u0000b"),
    "enum": ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, "B", "B"),
    "fixed": ({"type": "fixed", "name": "F", "size": 3}, b"abc", b"abc"),
    "date": ({"type": "int", "logicalType": "date"}, dt.date(1969, 1, 1), dt.date(1969, 1, 1)),
    "time-millis": ({"type": "int", "logicalType": "time-millis"}, dt.time(0, 0, 1, 5000), 1005),
    "time-micros": ({"type": "long", "logicalType": "time-micros"}, dt.time(0, 0, 1, 7), 1000007),
    "timestamp-millis": ({"type": "long", "logicalType": "timestamp-millis"}, TIME, TIME),
    "timestamp-micros": ({"type": "long", "logicalType": "timestamp-micros"}, TIME, TIME),
    "timestamp-nanos": (
        {"type": "long", "logicalType": "timestamp-nanos"},
        1_700_000_000_123_456_999,
        dt.datetime.fromtimestamp(1_700_000_000, dt.UTC).replace(microsecond=123_456),
    ),
    "local-timestamp": (
        {"type": "long", "logicalType": "local-timestamp-millis"},
        TIME.replace(tzinfo=None),
        TIME.replace(tzinfo=None),
    ),
    "decimal": (
        {**DECIMAL, "precision": 10, "scale": 2},
        decimal.Decimal("-1.25"),
        decimal.Decimal("-1.25"),
    ),
    "large decimal": ({**DECIMAL, "precision": 45, "scale": 2}, HUGE, str(HUGE)),
    "uuid": ({"type": "string", "logicalType": "uuid"}, uuid.UUID(int=5), str(uuid.UUID(int=5))),
    "nullable": (["null", "long"], None, None),
    "array": ({"type": "array", "items": ["null", "int"]}, [1, None], [1, None]),
    "map": ({"type": "map", "values": "double"}, {"a": 1.0}, [("a", 1.0)]),
    "record": (POINT, {"at": TIME, "price": HUGE}, {"at": TIME, "price": str(HUGE)}),
    "array of records": (
        ["null", {"type": "array", "items": POINT}],
        [{"at": TIME, "price": None}],
        [{"at": TIME, "price": None}],
    ),
    "map of records": (
        ["null", {"type": "map", "values": POINT}],
        {"p": {"at": TIME, "price": HUGE}},
        [("p", {"at": TIME, "price": str(HUGE)})],
    ),
    "union": (
        ["null", "long", "string"],
        "x",
        {"null": None, "long": None, "string": "x"},
    ),
    "array of unions": (
        {"type": "array", "items": ["long", "string"]},
        [5, "x"],
        [{"long": 5, "string": None}, {"long": None, "string": "x"}],
    ),
    "record without fields": (["null", {"type": "record", "name": "N", "fields": []}], {}, True),
}


@pytest.mark.parametrize("name", CASES)
def test_every_avro_type_survives_the_table(tmp_path, name):
    kind, written, wanted = CASES[name]
    schema = record(("id", "long"), ("x", kind))
    rows = [wire(schema, 1, {"id": i, "x": written})[5:] for i in range(3)]

    table = stored_batch(SchemaDecoder(schema).decode(rows).batch)
    writer = TableWriter(tmp_path, "t")
    writer.append(writer.aligned(table)[0], [])
    # Twice: what is written now must be of the type that the table says it has.
    rows, bad, _ = writer.aligned(table)
    writer.append(rows, [])

    assert not bad.any()
    assert writer.delta.to_pyarrow_table()["x"].to_pylist() == [wanted] * 6


def test_a_nullable_nested_value_may_be_null_everywhere(tmp_path):
    schema = record(
        ("m", CASES["map of records"][0]), ("a", ["null", {"type": "array", "items": "Point"}])
    )
    full = {"m": {"p": {"at": TIME, "price": HUGE}}, "a": [{"at": TIME, "price": None}]}
    rows = [wire(schema, 1, row)[5:] for row in ({"m": None, "a": None}, full)]

    writer = TableWriter(tmp_path, "t")
    writer.append(stored_batch(SchemaDecoder(schema).decode(rows).batch), [])

    found = writer.delta.to_pyarrow_table().to_pylist()
    assert found[0] == {"m": None, "a": None}
    assert found[1]["m"] == [("p", {"at": TIME, "price": str(HUGE)})]


def test_names_that_delta_takes_for_one_are_refused_with_both():
    batch = pa.RecordBatch.from_pydict({"amount": [1], "Amount": [2]})

    with pytest.raises(UnstorableError, match="differ by more than case; got 'amount, Amount'"):
        stored_batch(batch)


def test_a_type_that_has_grown_is_cast_back_where_the_value_allows(tmp_path):
    writer = TableWriter(tmp_path, "t")
    writer.append(pa.table({"x": pa.array([1], pa.int32())}), [])

    rows, bad, why = writer.aligned(pa.table({"x": pa.array([2, 1 << 40, None], pa.int64())}))

    assert rows["x"].to_pylist() == [2, None]
    assert bad.tolist() == [False, True, False]
    assert why == "field x: the value does not fit the table's int32"


def test_a_type_that_has_changed_altogether_is_refused_by_name(tmp_path):
    writer = TableWriter(tmp_path, "t")
    writer.append(pa.table({"x": pa.array([1], pa.int32())}), [])

    with pytest.raises(UnstorableError, match="field x must stay int32, or get a new name"):
        writer.aligned(pa.table({"x": ["text"]}))


def test_what_changes_by_a_cast_is_found_and_nan_is_not():
    floats = pa.chunked_array([[1.5, float("nan"), 0.1, None]])

    assert misfits(floats, pa.float32()).tolist() == [False, False, True, False]
    assert misfits(pa.chunked_array([["x"]]), pa.int32()) is None


def test_the_lakes_own_columns_are_those_that_others_read():
    assert RECORD_FIELDS.names == ["_topic_id", "_partition", "_offset", "_arrival_time"]
