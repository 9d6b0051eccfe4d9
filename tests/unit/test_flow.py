"""What a worker says again when, and which partitions it pauses."""

from __future__ import annotations

import pytest
from confluent_kafka import TopicPartition
from stream_cases import one_stage, three_stages, two_stages

from headrace.streams.batch import Outputs, SingleOutput
from headrace.streams.flow import (
    HELD_ROWS_MAX,
    RELAY_LAG_MAX,
    Flow,
    feeds_of,
    joined,
    marked,
)
from headrace.streams.intake import backlog_batch
from headrace.streams.lanes import ALIVE_HEADER
from headrace.streams.positions import OwnedPartition

FEEDS = {
    "payments": frozenset({"relay"}),
    "reports": frozenset({"relay"}),
    "relay": frozenset(),
}


class Message:
    def __init__(self, mark=None):
        self.mark = mark

    def headers(self):
        lane = [("headrace.lane", b"...")]
        return lane if self.mark is None else [*lane, (ALIVE_HEADER, self.mark)]


def partition(topic, number, *, end_told=True, lag=0):
    return OwnedPartition(
        topic, number, 1, "id", 0, 0, next_offset=10, done_offset=10, high_offset=10 + lag,
        end_told=end_told,
    )  # fmt: skip


def flow_of(*partitions):
    owned = {(one.topic, one.partition): one for one in partitions}
    return Flow(FEEDS, owned), owned


def said(batches):
    return [(one.topic, one.partition, one.alive) for one in batches]


@pytest.fixture
def flow():
    return flow_of(partition("payments", 0), partition("reports", 0), partition("relay", 0))[0]


def test_nobody_says_anything_where_there_is_no_traffic(flow):
    assert [flow.alive(now_s) for now_s in (0.0, 5.0, 5.1)] == [[], [], []]


def test_the_first_traffic_is_answered_at_once_and_then_once_a_second(flow):
    flow.alive(0.9)
    flow.read({("payments", 0): [Message()]})
    everyone = [("payments", 0, b"heard"), ("reports", 0, b"heard")]

    assert said(flow.alive(1.0)) == everyone
    flow.read({("payments", 0): [Message()]})
    assert flow.alive(1.9) == []
    assert said(flow.alive(2.0)) == everyone
    # Once more: a round leaves out who was told before it, and that may have been undone.
    assert said(flow.alive(3.0)) == everyone
    assert flow.alive(4.5) == []


def test_what_others_say_again_is_answered_twice_and_an_answer_by_nobody(flow):
    flow.read({("relay", 0): [Message(b"heard")]})
    for now_s in (1.0, 2.0):
        assert said(flow.alive(now_s)) == [("payments", 0, b"echo"), ("reports", 0, b"echo")]

    flow.read({("relay", 0): [Message(b"echo")]})
    assert flow.alive(9.0) == []

    flow.read({("relay", 0): [Message(b"echo"), Message()]})
    assert said(flow.alive(20.0))[0] == ("payments", 0, b"heard")


def test_one_that_is_not_at_its_end_says_so_when_it_gets_there():
    flow, owned = flow_of(partition("payments", 0, lag=5), partition("relay", 0))
    flow.read({("payments", 0): [Message()]})
    assert flow.alive(1.0) == []
    assert flow.alive(2.0) == []

    owned["payments", 0].next_offset = 15

    assert said(flow.alive(3.0)) == [("payments", 0, b"echo")]
    assert flow.alive(4.0) == []


def test_a_worker_that_owns_nothing_of_a_topic_that_it_feeds_says_it_always():
    flow, _ = flow_of(partition("reports", 1))

    assert [said(flow.alive(now_s)) for now_s in (1.0, 2.0)] == [[("reports", 1, b"echo")]] * 2


def test_a_source_is_paused_until_half_of_what_its_stage_is_behind_is_done():
    flow, owned = flow_of(partition("payments", 0, end_told=False), partition("relay", 0))
    assert flow.pauses(0.0) is None

    owned["relay", 0].high_offset += RELAY_LAG_MAX + 1
    assert flow.pauses(1.0) == ([("payments", 0)], [])
    assert flow.is_paused(TopicPartition("payments", 0))

    owned["relay", 0].done_offset += RELAY_LAG_MAX // 2
    assert flow.pauses(2.0) is None
    owned["relay", 0].done_offset += 1
    assert flow.pauses(3.0) == ([], [("payments", 0)])
    assert not flow.is_paused(TopicPartition("payments", 0))


def test_those_ahead_of_the_slowest_are_paused_while_too_much_is_held_back():
    ahead, slowest = (partition("payments", number, end_told=False) for number in (0, 1))
    flow, owned = flow_of(ahead, slowest, partition("relay", 0))
    flow.settled(backlog_batch(ahead), Outputs(event_time_ms_max=9_000))
    flow.settled(backlog_batch(slowest), Outputs(event_time_ms_max=2_000))

    def hold(count):
        outputs = Outputs(held=count, waits_for_ms=2_000 if count else None)
        flow.settled(backlog_batch(owned["relay", 0]), outputs)

    hold(HELD_ROWS_MAX)
    assert flow.pauses(1.0) is None
    hold(HELD_ROWS_MAX + 1)
    assert flow.pauses(2.0) == ([("payments", 0)], [])
    hold(HELD_ROWS_MAX // 2 + 1)
    assert flow.pauses(3.0) is None
    hold(0)
    assert flow.pauses(4.0) == ([], [("payments", 0)])


def test_a_partition_that_was_taken_away_is_neither_held_for_nor_read_again():
    flow, owned = flow_of(partition("payments", 0, end_told=False), partition("relay", 0))
    owned["relay", 0].high_offset += RELAY_LAG_MAX + 1
    flow.pauses(1.0)

    del owned["payments", 0]

    assert flow.pauses(2.0) is None
    assert not flow.is_paused(TopicPartition("payments", 0))


def test_one_at_its_end_is_not_paused():
    flow, owned = flow_of(partition("payments", 0), partition("relay", 0))
    owned["relay", 0].high_offset += RELAY_LAG_MAX + 1

    assert flow.pauses(1.0) is None


def test_what_many_partitions_say_to_one_receiver_is_one_message():
    def outputs(lane):
        return Outputs(
            single=[SingleOutput("relay", b"", None, n, [("headrace.lane", lane)]) for n in (0, 1)]
        )

    made = joined(marked(outputs(b"a"), b"heard") + marked(outputs(b"b"), b"heard"))

    assert [(one.topic, one.partition) for one in made] == [("relay", 0), ("relay", 1)]
    for one in made:
        assert sorted(value for name, value in one.headers if name == "headrace.lane") == [
            b"a",
            b"b",
        ]
        assert one.headers[-1] == (ALIVE_HEADER, b"heard")


def test_who_feeds_whom_follows_from_the_plan():
    assert feeds_of(one_stage()) == {"payments": frozenset()}
    two = two_stages()
    terminals = two.stages[1].topic
    assert feeds_of(two) == {
        "payments": frozenset({terminals}),
        "reports": frozenset({terminals}),
        terminals: frozenset(),
    }
    plan = three_stages()
    three, (_, terminal, city) = feeds_of(plan), plan.stages
    assert three[terminal.topic] == {city.topic}
    assert three["payments"] == {terminal.topic}
