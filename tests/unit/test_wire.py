"""Headers, several schemas in one batch, and a registry that says no or nothing."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import fastavro
import pytest

from headrace.schemas.errors import RegistryUnavailableError, SchemaRefused, UnknownSchemaError
from headrace.schemas.wire import WireDecoder

if TYPE_CHECKING:
    from headrace.schemas.codec import Decoded

LIMIT = 1000


def record(*fields: tuple[str, object], name: str = "R") -> str:
    listed = [
        {"name": field, "type": kind} | ({"default": None} if isinstance(kind, list) else {})
        for field, kind in fields
    ]
    return json.dumps({"type": "record", "name": name, "fields": listed})


READER = record(("key", "string"), ("amount", "double"), ("note", ["null", "string"]))
OLDER = record(("key", "string"), ("amount", "int"))
NULLABLE = record(("amount", ["null", "double"]), ("key", "string"))
TEXT = record(("key", "string"), ("amount", "string"))
LIST_OF_ITSELF = json.dumps(
    {"type": "record", "name": "R", "fields": [{"name": "next", "type": ["null", "R"]}]}
)
SCHEMAS = {1: READER, 2: OLDER, 300: NULLABLE, 4: TEXT, 5: LIST_OF_ITSELF, 6: '"string"'}


class Registry:
    """Knows ``SCHEMAS``, counts the questions, and can be down."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.down = False

    def __call__(self, schema_id: int) -> str:
        self.asked.append(schema_id)
        if self.down:
            raise RegistryUnavailableError("down")
        if schema_id not in SCHEMAS:
            raise UnknownSchemaError(f"no schema {schema_id}")  # noqa: EM102 - a fake.
        return SCHEMAS[schema_id]


def value(schema_id: int, row: dict[str, object]) -> bytes:
    stream = io.BytesIO()
    stream.write(b"\0" + schema_id.to_bytes(4, "big"))
    schema = fastavro.parse_schema(json.loads(SCHEMAS[schema_id]))
    fastavro.schemaless_writer(stream, schema, row)
    return stream.getvalue()


def row(key: str, amount: float, note: str | None = None) -> dict[str, object]:
    return {"key": key, "amount": amount, "note": note}


def reasons(decoded: Decoded) -> list[tuple[int, str]]:
    return [(one.index, one.reason) for one in decoded.rejected]


def test_rows_of_several_schemas_come_back_in_the_order_of_the_input() -> None:
    values = [
        value(1, row("a", 1.5, "x")),
        value(2, {"key": "b", "amount": 2}),
        value(300, {"key": "c", "amount": 3.5}),
        value(2, {"key": "d", "amount": -4}),
        value(1, row("e", 5.5)),
    ]
    decoder = WireDecoder(READER, Registry())

    decoded = decoder.decode(values, LIMIT)

    assert decoded.batch.to_pylist() == [
        row("a", 1.5, "x"),
        row("b", 2.0),
        row("c", 3.5),
        row("d", -4.0),
        row("e", 5.5),
    ]
    assert decoded.rows.tolist() == [0, 1, 2, 3, 4]
    assert decoded.batch.schema.equals(decoder.arrow_schema)


def test_every_kind_of_bad_value_is_refused_by_name_among_good_ones() -> None:
    good = value(1, row("a", 1.0))
    bad = [
        (None, "empty"),
        (b"", "empty"),
        (b"\0", "truncated"),
        (b"\0\0\0\0", "truncated"),
        (b"\7\0\0", "bad_magic"),
        (b"\1" + bytes(16) + good[5:], "bad_magic"),
        (b"{" + good[1:], "bad_magic"),
        (b"\0\0\0\0\x09" + good[5:], "unknown_schema"),
        (b"\0\xff\xff\xff\xff" + good[5:], "unknown_schema"),
        (b"\0\0\0\0\1", "truncated"),
        (good[:-1], "truncated"),
        (good + b"\0", "trailing_bytes"),
        (b"\0\0\0\0\1\x02\xff" + good[7:], "invalid_utf8"),
        (good + bytes(LIMIT), "too_large"),
        (value(4, {"key": "k", "amount": "much"}), "wrong_type"),
        (value(300, {"key": "k", "amount": None}), "wrong_type"),
        (b"\0\0\0\0\5\0", "invalid"),
        (b"\0\0\0\0\6\0", "invalid"),
    ]
    values = [part for one, _ in bad for part in (one, good)]
    decoder = WireDecoder(READER, Registry())

    decoded = decoder.decode(values, LIMIT)

    assert reasons(decoded) == [(2 * i, reason) for i, (_, reason) in enumerate(bad)]
    assert decoded.rows.tolist() == [2 * i + 1 for i in range(len(bad))]
    assert decoded.batch.to_pylist() == [row("a", 1.0)] * len(bad)
    details = {one.index: one.detail for one in decoded.rejected}
    assert "0x01" in details[10]
    assert "GUID" in details[10]
    assert "amount" in details[28]


def test_the_largest_value_allowed_is_taken() -> None:
    good = value(1, row("a", 1.0))
    decoder = WireDecoder(READER, Registry())

    assert reasons(decoder.decode([good], len(good))) == []
    assert reasons(decoder.decode([good], len(good) - 1)) == [(0, "too_large")]


def test_no_values_make_an_empty_batch() -> None:
    decoder = WireDecoder(READER, Registry())

    for values in ([], [None], [b"\7"]):
        assert decoder.decode(values, LIMIT).batch.schema.equals(decoder.arrow_schema)
        assert decoder.decode(values, LIMIT).batch.num_rows == 0


def test_a_schema_is_asked_for_once_and_an_unknown_one_again() -> None:
    registry = Registry()
    decoder = WireDecoder(READER, registry)
    values = [value(2, {"key": "b", "amount": 2}), b"\0\0\0\0\x09"]

    for _ in range(3):
        decoder.decode(values, LIMIT)

    assert registry.asked == [2, 9, 9, 9]


def test_a_registry_that_is_down_rejects_nothing() -> None:
    registry = Registry()
    decoder = WireDecoder(READER, registry)
    known = [value(1, row("a", 1.0))]
    decoder.decode(known, LIMIT)
    registry.down = True

    with pytest.raises(RegistryUnavailableError):
        decoder.decode([*known, value(2, {"key": "b", "amount": 2})], LIMIT)

    # Schemas that are known already go on, and the call can be made again.
    assert decoder.decode(known, LIMIT).rows.tolist() == [0]
    registry.down = False
    values = [*known, value(2, {"key": "b", "amount": 2})]
    assert decoder.decode(values, LIMIT).rows.tolist() == [0, 1]


def test_a_reader_schema_that_is_not_safe_is_refused_at_once() -> None:
    with pytest.raises(SchemaRefused):
        WireDecoder(LIST_OF_ITSELF, Registry())
