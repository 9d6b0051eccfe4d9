"""The order and the pace of publishing."""

from __future__ import annotations

import numpy as np

from headrace.streams.publish_order import Chunk, Pace, due_times, merge


def chunk(topic, *times):
    return Chunk(topic, np.array(times), [{"value": f"{topic}{t}".encode()} for t in times])


def order(lanes):
    return [(one.topic, int(time)) for one in merge(lanes) for time in one.time_ms]


def test_lanes_are_merged_by_time_and_at_equal_time_the_earlier_lane_goes_first():
    updates = [chunk("u", 2, 5), chunk("u"), chunk("u", 5, 9)]
    scored = [chunk("s", 1, 2, 5), chunk("s", 6, 6, 20)]

    assert order([updates, scored]) == [
        ("s", 1),
        ("u", 2),
        ("s", 2),
        ("u", 5),
        ("u", 5),
        ("s", 5),
        ("s", 6),
        ("s", 6),
        ("u", 9),
        ("s", 20),
    ]


def test_merging_random_lanes_loses_nothing_and_keeps_each_lanes_order():
    random = np.random.default_rng(21)
    for _ in range(200):
        lanes = []
        for topic in "abc"[: random.integers(1, 4)]:
            times = np.sort(random.integers(0, 30, random.integers(0, 20)))
            cuts = np.sort(random.integers(0, len(times) + 1, 3))
            lanes.append([chunk(topic, *part) for part in np.split(times, cuts)])
        merged = order(lanes)

        assert [t for _, t in merged] == sorted(t for _, t in merged)
        flat = sorted(
            (int(time), rank, lane_chunk.topic)
            for rank, lane in enumerate(lanes)
            for lane_chunk in lane
            for time in lane_chunk.time_ms
        )
        assert [(topic, time) for time, _, topic in flat] == merged


def test_rows_that_step_back_in_time_are_due_with_the_row_before_them():
    assert due_times(np.array([5, 3, 9, 8]), 6).tolist() == [6, 6, 9, 9]


def test_a_rate_lets_events_go_one_by_one():
    pace = Pace(rate=10.0)
    times = np.zeros(100, dtype=np.int64)

    assert pace.allowed(times, 0.0) == 1
    pace.went(1)
    assert pace.allowed(times, 0.05) == 0
    assert pace.allowed(times, 0.55) == 5


def test_a_speedup_follows_the_events_own_time():
    pace = Pace(speedup=60.0)
    times = np.array([1_000, 1_000, 61_000, 121_000])

    assert pace.allowed(times, 0.0) == 2
    assert pace.allowed(times, 0.5) == 2
    assert pace.allowed(times, 1.0) == 3
    assert pace.allowed(times[3:], 2.0) == 1


def test_with_both_the_later_moment_holds():
    pace = Pace(rate=1.0, speedup=60.0)
    assert pace.allowed(np.array([0, 0, 0]), 0.0) == 1
