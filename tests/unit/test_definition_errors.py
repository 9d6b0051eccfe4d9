"""Each wrong definition is refused with its line, the rule and a hint."""
# ruff: noqa: E501 - a case holds a line of a user's file, uncut.

from __future__ import annotations

import json

import pytest

from headrace.features.compiler import compile_project
from headrace.features.errors import DefinitionError, ProjectError
from headrace.features.project import load_project

TIME = {"type": "long", "logicalType": "timestamp-millis"}
SCHEMAS = {
    "orders": {
        "order_id": "long",
        "customer": "string",
        "shop": ["null", "int"],
        "at": TIME,
        "amount": "double",
        "country": ["null", "string"],
        "items": {"type": "array", "items": "string"},
    },
    "refunds": {
        "refund_id": "long",
        "order_id": "long",
        "customer": "long",
        "at": TIME,
        "known": ["null", TIME],
        "day": {"type": "int", "logicalType": "date"},
        "good": "boolean",
        "amount": "double",
    },
}

# A right project; each case replaces one line of it and says what the error must hold. The line
# that it must name is the one that is replaced, or the one that a fourth entry names: what two
# definitions do to each other is told where it is mended.
RIGHT = {
    "orders": 'orders = hr.Source("orders", key="customer", event_time="at", event_id="order_id")',
    "refunds": 'refunds = hr.Source("refunds", key="order_id", event_time="at", known_at="known")',
    "who": 'who = hr.Entity("who", key="customer")',
    "place": 'place = hr.Entity("place", key="shop")',
    "feature": 'one = hr.mean("amount", over=["1d", "7d"])',
    "view": 'spending = hr.FeatureView("spending", entity=who, source=orders, features=[one])',
    "other": 'shops = hr.FeatureView("shops", entity=place, source=orders, features=[hr.count(over="1h")])',
    "request": 'request = {"amount": hr.col("amount")}',
    "derived": 'derived = {"rate": hr.col("amount") / hr.feature("spending__amount_mean_7d")}',
    "label": 'label = hr.Label(refunds, "good", on="order_id", delay="7d")',
    "model": "model = hr.LightGBM(num_leaves=7)",
    "pipeline": (
        'buy = hr.Pipeline("buy", source=orders, views=[spending, shops], request=request, '
        "derived=derived, label=label, model=model)"
    ),
}

