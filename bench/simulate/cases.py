"""What is simulated: small pipelines, their events, and what a run without faults makes of them.

A case is made once in a process and used by many seeds.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import headrace as hr
from headrace.features.compiler import compile_pipeline
from headrace.runtime import topics
from headrace.streams.testing import Driver

if TYPE_CHECKING:
    from headrace.features.plan import PipelinePlan
    from headrace.streams.context import ProcessorContext
    from headrace.streams.testing import Message

START_MS = 1_750_000_000_000
EVENTS = (12, 40)
CASES = 6
# In the first of them events come again, some with another amount.
DEDUPED = 2
AGAIN_ODDS = 0.3
CONFLICT_ODDS = 0.2
SOURCE_PARTITIONS = 3
OUTPUT_PARTITIONS = 2
KINDS = ("one", "two")

_TIME = {"type": "long", "logicalType": "timestamp-millis"}
_SCHEMA = json.dumps(
    {
        "type": "record",
        "name": "Payment",
        "fields": [
            {"name": "payment_id", "type": "long"},
            {"name": "event_time", "type": _TIME},
            {"name": "customer_id", "type": "string"},
            {"name": "shop", "type": "long"},
            {"name": "amount", "type": "double"},
        ],
    }
)


@dataclass(frozen=True, slots=True)
class Case:
    """A pipeline with the logs of its source, and the outputs that are right.

    ``outputs`` holds (topic, partition, key, value) of every output, in the order of each
    partition of a run without faults.
    """

    plan: PipelinePlan
    context: ProcessorContext
    source: str
    logs: list[list[Message]]
    outputs: list[tuple[str, int, bytes | None, bytes | None]]

    @property
    def output_topics(self) -> list[str]:
        """Where outputs go."""
        return _output_topics(self.plan)


@cache
def case(kind: str, number: int) -> Case:
    """Return the case of a kind and a number."""
    plan = _plan(kind, deduped=number < DEDUPED)
    driver = Driver(plan, partitions=SOURCE_PARTITIONS, output_partitions=OUTPUT_PARTITIONS)
    draw = random.Random(f"{kind} {number}")
    events = _events(draw)
    driver.send(plan.source, _repeated(draw, events) if number < DEDUPED else events)
    source = plan.source_plan(plan.source).topic
    logs = [list(log) for log in driver.logs(source)]
    driver.run()
    outputs = [
        (topic, partition, message.key, message.value)
        for topic in _output_topics(plan)
        for partition, log in enumerate(driver.logs(topic))
        for message in log
    ]
    assert outputs
    return Case(plan, driver.context, source, logs, outputs)


def _output_topics(plan: PipelinePlan) -> list[str]:
    source = plan.source_plan(plan.source).topic
    return [
        *(topics.predictions(plan.name), topics.snapshots(plan.name)),
        *(topics.dlq(source), topics.late(source)),
    ]


@cache
def _plan(kind: str, *, deduped: bool) -> PipelinePlan:
    source = hr.Source(
        "payments",
        key="customer_id",
        event_time="event_time",
        event_id="payment_id",
        partitioner="murmur2",
        dedupe="24h" if deduped else None,
    )
    spending = hr.FeatureView(
        "customer",
        entity=hr.Entity("customer", key="customer_id"),
        source=source,
        features=[hr.count(over="1h"), hr.mean("amount", over="1h")],
    )
    takings = hr.FeatureView(
        "shop",
        entity=hr.Entity("shop", key="shop"),
        source=source,
        features=[hr.count(over="1h"), hr.sum("amount", over="1h")],
    )
    pipeline = hr.Pipeline(
        "spend",
        source=source,
        views=[spending] if kind == "one" else [spending, takings],
        request={"amount": hr.col("amount")},
        alignment="0s",
    )
    return compile_pipeline(pipeline, {"payments": _SCHEMA}, partitions=2)


def _events(draw: random.Random) -> list[dict[str, object]]:
    """Return payments of few customers and shops; most a little later than the one before."""
    now_ms, events = START_MS, []
    for number in range(draw.randint(*EVENTS)):
        now_ms += draw.choice((1, 2, 1_000, 60_000, 600_000))
        events.append(
            {
                "payment_id": number,
                "event_time": now_ms,
                "customer_id": f"customer {draw.randrange(5)}",
                "shop": draw.randrange(3),
                "amount": draw.choice((0.1, 0.2, 3.3, 1e9, -0.7)),
            }
        )
    return events


def _repeated(draw: random.Random, events: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return the events with some that come again a little later."""
    sent: list[dict[str, object]] = []
    for number, event in enumerate(events):
        sent.append(event)
        if draw.random() < AGAIN_ODDS:
            again = dict(events[draw.randint(max(0, number - 3), number)])
            if draw.random() < CONFLICT_ODDS:
                again["amount"] = 77.0
            sent.append(again)
    return sent
