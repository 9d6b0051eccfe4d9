"""The router: every source into every stage that it takes part in."""

from __future__ import annotations

import pytest
from stream_cases import make_payments, make_reports, three_stages, two_stages

from headrace.streams.lanes import LaneNote
from headrace.streams.processors import build
from headrace.streams.rekeyed import RekeyedStageProcessor
from headrace.streams.router import RouterProcessor
from headrace.streams.stage import DirectStageProcessor
from headrace.streams.testing import Driver


def lanes_seen(driver, topic):
    found = (LaneNote.from_headers(message.headers, topic) for message in driver.messages(topic))
    return {(note.source, *note.lane) for note in found}


def test_each_input_topic_has_its_kind_of_processor():
    driver = Driver(two_stages())
    routed = Driver(two_stages(partitioner=None))

    def kinds(of):
        return {topic: type(owned.processor) for (topic, _), owned in of.owned.items()}

    assert kinds(driver) == {
        "payments": DirectStageProcessor,
        "reports": RouterProcessor,
        driver.plan.stages[1].topic: RekeyedStageProcessor,
    }
    assert kinds(routed) == {
        "payments": RouterProcessor,
        "reports": RouterProcessor,
        routed.plan.stages[0].topic: RekeyedStageProcessor,
        routed.plan.stages[1].topic: RekeyedStageProcessor,
    }


def test_a_topic_that_the_pipeline_does_not_read_is_a_programmer_s_error():
    driver = Driver(two_stages())

    with pytest.raises(AssertionError, match="nobody"):
        build(driver.plan, "nobody", 0, driver.context)


def test_lanes_are_known_by_input_and_by_the_sender_s_own_partition():
    driver = Driver(three_stages(partitions=3), partitions={"payments": 2, "reports": 1}, seed=1)
    payments = make_payments(80, seed=1)
    driver.send("payments", payments)
    driver.send("reports", make_reports(payments, seed=2))

    driver.run()

    assert lanes_seen(driver, driver.plan.stages[1].topic) == {
        ("reports", 0, 0),
        ("payments", 1, 0),
        ("payments", 1, 1),
    }
    assert lanes_seen(driver, driver.plan.stages[2].topic) == {("payments", 0, p) for p in range(3)}


def test_a_source_partition_without_a_record_says_that_it_has_none():
    driver = Driver(two_stages(), partitions={"payments": 4, "reports": 4})
    driver.send("payments", make_payments(20, seed=1))

    driver.run()

    assert driver.snapshots().num_rows == 20
    for (topic, _), owned in driver.owned.items():
        if topic == driver.plan.stages[1].topic:
            assert owned.processor.lanes.all_at_end


def test_a_router_that_starts_again_sends_again_and_the_stage_takes_each_row_once():
    driver = Driver(two_stages(partitioner=None), partitions=2, seed=3, batch_rows=10)
    payments = make_payments(60, seed=1)
    driver.send("payments", payments)
    driver.run()
    before = driver.snapshots().num_rows

    for (topic, _), owned in driver.owned.items():
        if topic == "payments":
            driver.crash(owned)
    driver.run()

    assert before == 60
    assert driver.snapshots().num_rows == 60
