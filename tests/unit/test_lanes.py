"""Lanes: high-water, watermark and hold-back, one message at a time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from headrace.streams.errors import LaneError
from headrace.streams.lanes import LANE_HEADER, RESUMED, TRUST_MS, Lane, LaneNote, LaneTable

LEFT, RIGHT, REPORTS = Lane(1, 0), Lane(1, 1), Lane(0, 0)
RANKS = {REPORTS: 0, LEFT: 3, RIGHT: 3}
ALIGNMENT_MS = 10


def table(*lanes: Lane) -> LaneTable:
    return LaneTable(lanes, {lane: RANKS[lane] for lane in lanes}, ALIGNMENT_MS)


def note(
    lane: Lane, last: int, watermark_ms: int, *, previous: int = RESUMED, at_end: bool = False
) -> LaneNote:
    return LaneNote("plan", "transactions", lane, previous, last, watermark_ms, at_end)


def rows(*times: int) -> tuple[pa.RecordBatch, np.ndarray]:
    return pa.RecordBatch.from_pydict({"t": list(times)}), np.array(times, np.int64)


def released(lanes: LaneTable) -> list[tuple[Lane, list[int]]]:
    return [(run.lane, run.event_time_ms.tolist()) for run in lanes.release()]


def test_a_note_survives_its_header() -> None:
    told = note(LEFT, 17, 1_600_000_000_000, previous=12, at_end=True)

    assert told == LaneNote.from_headers([("other", b"x"), told.header()], "rekey-0 offset 5")


def test_a_message_without_a_note_is_named() -> None:
    with pytest.raises(LaneError, match=rf"{LANE_HEADER}.*rekey-0 offset 5"):
        LaneNote.from_headers([("other", b"x")], "rekey-0 offset 5")


def test_a_lane_never_heard_of_blocks_every_row() -> None:
    lanes = table(LEFT, RIGHT)
    lanes.accept(note(LEFT, 0, 100))
    lanes.hold(LEFT, *rows(100))

    assert released(lanes) == []

    lanes.accept(note(RIGHT, 0, 100))

    assert released(lanes) == [(LEFT, [100])]


def test_a_row_passes_when_the_slowest_open_lane_is_within_the_alignment() -> None:
    lanes = table(LEFT, RIGHT)
    lanes.accept(note(RIGHT, 0, 50))
    lanes.accept(note(LEFT, 2, 100))
    lanes.hold(LEFT, *rows(59, 60, 61))

    assert released(lanes) == [(LEFT, [59, 60])]

    lanes.accept(note(RIGHT, 1, 51, previous=0))

    assert released(lanes) == [(LEFT, [61])]
    assert lanes.held_count == 0


def test_a_lane_at_its_end_holds_nobody_back_until_it_goes_on() -> None:
    lanes = table(LEFT, RIGHT)
    lanes.accept(note(RIGHT, 0, 0, at_end=True))
    lanes.accept(note(LEFT, 0, 1_000, at_end=True))
    lanes.hold(LEFT, *rows(1_000))

    assert released(lanes) == [(LEFT, [1_000])]
    assert lanes.all_at_end

    lanes.accept(note(RIGHT, 1, 5, previous=0))
    lanes.accept(note(LEFT, 1, 2_000, previous=0, at_end=True))
    lanes.hold(LEFT, *rows(2_000))

    assert released(lanes) == []


def test_rows_of_one_message_out_of_order_are_let_through_by_time_and_position() -> None:
    lanes = table(LEFT)
    lanes.accept(note(LEFT, 3, 300))
    batch = pa.RecordBatch.from_pydict({"position": [0, 1, 2, 3]})
    lanes.hold(LEFT, batch, np.array([300, 100, 200, 100]))

    (run,) = lanes.release()

    assert run.event_time_ms.tolist() == [100, 100, 200, 300]
    assert run.rows.column(0).to_pylist() == [1, 3, 2, 0]


def test_runs_come_update_only_first_then_by_partition_then_by_arrival() -> None:
    lanes = table(REPORTS, LEFT, RIGHT)
    for lane in (RIGHT, LEFT, REPORTS, LEFT):
        lanes.accept(note(lane, lanes.high_water(lane) + 1, 0, previous=lanes.high_water(lane)))
        lanes.hold(lane, *rows(50 + lanes.high_water(lane)))
    assert released(lanes) == []

    for lane in (LEFT, RIGHT, REPORTS):
        lanes.accept(note(lane, lanes.high_water(lane), 0, at_end=True))

    assert [lane for lane, _ in released(lanes)] == [REPORTS, LEFT, LEFT, RIGHT]


def test_a_resent_message_brings_no_rows_and_moves_no_watermark_back() -> None:
    lanes = table(LEFT)
    assert lanes.accept(note(LEFT, 9, 100))

    assert not lanes.accept(note(LEFT, 4, 60))
    assert lanes.high_water(LEFT) == 9
    assert lanes.watermark_ms == 100

    assert lanes.accept(note(LEFT, 12, 130, previous=4))
    assert lanes.high_water(LEFT) == 12


def test_a_message_after_a_lost_one_is_ignored_until_its_sender_sends_both_again() -> None:
    lanes = table(LEFT)
    lanes.accept(note(LEFT, 9, 100))

    assert not lanes.accept(note(LEFT, 29, 300, previous=19, at_end=True))
    assert lanes.high_water(LEFT) == 9
    assert lanes.watermark_ms == 100
    assert not lanes.all_at_end
    assert lanes.dropped_messages == 1

    assert lanes.accept(note(LEFT, 19, 200))
    assert lanes.accept(note(LEFT, 29, 300, previous=19, at_end=True))
    assert lanes.all_at_end


def test_an_abort_goes_back_to_what_was_held_and_heard() -> None:
    lanes = table(LEFT, RIGHT)
    lanes.accept(note(LEFT, 1, 100))
    lanes.hold(LEFT, *rows(90, 100))

    lanes.begin()
    lanes.accept(note(RIGHT, 5, 85))
    assert released(lanes) == [(LEFT, [90])]
    lanes.abort()

    assert lanes.high_water(RIGHT) == -1
    assert released(lanes) == []
    assert lanes.held_count == 2

    lanes.begin()
    lanes.accept(note(RIGHT, 5, 85))
    lanes.commit()

    assert released(lanes) == [(LEFT, [90])]


def test_a_lane_that_says_nothing_more_holds_others_back_once_its_word_is_old() -> None:
    lanes = table(LEFT, RIGHT)
    assert not lanes.pass_time(0)
    lanes.accept(note(RIGHT, 0, 50, at_end=True))
    assert not lanes.pass_time(TRUST_MS)
    lanes.accept(note(LEFT, 0, 900, at_end=True))
    lanes.hold(LEFT, *rows(900))
    assert released(lanes) == [(LEFT, [900])]

    assert lanes.pass_time(TRUST_MS + 1)
    lanes.accept(note(LEFT, 1, 1_000, previous=0, at_end=True))
    lanes.hold(LEFT, *rows(1_000))
    assert released(lanes) == []
    assert lanes.held_count == 1
    # Said once is enough: nothing opens again by the same silence, nor by time going back.
    assert not lanes.pass_time(TRUST_MS + 2)
    assert not lanes.pass_time(5)

    lanes.accept(note(RIGHT, 0, 50, previous=0, at_end=True))
    assert released(lanes) == [(LEFT, [1_000])]
    assert lanes.held_count == 0
    assert lanes.all_at_end


def test_a_lane_s_old_word_does_not_close_it() -> None:
    lanes = table(LEFT)
    lanes.accept(note(LEFT, 9, 100))

    lanes.accept(note(LEFT, 4, 60, previous=2, at_end=True))

    assert not lanes.all_at_end


def test_rows_wait_until_a_lane_that_only_updates_is_beyond_their_time() -> None:
    lanes = LaneTable(RANKS, RANKS, ALIGNMENT_MS, [REPORTS])
    lanes.accept(note(LEFT, 1, 101))
    lanes.accept(note(RIGHT, 0, 95))
    lanes.hold(LEFT, *rows(100, 101))

    lanes.accept(note(REPORTS, 0, 100))
    assert released(lanes) == []

    lanes.accept(note(REPORTS, 1, 101, previous=0))
    assert released(lanes) == [(LEFT, [100])]


def test_an_abort_goes_back_to_whose_word_was_taken() -> None:
    lanes = table(LEFT)
    lanes.pass_time(0)
    lanes.accept(note(LEFT, 0, 100, at_end=True))

    lanes.begin()
    assert lanes.pass_time(TRUST_MS + 1)
    lanes.abort()

    assert lanes.all_at_end
    assert lanes.pass_time(TRUST_MS + 1)


def test_a_table_that_is_kept_and_put_back_stops_trusting_a_lane_at_the_same_message():
    lanes = [Lane(0, 0), Lane(0, 1)]

    def make():
        return LaneTable(lanes, dict.fromkeys(lanes, 0), alignment_ms=0)

    table = make()
    table.pass_time(10_000)
    for lane in lanes:
        table.accept(LaneNote("f", "s", lane, -1, 0, 500, at_end=True))
    again = make()
    again.load(table.dump())

    for one in (table, again):
        assert one.all_at_end
        assert not one.pass_time(10_000 + TRUST_MS)
        assert one.pass_time(10_001 + TRUST_MS)
        assert not one.all_at_end