CASES = {
    "a duration with a word": ("feature", 'one = hr.mean("amount", over="1 day")', "did you mean '1d'?"),
    "duplicates found by nothing": (
        "orders",
        'orders = hr.Source("orders", key="customer", event_time="at", dedupe="24h")',
        "dedupe must come with an event_id",
    ),
    "duplicates within nothing": (
        "orders",
        'orders = hr.Source("orders", key="customer", event_time="at", event_id="order_id", dedupe="0s")',
        "be longer than nothing",
    ),
    "a duration in capitals": ("feature", 'one = hr.mean("amount", over="7D")', "did you mean '7d'?"),
    "a duration of no unit": ("feature", 'one = hr.mean("amount", over=[7])', "write a number and one of"),
    "a window that is too short": ("feature", 'one = hr.mean("amount", over="1ms")', "be at least 1s"),
    "a window twice": ("feature", 'one = hr.count(over=["1d", "24h"])', "be named once"),
    "a missing window": ("feature", 'one = hr.mean("amount")', "write over='1d'"),
    "an unknown option": ("feature", 'one = hr.mean("amount", ovr="1d")', "did you mean 'over'?"),
    "an aggregate of nothing": ("feature", 'one = hr.sum(over="1d")', "say which column it reads"),
    "an unknown column": ("feature", 'one = hr.mean("amuont", over="7d")', "did you mean 'amount'?"),
    "a column of text": ("feature", 'one = hr.mean("country", over="7d")', "compare it: hr.col('country')"),
    "a column of time": ("feature", 'one = hr.max("at", over="7d")', "take hr.hour or hr.weekday"),
    "a column of a list": ("feature", 'one = hr.mean("items", over="7d")', "be of a primitive"),
    "an expression with no name": (
        "feature",
        'one = hr.mean(hr.col("amount") * 2, over="7d")',
        "have a name=",
    ),
    "a default of a count": ("feature", 'one = hr.count(over="7d", default=1)', "a count of nothing is 0"),
    "a default that is no number": (
        "feature",
        'one = hr.mean("amount", over="7d", default="0")',
        "default must be a number",
    ),
    "a ratio of means": (
        "feature",
        'one = hr.ratio(hr.mean("amount"), hr.count(), name="r", over="7d")',
        "be an hr.count",
    ),
    "a ratio of windows": (
        "feature",
        'one = hr.ratio(hr.count(over="1d"), hr.count(), name="r", over="7d")',
        "write over=, grain= and delay= on hr.ratio",
    ),
    "a ratio without a name": ("feature", 'one = hr.ratio(hr.count(), hr.count(), over="7d")', "'name'"),
    "a grain that does not fit": ("feature", 'one = hr.count(over="90m", grain="1h")', "multiple of the grain 1h"),
    "a feature name twice": (
        "view",
        'spending = hr.FeatureView("spending", entity=who, source=orders, features=[one, one])',
        "give one of them name=",
        "feature",
    ),
    "a view of no entity": (
        "view",
        'spending = hr.FeatureView("spending", entity="who", source=orders, features=[one])',
        "pass the object, not its name",
    ),
    "a view with a wrong name": (
        "view",
        'spending = hr.FeatureView("my spending", entity=who, source=orders, features=[one])',
        "did you mean 'my_spending'?",
    ),
    "a view with two underscores": (
        "view",
        'spending = hr.FeatureView("a__b", entity=who, source=orders, features=[one])',
        "single underscores",
    ),
    "a view name twice": (
        "other",
        'shops = hr.FeatureView("spending", entity=place, source=orders, features=[hr.count(over="1h")])',
        "the other one stands at definitions.py:",
    ),
    "no features": (
        "view",
        'spending = hr.FeatureView("spending", entity=who, source=orders, features=[])',
        "be a list of aggregates",
    ),
    "a forgotten list": (
        "view",
        'spending = hr.FeatureView("spending", entity=who, source=orders, features=one)',
        "be a list of aggregates",
    ),
    "an entity key that is not there": ("who", 'who = hr.Entity("who", key="custommer")', "did you mean 'customer'?", "view"),
    "an entity name twice": ("place", 'place = hr.Entity("who", key="shop")', "the other one stands at"),
    "a key of different kinds": (
        "feature",
        'one = hr.count(source=refunds, over="7d")',
        "1 and '1' are different keys",
        "who",
    ),
    "an unknown partitioner": (
        "orders",
        'orders = hr.Source("orders", key="customer", event_time="at", partitioner="murmur")',
        "did you mean 'murmur2'?",
    ),
    "an unknown source option": (
        "orders",
        'orders = hr.Source("orders", key="customer", event_tme="at")',
        "did you mean 'event_time'?",
    ),
    "a source without a time": ("orders", 'orders = hr.Source("orders", key="customer")', "'event_time'"),
    "a source without a schema": (
        "orders",
        'orders = hr.Source("order", key="customer", event_time="at")',
        "there are schemas/orders.avsc",
    ),
    "a key of a wrong type": ("orders", 'orders = hr.Source("orders", key="amount", event_time="at")', "be a whole number, a text or bytes"),
    "a time of a wrong type": ("orders", 'orders = hr.Source("orders", key="customer", event_time="country")', "timestamp-millis"),
    "a date for a time": ("refunds", 'refunds = hr.Source("refunds", key="order_id", event_time="day")', "be an Avro timestamp"),
    "a time that is not there": ("orders", 'orders = hr.Source("orders", key="customer", event_time="att")', "did you mean 'at'?"),
    "an unknown policy": (
        "orders",
        'orders = hr.Source("orders", key="customer", event_time="at", not_finite="nul")',
        "did you mean 'null'?",
    ),
    "a request of text": ("request", 'request = {"country": hr.col("country")}', "be a number or a boolean"),
    "a request of a feature": (
        "request",
        'request = {"x": hr.feature("spending__amount_mean_7d")}',
        "write it under derived=",
    ),
    "a request that is no expression": ("pipeline", 'buy = hr.Pipeline("buy", source=orders, views=[spending], request={"amount": "amount"})', "write hr.col('amount')"),
    "a column of the vector twice": ("derived", 'derived = {"amount": hr.col("amount") / 2}', "be used once"),
    "a name that snapshots have": ("request", 'request = {"event_time": hr.hour("at")}', "not be a field that every snapshot has"),
    "an unknown feature": (
        "derived",
        'derived = {"rate": hr.feature("spending__amount_mean_70d")}',
        "did you mean 'spending__amount_mean_7d'?",
    ),
    "an operand of text": ("derived", 'derived = {"rate": hr.col("amount") + hr.col("country")}', "a text can only be compared"),
    "and for &": ("derived", 'derived = {"r": hr.col("amount") > 1 and hr.col("amount") < 3}', "write & for and"),
    "a label that is not there": ("label", 'label = hr.Label(refunds, "god", on="order_id", delay="7d")', "did you mean 'good'?"),
    "a label of a time": ("label", 'label = hr.Label(refunds, "known", on="order_id", delay="7d")', "be a number or a boolean"),
    "a label joined on what one lacks": ("label", 'label = hr.Label(refunds, "good", on="refund_id", delay="7d")', "be in the schema of source orders"),
    "a label joined on two kinds": ("label", 'label = hr.Label(refunds, "good", on="customer", delay="7d")', "be string as in source orders"),
    "a label without a delay": ("label", 'label = hr.Label(refunds, "good", on="order_id")', "'delay'"),
    "a label of a name": ("label", 'label = hr.Label("refunds", "good", on="order_id", delay="7d")', "pass the object, not its name"),
    "a model without a label": ("pipeline", 'buy = hr.Pipeline("buy", source=orders, views=[spending], model=model)', "write label=hr.Label"),
    "a parameter of no value": ("model", "model = hr.LightGBM(num_leaves=[7])", "be a number, a boolean or a text"),
    "a view that is none": ("pipeline", 'buy = hr.Pipeline("buy", source=orders, views=[one])', "be an hr.FeatureView"),
}  # fmt: skip


