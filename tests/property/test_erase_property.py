"""A key that is forgotten leaves no trace, and all others keep every bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.features.state import EntityState
from tests.oracle import Event
from tests.unit.test_state import one_window_stage
from tests.window_logs import feed, logs, stages

VALUES = 3


def bits(array):
    return (array + 0.0).tobytes()


def keys_of(log):
    return sorted({event.key for event in log if event.key is not None})


def forget(state, keys):
    return state.forget(pa.array(keys, pa.string()))


@settings(max_examples=60, deadline=None)
@given(stages(), logs(), logs(), st.data(), st.sampled_from(["none", "commit", "abort first"]))
def test_rows_after_it_are_as_if_the_key_had_never_come(stage, before, after, data, transaction):
    gone = data.draw(st.lists(st.sampled_from([*keys_of(before), "nobody"]), unique=True))
    kept = EntityState(stage)
    feed(kept, [event for event in before if event.key not in gone], VALUES)
    state = EntityState(stage)
    feed(state, before, VALUES)

    if transaction == "abort first":
        state.begin()
        forget(state, gone)
        feed(state, after, VALUES)
        state.abort()
    if transaction == "none":
        forget(state, gone)
    else:
        state.begin()
        forget(state, gone)
        state.commit()
    # Growth moves every array and fills the table anew.
    more = after + [replace(event, key=f"k{n}") for n in range(80) for event in after[:1]]

    assert bits(feed(state, more, VALUES).aggregates) == bits(feed(kept, more, VALUES).aggregates)
    assert len(forget(state, gone)) <= len({e.key for e in more if e.key in gone})


@settings(max_examples=60, deadline=None)
@given(stages(), logs(), logs(), logs(), st.data(), st.booleans())
def test_an_abort_brings_a_forgotten_key_back(stage, before, aborted, after, data, grows):
    gone = data.draw(st.lists(st.sampled_from([*keys_of(before + aborted), "nobody"]), unique=True))
    kept, state = EntityState(stage), EntityState(stage)
    feed(kept, before, VALUES)
    feed(state, before, VALUES)

    state.begin()
    feed(state, aborted, VALUES)
    forget(state, gone)
    if grows:
        feed(state, [replace(e, key=f"new{n}") for n in range(80) for e in aborted[:1]], VALUES)
    feed(state, aborted[::-1], VALUES)
    forget(state, gone[:1])
    state.abort()

    assert state.key_count == kept.key_count
    assert bits(feed(state, after, VALUES).aggregates) == bits(feed(kept, after, VALUES).aggregates)


@pytest.mark.parametrize("transaction", [False, True])
def test_nothing_of_the_key_is_left_in_memory(transaction):
    state = EntityState(one_window_stage(length_ms=100))
    rows = [
        _event("somebody-else", 5.0, 1),
        *(_event("erase-me", 123.456, t) for t in range(2, 40)),
    ]
    feed(state, rows, 1)
    if transaction:
        state.begin()
    forget(state, ["erase-me"])
    if transaction:
        state.commit()

    memory = state._memory
    assert b"erase-me" not in memory.arena.tobytes()
    assert b"somebody-else" in memory.arena.tobytes()
    assert (memory.heads[1] == state._layout.header).all()
    trace = np.float64(123.456).view(np.int64)
    for array in (memory.pool, memory.log, memory.saved, memory.heads):
        assert not (array == trace).any()
    assert (memory.pool == np.float64(5.0).view(np.int64)).any()


def _event(key, x, time):
    return Event(key, 0, time, time, (x,), True)
