"""Expressions: how they are written, what they mean on columns, which types they take."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.features.errors import DefinitionError, ExpressionError
from headrace.features.expressions import (
    columns_of,
    evaluate,
    features_of,
    from_data,
    to_data,
    type_of,
)

NULL = float("nan")

COLUMNS = {
    "a": pa.array([1.0, 2.0, None, 0.0, -3.5]),
    "b": pa.array([0, 2, 5, None, -7], pa.int64()),
    "flag": pa.array([True, False, None, True, False]),
    "other": pa.array([True, None, False, False, None]),
    "country": pa.array(["BE", "FR", None, "BE", ""]),
    # Friday 1970-01-02 03:00, Thursday 1970-01-01 00:00, one ms before it (Wednesday 23:00).
    "at": pa.array([97_200_000, 0, None, -1, 1_700_000_000_000], pa.int64()),
    "view__f": np.array([1.0, NULL, 3.0, 4.0, -0.0]),
}

CASES = [
    (hr.col("a") + hr.col("b"), [1.0, 4.0, NULL, NULL, -10.5]),
    (hr.col("a") - 1, [0.0, 1.0, NULL, -1.0, -4.5]),
    (10 - hr.col("a"), [9.0, 8.0, NULL, 10.0, 13.5]),
    (2 * hr.col("a"), [2.0, 4.0, NULL, 0.0, -7.0]),
    (hr.col("a") / hr.col("b"), [NULL, 1.0, NULL, NULL, 0.5]),
    (1 / hr.col("a"), [1.0, 0.5, NULL, NULL, 1 / -3.5]),
    (-hr.col("a"), [-1.0, -2.0, NULL, 0.0, 3.5]),
    (hr.col("a") > 0, [1.0, 1.0, NULL, 0.0, 0.0]),
    (hr.col("a") >= 2, [0.0, 1.0, NULL, 0.0, 0.0]),
    (hr.col("a") < hr.col("b"), [0.0, 0.0, NULL, NULL, 0.0]),
    (1 <= hr.col("a"), [1.0, 1.0, NULL, 0.0, 0.0]),  # noqa: SIM300 - the other operand first
    (hr.col("a") == 2, [0.0, 1.0, NULL, 0.0, 0.0]),
    (hr.col("a") != 2, [1.0, 0.0, NULL, 1.0, 1.0]),
    (hr.col("flag") & hr.col("other"), [1.0, 0.0, 0.0, 0.0, 0.0]),
    (hr.col("flag") | hr.col("other"), [1.0, NULL, NULL, 1.0, NULL]),
    (~hr.col("flag"), [0.0, 1.0, NULL, 0.0, 1.0]),
    (True & hr.col("flag"), [1.0, 0.0, NULL, 1.0, 0.0]),
    (hr.col("country") == "BE", [1.0, 0.0, NULL, 1.0, 0.0]),
    (hr.col("country") != "BE", [0.0, 1.0, NULL, 0.0, 1.0]),
    (hr.col("country") == hr.col("country"), [1.0, 1.0, NULL, 1.0, 1.0]),
    (hr.is_null("country"), [0.0, 0.0, 1.0, 0.0, 0.0]),
    (hr.is_null("a"), [0.0, 0.0, 1.0, 0.0, 0.0]),
    (hr.is_null(hr.col("a") / hr.col("b")), [1.0, 0.0, 1.0, 1.0, 0.0]),
    (hr.is_null(hr.feature("view__f")), [0.0, 1.0, 0.0, 0.0, 0.0]),
    (hr.abs(hr.col("a")), [1.0, 2.0, NULL, 0.0, 3.5]),
    (hr.floor(hr.col("a") / 2), [0.0, 1.0, NULL, 0.0, -2.0]),
    (hr.minimum(hr.col("a"), 1), [1.0, 1.0, NULL, 0.0, -3.5]),
    (hr.maximum(hr.col("a"), hr.col("b")), [1.0, 2.0, NULL, NULL, -3.5]),
    (hr.where(hr.col("flag"), hr.col("a"), -1), [1.0, -1.0, NULL, 0.0, -1.0]),
    (hr.hour("at"), [3.0, 0.0, NULL, 23.0, 22.0]),
    (hr.weekday(hr.col("at")), [4.0, 3.0, NULL, 2.0, 1.0]),
    (hr.weekday("at") >= 4, [1.0, 0.0, NULL, 0.0, 0.0]),
    (hr.col("a") / hr.feature("view__f"), [1.0, NULL, NULL, 0.0, NULL]),
]


@pytest.mark.parametrize(("formula", "expected"), CASES, ids=[repr(f) for f, _ in CASES])
def test_an_expression_means_what_it_says_and_null_stays_null(formula, expected):
    values = evaluate(formula.node, COLUMNS, 5)

    np.testing.assert_array_equal(np.array(expected), values)
    assert values.dtype == np.float64


@pytest.mark.parametrize("formula", [f for f, _ in CASES], ids=repr)
def test_an_expression_survives_json(formula):
    node = formula.node

    assert node == from_data(json.loads(json.dumps(to_data(node))))


def test_the_same_expression_written_twice_is_equal_and_has_the_same_text():
    first, second = (hr.col("a") / hr.feature("v__f") + 1, hr.col("a") / hr.feature("v__f") + 1)

    assert first.node == second.node
    assert str(first.node) == str(second.node) == "((col('a') / feature('v__f')) + 1)"
    assert (hr.col("a") - 1).node != (1 - hr.col("a")).node


def test_an_expression_knows_what_it_reads():
    node = (hr.where(hr.col("b") > hr.col("a"), hr.feature("v__f"), hr.col("a"))).node

    assert columns_of(node) == ("b", "a")
    assert features_of(node) == ("v__f",)


def test_no_rows_give_no_values():
    empty = {name: c[:0] for name, c in COLUMNS.items()}

    for formula, _ in CASES:
        assert evaluate(formula.node, empty, 0).shape == (0,)


def test_whole_columns_without_null_are_not_copied():
    column = pa.array(np.arange(100.0))

    values = evaluate(hr.col("x").node, {"x": column}, 100)

    assert np.shares_memory(values, column.to_numpy())


def test_asking_an_expression_for_its_truth_is_refused_with_the_right_operator():
    with pytest.raises(DefinitionError, match="write & for and"):
        bool(hr.col("a") > 1 and hr.col("b") > 2)
    with pytest.raises(DefinitionError, match=r"hr\.where for if"):
        1 if hr.col("a") > 1 else 0


@pytest.mark.parametrize("operand", [None, [1], float("nan"), float("inf"), b"x"])
def test_an_operand_that_is_no_value_is_refused(operand):
    with pytest.raises(DefinitionError, match="an operand must be a column"):
        hr.col("a") + operand


TYPES = {"b": "bool", "i": "int", "l": "long", "x": "float", "s": "string", "t": "time"}


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (hr.col("i") + hr.col("i"), "float"),
        (hr.col("i"), "int"),
        (hr.col("l"), "long"),
        (hr.minimum(hr.col("i"), hr.col("l")), "long"),
        (hr.where(hr.col("b"), 1, 0), "int"),
        (hr.where(hr.col("b"), 1, 0.5), "float"),
        (hr.abs(hr.col("b")), "int"),
        (hr.hour("t"), "int"),
        (hr.col("x") > 1, "bool"),
        (hr.col("s") == "BE", "bool"),
        (hr.is_null("s"), "bool"),
        (hr.col("s"), "string"),
    ],
    ids=repr,
)
def test_an_expression_has_the_type_of_its_operation(formula, expected):
    assert type_of(formula.node, lambda node: TYPES[node.name]) == expected


@pytest.mark.parametrize(
    ("formula", "hint"),
    [
        (hr.col("s") + 1, "a text can only be compared by == and !="),
        (hr.col("s") == 1, "must be of one kind"),
        (hr.col("s") < "BE", "a text can only be compared"),
        (hr.col("t") - 1, "take hr.hour or hr.weekday of a time"),
        (hr.hour("i"), "must be a column that holds a time"),
        (hr.hour(hr.hour("t")), "must be a column that holds a time"),
        (hr.col("x") & hr.col("b"), "put parentheses around comparisons"),
        (~hr.col("x"), "must be booleans"),
        (hr.where(hr.col("x"), 1, 0), "must be a boolean and two numbers"),
        (hr.where(hr.col("b"), hr.col("s"), 0), "must be a boolean and two numbers"),
    ],
    ids=repr,
)
def test_operands_of_the_wrong_type_are_refused_with_a_hint(formula, hint):
    with pytest.raises(ExpressionError) as refused:
        type_of(formula.node, lambda node: TYPES[node.name])

    assert hint in str(refused.value)
