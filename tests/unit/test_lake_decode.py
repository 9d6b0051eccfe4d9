"""The reader of a topic grows with the schemas that turn up."""

from __future__ import annotations

import json

import pytest
from lakes import Schemas, record, wire

from headrace.lake.decode import TopicDecoder, widened
from headrace.lake.targets import Target
from headrace.schemas.errors import RegistryUnavailableError

OLD = record(("x", "long"), ("gone", "double"))
NEW = record(("x", "long"), ("fresh", "string", "none"))


def decoder(registry, schema=OLD):
    return TopicDecoder(Target("t", "topic", schema, None), registry)


def test_a_field_that_was_taken_away_keeps_its_old_values_and_a_new_one_its_default():
    registry = Schemas()
    old, new = registry.add("topic-value", OLD), registry.add("topic-value", NEW)
    values = [wire(OLD, old, {"x": 1, "gone": 0.5}), wire(NEW, new, {"x": 2, "fresh": "f"})]

    found = decoder(registry, NEW).decode(values)

    assert found.rejected == []
    assert found.batch.to_pylist() == [
        {"x": 1, "fresh": "none", "gone": 0.5},
        {"x": 2, "fresh": "f", "gone": None},
    ]


def test_a_schema_that_is_registered_while_it_runs_is_read_as_itself():
    registry = Schemas()
    old = registry.add("topic-value", OLD)
    mine = decoder(registry)
    mine.decode([wire(OLD, old, {"x": 1, "gone": 0.5})])
    new = registry.add("topic-value", NEW)

    found = mine.decode([wire(NEW, new, {"x": 2, "fresh": "f"})])

    assert found.batch.to_pylist() == [{"x": 2, "fresh": "f", "gone": None}]


def test_the_definitions_new_schema_counts_at_once():
    registry = Schemas()
    old = registry.add("topic-value", OLD)
    mine = decoder(registry)
    assert mine.decode([wire(OLD, old, {"x": 1, "gone": 0.5})]).batch.num_columns == 2
    mine.redefine(Target("t", "topic", NEW, None))

    found = mine.decode([wire(OLD, old, {"x": 1, "gone": 0.5})])

    assert found.batch.to_pylist() == [{"x": 1, "gone": 0.5, "fresh": None}]


def test_an_unknown_id_is_rejected_and_an_unanswered_one_is_not():
    registry = Schemas()
    registry.add("topic-value", OLD)
    mine = decoder(registry)
    stranger = wire(OLD, 77, {"x": 1, "gone": 0.5})

    assert [one.reason for one in mine.decode([stranger]).rejected] == ["unknown_schema"]
    registry.is_away = True
    with pytest.raises(RegistryUnavailableError):
        mine.decode([stranger])


def test_a_schema_that_could_exhaust_the_reader_is_not_used_and_the_definitions_is():
    registry = Schemas()
    own = registry.add("topic-value", OLD)
    bomb = record(("x", {"type": "array", "items": "null"}))
    registry.add("topic-value", bomb)

    found = decoder(registry).decode([wire(OLD, own, {"x": 1, "gone": 0.5})])

    assert found.batch.to_pylist() == [{"x": 1, "gone": 0.5}]


def test_a_field_that_was_renamed_with_an_alias_is_not_taken_twice():
    new = {
        "type": "record",
        "name": "Event",
        "fields": [{"name": "y", "type": "long", "aliases": ["x"]}],
    }

    fields = json.loads(widened(json.dumps(new), record(("x", "long"))))["fields"]

    assert [field["name"] for field in fields] == ["y"]
