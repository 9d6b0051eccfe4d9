"""Each rule of resolution as one row: what the writer wrote, what the reader wants, the verdict."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.schemas.avro import parse
from headrace.schemas.compatibility import LEVELS, incompatibilities, unreadable
from headrace.schemas.errors import SchemaError, SchemaRefused


def enum(
    *symbols: str, default: str | None = None, name: str = "E", aliases: tuple[str, ...] = ()
) -> Any:
    kind: dict[str, Any] = {"type": "enum", "name": name, "symbols": list(symbols)}
    if default is not None:
        kind["default"] = default
    if aliases:
        kind["aliases"] = list(aliases)
    return kind


def record(*fields: dict[str, Any], name: str = "R", aliases: tuple[str, ...] = ()) -> Any:
    return {"type": "record", "name": name, "aliases": list(aliases), "fields": list(fields)}


def field(name: str, kind: Any, *default: Any, aliases: tuple[str, ...] = ()) -> dict[str, Any]:
    made = {"name": name, "type": kind, "aliases": list(aliases)}
    return made | ({"default": default[0]} if default else {})


def logical(kind: str, name: str, **more: int) -> Any:
    return {"type": kind, "logicalType": name, **more}


def fixed(size: int, name: str = "F") -> Any:
    return {"type": "fixed", "name": name, "size": size}


def array(items: Any) -> Any:
    return {"type": "array", "items": items}


def mapping(values: Any) -> Any:
    return {"type": "map", "values": values}


MILLIS, MICROS = logical("long", "timestamp-millis"), logical("long", "timestamp-micros")
RULES = [
    # Promotions: each way that Avro allows, and the ways back.
    ("int", "long", True),
    ("int", "float", True),
    ("int", "double", True),
    ("long", "float", True),
    ("long", "double", True),
    ("float", "double", True),
    ("string", "bytes", True),
    ("bytes", "string", True),
    ("long", "int", False),
    ("double", "float", False),
    ("float", "long", False),
    ("double", "long", False),
    ("boolean", "int", False),
    ("int", "boolean", False),
    ("string", "long", False),
    ("null", "string", False),
    ("bytes", fixed(3), False),
    # Unions: every branch of the writer must find a place.
    ("string", ["null", "string"], True),
    ("int", ["null", "double"], True),
    ("string", ["null", "long"], False),
    (["null", "string"], "string", False),
    (["string"], "string", True),
    (["int", "long"], "double", True),
    (["null", "int"], ["long", "null"], True),
    (["null", "int", "string"], ["null", "int"], False),
    # Named types.
    (enum("A"), enum("A", "B"), True),
    (enum("A", "B"), enum("A"), False),
    (enum("A", "B"), enum("A", default="A"), True),
    (enum("A"), enum("A", name="Other"), False),
    (enum("A"), enum("A", name="Other", aliases=("E",)), True),
    (enum("A", name="x.E"), enum("A", name="y.E"), True),
    (fixed(3), fixed(3), True),
    (fixed(3), fixed(4), False),
    (fixed(3), fixed(3, "G"), False),
    # Containers.
    (array("int"), array("long"), True),
    (array("long"), array("int"), False),
    (mapping("int"), mapping("long"), True),
    (mapping("long"), mapping("string"), False),
    (array("int"), mapping("int"), False),
    # Records.
    (record(field("a", "int")), record(field("a", "int"), field("b", "int")), False),
    (record(field("a", "int")), record(field("a", "int"), field("b", "int", 1)), True),
    (record(field("a", "int")), record(field("b", "int", aliases=("a",))), True),
    (record(field("a", "int")), record(field("a", "int"), name="S"), False),
    (record(field("a", "int")), record(field("a", "int"), name="S", aliases=("R",)), True),
    (record(field("a", "int"), field("b", "int")), record(field("b", "long")), True),
    (
        record(field("in", record(field("x", "long"), name="I"))),
        record(field("in", record(field("x", "int"), name="I"))),
        False,
    ),
    # Logical types may appear or go, but not change.
    (MILLIS, "long", True),
    ("long", MILLIS, True),
    (MILLIS, MICROS, False),
    (MILLIS, logical("long", "local-timestamp-millis"), False),
    (MILLIS, "double", True),
    ("int", MILLIS, False),
    (
        logical("bytes", "decimal", precision=5, scale=2),
        logical("bytes", "decimal", precision=5, scale=2),
        True,
    ),
    (
        logical("bytes", "decimal", precision=5, scale=2),
        logical("bytes", "decimal", precision=5, scale=3),
        False,
    ),
    (
        logical("bytes", "decimal", precision=5, scale=2),
        logical("bytes", "decimal", precision=6, scale=2),
        False,
    ),
]


@pytest.mark.parametrize(("writer", "reader", "readable"), RULES)
def test_a_reader_reads_what_the_rules_of_resolution_allow(
    writer: Any, reader: Any, readable: bool
) -> None:
    problems = unreadable(parse(json.dumps(writer)), parse(json.dumps(reader)))

    assert (problems == []) == readable, problems


@pytest.mark.parametrize(("writer", "reader", "readable"), RULES)
def test_levels_look_in_their_direction(writer: Any, reader: Any, readable: bool) -> None:
    old, new = json.dumps(writer), json.dumps(reader)

    assert (incompatibilities(new, old, "BACKWARD") == []) == readable
    assert (incompatibilities(old, new, "FORWARD") == []) == readable
    both = readable and unreadable(parse(new), parse(old)) == []
    assert (incompatibilities(new, old, "FULL") == []) == both
    assert incompatibilities(new, old, "NONE") == []


def test_only_transitive_levels_look_at_versions_before_the_last() -> None:
    first = json.dumps(record(field("a", "int")))
    second = json.dumps(record(field("a", "int"), field("b", "int", 1)))
    third = json.dumps(record(field("a", "int"), field("b", "int")))

    assert incompatibilities(third, [first, second], "BACKWARD") == []
    assert incompatibilities(third, second, "FULL_TRANSITIVE") == []
    (problem,) = incompatibilities(third, [first, second], "BACKWARD_TRANSITIVE")
    assert problem == "new cannot read old: b: the writer lacks it and it has no default"
    (problem,) = incompatibilities(first, [third, second], "FORWARD_TRANSITIVE")
    assert problem.startswith("old cannot read new: b:")
    assert len(incompatibilities(third, [first, second], "FULL_TRANSITIVE")) == 1


def test_a_first_schema_is_compatible_with_nothing_before_it_unless_it_is_refused() -> None:
    for level in LEVELS:
        assert incompatibilities('"long"', [], level) == []
        with pytest.raises(SchemaRefused):
            incompatibilities(json.dumps(array("null")), [], level)


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(SchemaError, match="SIDEWAYS"):
        incompatibilities('"long"', '"long"', "SIDEWAYS")


def test_a_problem_says_where_it_is() -> None:
    inner = record(field("x", array(mapping("long"))), name="I")
    other = record(field("x", array(mapping("string"))), name="I")

    (problem,) = unreadable(
        parse(json.dumps(record(field("in", inner)))), parse(json.dumps(record(field("in", other))))
    )

    assert problem == "in.x[][]: long does not become string"
