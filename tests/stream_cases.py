"""Pipelines, events and expected snapshots for the tests of the streams' core."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from typing import TYPE_CHECKING, Any

import numpy as np
from oracle import Event, run

import headrace as hr
from headrace.features.compiler import compile_pipeline
from headrace.features.vector import stage_ages, stage_features
from headrace.streams.batch import EventBatch
from headrace.streams.testing import once

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.features.plan import PipelinePlan, StagePlan

START_MS = 1_600_000_000_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
_TIME = {"type": "long", "logicalType": "timestamp-millis"}


def _schema(name: str, **fields: object) -> str:
    listed = [{"name": field, "type": kind} for field, kind in fields.items()]
    return json.dumps({"type": "record", "name": name, "fields": listed})


SCHEMAS = {
    "payments": _schema(
        "Payment",
        payment_id="long",
        event_time=_TIME,
        customer_id=["null", "string"],
        terminal_id=["null", "long"],
        city=["null", "string"],
        amount=["null", "double"],
    ),
    "reports": _schema(
        "Report",
        report_id="string",
        payment_id="long",
        terminal_id="long",
        event_time=_TIME,
        known_at=_TIME,
        is_fraud="boolean",
    ),
}


def payments_source(**options: Any) -> hr.Source:
    given = {"partitioner": "murmur2", "event_id": "payment_id", **options}
    return hr.Source("payments", key="customer_id", event_time="event_time", **given)


def one_stage(**options: Any) -> PipelinePlan:
    """Customers' windows, read from the source directly."""
    source = payments_source(**options)
    view = _spending(source)
    pipeline = hr.Pipeline("spend", source, [view], request={"amount": hr.col("amount")})
    return compile_pipeline(pipeline, SCHEMAS)


def two_stages(
    *,
    delay: str = "1d",
    alignment_ms: int | None = None,
    partitions: int = 3,
    reports_options: dict[str, Any] | None = None,
    **options: Any,
) -> PipelinePlan:
    """Customers, then terminals with the reports about them."""
    source = payments_source(**options)
    reports = _reports(**reports_options or {})
    pipeline = hr.Pipeline(
        "fraud",
        source,
        [_spending(source), _risk(source, reports, delay)],
        request={"amount": hr.col("amount"), "night": hr.hour("event_time") <= 6},
        derived={"amount_vs_mean": hr.col("amount") / hr.feature("customer__amount_mean_1d")},
    )
    return _aligned(compile_pipeline(pipeline, SCHEMAS, partitions=partitions), alignment_ms)


def three_stages(*, alignment_ms: int | None = None, partitions: int = 3) -> PipelinePlan:
    """Terminals and cities after the customers; cities aggregate a customer's feature."""
    source = payments_source()
    reports = _reports()
    city = hr.Entity("city", key="city")
    cities = hr.FeatureView(
        "city",
        entity=city,
        source=source,
        features=[
            hr.count(over=["12h"]),
            hr.max(hr.feature("customer__count_1d"), over=["12h"], name="busiest"),
            hr.last("amount", over=["1d"]),
        ],
    )
    views = [_spending(source), _risk(source, reports, "0s"), cities]
    pipeline = hr.Pipeline("towns", source, views, request={"amount": hr.col("amount")})
    return _aligned(compile_pipeline(pipeline, SCHEMAS, partitions=partitions), alignment_ms)


def _aligned(plan: PipelinePlan, alignment_ms: int | None) -> PipelinePlan:
    if alignment_ms is None:
        return plan
    return dataclasses.replace(plan, alignment_ms=alignment_ms)


def _reports(**options: Any) -> hr.Source:
    times = {"event_time": "event_time", "known_at": "known_at"}
    return hr.Source("reports", key="payment_id", **times, **options)


def _spending(source: hr.Source) -> hr.FeatureView:
    return hr.FeatureView(
        "customer",
        entity=hr.Entity("customer", key="customer_id"),
        source=source,
        features=[hr.count(over=["6h", "1d"]), hr.mean("amount", over=["6h", "1d"])],
    )


def _risk(source: hr.Source, reports: hr.Source, delay: str) -> hr.FeatureView:
    return hr.FeatureView(
        "terminal",
        entity=hr.Entity("terminal", key="terminal_id"),
        source=source,
        delay=delay,
        features=[
            hr.count(over=["1d", "3d"]),
            hr.ratio(
                hr.count(source=reports), hr.count(), name="risk", over=["1d", "3d"], default=0.0
            ),
        ],
    )


