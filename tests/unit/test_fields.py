"""What an Avro schema says about its fields."""

from __future__ import annotations

import json

import pytest

from headrace.features.fields import read_fields
from headrace.schemas.errors import SchemaRefused


def fields(*types):
    items = [{"name": f"f{i}", "type": t} for i, t in enumerate(types)]
    schema = {"type": "record", "name": "R", "namespace": "n.s", "fields": items}
    return list(read_fields(json.dumps(schema)).values())


COLOUR = {"type": "enum", "name": "Colour", "symbols": ["RED"]}


def logical(base, name, **more):
    return {"type": base, "logicalType": name, **more}


@pytest.mark.parametrize(
    ("declared", "meaning", "kind"),
    [
        ("boolean", "bool", "bool"),
        ("int", "int", "int64"),
        ("long", "long", "int64"),
        ("float", "float", "float64"),
        ("double", "float", "float64"),
        ("string", "string", "string"),
        ("bytes", "bytes", "bytes"),
        ({"type": "string"}, "string", "string"),
        (COLOUR, "string", "string"),
        ({"type": "fixed", "name": "F", "size": 4}, "bytes", "bytes"),
        (logical("long", "timestamp-millis"), "time", "int64"),
        (logical("long", "timestamp-micros"), "time", "int64"),
        (logical("long", "local-timestamp-millis"), "time", "int64"),
        (logical("int", "date"), "time", "int64"),
        (logical("string", "uuid"), "string", "string"),
        (logical("bytes", "decimal", precision=9, scale=2), "float", "float64"),
        (logical("long", "of-somebody"), "long", "int64"),
        (logical("int", "time-millis"), None, None),
        ({"type": "array", "items": "int"}, None, None),
        ({"type": "map", "values": "int"}, None, None),
        ({"type": "record", "name": "Inner", "fields": []}, None, None),
        ("null", None, None),
        (["int", "string"], None, None),
        (["null", "int", "string"], None, None),
    ],
    ids=str,
)
def test_a_type_has_one_meaning_nullable_or_not(declared, meaning, kind):
    (plain,) = fields(declared)

    assert (plain.type, plain.kind) == (meaning, kind)
    if not isinstance(declared, list) and declared != "null":
        for union in (["null", declared], [declared, "null"]):
            (nullable,) = fields(union)
            assert (nullable.type, nullable.kind) == (meaning, kind)


@pytest.mark.parametrize("name", ["Colour", "n.s.Colour"])
def test_a_type_that_was_named_before_is_known(name):
    spaced = {**COLOUR, "namespace": "n.s"}

    assert [f.type for f in fields(spaced, name, ["null", name])] == ["string"] * 3
    inner = {"type": "record", "name": "I", "fields": [{"name": "c", "type": spaced}]}
    assert [f.type for f in fields(inner, name)] == [None, "string"]


def test_documentation_is_no_part_of_a_declaration():
    one, other = (
        read_fields(
            json.dumps(
                {
                    "type": "record",
                    "name": "R",
                    "fields": [{"name": "c", "type": {**COLOUR, **more}, **more}],
                }
            )
        )["c"]
        for more in ({}, {"doc": "what it is"})
    )

    assert one.declaration == other.declaration


@pytest.mark.parametrize(
    "schema",
    ["", "[]", "1", '{"type": "record", "fields": [1]}', '{"type": "record", "fields": [{}]}'],
)
def test_what_is_no_record_is_refused(schema):
    with pytest.raises(SchemaRefused, match="must"):
        read_fields(schema)
