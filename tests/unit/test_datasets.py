"""A training set holds the scored events of its period, with vectors and with what was known."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace as hr
from headrace.features.compiler import compile_pipeline
from headrace.lake.history import event_vectors
from headrace.training.datasets import (
    build_training_set,
    canary_rows,
    read_source,
    source_period,
)
from headrace.training.errors import TrainingError
from headrace.training.evaluate import NEVER_MS
from headrace.training.split import DAY_MS, Period

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.features.plan import PipelinePlan

TIME = {"type": "long", "logicalType": "timestamp-millis"}
UTC_MS = pa.timestamp("ms", tz="UTC")
HOUR_MS = 3_600_000


def schema(name: str, fields: dict[str, object]) -> str:
    listed = [{"name": field, "type": kind} for field, kind in fields.items()]
    return json.dumps({"type": "record", "name": name, "fields": listed})


PAYMENTS = {"payment_id": "long", "card_id": "string", "at": TIME, "amount": "double"}
REPORTS = {"payment_id": "long", "at": TIME, "known_at": TIME, "is_fraud": "boolean"}
SCHEMAS = {"payments": schema("Payment", PAYMENTS), "reports": schema("Report", REPORTS)}


@pytest.fixture(scope="module")
def plan() -> PipelinePlan:
    payments = hr.Source("payments", key="card_id", event_time="at", event_id="payment_id")
    reports = hr.Source("reports", key="payment_id", event_time="at", known_at="known_at")
    card = hr.Entity("card", key="card_id")
    view = hr.FeatureView(
        "card", entity=card, source=payments, features=[hr.mean("amount", over=["1d"])]
    )
    pipeline = hr.Pipeline(
        "fraud",
        source=payments,
        views=[view],
        request={"amount": hr.col("amount")},
        label=hr.Label(reports, "is_fraud", on="payment_id", delay="7d"),
        model=hr.LightGBM(num_leaves=4),
    )
    return compile_pipeline(pipeline, SCHEMAS)


# Two payments of card b in the same hour, one of card a before and one after; the second row has
# an amount that the stream refuses.
#
#   hour   0        1        2 2      3
#   card   a 10     b (inf)  b 20     a 50
#                              b 40
def payments() -> pa.Table:
    hours = [0, 1, 2, 2, 3]
    return pa.table(
        {
            "payment_id": pa.array([11, 12, 13, 14, 15], pa.int64()),
            "card_id": ["a", "b", "b", "b", "a"],
            "at": pa.array([hour * HOUR_MS for hour in hours], UTC_MS),
            "amount": [10.0, np.inf, 20.0, 40.0, 50.0],
        }
    )


def reports(rows: list[tuple[int, int, bool | None]]) -> pa.Table:
    """Return reports of (payment, hour at which it is known, is it fraud)."""
    ids, known, fraud = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "payment_id": pa.array(ids, pa.int64()),
            "at": pa.array([0] * len(ids), UTC_MS),
            "known_at": pa.array([hour * HOUR_MS for hour in known], UTC_MS),
            "is_fraud": pa.array(fraud, pa.bool_()),
        }
    )


def tables(rows: list[tuple[int, int, bool | None]]) -> Mapping[str, pa.Table]:
    return {"payments": payments(), "reports": reports(rows)}


def test_rows_are_the_good_events_of_the_period_with_the_streams_features(
    plan: PipelinePlan,
) -> None:
    data = build_training_set(plan, tables([]), Period(2 * HOUR_MS, 4 * HOUR_MS), event_vectors)

    assert data.names == ("amount", "card__amount_mean_1d")
    # a's mean at 3 holds its payment at 0, which lies before the period; the infinite one is out.
    assert data.vector.tolist() == [[20.0, 20.0], [40.0, 30.0], [50.0, 30.0]]
    assert data.event_time_ms.tolist() == [2 * HOUR_MS, 2 * HOUR_MS, 3 * HOUR_MS]
    assert data.keys.tolist() == [1, 1, 0]


def test_a_row_that_the_stream_refuses_is_no_row(plan: PipelinePlan) -> None:
    data = build_training_set(plan, tables([]), Period(0, 4 * HOUR_MS), event_vectors)

    assert len(data.vector) == 4


def test_a_label_is_one_from_the_instant_its_first_positive_report_is_known(
    plan: PipelinePlan,
) -> None:
    # 11: twice, late first; 13: first denied, then found; 14: denied; 15: unknown.
    rows = [(11, 9, True), (11, 5, True), (13, 4, False), (13, 6, True), (14, 4, False)]
    data = build_training_set(
        plan, tables([*rows, (15, 4, None)]), Period(0, 4 * HOUR_MS), event_vectors
    )

    assert data.positive_known_at_ms.tolist() == [5 * HOUR_MS, 6 * HOUR_MS, NEVER_MS, NEVER_MS]
    assert data.labels().tolist() == [1, 1, 0, 0]
    assert data.labels(5 * HOUR_MS).tolist() == [1, 0, 0, 0]
    assert data.labels(5 * HOUR_MS - 1).tolist() == [0, 0, 0, 0]


def test_reports_of_events_outside_are_of_no_account(plan: PipelinePlan) -> None:
    data = build_training_set(
        plan, tables([(99, 1, True), (11, 1, True)]), Period(HOUR_MS, 4 * HOUR_MS), event_vectors
    )

    assert data.labels().tolist() == [0, 0, 0]


def test_skipped_rows_keep_their_labels_and_cost_no_features(plan: PipelinePlan) -> None:
    asked: list[int] = []

    def history(plan: PipelinePlan, given: Mapping[str, pa.Table], rows: np.ndarray) -> np.ndarray:
        asked.extend(rows.tolist())
        return event_vectors(plan, given, rows)

    data = build_training_set(
        plan,
        tables([(13, 5, True)]),
        Period(0, 4 * HOUR_MS),
        history,
        skip=Period(2 * HOUR_MS, 3 * HOUR_MS),
    )

    assert asked == [0, 4]
    assert np.isnan(data.vector).all(axis=1).tolist() == [False, True, True, False]
    assert data.labels().tolist() == [0, 1, 0, 0]


def test_the_order_of_the_file_does_not_matter_but_for_ties(plan: PipelinePlan) -> None:
    turned = {**tables([]), "payments": payments().take([4, 2, 3, 1, 0])}
    period = Period(0, 4 * HOUR_MS)

    assert (
        build_training_set(plan, tables([]), period, event_vectors).vector.tobytes()
        == build_training_set(plan, turned, period, event_vectors).vector.tobytes()
    )


def test_the_id_changes_with_anything_that_goes_in(plan: PipelinePlan) -> None:
    whole = Period(0, 4 * HOUR_MS)

    def identify(
        given: Mapping[str, pa.Table], period: Period = whole, of: PipelinePlan = plan
    ) -> str:
        return build_training_set(of, given, period, event_vectors).training_set_id

    same = identify(tables([(13, 5, True)]))
    assert same == identify(tables([(13, 5, True)]))
    amounts = payments().set_column(3, "amount", pa.array([10.0, 30.0, 20.0, 40.0, 51.0]))
    others = [
        identify(tables([])),
        identify(tables([(13, 6, True)])),
        identify(tables([(13, 5, True)]), Period(0, 4 * HOUR_MS + 1)),
        identify({**tables([(13, 5, True)]), "payments": amounts}),
        identify(tables([(13, 5, True)]), of=dataclasses.replace(plan, fingerprint="0" * 16)),
    ]
    assert len({same, *others}) == 1 + len(others)


def test_a_canary_stands_for_both_labels_and_the_extremes(plan: PipelinePlan) -> None:
    data = build_training_set(plan, tables([(15, 5, True)]), Period(0, 4 * HOUR_MS), event_vectors)
    rows = canary_rows(data, np.arange(4)).tolist()

    assert [50.0, 30.0] in rows
    assert [10.0, 10.0] in rows
    assert rows[-1] == [0.0, 0.0]
    assert np.isnan(rows[-2]).all()


def test_a_pipeline_without_a_label_is_refused(plan: PipelinePlan) -> None:
    with pytest.raises(TrainingError, match=r"label=hr\.Label"):
        build_training_set(
            dataclasses.replace(plan, label=None), tables([]), Period(0, DAY_MS), event_vectors
        )


def test_a_source_without_data_is_named(plan: PipelinePlan) -> None:
    with pytest.raises(TrainingError, match="--data reports=FILE"):
        build_training_set(plan, {"payments": payments()}, Period(0, DAY_MS), event_vectors)


def test_a_period_without_events_is_refused(plan: PipelinePlan) -> None:
    with pytest.raises(TrainingError, match="1970-01-03 to 1970-01-04"):
        build_training_set(plan, tables([]), Period(2 * DAY_MS, 3 * DAY_MS), event_vectors)


def test_a_file_gives_the_columns_that_the_plan_reads(plan: PipelinePlan, tmp_path) -> None:
    source = plan.source_plan("payments")
    more = payments().append_column("note", pa.array(["x"] * 5))
    pq.write_table(more, tmp_path / "payments.parquet")
    table = read_source(tmp_path / "payments.parquet", source)

    assert set(table.schema.names) == {column.name for column in source.columns}
    assert Period(0, 3 * HOUR_MS + 1) == source_period(table, source)


def test_a_file_without_a_column_is_refused_and_the_column_named(
    plan: PipelinePlan, tmp_path
) -> None:
    pq.write_table(payments().drop_columns(["amount"]), tmp_path / "payments.parquet")

    with pytest.raises(TrainingError, match="amount"):
        read_source(tmp_path / "payments.parquet", plan.source_plan("payments"))
