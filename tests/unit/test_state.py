"""What the state promises beyond single windows: growth, memory, null keys, transactions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from headrace.features.plan import AggregatePlan, RingPlan, WindowPlan
from headrace.features.state import EntityState
from tests.oracle import Event, run
from tests.window_logs import FOREVER_MS, feed, make_stage

HOUR_MS = 3_600_000


def one_window_stage(length_ms=10, delay_ms=0, grain_ms=0, retention_ms=FOREVER_MS, known=False):
    """All kinds over one window of values a.x."""
    kinds = ("count", "sum", "mean", "min", "max", "last")
    return make_stage(
        [RingPlan("a", grain_ms, (0,), known, retention_ms)],
        [WindowPlan(0, length_ms, delay_ms)],
        [*(AggregatePlan(0, kind, 0) for kind in kinds), AggregatePlan(0, "age", -1)],
    )


def event(time, x=1.0, key="k", **more):
    return Event(key, 0, time, more.pop("known", time), (x,), **more)


def counts(state, log):
    return feed(state, log, 1).aggregates[:, 0].tolist()


def test_the_lower_edge_is_open_and_the_upper_edge_closed():
    # time    0 ......... 10
    # window (0 ......... 10]   the row at 0 is out, the one at 10 itself is in
    state = EntityState(one_window_stage(length_ms=10))

    assert counts(state, [event(0), event(1), event(10), event(11)]) == [1, 2, 2, 2]


def test_a_delay_shifts_the_window_and_the_row_itself_is_not_in_it():
    # t = 20, delay 10:  (0 ......... 10]
    state = EntityState(one_window_stage(length_ms=10, delay_ms=10))

    assert counts(state, [event(0), event(10), event(11), event(20)]) == [0, 1, 1, 1]


def test_rows_of_one_time_count_those_before_them_in_the_log():
    assert counts(EntityState(one_window_stage()), [event(5), event(5), event(5)]) == [1, 2, 3]


def test_a_row_known_later_counts_from_then_on():
    stage = one_window_stage(length_ms=100, known=True)
    log = [
        event(10, known=30, scored=False),
        event(20),
        event(29, insert=False),
        event(30, insert=False),
        event(29, insert=False),
    ]

    assert counts(EntityState(stage), log)[1:] == [1, 1, 2, 1]


def test_a_null_key_keeps_no_state_and_counts_nothing():
    state = EntityState(one_window_stage())

    applied = feed(state, [event(1, key=None), event(2, key=None)], 1)

    assert state.key_count == 0
    assert applied.aggregates[:, 0].tolist() == [0, 0]
    assert np.isnan(applied.aggregates[:, 1:]).all()


def test_a_bare_ask_for_an_unknown_key_makes_no_key():
    state = EntityState(one_window_stage())

    assert counts(state, [event(1, insert=False)]) == [0]
    assert state.key_count == 0


def test_integer_and_bytes_keys_have_states_of_their_own():
    for keys in (pa.array([1, 2, 1]), pa.array([b"1", b"2", b"1"])):
        state = EntityState(one_window_stage())
        zeros = np.zeros(3, dtype=np.int64)
        applied = state.apply(keys, zeros, zeros, zeros, np.ones((3, 1)), np.ones(3, dtype=bool))

        assert applied.aggregates[:, 0].tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("int64", pa.array([7, -2, 7, 2**62])),
        ("string", pa.array(["ü", "", "ü", "abc"])),
        ("bytes", pa.array([b"\xff", b"", b"\xff", b"abc"])),
    ],
)
def test_the_keys_of_slots_are_what_was_applied_after_an_abort_too(kind, keys):
    state = EntityState(dataclasses.replace(one_window_stage(), key_kind=kind))

    def apply(rows):
        zeros = np.zeros(len(rows), dtype=np.int64)
        ones = np.ones((len(rows), 1))
        return state.apply(rows, zeros, zeros, zeros, ones, np.ones(len(rows), bool)).slots.tolist()

    apply(keys[:1])
    state.begin()
    apply(keys[3:])
    state.abort()

    assert apply(keys) == [0, 1, 0, 2]
    assert state.keys(0).to_pylist() == keys.unique().to_pylist()
    assert state.keys(2).to_pylist() == [keys[3].as_py()]
    assert len(state.keys(3)) == 0


def big_log(seed, rows=40_000, keys=3_000, span_ms=50_000):
    """Zipf keys, 5 % late rows: every array of the state grows several times."""
    random = np.random.default_rng(seed)
    times = np.sort(random.integers(0, span_ms, rows)) + 10_000
    times -= np.where(random.random(rows) < 0.05, random.integers(0, 2_000, rows), 0)
    names = random.zipf(1.2, rows) % keys
    return {
        "keys": pa.array([f"key-{name}" for name in names]),
        "inputs": np.zeros(rows, dtype=np.int8),
        "event_time_ms": times,
        "known_at_ms": times + random.integers(0, 3_000, rows),
        "values": np.round(random.lognormal(3, 2, (rows, 1)), 2),
        "scored": random.random(rows) < 0.9,
    }


def sliced(log, start, end):
    return {name: column[start:end] for name, column in log.items()}


@pytest.mark.parametrize("grain_ms", [0, 500])
def test_a_state_grows_in_the_middle_of_a_batch_and_aborts_over_its_growth(grain_ms):
    stage = one_window_stage(5_000, 1_000, grain_ms, known=True)
    log = big_log(seed=3)
    straight = EntityState(stage).apply(**log).aggregates

    state = EntityState(stage)
    first = state.apply(**sliced(log, 0, 1_000)).aggregates
    state.begin()
    state.apply(**sliced(log, 5_000, 40_000))
    state.apply(**sliced(log, 1_000, 2_000))
    state.abort()
    state.begin()
    second = state.apply(**sliced(log, 1_000, 20_000)).aggregates
    state.commit()
    third = state.apply(**sliced(log, 20_000, 40_000)).aggregates

    assert np.concatenate([first, second, third]).tobytes() == straight.tobytes()


def test_many_aborts_take_no_memory():
    state = EntityState(one_window_stage(5_000))
    log = big_log(seed=4, rows=4_000)
    state.apply(**log)
    sizes = []
    for _ in range(20):
        state.begin()
        state.apply(**big_log(seed=5, rows=4_000))
        state.abort()
        sizes.append(state.nbytes)

    assert sizes[-1] == sizes[1]


def test_cells_behind_the_retention_are_dropped_and_a_row_that_needs_them_says_so():
    stage = one_window_stage(length_ms=100, retention_ms=300)
    state = EntityState(stage)
    busy = [event(time) for time in range(20_000)]

    applied = feed(state, busy, 1)
    late = feed(state, [event(19_850), event(100), event(19_999)], 1)

    assert not applied.incomplete.any()
    assert (applied.aggregates[100:, 0] == 100).all()
    assert late.incomplete.tolist() == [False, True, False]
    assert late.aggregates[0, 0] == 101
    # 20,000 cells of two words and trees would be far more.
    assert state.nbytes < 400_000


def test_rows_sent_long_before_their_time_are_kept_until_they_count():
    # All of a year's reports first, then the events that ask.
    stage = make_stage(
        [RingPlan("b", 0, (), True, 40 * HOUR_MS), RingPlan("a", 0, (0,), False, 40 * HOUR_MS)],
        [WindowPlan(0, 24 * HOUR_MS, 7 * HOUR_MS), WindowPlan(1, HOUR_MS, 0)],
        [AggregatePlan(0, "count", -1), AggregatePlan(1, "sum", 0)],
        scored=(("b", False), ("a", True)),
    )
    random = np.random.default_rng(11)
    reports = [
        Event("k", 0, int(t), int(t) + 7 * HOUR_MS + int(random.integers(0, 3)), (None,), False)
        for t in random.integers(0, 8_760 * HOUR_MS, 700)
    ]
    asks = [
        Event("k", 1, int(t), int(t), (1.0,))
        for t in np.sort(random.integers(0, 8_760 * HOUR_MS, 200))
    ]

    applied = feed(EntityState(stage), reports + asks, 1)

    expected = [row for row in run(stage, reports + asks) if row is not None]
    np.testing.assert_array_equal(applied.aggregates[len(reports) :], expected)
    assert not applied.incomplete.any()


def test_two_inputs_of_one_source_fill_the_same_rings():
    stage = make_stage(
        [RingPlan("a", 0, (0,), False, FOREVER_MS)],
        [WindowPlan(0, 100, 0)],
        [AggregatePlan(0, "count", -1)],
        scored=(("a", True), ("a", True)),
    )
    log = [event(1), dataclasses.replace(event(2), input=1)]

    assert counts(EntityState(stage), log) == [1, 2]


def test_a_transaction_must_be_open_to_be_closed_and_only_once():
    state = EntityState(one_window_stage())
    state.begin()
    with pytest.raises(AssertionError, match="a transaction is open already"):
        state.begin()
    state.commit()
    with pytest.raises(AssertionError, match="no transaction is open"):
        state.abort()


def test_a_row_that_makes_room_by_dropping_its_own_time_is_dropped_itself():
    stage = one_window_stage(length_ms=10, retention_ms=50, known=True)
    log = [
        *(event(time) for time in (0, 1, 2, 45)),
        event(100, insert=False),
        # The block is full: all cells up to 50 go, and this one is older than the newest of them.
        event(40, known=60, scored=False),
        event(47, insert=False),
        event(60, insert=False),
    ]

    applied = feed(EntityState(stage), log, 1)

    assert applied.incomplete.tolist() == [False] * 6 + [True, False]
    assert applied.aggregates[-1, 0] == 0


def test_the_last_of_a_tile_is_found_though_parts_of_it_were_known_later():
    # One tile [8, 16) of three rows; the first and third become known at 32, the second before.
    stage = one_window_stage(length_ms=12, delay_ms=20, grain_ms=8, known=True)
    log = [
        event(8, 1.0, known=31, scored=False),
        event(10, 2.0, known=17, scored=False),
        event(12, 3.0, known=32, scored=False),
        event(36, insert=False),
    ]

    last = 5
    assert feed(EntityState(stage), log, 1).aggregates[-1, last] == 3.0


def test_a_tile_known_from_the_start_counts_though_the_key_was_never_asked_before():
    stage = one_window_stage(length_ms=20, delay_ms=20, grain_ms=7, known=True)
    log = [
        event(1050, known=1047, scored=False),
        event(1063, known=1123, scored=False),
        event(1090, insert=False),
    ]

    age = 6
    assert feed(EntityState(stage), log, 1).aggregates[-1, age] == 35
