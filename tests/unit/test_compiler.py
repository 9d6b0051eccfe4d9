"""The compiler: what definitions become, and what a fingerprint covers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import headrace as hr
from headrace.features.compiler import compile_pipeline, plan_from_json, plan_to_json
from headrace.features.errors import DefinitionError, PlanFormatError
from headrace.features.expressions import Column
from headrace.features.layouts import rekey_layout
from headrace.features.plan import (
    AgePlan,
    AggregatePlan,
    InputPlan,
    LabelPlan,
    ProjectPlan,
    RingPlan,
    WindowPlan,
)
from headrace.features.project import load_project

HOUR, DAY = 3_600_000, 86_400_000
TIME = {"type": "long", "logicalType": "timestamp-millis"}


def record(**fields):
    return {
        "type": "record",
        "name": "R",
        "fields": [{"name": name, "type": kind} for name, kind in fields.items()],
    }


ORDER = record(
    order_id="long",
    customer="string",
    shop=["null", "int"],
    at=TIME,
    amount="double",
    pieces="int",
    cents="long",
    gift="boolean",
    country=["null", "string"],
)
REFUND = record(refund_id="long", order_id="long", shop="int", at=TIME, known=TIME, good="boolean")


def orders(**options):
    given = {"key": "customer", "event_time": "at", "partitioner": "murmur2", "schema": ORDER}
    return hr.Source("orders", **{**given, **options})


def pipeline(source=None, features=None, **options):
    """Return the plan of one view over orders, or of ``views``."""
    source = source or orders()
    view = hr.FeatureView(
        "buyer",
        entity=hr.Entity("customer", key="customer"),
        source=source,
        features=features or [hr.mean("amount", over="1d")],
        **options.pop("view", {}),
    )
    views = [view, *options.pop("views", [])]
    return compile_pipeline(hr.Pipeline("buy", source=source, views=views, **options))


def features_of(plan):
    return {f.name: f for stage in plan.stages for f in stage.features}


# --- Names, types, defaults -----------------------------------------------------------------------


def test_a_feature_is_named_by_view_measure_aggregate_and_window():
    returned = hr.Source("returns-2024.eu", key="shop", event_time="at", schema=ORDER)
    plan = pipeline(
        features=[
            hr.count(over=["30s", "90d"]),
            hr.count("country", over="1h"),
            hr.last("amount", over="7d"),
            hr.max(hr.col("amount") / 100, name="dearest", over="24h"),
            hr.ratio(hr.count("country"), hr.count(), name="known_country", over="1d"),
            hr.count(source=returned, over="1d"),
            hr.mean("amount", source=returned, over="1d"),
        ]
    )

    assert list(features_of(plan)) == [
        "buyer__count_30s",
        "buyer__count_90d",
        "buyer__country_count_1h",
        "buyer__amount_last_7d",
        "buyer__dearest_24h",
        "buyer__known_country_1d",
        "buyer__returns_2024_eu_count_1d",
        "buyer__returns_2024_eu_amount_mean_1d",
    ]


@pytest.mark.parametrize(
    ("feature", "dtype", "default"),
    [
        (hr.count(over="1d"), "int64", 0.0),
        (hr.count("country", over="1d"), "int64", 0.0),
        (hr.sum("pieces", over="1d"), "float64", None),
        (hr.mean("pieces", over="1d"), "float64", None),
        (hr.min("pieces", over="1d"), "int64", None),
        (hr.max("cents", over="1d", default=-1), "int64", -1.0),
        (hr.max("cents", over="1d", default=0.5), "float64", 0.5),
        (hr.last("gift", over="1d"), "int64", None),
        (hr.last("amount", over="1d"), "float64", None),
        (hr.ratio(hr.count("country"), hr.count(), name="r", over="1d"), "float64", None),
        (hr.ratio(hr.count(), hr.count(), name="r", over="1d", default=0), "float64", 0.0),
    ],
    ids=lambda value: getattr(value, "kind", str(value)),
)
def test_a_feature_has_the_type_and_default_of_its_aggregate(feature, dtype, default):
    (compiled,) = features_of(pipeline(features=[feature])).values()

    assert (compiled.dtype, compiled.default) == (dtype, default)


def test_a_views_default_stands_where_a_feature_has_none():
    plan = pipeline(
        features=[hr.mean("amount", over="1d"), hr.max("amount", over="1d", default=9)],
        view={"default": 1.0},
    )

    assert [f.default for f in features_of(plan).values()] == [1.0, 9.0]


# --- Rings, windows, aggregates -------------------------------------------------------------------


def test_what_features_share_is_kept_once():
    plan = pipeline(
        features=[
            hr.count(over=["1d", "7d"]),
            hr.mean("amount", over=["1d", "7d"]),
            hr.sum(hr.col("amount"), name="spent", over="7d"),
            hr.ratio(hr.count("gift"), hr.count(), name="gifts", over="7d"),
        ]
    )
    (stage,) = plan.stages

    assert [v.name for v in stage.values] == ["amount", "gift"]
    assert stage.rings == (RingPlan("orders", 0, (0, 1), False, 7 * DAY + HOUR + 10_000),)
    assert stage.windows == (WindowPlan(0, DAY, 0), WindowPlan(0, 7 * DAY, 0))
    assert stage.aggregates == (
        AggregatePlan(0, "count", -1),
        AggregatePlan(1, "count", -1),
        AggregatePlan(0, "mean", 0),
        AggregatePlan(1, "mean", 0),
        AggregatePlan(1, "sum", 0),
        AggregatePlan(1, "count", 1),
        AggregatePlan(1, "age", -1),
    )
    assert stage.features[-1].aggregates == (5, 1)
    assert stage.ages == (AgePlan("buyer", 6),)


def test_a_ring_reaches_back_over_window_delay_grain_and_every_lateness():
    plan = pipeline(
        source=orders(lateness="2h"),
        features=[
            hr.count(over="1d", delay="7d"),
            hr.count(over="2d", delay="0s", name="now"),
            hr.count(over="24h", grain="1h", name="tiles"),
        ],
        alignment="1m",
    )

    assert [(r.grain_ms, r.retention_ms) for r in plan.stages[0].rings] == [
        (0, 8 * DAY + 2 * HOUR + 60_000),
        (HOUR, DAY + HOUR + 2 * HOUR + 60_000),
    ]


def test_delay_and_grain_of_a_view_hold_for_features_that_say_nothing():
    plan = pipeline(
        features=[hr.count(over="1d"), hr.count(over="1d", grain="30m", delay="0s", name="x")],
        view={"delay": "2h", "grain": "1h"},
    )
    (stage,) = plan.stages

    assert [(w.length_ms, w.delay_ms) for w in stage.windows] == [(DAY, 2 * HOUR), (DAY, 0)]
    assert [r.grain_ms for r in stage.rings] == [HOUR, HOUR // 2]


def test_the_non_null_texts_are_counted_through_a_number():
    (stage,) = pipeline(features=[hr.count("country", over="1d")]).stages

    assert str(stage.values[0].expression) == "(1 / ~(is_null(col('country'))))"


def test_only_what_is_read_becomes_a_column_in_schema_order():
    plan = pipeline(
        features=[hr.sum(hr.col("cents") * hr.col("pieces"), name="total", over="1d")],
        request={"gift": hr.col("gift")},
    )
    (source,) = plan.sources

    assert [(c.name, c.kind) for c in source.columns] == [
        ("customer", "string"),
        ("at", "int64"),
        ("pieces", "int64"),
        ("cents", "int64"),
        ("gift", "bool"),
    ]
    assert source.checked == ()
    assert [str(e) for e in source.checked_expressions] == ["(col('cents') * col('pieces'))"]


# --- Stages ---------------------------------------------------------------------------------------


def shop_view(source, name="shops", features=None):
    entity = hr.Entity("shop", key="shop")
    features = features or [hr.count(over="1d")]
    return hr.FeatureView(name, entity=entity, source=source, features=features)


def test_the_entity_that_producers_key_by_is_read_directly_wherever_it_is_listed():
    source = orders()
    own = hr.FeatureView(
        "buyer",
        entity=hr.Entity("customer", key="customer"),
        source=source,
        features=[hr.count(over="1d")],
    )
    plan = compile_pipeline(hr.Pipeline("buy", source=source, views=[shop_view(source), own]))

    assert [(s.entity, s.direct, s.topic) for s in plan.stages] == [
        ("customer", True, "orders"),
        ("shop", False, f"buy.rekey.shop.{rekey_layout(plan, 1)}"),
    ]
    assert [c.name for c in plan.vector] == ["shops__count_1d", "buyer__count_1d"]


@pytest.mark.parametrize(
    "source",
    [orders(partitioner=None), orders(key="country")],
    ids=["undeclared partitioner", "another key"],
)
def test_producers_partitions_are_not_trusted_without_a_reason(source):
    plan = pipeline(source=source)

    (stage,) = plan.stages
    layout = rekey_layout(plan, 0)
    assert (stage.direct, stage.topic) == (False, f"buy.rekey.customer.{layout}")


def test_a_source_that_only_updates_comes_first_among_the_inputs_and_makes_the_stage_rekeyed():
    source = orders(key="shop")
    refunds = hr.Source("refunds", key="shop", event_time="at", known_at="known", schema=REFUND)
    view = shop_view(
        source, features=[hr.ratio(hr.count(source=refunds), hr.count(), name="back", over="1d")]
    )
    plan = compile_pipeline(hr.Pipeline("buy", source=source, views=[view]))
    (stage,) = plan.stages

    assert not stage.direct
    assert stage.key_kind == "int64"
    assert stage.inputs == (
        InputPlan("refunds", "shop", scored=False),
        InputPlan("orders", "shop", scored=True),
    )
    assert [(r.source, r.known_at) for r in stage.rings] == [("refunds", True), ("orders", False)]


def test_a_view_may_stand_on_a_source_that_is_not_scored():
    source = orders()
    visits = hr.Source("visits", key="customer", event_time="at", schema=ORDER)
    view = hr.FeatureView(
        "visitor",
        entity=hr.Entity("customer", key="customer"),
        source=visits,
        features=[hr.count(over="1h"), hr.mean("amount", over="1h")],
    )
    (stage,) = compile_pipeline(hr.Pipeline("buy", source=source, views=[view])).stages

    assert [(i.source, i.scored) for i in stage.inputs] == [("visits", False), ("orders", True)]
    assert [f.name for f in stage.features] == ["visitor__count_1h", "visitor__amount_mean_1h"]


def test_a_stage_whose_values_read_anothers_features_comes_after_it():
    source = orders()
    shops = shop_view(
        source,
        features=[hr.mean(hr.feature("buyer__amount_mean_1d"), name="guests", over="1d")],
    )
    own = hr.FeatureView(
        "buyer",
        entity=hr.Entity("customer", key="customer"),
        source=source,
        features=[hr.mean("amount", over="1d")],
    )
    plan = compile_pipeline(hr.Pipeline("buy", source=source, views=[shops, own]))

    assert [s.entity for s in plan.stages] == ["customer", "shop"]
    assert plan.sources[0].checked == ("amount",)


def test_values_of_a_source_that_passes_one_stage_cannot_read_anothers_features():
    source = orders()
    visits = hr.Source("visits", key="customer", event_time="at", schema=ORDER)
    values = hr.mean(hr.feature("buyer__count_1d"), name="x", over="1d", source=visits)
    shops = shop_view(source, features=[values])

    with pytest.raises(DefinitionError, match="its events pass this one stage"):
        pipeline(source=source, features=[hr.count(over="1d")], views=[shops])


# --- The vector, the label, the model -------------------------------------------------------------


def test_the_vector_is_request_features_derived_each_in_the_order_written():
    plan = pipeline(
        features=[hr.count(over=["1d", "7d"]), hr.mean("amount", over="1d")],
        request={"pieces": hr.col("pieces"), "cents": hr.col("cents"), "night": hr.hour("at") < 6},
        derived={"vs_mean": hr.col("amount") / hr.feature("buyer__amount_mean_1d")},
    )

    assert [(c.name, c.kind, c.dtype) for c in plan.vector] == [
        ("pieces", "request", "int64"),
        ("cents", "request", "float64"),
        ("night", "request", "int64"),
        ("buyer__count_1d", "feature", "int64"),
        ("buyer__count_7d", "feature", "int64"),
        ("buyer__amount_mean_1d", "feature", "float64"),
        ("vs_mean", "derived", "float64"),
    ]


def test_the_card_jobs_vector_can_be_written():
    card = record(
        transaction_id="long", ts="long", customer_id="string", amount="double", country="string"
    )
    source = hr.Source(
        "bench.tx",
        key="customer_id",
        event_time="ts",
        event_id="transaction_id",
        partitioner="murmur2",
        schema=card,
    )
    windows = ["1d", "7d", "30d"]
    view = hr.FeatureView(
        "card",
        entity=hr.Entity("customer", key="customer_id"),
        source=source,
        grain="1h",
        features=[hr.count(over=windows), hr.mean("amount", over=windows)],
    )
    request = {"amount": hr.col("amount"), "hour_of_day": hr.hour("ts")}
    plan = compile_pipeline(hr.Pipeline("card", source=source, views=[view], request=request))

    assert [c.name for c in plan.vector] == [
        "amount",
        "hour_of_day",
        *(f"card__count_{w}" for w in windows),
        *(f"card__amount_mean_{w}" for w in windows),
    ]
    assert plan.stages[0].direct


def test_label_and_model_are_in_the_plan_and_the_labels_source_with_them():
    refunds = hr.Source("refunds", key="order_id", event_time="at", known_at="known", schema=REFUND)
    plan = pipeline(
        label=hr.Label(refunds, "good", on="order_id", delay="7d"),
        model=hr.LightGBM(num_leaves=7, learning_rate=0.05),
    )

    assert plan.label == LabelPlan("refunds", "good", "order_id", 7 * DAY)
    assert dict(plan.model) == {"kind": "lightgbm", "num_leaves": 7, "learning_rate": 0.05}
    assert [s.name for s in plan.sources] == ["orders", "refunds"]
    assert [c.name for c in plan.source_plan("refunds").columns] == [
        "order_id",
        "at",
        "known",
        "good",
    ]


# --- Fingerprint ----------------------------------------------------------------------------------


def base(**options):
    given = {"features": [hr.count(over="1d"), hr.mean("amount", over="1d")]}
    return pipeline(**{**given, **options})


def altered(schema, **changes):
    fields = [{**f, **changes.get(f["name"], {})} for f in schema["fields"]]
    return {**schema, "fields": fields}


@pytest.mark.parametrize(
    "options",
    [
        {"features": [hr.count(over="2d"), hr.mean("amount", over="1d")]},
        {"features": [hr.mean("amount", over="1d"), hr.count(over="1d")]},
        {"features": [hr.count(over="1d"), hr.mean("amount", over="1d", default=0)]},
        {"features": [hr.count(over="1d"), hr.mean("cents", name="amount_mean", over="1d")]},
        {"view": {"delay": "1d"}},
        {"view": {"grain": "1h"}},
        {"request": {"amount": hr.col("amount")}},
        {"derived": {"x": hr.feature("buyer__count_1d") / 2}},
        {"derived": {"x": hr.feature("buyer__count_1d") / 3}},
        {"alignment": "1m"},
        {"source": orders(lateness="2h")},
        {"source": orders(max_ahead="1h")},
        {"source": orders(not_finite="null")},
        {"source": orders(null_key="dlq")},
        {"source": orders(schema=altered(ORDER, amount={"type": "float"}))},
        {"source": orders(schema=altered(ORDER, amount={"default": 1.0}))},
        {"source": orders(schema=altered(ORDER, amount={"aliases": ["price"]}))},
    ],
    ids=str,
)
def test_what_can_change_a_value_changes_the_fingerprint(options):
    assert base(**options).fingerprint != base().fingerprint


@pytest.mark.parametrize(
    "options",
    [
        {"source": orders(topic="orders-v2")},
        {"source": orders(partitioner=None)},
        {"source": orders(event_id="order_id")},
        {"source": orders(schema={**ORDER, "doc": "What people buy", "namespace": "shop"})},
        {"source": orders(schema=altered(ORDER, amount={"doc": "in euro"}))},
        {"source": orders(schema=altered(ORDER, gift={"type": "int"}))},
        {
            "label": hr.Label(
                hr.Source("refunds", key="order_id", event_time="at", schema=REFUND),
                "good",
                on="order_id",
                delay="7d",
            )
        },
    ],
    ids=str,
)
def test_what_cannot_change_a_value_leaves_the_fingerprint(options):
    assert base(**options).fingerprint == base().fingerprint


def test_partitions_and_a_setting_of_max_ahead_leave_the_fingerprint():
    source = orders()
    view = shop_view(source)
    made = hr.Pipeline("buy", source=source, views=[view])

    plain = compile_pipeline(made)
    other = compile_pipeline(made, partitions=12, project="p", max_ahead_ms=DAY)

    assert plain.fingerprint == other.fingerprint
    assert (other.partitions, other.sources[0].max_ahead_ms) == (12, DAY)


def test_the_fingerprint_is_the_same_in_another_process(repository):
    folder = repository / "examples" / "fraud"
    if not (folder / "definitions.py").is_file():
        pytest.fail("examples/fraud is gone")
    code = (
        "import sys; from headrace.features.project import load_project;"
        "from headrace.features.compiler import compile_project;"
        "print(compile_project(load_project(sys.argv[1])).pipelines[0].fingerprint)"
    )
    prints = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        prints.add(done.stdout.strip())

    assert len(prints) == 1
    assert len(prints.pop()) == 16


# --- JSON -----------------------------------------------------------------------------------------


def test_a_plan_survives_json(repository):
    from headrace.features.compiler import compile_project

    plan = compile_project(load_project(repository / "examples" / "fraud"), 7)

    again = plan_from_json(plan_to_json(plan))

    assert isinstance(again, ProjectPlan)
    assert plan == again
    assert hash(plan) == hash(again)
    (pipeline_plan,) = plan.pipelines
    assert pipeline_plan == plan_from_json(plan_to_json(pipeline_plan))


def test_a_plan_with_every_kind_of_part_survives_json():
    plan = pipeline(
        features=[
            hr.sum(hr.col("cents") * 2, name="twice", over="1d", default=0.5),
            hr.ratio(hr.count("country"), hr.count(), name="r", over="1d"),
        ],
        request={"be": hr.col("country") == "BE", "gift": ~hr.col("gift")},
        derived={"x": hr.feature("buyer__twice_1d") / 2.5},
    )

    assert plan == plan_from_json(plan_to_json(plan))
    assert isinstance(plan.vector[1].expression.arguments[0], Column)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"ProjectPlan": {}}', '{"Other": {}}'],
)
def test_a_stored_plan_that_is_none_is_refused(text):
    with pytest.raises(PlanFormatError, match="one that this version wrote"):
        plan_from_json(text)


def test_a_stored_plan_of_a_later_version_is_refused():
    data = json.loads(plan_to_json(base()))
    data["PipelinePlan"]["invented"] = 1

    with pytest.raises(PlanFormatError, match="invented"):
        plan_from_json(json.dumps(data))