def write_project(folder, lines):
    (folder / "headrace.yaml").write_text("project: shop\n")
    (folder / "schemas").mkdir()
    for name, fields in SCHEMAS.items():
        columns = [{"name": n, "type": t} for n, t in fields.items()]
        text = json.dumps({"type": "record", "name": name, "fields": columns})
        (folder / "schemas" / f"{name}.avsc").write_text(text)
    (folder / "definitions.py").write_text("\n".join(["import headrace as hr", *lines]) + "\n")


def test_the_project_that_the_cases_break_is_right(tmp_path):
    write_project(tmp_path, RIGHT.values())

    plan = compile_project(load_project(tmp_path))

    assert [stage.entity for stage in plan.pipelines[0].stages] == ["who", "place"]


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_definition_is_refused_with_its_line_and_a_hint(tmp_path, case):
    broken, line, hint, *told_at = CASES[case]
    write_project(tmp_path, {**RIGHT, broken: line}.values())

    with pytest.raises(DefinitionError) as refused:
        compile_project(load_project(tmp_path))

    where = f"definitions.py:{list(RIGHT).index(*(told_at or [broken])) + 2}: "
    assert str(refused.value).startswith(where), str(refused.value)
    assert hint in str(refused.value)
    assert "must" in str(refused.value)


def test_entities_that_wait_for_each_other_are_refused_with_the_way_round(tmp_path):
    lines = {
        **RIGHT,
        "feature": 'one = hr.mean(hr.col("amount") * hr.feature("shops__x_1h"), name="m", over="7d")',
        "other": (
            'shops = hr.FeatureView("shops", entity=place, source=orders, features='
            '[hr.sum(hr.feature("spending__m_7d"), name="x", over="1h")])'
        ),
        "derived": "derived = {}",
    }
    write_project(tmp_path, lines.values())

    with pytest.raises(DefinitionError, match="who -> place -> who"):
        compile_project(load_project(tmp_path))


def test_an_entity_that_waits_for_itself_is_refused(tmp_path):
    lines = {
        **RIGHT,
        "feature": 'one = hr.mean(hr.feature("spending__m_7d"), name="m", over="7d")',
        "derived": "derived = {}",
    }
    write_project(tmp_path, lines.values())

    with pytest.raises(DefinitionError, match="who -> who"):
        compile_project(load_project(tmp_path))


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ("{", "must be JSON"),
        ('"string"', "must be a record"),
        ('{"type": "enum", "name": "E", "symbols": ["A"]}', "must be a record"),
        ('{"type": "record", "name": "R", "fields": [{"name": "at"}]}', "must be valid Avro"),
        (
            '{"type":"record","name":"R","fields":[{"name":"again","type":["null","R"]}]}',
            "schema of source orders: ",
        ),
    ],
)
def test_a_schema_that_is_none_is_told_at_its_source(tmp_path, schema, told):
    write_project(tmp_path, RIGHT.values())
    (tmp_path / "schemas" / "orders.avsc").write_text(schema)

    with pytest.raises(DefinitionError, match=told) as refused:
        compile_project(load_project(tmp_path))

    assert str(refused.value).startswith("definitions.py:2: ")


@pytest.mark.parametrize(
    ("definitions", "told"),
    [
        ("import headrace as hr\nx = 1 / 0\n", "definitions.py:2: definitions must import; ZeroDivisionError"),
        ("import headrace as hr\nx = (\n", "definitions.py:2: definitions must import; it is no Python"),
        ("import nothing_like_it\n", "definitions.py:1: definitions must import; ModuleNotFoundError"),
        ("import headrace as hr\nhr.Sorce\n", "did you mean 'hr.Source'?"),
    ],
)  # fmt: skip
def test_a_file_that_fails_is_told_by_its_own_line(tmp_path, definitions, told):
    write_project(tmp_path, [])
    (tmp_path / "definitions.py").write_text(definitions)

    with pytest.raises(ProjectError) as refused:
        load_project(tmp_path)

    assert told in str(refused.value)


def test_a_project_without_a_pipeline_is_refused(tmp_path):
    write_project(tmp_path, [RIGHT["orders"]])

    with pytest.raises(DefinitionError, match="define a pipeline"):
        load_project(tmp_path)
