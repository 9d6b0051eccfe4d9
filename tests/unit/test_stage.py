"""A stage's outputs: who scored, where records go, what is counted, what a replay keeps quiet."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
from stream_cases import START_MS, make_payments, make_reports, one_stage, two_stages

from headrace.streams.batch import EventBatch
from headrace.streams.processors import build, input_topics
from headrace.streams.testing import ARRIVAL_TIME_MS, Driver, FixedModels, Message


@dataclass
class AmountModel:
    """Scores a payment by its amount; ``seen`` keeps the vectors."""

    version: str = "1"
    revision: int = 1
    model: str = "amounts"
    role: str = "champion"
    factor: float = 0.5
    sha256: str = "ab" * 32

    def score(self, vector):
        return vector[:, 0] * self.factor


def batch_of(messages, *, first=0, emit_from=0, at_end=True):
    return EventBatch(
        topic="payments",
        partition=0,
        epoch=0,
        offsets=np.arange(first, first + len(messages)),
        arrival_time_ms=np.array([m.timestamp_ms for m in messages], np.int64),
        keys=[m.key for m in messages],
        values=[m.value for m in messages],
        headers=[m.headers for m in messages],
        emit_from=emit_from,
        at_end=at_end,
    )


def test_a_worker_without_a_model_emits_snapshots_and_predictions_without_a_score():
    driver = Driver(one_stage())
    driver.send("payments", make_payments(10, seed=1))

    driver.run()

    assert driver.snapshots().num_rows == 10
    for row in driver.predictions().to_pylist():
        assert row["status"] == "no_model"
        assert [row[name] for name in ("score", "model", "model_version")] == [None] * 3


def test_a_prediction_says_whose_score_it_is_and_a_new_model_holds_from_the_next_batch():
    models = FixedModels()
    driver = Driver(one_stage(), partitions=1, models=models)
    payments = [row | {"amount": 8.0} for row in make_payments(6, seed=1)]
    for model in (AmountModel(), AmountModel(version="2", revision=2, factor=2.0)):
        models.live["spend"] = model
        driver.send("payments", payments[:3])
        payments = payments[3:]
        driver.run()

    rows = driver.predictions().to_pylist()

    assert [row["score"] for row in rows] == [4.0] * 3 + [16.0] * 3
    assert [row["model_version"] for row in rows] == ["1"] * 3 + ["2"] * 3
    assert [row["revision"] for row in rows] == [1] * 3 + [2] * 3
    assert {row["model_hash"] for row in rows} == {"ab" * 8}
    assert {row["engine"] for row in rows} == {"test"}
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["role"] for row in rows} == {"champion"}


def test_a_score_that_is_no_number_is_null_and_says_so():
    driver = Driver(one_stage(), partitions=1, models=FixedModels({"spend": AmountModel()}))
    payments = make_payments(3, seed=1)
    payments[1]["amount"] = None
    payments[0]["amount"] = payments[2]["amount"] = 2.0
    driver.send("payments", payments)

    driver.run()

    rows = driver.predictions().to_pylist()
    assert [row["score"] for row in rows] == [1.0, None, 1.0]
    assert [row["status"] for row in rows] == ["ok", "no_score", "ok"]


def test_prediction_and_snapshot_carry_the_same_ids_and_the_event_s_key():
    driver = Driver(two_stages(), partitions=4, output_partitions=3)
    payments = make_payments(60, seed=1)
    driver.send("payments", payments)
    driver.send("reports", make_reports(payments, seed=2))

    driver.run()

    predictions, snapshots = driver.predictions().to_pylist(), driver.snapshots().to_pylist()
    shared = [
        "prediction_id", "event_id", "source", "source_topic_id", "source_partition",
        "source_offset", "customer_key", "terminal_key", "event_time", "fingerprint",
    ]  # fmt: skip
    for one, other in zip(predictions, snapshots, strict=True):
        assert [one[name] for name in shared] == [other[name] for name in shared]
    by_id = {str(row["payment_id"]): row for row in payments}
    targets = [p for p, log in enumerate(driver._logs["fraud.snapshots"]) for _ in log]
    for row, message, target in zip(
        snapshots, driver.messages("fraud.snapshots"), targets, strict=True
    ):
        customer, terminal = (by_id[row["event_id"]][f"{e}_id"] for e in ("customer", "terminal"))
        assert row["customer_key"] == customer
        assert row["terminal_key"] == (None if terminal is None else str(terminal))
        assert message.key == (None if customer is None else customer.encode())
        assert target == row["source_partition"] % 3
        place = f"{row['source_partition']}-{row['source_offset']}"
        assert row["prediction_id"] == f"id-of-payments-{place}"


def test_outputs_count_what_was_taken_in_scored_late_and_rejected():
    driver = Driver(one_stage(lateness="1m"), partitions=1)
    payments = make_payments(4, seed=1, step_ms=1_000)
    payments[0]["event_time"] = START_MS + 3_600_000
    driver.send("payments", [*payments[1:3], payments[0], payments[3]])
    driver.send_raw("payments", 0, Message(b"c1", b"", [], ARRIVAL_TIME_MS))
    (owned,) = driver.owned.values()

    outputs = driver.step(owned, 5)

    assert (outputs.events, outputs.scored, outputs.late) == (5, 3, 1)
    assert outputs.rejected == {"empty": 1}
    assert outputs.scored_arrival_time_ms.tolist() == [ARRIVAL_TIME_MS] * 3
    assert outputs.event_time_ms_max == START_MS + 3_600_000


def test_a_silent_replay_emits_and_counts_nothing_but_keeps_state():
    driver = Driver(one_stage(), partitions=1)
    payments = [row | {"customer_id": "c1"} for row in make_payments(4, seed=1)]
    driver.send("payments", payments[:3])
    driver.send_raw("payments", 0, Message(b"c1", b"", [], ARRIVAL_TIME_MS))
    driver.send("payments", payments[3:])
    log = driver._logs["payments"][0]
    processor = build(driver.plan, "payments", 0, driver.context)

    silent = processor.process(batch_of(log[:4], emit_from=4, at_end=False))
    loud = processor.process(batch_of(log[4:], first=4, emit_from=4))

    assert (silent.events, silent.scored, silent.bulk, silent.single) == (0, 0, [], [])
    assert not silent.rejected
    assert (loud.events, loud.scored) == (1, 1)
    (_, bulk) = loud.bulk
    assert len(bulk.messages) == 1
    driver.send_raw("spend.snapshots", 0, Message(None, bulk.messages[0]["value"], [], 0))
    assert driver.snapshots().column("customer__count_1d").to_pylist() == [4]


def test_an_empty_batch_at_the_end_causes_nothing_on_a_single_stage():
    driver = Driver(one_stage(), partitions=1)
    (owned,) = driver.owned.values()

    outputs = driver.step(owned, 0)

    assert (outputs.bulk, outputs.single, outputs.events) == ([], [], 0)


@pytest.mark.parametrize("name", ["customer__amount_mean_6h", "amount"])
def test_null_in_a_snapshot_is_null_not_nan(name):
    driver = Driver(one_stage(), partitions=1)
    driver.send("payments", [make_payments(1, seed=1)[0] | {"amount": None}])

    driver.run()

    (row,) = driver.snapshots().to_pylist()
    assert row[name] is None
    assert math.isclose(row["customer__count_6h"], 1)


def test_a_worker_reads_sources_before_stages_and_only_what_the_pipeline_uses():
    plan = two_stages()
    assert input_topics(plan) == ("payments", "reports", plan.stages[1].topic)
    assert input_topics(one_stage()) == ("payments",)


def test_a_processor_that_is_let_go_leaves_its_state_at_once():
    """A worker hardly ever collects: with a reference cycle each rebalance would cost a state."""
    payments = make_payments(40, seed=1)
    driver = Driver(two_stages(), partitions=1, batch_rows=10)
    driver.send("payments", payments)
    driver.send("reports", make_reports(payments, seed=2))
    driver.run()
    for owned in driver.owned.values():
        driver.keep(owned)
    processors = [weakref.ref(owned.processor) for owned in driver.owned.values()]
    assert {topic for topic, _ in driver.owned} == set(input_topics(driver.plan))
    gc.collect()
    gc.disable()
    try:
        for owned in driver.owned.values():
            owned.processor = None
        del owned
        assert not any(one() for one in processors)
    finally:
        gc.enable()
