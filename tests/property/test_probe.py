"""A probe against a bare scored ask on a copy, and against a state that was never probed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.features.kernels.layout import NEVER
from headrace.features.kernels.probe import FAR
from headrace.features.state import EntityState
from tests.oracle import Event, run
from tests.window_logs import feed, logs, stages

VALUES = 3
# Before every event, in the middle of them, and after the last window has closed.
TIMES = st.sampled_from([NEVER, 1_000, 1_060, 1_119, 1_130, 1_185, 1_300])


def fed(stage, log):
    state = EntityState(stage)
    feed(state, log, VALUES)
    return state


def bits(state):
    return [array.tobytes() for array in state._memory]


def newest_of(log, key):
    """Return the newest scored time since the key has a slot: a bare ask alone makes none."""
    rows = [event for event in log if event.key == key]
    made = next((i for i, event in enumerate(rows) if event.insert), len(rows))
    return max((event.event_time_ms for event in rows[made:] if event.scored), default=NEVER)


def slots_of(state):
    return {key: slot for slot, key in enumerate(state.keys(0).to_pylist())}


def ask(key, time_ms):
    return Event(key, 1, time_ms, time_ms, (None,) * VALUES, scored=True, insert=False)


@settings(max_examples=300, deadline=None)
@given(stages(), logs(), logs(max_size=20), TIMES, st.booleans())
def test_a_probe_says_what_a_bare_ask_would_and_leaves_every_bit(
    stage, log, after, at_ms, in_transaction
):
    state, untouched = fed(stage, log), fed(stage, log)
    if in_transaction:
        state.begin()
        feed(state, after, VALUES)
        untouched.begin()
        feed(untouched, after, VALUES)
    seen = log + after if in_transaction else log
    before = bits(state)

    probed = state.probe(np.arange(state.key_count), at_ms)

    assert bits(state) == before
    slots = slots_of(state)
    for key, slot in slots.items():
        newest = newest_of(seen, key)
        assert probed.event_time_ms[slot] == newest
        if newest == NEVER:
            assert probed.as_of_ms[slot] == NEVER
            continue
        time_ms = max(at_ms, newest)
        assert probed.as_of_ms[slot] == time_ms
        (expected,) = run(stage, [*seen, ask(key, time_ms)])[len(seen) :]
        np.testing.assert_array_equal(probed.aggregates[slot], expected)
    if in_transaction:
        state.abort()
        untouched.abort()
        before = bits(untouched)
    rest = feed(state, after, VALUES), feed(untouched, after, VALUES)
    assert rest[0].aggregates.tobytes() == rest[1].aggregates.tobytes()
    assert bits(state) == bits(untouched)


@settings(max_examples=300, deadline=None)
@given(stages(), logs(), TIMES, st.integers(1, 9))
def test_nothing_changes_before_it_is_due_and_due_times_come_to_an_end(stage, log, at_ms, grain_ms):
    state = fed(stage, log)
    state._ticks.grain_ms[:] = grain_ms
    ages = {i for i, aggregate in enumerate(stage.aggregates) if aggregate.kind == "age"}
    for slot in range(state.key_count):
        probed = state.probe(np.array([slot]), at_ms)
        for _ in range(500):
            due_ms, as_of_ms = int(probed.due_ms[0]), int(probed.as_of_ms[0])
            if due_ms == FAR:
                break
            assert due_ms > as_of_ms
            assert due_ms % grain_ms == 0
            # Up to a grain before it, nothing has changed.
            still = state.probe(np.array([slot]), max(as_of_ms, due_ms - grain_ms))
            for index in range(len(stage.aggregates)):
                if index not in ages:
                    np.testing.assert_array_equal(
                        still.aggregates[0, index], probed.aggregates[0, index]
                    )
            probed = state.probe(np.array([slot]), due_ms)
        # What is never due has only empty windows.
        assert probed.due_ms[0] == FAR
        later = state.probe(np.array([slot]), 1 << 40)
        np.testing.assert_array_equal(later.aggregates, probed.aggregates)


@settings(max_examples=100, deadline=None)
@given(stages(), logs())
def test_the_touched_keys_of_a_batch_are_told_once_in_the_order_of_first_sight(stage, log):
    state = EntityState(stage)

    applied = feed(state, log, VALUES)

    keys = state.keys(0).to_pylist()
    inserted = [event.key for event in log if event.insert and event.key is not None]
    assert keys == list(dict.fromkeys(inserted))
    touched = [keys[slot] for slot in state.distinct(applied.slots).tolist()]
    assert touched == list(dict.fromkeys(keys[slot] for slot in applied.slots if slot >= 0))
    assert set(touched) == set(keys)
    assert not state._marks.any()
