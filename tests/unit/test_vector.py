"""Aggregates to features, features to the model's vector."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

import headrace as hr
from headrace.features.columns import event_columns
from headrace.features.compiler import compile_pipeline
from headrace.features.vector import assemble, stage_ages, stage_features

NULL = float("nan")


def plan():
    schema = {
        "type": "record",
        "name": "R",
        "fields": [
            {"name": "who", "type": "string"},
            {"name": "at", "type": "long"},
            {"name": "amount", "type": ["null", "double"]},
        ],
    }
    source = hr.Source("orders", key="who", event_time="at", schema=schema)
    view = hr.FeatureView(
        "buyer",
        entity=hr.Entity("who", key="who"),
        source=source,
        features=[
            hr.count(over="1d"),
            hr.mean("amount", over="1d"),
            hr.max("amount", over="1d", default=-1),
            hr.ratio(hr.count("amount"), hr.count(), name="known", over="1d"),
            hr.ratio(hr.count("amount"), hr.count(), name="known0", over="1d", default=0),
        ],
    )
    return compile_pipeline(
        hr.Pipeline(
            "buy",
            source=source,
            views=[view],
            request={"amount": hr.col("amount"), "night": hr.hour("at") < 6},
            derived={"vs": hr.col("amount") / hr.feature("buyer__amount_mean_1d")},
        )
    )


# Columns: count, mean, max, count of amount, age. Rows: a full window, an empty one, no key at all.
AGGREGATES = np.array(
    [
        [4.0, 2.5, 9.0, 1.0, 60_000.0],
        [0.0, NULL, NULL, 0.0, NULL],
        [NULL, NULL, NULL, NULL, NULL],
    ]
)


def test_null_is_replaced_by_defaults_and_a_count_of_nothing_is_zero():
    (stage,) = plan().stages

    features = stage_features(stage, AGGREGATES)

    expected = {
        "buyer__count_1d": [4.0, 0.0, 0.0],
        "buyer__amount_mean_1d": [2.5, NULL, NULL],
        "buyer__amount_max_1d": [9.0, -1.0, -1.0],
        "buyer__known_1d": [0.25, NULL, NULL],
        "buyer__known0_1d": [0.25, 0.0, 0.0],
    }
    assert list(features) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(features[name], values, err_msg=name)


def test_a_ratio_over_nothing_is_null_even_where_something_is_above_it():
    # Two sources: facts of an entity that has no events of the other.
    (stage,) = plan().stages
    aggregates = np.array([[0.0, NULL, NULL, 2.0, NULL]])

    features = stage_features(stage, aggregates)

    assert np.isnan(features["buyer__known_1d"]).all()
    assert features["buyer__known0_1d"].tolist() == [0.0]


def test_the_age_of_a_view_is_that_of_its_newest_event():
    (stage,) = plan().stages

    ages = stage_ages(stage, AGGREGATES)

    assert list(ages) == ["buyer"]
    np.testing.assert_array_equal(ages["buyer"], [60_000.0, NULL, NULL])


def test_the_vector_is_in_the_plans_order():
    compiled = plan()
    table = pa.table(
        {
            "who": ["a", "b", "c"],
            "at": [0, 6 * 3_600_000, 1],
            "amount": pa.array([5.0, 5.0, None]),
        }
    )
    events = event_columns(table, compiled.sources[0])
    features = stage_features(compiled.stages[0], AGGREGATES)

    vector = assemble(compiled, events, features)

    np.testing.assert_array_equal(
        vector,
        [
            [5.0, 1.0, 4.0, 2.5, 9.0, 0.25, 0.25, 2.0],
            [5.0, 0.0, 0.0, NULL, -1.0, NULL, 0.0, NULL],
            [NULL, 1.0, 0.0, NULL, -1.0, NULL, 0.0, NULL],
        ],
    )
    assert vector.flags.c_contiguous
