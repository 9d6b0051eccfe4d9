"""How two plans differ, in words."""

from __future__ import annotations

import pytest

import headrace as hr
from headrace.features.changes import features, plan_changes
from headrace.features.compiler import compile_pipeline
from headrace.features.plan import ProjectPlan

SCHEMA = {
    "type": "record",
    "name": "R",
    "fields": [
        {"name": "who", "type": "string"},
        {"name": "at", "type": "long"},
        {"name": "amount", "type": "double"},
    ],
}


def project(features=None, name="buy", lateness="1h", **options):
    source = hr.Source("orders", key="who", event_time="at", schema=SCHEMA, lateness=lateness)
    view = hr.FeatureView(
        "buyer",
        entity=hr.Entity("who", key="who"),
        source=source,
        features=features or [hr.count(over="1d"), hr.mean("amount", over="7d")],
    )
    pipeline = hr.Pipeline(name, source=source, views=[view], **options)
    return ProjectPlan("shop", (compile_pipeline(pipeline),))


def told(before, after):
    return [(c.verb, c.what, c.name, c.before, c.after) for c in plan_changes(before, after)]


def test_the_same_plan_has_no_changes():
    assert plan_changes(project(), project()) == ()


def test_features_that_come_go_and_change_are_told_by_name():
    after = project(
        features=[
            hr.count(over="1d"),
            hr.mean("amount", over="7d", default=0),
            hr.max("amount", over="1h"),
        ]
    )

    assert told(project(), after) == [
        ("added", "feature", "buyer__amount_max_1h", None, "max of amount, last 1h"),
        (
            "changed",
            "feature",
            "buyer__amount_mean_7d",
            "mean of amount, last 7d",
            "mean of amount, last 7d, else 0",
        ),
    ]
    assert told(after, project())[-1] == (
        "removed",
        "feature",
        "buyer__amount_max_1h",
        "max of amount, last 1h",
        None,
    )


def test_a_source_read_otherwise_is_told():
    (change,) = plan_changes(project(), project(lateness="2h"))

    assert (change.verb, change.what, change.name) == ("changed", "source", "orders")
    assert "lateness 1h" in change.before
    assert "lateness 2h" in change.after


def test_columns_and_their_order_are_told():
    one = {"amount": hr.col("amount"), "hour": hr.hour("at")}
    other = {"hour": hr.hour("at"), "amount": hr.col("amount") / 100}

    changes = told(project(request=one), project(request=other))

    assert [c[:3] for c in changes] == [
        ("changed", "column", "amount"),
        ("changed", "order of the vector", "buy"),
    ]
    assert changes[0][3:] == ("request amount", "request amount / 100")


def test_the_first_plan_adds_everything_and_a_renamed_pipeline_is_another():
    added = told(None, project())
    renamed = told(project(), project(name="sell"))

    assert [c[:3] for c in added] == [
        ("added", "pipeline", "buy"),
        ("added", "source", "orders"),
        ("added", "feature", "buyer__count_1d"),
        ("added", "feature", "buyer__amount_mean_7d"),
    ]
    assert ("added", "pipeline", "sell") in [c[:3] for c in renamed]
    assert ("removed", "pipeline", "buy") in [c[:3] for c in renamed]


def test_how_far_lanes_may_run_ahead_is_told():
    assert told(project(), project(alignment="1m")) == [
        ("changed", "alignment", "buy", "10s", "1m")
    ]


@pytest.mark.parametrize(
    ("feature", "text"),
    [
        (hr.count(over="90m"), "count of orders, last 1h 30m"),
        (
            hr.sum(hr.col("amount") * 2 + 1, name="x", over="1d", grain="1h", delay="2h"),
            "sum of (amount * 2) + 1, last 1d up to 2h ago in tiles of 1h",
        ),
        (
            hr.ratio(hr.count("amount"), hr.count(), name="r", over="1d", default=0.5),
            "count of amount / count of orders, last 1d, else 0.5",
        ),
        (
            hr.max(hr.where(hr.hour("at") < 6, hr.col("amount"), 0), name="night", over="1d"),
            "max of where(hour(at) < 6, amount, 0), last 1d",
        ),
    ],
    ids=["count", "sum", "ratio", "where"],
)
def test_a_feature_is_told_in_words(feature, text):
    (plan,) = project(features=[feature]).pipelines

    assert list(features(plan).values()) == [text]
