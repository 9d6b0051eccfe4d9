"""A stage is a function of its log's prefix: how the log is cut, or replayed, changes nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from stream_cases import make_payments, make_reports, one_stage, three_stages, two_stages

from headrace.streams.batch import EventBatch
from headrace.streams.lanes import LANE_HEADER
from headrace.streams.processors import build
from headrace.streams.testing import Driver

ROWS = 150
COMMON = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def recorded():
    """Return drivers that have run, by pipeline: their logs are what the stages read."""
    drivers = {}
    payments = make_payments(ROWS, seed=5)
    reports = make_reports(payments, seed=6)
    for make_plan in (one_stage, two_stages, three_stages):
        driver = Driver(make_plan(), partitions=2, seed=7, batch_rows=20)
        driver.send("payments", payments)
        if make_plan is not one_stage:
            driver.send("reports", reports)
        driver.run(crash_odds=0.1)
        drivers[make_plan] = driver
    return drivers


def cut_batches(owned, log, cuts, emit_from=0):
    bounds = [0, *sorted(cuts), len(log)]
    for start, stop in itertools.pairwise(bounds):
        messages = log[start:stop]
        yield EventBatch(
            topic=owned.topic,
            partition=owned.partition,
            epoch=0,
            offsets=np.arange(start, stop),
            arrival_time_ms=np.array([m.timestamp_ms for m in messages], np.int64),
            keys=[m.key for m in messages],
            values=[m.value for m in messages],
            headers=[m.headers for m in messages],
            emit_from=emit_from,
            at_end=stop == len(log),
        )


def rows_out(driver, owned, batches):
    """Return what the batches cause, but for the lane notes, which tell of batches."""
    processor = build(driver.plan, owned.topic, owned.partition, driver.context)
    bulk, single = {}, {}
    for batch in batches:
        outputs = processor.process(batch)
        for output in outputs.bulk:
            bulk.setdefault(output.topic, []).extend(output.messages)
        for output in outputs.single:
            if output.headers[0][0] == LANE_HEADER:
                place = (output.topic, output.partition)
                single.setdefault(place, []).append(output.value)
    return bulk, rekeyed(driver, single)


def rekeyed(driver, single):
    """Unpack re-keyed messages to rows, since cuts of batches are cuts of messages."""
    rows = {}
    for (topic, partition), values in single.items():
        schema = driver.owned[topic, partition].processor._hops[-1].schema
        for value in filter(None, values):
            batch = pa.ipc.read_record_batch(pa.py_buffer(value), schema)
            rows.setdefault((topic, partition), []).extend(map(str, batch.to_pylist()))
    return rows


@pytest.mark.parametrize("make_plan", [one_stage, two_stages, three_stages])
@COMMON
@given(data=st.data())
def test_any_cut_of_a_stage_s_log_gives_the_same_bytes(recorded, make_plan, data):
    driver = recorded[make_plan]
    place = data.draw(st.sampled_from([p for p in driver.owned if p[0] != "reports"]))
    owned, log = driver.owned[place], driver._logs[place[0]][place[1]]
    cuts = data.draw(st.lists(st.integers(0, len(log)), max_size=12))

    whole = rows_out(driver, owned, cut_batches(owned, log, []))
    in_pieces = rows_out(driver, owned, cut_batches(owned, log, cuts))

    # A partition may own no key of its entity.
    assume(whole[0] or whole[1])
    assert in_pieces == whole


@pytest.mark.parametrize("make_plan", [one_stage, two_stages, three_stages])
@COMMON
@given(data=st.data())
def test_a_silent_replay_emits_the_rest_and_only_the_rest(recorded, make_plan, data):
    driver = recorded[make_plan]
    place = data.draw(st.sampled_from([p for p in driver.owned if p[0] != "reports"]))
    owned, log = driver.owned[place], driver._logs[place[0]][place[1]]
    emit_from = data.draw(st.integers(0, len(log)))
    cuts = data.draw(st.lists(st.integers(0, len(log)), max_size=4))

    before, after = (
        rows_out(driver, owned, list(cut_batches(owned, log, [emit_from]))[:1]),
        rows_out(driver, owned, cut_batches(owned, log, cuts, emit_from)),
    )
    whole = rows_out(driver, owned, cut_batches(owned, log, []))

    for kind in range(2):
        for topic in whole[kind]:
            joined = before[kind].get(topic, []) + after[kind].get(topic, [])
            assert joined == whole[kind][topic]
