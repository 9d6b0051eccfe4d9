"""A processor that starts from a checkpoint goes on as if it had never stopped, bit for bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from stream_cases import (
    differences,
    expected,
    make_payments,
    make_reports,
    one_stage,
    three_stages,
    two_stages,
)

from headrace.features.capture import SlotRecords
from headrace.streams.batch import Forget, Keep
from headrace.streams.erasures import cut
from headrace.streams.parts import pack, unpack
from headrace.streams.processors import build
from headrace.streams.testing import Driver
from tests.property.test_stream_splits import cut_batches, rekeyed

ROWS = 150
COMMON = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def two_stages_once():
    """Payments that are sent twice count once."""
    return two_stages(dedupe="1d")


def one_stage_once():
    return one_stage(dedupe="1d")


PLANS = [one_stage, two_stages, three_stages, one_stage_once, two_stages_once]


def sent(make_plan, payments, reports, **options):
    driver = Driver(make_plan(), partitions=2, **options)
    driver.send("payments", payments)
    if make_plan not in (one_stage, one_stage_once):
        driver.send("reports", reports)
    return driver


@pytest.fixture(scope="module")
def recorded():
    payments = make_payments(ROWS, seed=15)
    # Late rows and held lanes: one lane of three hours ahead, the alignment far smaller.
    payments += [{**row, "payment_id": 1_000 + row["payment_id"]} for row in payments[:5]]
    reports = make_reports(payments, seed=16)
    drivers = {}
    for make_plan in PLANS:
        driver = sent(make_plan, payments, reports, seed=17, batch_rows=20)
        driver.run(crash_odds=0.1)
        drivers[make_plan] = driver
    return drivers


class Run:
    """A processor fed with a log's batches, with forgets, checkpoints, aborts and restores."""

    def __init__(self, driver, owned, forgets):
        self.driver, self.owned, self.forgets = driver, owned, forgets
        self.processor = self.new_processor()
        self.bulk, self.single = {}, {}

    def new_processor(self):
        return build(self.driver.plan, self.owned.topic, self.owned.partition, self.driver.context)

    def feed(self, batches, *, silent=False):
        for batch in batches:
            last = int(batch.offsets[-1]) if len(batch) else -1
            due = [f for f in self.forgets if f.position <= last]
            self.forgets = [f for f in self.forgets if f.position > last]
            for part in cut(batch, due):
                if isinstance(part, Forget):
                    self.processor.forget(part)
                    continue
                outputs = self.processor.process(part)
                if not silent:
                    self.collect(outputs)

    def collect(self, outputs):
        for output in outputs.bulk:
            self.bulk.setdefault(output.topic, []).extend(output.messages)
        for output in outputs.single:
            if output.headers[0][0] == "headrace.lane":
                place = (output.topic, output.partition)
                self.single.setdefault(place, []).append(output.value)

    def out(self):
        return self.bulk, rekeyed(self.driver, self.single)

    def open(self, number, position, *, whole):
        place = (self.owned.topic, self.owned.partition, 0)
        self.keep_ = Keep(*place, number, position, opens=True, whole=whole, words_max=1)
        kept = self.processor.keep(self.keep_).kept
        self.parts, self.count, self.records = pack(kept.parts), kept.key_count, kept.records
        return kept.ended

    def finish(self):
        go_on = dataclasses.replace(self.keep_, opens=False, words_max=1 << 19)
        kept = self.processor.keep(go_on).kept
        assert not kept.cancelled
        self.records = self.records + kept.records
        assert kept.ended
        return self.records

    def restart(self, records, position):
        self.processor = self.new_processor()
        through_bytes = [
            SlotRecords.from_arrow(
                pa.ipc.read_record_batch(
                    pa.py_buffer(one.to_arrow().serialize()), one.to_arrow().schema
                )
            )
            for one in records
        ]
        self.processor.restore(unpack(self.parts), through_bytes, self.count, position)
        return getattr(self.processor, "erased", frozenset())