def make_payments(count: int, seed: int, *, step_ms: int = 600_000) -> list[dict[str, Any]]:
    """Return payments in the order of time, a second or more apart, some without keys or amount."""
    draw = random.Random(seed)
    rows = []
    time_ms = START_MS
    for number in range(count):
        time_ms += draw.randint(1_000, step_ms)
        rows.append(
            {
                "payment_id": number,
                "event_time": time_ms,
                "customer_id": None if draw.random() < 0.02 else f"c{draw.randint(1, 12)}",
                "terminal_id": None if draw.random() < 0.02 else draw.randint(1, 6),
                "city": draw.choice(["Oslo", "Rom", "Łódź"]),
                "amount": None if draw.random() < 0.05 else draw.randint(0, 40_000) / 7,
            }
        )
    return rows


def make_reports(
    payments: list[dict[str, Any]], seed: int, *, share: float = 0.2, known_after_ms: int = DAY_MS
) -> list[dict[str, Any]]:
    """Return reports about a share of the payments, each known a while after."""
    draw = random.Random(seed)
    return [
        {
            "report_id": f"r{payment['payment_id']}",
            "payment_id": payment["payment_id"],
            "terminal_id": payment["terminal_id"],
            "event_time": payment["event_time"],
            "known_at": payment["event_time"] + known_after_ms,
            "is_fraud": True,
        }
        for payment in payments
        if payment["terminal_id"] is not None and draw.random() < share
    ]


def expected(
    plan: PipelinePlan, logs: dict[str, list[dict[str, Any]]]
) -> dict[int, dict[str, float]]:
    """Return features and ages by payment id: brute force over the events in canonical order."""
    features: dict[int, dict[str, float]] = {row["payment_id"]: {} for row in logs[plan.source]}
    for stage in plan.stages:
        order, log = _canonical(stage, logs, features)
        results = run(stage, log)
        for identity, answer in zip(order, results, strict=True):
            if answer is None:
                continue
            aggregates = np.array([answer])
            values = {name: x[0] for name, x in stage_features(stage, aggregates).items()}
            ages = {f"{v}__age_ms": x[0] for v, x in stage_ages(stage, aggregates).items()}
            features[identity] |= values | ages
    return features


def _canonical(
    stage: StagePlan,
    logs: dict[str, list[dict[str, Any]]],
    features: dict[int, dict[str, float]],
) -> tuple[list[int], list[Event]]:
    rows = []
    for rank, stage_input in enumerate(stage.inputs):
        for place, row in enumerate(logs[stage_input.source]):
            values = tuple(
                _value(row, str(value.expression), features)
                if value.source == stage_input.source
                else None
                for value in stage.values
            )
            event = Event(
                row[stage_input.key],
                rank,
                row["event_time"],
                row.get("known_at", row["event_time"]),
                values,
                stage_input.scored,
            )
            rows.append(((row["event_time"], rank, place), row["payment_id"], event))
    rows.sort(key=lambda item: item[0])
    return [identity for _, identity, _ in rows], [event for _, _, event in rows]


def _value(
    row: dict[str, Any], expression: str, features: dict[int, dict[str, float]]
) -> float | None:
    if expression.startswith("col("):
        return row[expression[5:-2]]
    assert expression.startswith("feature("), expression
    value = features[row["payment_id"]][expression[9:-2]]
    return None if math.isnan(value) else float(value)


def differences(snapshots: pa.Table, wanted: dict[int, dict[str, float]]) -> list[object]:
    """Return what differs, bit for bit, between snapshots (each id once) and what is expected."""
    found = {int(row["event_id"]): row for row in once(snapshots).to_pylist()}
    wrong: list[object] = [("missing", i) for i in wanted if i not in found]
    wrong += [("surplus", i) for i in found if i not in wanted]
    for identity, row in found.items():
        for name, value in wanted.get(identity, {}).items():
            got = row[name]
            if got != (None if math.isnan(value) else value):
                wrong.append((identity, name, got, value))
    return wrong


class DriverLog:
    """A driver's topics, read in batches of ``rows``."""

    def __init__(self, driver, rows=37, forgets=None):
        self.driver, self.rows = driver, rows
        self.forgotten = forgets or {}
        self.read = 0

    def forgets(self, stage, partition):
        return self.forgotten.get((stage.topic, partition), [])

    def batches(self, topic, partition):
        log = self.driver._logs[topic][partition]
        for start in range(0, len(log), self.rows):
            messages = log[start : start + self.rows]
            self.read += len(messages)
            yield EventBatch(
                topic=topic,
                partition=partition,
                epoch=0,
                offsets=np.arange(start, start + len(messages)),
                arrival_time_ms=np.array([m.timestamp_ms for m in messages], np.int64),
                keys=[m.key for m in messages],
                values=[m.value for m in messages],
                headers=[m.headers for m in messages],
                emit_from=0,
                at_end=False,
            )
