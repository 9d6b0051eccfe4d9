"""What of a project's plan is served online."""

from __future__ import annotations

import pytest

import headrace as hr
from headrace.features.compiler import compile_pipeline
from headrace.features.errors import DefinitionError
from headrace.features.plan import ProjectPlan
from headrace.features.store.murmur3 import field_name
from headrace.features.store.views import OnlineFeature, check_fields, online_entities

SCHEMA = {
    "type": "record",
    "name": "Payment",
    "fields": [
        {"name": "payment_id", "type": "long"},
        {"name": "customer_id", "type": "int"},
        {"name": "terminal_id", "type": "string"},
        {"name": "amount", "type": "double"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
HOUR_MS, DAY_MS = 3_600_000, 86_400_000


def project(*pipelines):
    return ProjectPlan("shop", tuple(compile_pipeline(one, project="shop") for one in pipelines))


def definitions():
    payments = hr.Source(
        "payments", key="customer_id", event_time="at", event_id="payment_id", schema=SCHEMA
    )
    customer = hr.Entity("customer", key="customer_id")
    terminal = hr.Entity("terminal", key="terminal_id")
    spending = hr.FeatureView(
        "spending", customer, payments, [hr.count(over=["1d", "7d"]), hr.mean("amount", over="1h")]
    )
    risk = hr.FeatureView("risk", terminal, payments, [hr.count(over="1d", delay="7d")], grain="1h")
    return payments, spending, risk


def test_a_stage_serves_its_views_in_the_plans_order_with_their_reach():
    payments, spending, risk = definitions()
    plan = project(hr.Pipeline("fraud", payments, [spending, risk]))

    found = online_entities(plan)

    (first, second) = (found["fraud"][index] for index in range(2))
    assert (first.project, first.pipeline, first.entity) == ("shop", "fraud", "customer")
    assert (first.join_key, first.key_kind) == ("customer_id", "int64")
    names = [feature.name for feature in first.features]
    assert names == ["spending__count_1d", "spending__count_7d", "spending__amount_mean_1h"]
    assert [feature.feature for feature in first.features][-1] == "amount_mean_1h"
    assert [feature.dtype for feature in first.features] == ["int64", "int64", "float64"]
    assert [feature.default for feature in first.features] == [0.0, 0.0, None]
    assert first.reach_ms == 7 * DAY_MS
    assert first.expiry_ms == 14 * DAY_MS
    assert (second.key_kind, second.reach_ms) == ("string", 8 * DAY_MS + HOUR_MS)
    assert not first.shared


def test_a_view_of_several_pipelines_is_served_by_the_first():
    payments, spending, risk = definitions()
    plan = project(
        hr.Pipeline("fraud", payments, [spending]),
        hr.Pipeline("limits", payments, [spending, risk]),
    )

    found = online_entities(plan)

    assert [view.name for view in found["fraud"][0].views] == ["spending"]
    assert {index: [v.name for v in e.views] for index, e in found["limits"].items()} == {
        index: ["risk"]
        for index, stage in enumerate(plan.pipelines[1].stages)
        if stage.entity == "terminal"
    }


def test_hashes_that_two_pipelines_write_are_known_as_shared():
    payments, spending, _ = definitions()
    habits = hr.FeatureView("habits", spending.entity, payments, [hr.count(over="1h")])
    plan = project(
        hr.Pipeline("fraud", payments, [spending]), hr.Pipeline("limits", payments, [habits])
    )

    found = online_entities(plan)

    assert found["fraud"][0].shared
    assert found["limits"][0].shared


def test_features_whose_fields_collide_are_refused_with_both_names():
    seen = {}
    for number in range(200_000):
        name = f"f{number}"
        other = seen.setdefault(field_name("v", name), name)
        if other != name:
            break
    pair = [OnlineFeature(f"v__{one}", "v", one, "int64", None) for one in (other, name)]

    with pytest.raises(DefinitionError, match=rf"got 'v__{name}' for the key of v__{other}"):
        check_fields(pair)


def test_more_features_than_one_command_takes_are_refused():
    many = [OnlineFeature(f"v__{n}", "v", str(n), "int64", None) for n in range(2_001)]

    with pytest.raises(DefinitionError, match="at most 2000"):
        check_fields(many)