def forgets_of(driver, owned, position):
    """Forget one key of the stage at a position, and its rows that come late."""
    stage = next((s for s in driver.plan.stages if s.topic == owned.topic), None)
    if stage is None:
        return []
    key = {"int64": pa.array([2]), "string": pa.array(["c3"])}[stage.key_kind]
    if stage.entity == "city":
        key = pa.array(["Rom"])
    bounds = {"payments": np.array([40, 40]), "reports": np.array([9, 9])}
    return [Forget(owned.topic, owned.partition, 0, "gone", position, key, bounds)]


@pytest.mark.parametrize("make_plan", PLANS)
@COMMON
@given(data=st.data())
def test_restored_at_any_offset_the_rest_comes_out_the_same(recorded, make_plan, data):
    driver = recorded[make_plan]
    place = data.draw(st.sampled_from([p for p in driver.owned if p[0] != "reports"]))
    owned, log = driver.owned[place], driver._logs[place[0]][place[1]]
    first = data.draw(st.integers(0, len(log)))
    second = data.draw(st.integers(first, len(log)))
    during = data.draw(st.integers(second, len(log)))
    forgets = forgets_of(driver, owned, data.draw(st.integers(0, len(log))))
    if data.draw(st.booleans()):
        forgets = []
    # One in the middle of a capture would end it.
    assume(not forgets or not (second <= forgets[0].position <= during))

    straight = Run(driver, owned, forgets)
    straight.feed(cut_batches(owned, log, [first, second, during]))

    run = Run(driver, owned, forgets)
    run.feed(cut_batches(owned, log[:first], []))
    opened = run.open(1, first, whole=True)
    base = run.records if opened else run.finish()
    if data.draw(st.booleans()):
        run.processor.begin()
        run.feed(list(cut_batches(owned, log, [first, second]))[1:2], silent=True)
        run.processor.abort()
        run.forgets = [f for f in forgets if f.position > first]
    run.feed([b for b in cut_batches(owned, log, [first, second]) if after(b, first, second)])
    opened = run.open(2, second, whole=False)
    kept_out = (
        {k: list(v) for k, v in run.bulk.items()},
        {k: list(v) for k, v in run.single.items()},
    )
    # The processor goes on while it is copied, and dies then.
    run.feed([b for b in cut_batches(owned, log, [second, during]) if after(b, second, during)])
    records = run.records if opened else run.finish()
    run.bulk, run.single = kept_out
    done = run.restart(records + base, second)
    run.forgets = [f for f in forgets if f.request not in done]
    run.feed([b for b in cut_batches(owned, log, [second, during]) if after(b, second, len(log))])

    assert run.out() == straight.out()


def after(batch, start, stop):
    return len(batch) and start <= int(batch.offsets[0]) and int(batch.offsets[-1]) < stop


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("make_plan", PLANS)
def test_crashes_that_restore_change_nothing(make_plan, seed):
    payments = make_payments(120, seed=seed)
    reports = make_reports(payments, seed=seed)
    driver = sent(make_plan, payments, reports, seed=seed, batch_rows=9)

    driver.run(crash_odds=0.15, abort_odds=0.1, keep_odds=0.6)

    assert driver.restores > 2
    assert driver.aborts > 2
    wanted = expected(driver.plan, {"payments": payments, "reports": reports})
    assert differences(driver.snapshots(), wanted) == []


def test_small_parts_come_back_from_their_bytes():
    tree = {
        "none": None,
        "flag": True,
        "n": -(1 << 62),
        "x": 0.1,
        "list": [1, [2, "three"], {"four": b"4\0"}],
        "array": np.arange(6, dtype=np.int32).reshape(2, 3),
        "held": pa.RecordBatch.from_pydict({"a": [1, None], "b": ["x", "y"]}).slice(1),
    }

    back = unpack(pack(tree))

    assert (back["array"] == tree["array"]).all()
    assert back["array"].dtype == np.int32
    assert back["held"].equals(tree["held"])
    assert {k: v for k, v in back.items() if k not in {"array", "held"}} == {
        k: v for k, v in tree.items() if k not in {"array", "held"}
    }
    for length in (0, 7, 30, len(pack(tree)) - 1):
        with pytest.raises(ValueError, match="bytes"):
            unpack(pack(tree)[:length])
