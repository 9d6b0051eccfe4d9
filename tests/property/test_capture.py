"""A capture shows the moment it was opened at, whatever the state does while it is copied."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.features.capture import SlotRecords
from headrace.features.state import EntityState
from tests.oracle import Event
from tests.unit.test_state import big_log, one_window_stage, sliced
from tests.window_logs import feed, logs, stages

VALUES = 3
# So small a slice copies one slot; the larger one some.
SLICES = st.sampled_from([1, 200])


class Script:
    """A state that is captured again and again, and what it had seen at each opening."""

    def __init__(self, stage, *, integer_keys=False):
        kind = "int64" if integer_keys else "string"
        self.stage = dataclasses.replace(stage, key_kind=kind)
        self.state = self.new_state()
        self.state.captures  # noqa: B018 - it keeps track from here on
        self.seen, self.kept = [], []
        self.open_at = self.begun_at = None
        self.chain, self.records, self.lost = [], [], False

    def new_state(self):
        return EntityState(self.stage)

    def feed(self, state, log):
        if self.stage.key_kind == "int64":
            names = {"k": 7, "l": -3, "": 2**60}
            log = [dataclasses.replace(e, key=names.get(e.key, e.key)) for e in log]
            keys = pa.array([e.key for e in log], pa.int64())
            return feed_keys(state, log, keys)
        return feed(state, log, VALUES)

    def forget(self, state, name):
        keys = pa.array([7 if name == "k" else -3]) if self.integers else pa.array([name])
        state.forget(keys)

    @property
    def integers(self):
        return self.stage.key_kind == "int64"

    def run(self, step, argument):
        getattr(self, step)(argument)

    def rows(self, log):
        self.feed(self.state, log)
        self.seen.append(("rows", log))

    def forgets(self, name):
        if self.open_at is not None:
            self.drop()
        self.forget(self.state, name)
        self.seen.append(("forget", name))

    def begin_or_end(self, how):
        if self.begun_at is None:
            self.state.begin()
            self.begun_at = len(self.seen)
        elif how == "commit":
            self.state.commit()
            self.begun_at = None
        else:
            if self.open_at is not None:
                self.drop(told=False)
            self.state.abort()
            if self.chain and len(self.chain[-1][0]) > self.begun_at:
                self.chain.pop()
                self.lost = True
            del self.seen[self.begun_at :]
            self.begun_at = None

    def drop(self, *, told=True):
        if told:
            self.state.captures.lose()
        self.open_at = None

    def opens(self, whole):
        if self.open_at is not None:
            return
        if self.lost:
            self.state.captures.lose()
            self.lost = False
        whole = whole or not self.chain
        self.state.open_capture(whole=whole)
        self.open_at, self.records, self.whole = list(self.seen), [], whole
        self.count = self.state.key_count

    def slices(self, words):
        if self.open_at is None:
            return
        self.records += self.state.capture(words)
        if not self.state.captures.is_open:
            self.chain.append((self.open_at, self.count, self.whole, self.records))
            self.open_at = None

    def check(self, after):
        if not self.chain:
            return
        seen, count = self.chain[-1][:2]
        newest_first = []
        for _, _, whole, records in reversed(self.chain):
            newest_first += [SlotRecords.from_arrow(copied(one.to_arrow())) for one in records]
            if whole:
                break
        restored = self.new_state()
        restored.restore(newest_first, count)
        expected = self.new_state()
        for step, argument in seen:
            if step == "rows":
                self.feed(expected, argument)
            else:
                self.forget(expected, argument)

        assert restored.keys(0).equals(expected.keys(0))
        probed = restored.probe(np.arange(count)), expected.probe(np.arange(count))
        assert bits(probed[0].aggregates) == bits(probed[1].aggregates)
        assert probed[0].due_ms.tolist() == probed[1].due_ms.tolist()
        for state in (restored, expected):
            state.begin()
            self.feed(state, after[::-1])
            state.abort()
        got, wanted = self.feed(restored, after), self.feed(expected, after)
        assert bits(got.aggregates) == bits(wanted.aggregates)
        assert got.incomplete.tolist() == wanted.incomplete.tolist()
        assert got.slots.tolist() == wanted.slots.tolist()


def feed_keys(state, log, keys):
    values = np.full((len(log), VALUES), np.nan)
    for row, event in enumerate(log):
        for column, number in enumerate(event.values):
            if number is not None:
                values[row, column] = number
    return state.apply(
        keys,
        np.array([event.input for event in log], np.int8),
        np.array([event.event_time_ms for event in log], np.int64),
        np.array([event.known_at_ms for event in log], np.int64),
        values,
        np.array([event.scored for event in log], bool),
        np.array([event.insert for event in log], bool),
    )


def bits(array):
    return (array + 0.0).tobytes()


def copied(batch):
    """Return the batch as a file's reader would: through bytes."""
    return pa.ipc.read_record_batch(pa.py_buffer(batch.serialize()), batch.schema)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("rows"), logs(max_size=25)),
        st.tuples(st.just("rows"), logs(max_size=25)),
        st.tuples(st.just("opens"), st.booleans()),
        st.tuples(st.just("slices"), SLICES),
        st.tuples(st.just("slices"), SLICES),
        st.tuples(st.just("begin_or_end"), st.sampled_from(["commit", "abort"])),
        st.tuples(st.just("forgets"), st.sampled_from(["k", "l"])),
    ),
    min_size=4,
    max_size=18,
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(stages(), stages(retention_ms=30)), STEPS, logs(), st.booleans())
def test_what_a_capture_restores_is_the_state_at_its_opening(stage, steps, after, integers):
    script = Script(stage, integer_keys=integers)
    for step, argument in steps:
        script.run(step, argument)
    for _ in range(200):
        script.run("slices", 200)
    script.run("opens", False)
    for _ in range(200):
        script.run("slices", 1)

    script.check(after)


@pytest.mark.parametrize("grain_ms", [0, 500])
def test_a_state_that_grows_while_it_is_copied_is_restored_as_it_was(grain_ms):
    stage = one_window_stage(5_000, 1_000, grain_ms, known=True)
    log = big_log(seed=8)
    straight, state = EntityState(stage), EntityState(stage)
    straight.apply(**sliced(log, 0, 20_000))
    state.apply(**sliced(log, 0, 10_000))
    state.open_capture(whole=True)
    count = state.key_count
    base = state.capture(20_000)
    assert state.captures.is_open
    row = 10_000
    while state.captures.is_open:
        state.apply(**sliced(log, row, row + 1_000))
        base += state.capture(20_000)
        row += 1_000
    state.apply(**sliced(log, row, 20_000))
    state.open_capture(whole=False)
    state.apply(**sliced(log, 20_000, 40_000))
    segment = state.capture()

    assert not state.captures.is_open
    assert sum(map(len, base)) == count
    restored = EntityState(stage)
    restored.restore(segment[::-1] + base, straight.key_count)

    assert restored.keys(0).equals(straight.keys(0))
    rest = sliced(log, 20_000, 40_000)
    got, wanted = restored.apply(**rest), straight.apply(**rest)
    assert bits(got.aggregates) == bits(wanted.aggregates)
    assert (got.incomplete == wanted.incomplete).all()


def test_a_segment_holds_what_has_changed_and_nothing_else():
    state = EntityState(one_window_stage())
    feed(state, [Event(f"k{n}", 0, n, n, (1.0,)) for n in range(1_000)], 1)
    state.open_capture(whole=True)
    assert sum(map(len, state.capture())) == 1_000
    feed(state, [Event(key, 0, 2_000, 2_000, (1.0,)) for key in ("k3", "new", "k7", "k3")], 1)

    state.open_capture(whole=False)

    assert sorted(n for one in state.capture() for n in one.slots.tolist()) == [3, 7, 1_000]


def test_no_record_holds_a_key_that_was_forgotten():
    state = EntityState(one_window_stage())
    feed(state, [Event("erase-me", 0, 1, 1, (123.456,)), Event("stays", 0, 1, 1, (1.0,))], 1)
    state.begin()
    state.forget(pa.array(["erase-me"]))

    state.open_capture(whole=True)
    (records,) = state.capture()

    content = records.to_arrow().serialize().to_pybytes()
    assert b"erase-me" not in content
    assert np.float64(123.456).tobytes() not in content
    assert b"stays" in content


def test_records_of_another_stage_or_without_a_key_are_refused():
    stage = one_window_stage()
    state = EntityState(stage)
    feed(state, [Event(f"k{n}", 0, 1, 1, (1.0,)) for n in range(5)], 1)
    state.open_capture(whole=True)
    (records,) = state.capture()

    with pytest.raises(ValueError, match="1 of 6 keys are in no record"):
        EntityState(stage).restore([records], 6)
    with pytest.raises(ValueError, match="slot 4 is not one of 4"):
        EntityState(stage).restore([records], 4)
    other = dataclasses.replace(stage, windows=2 * stage.windows)
    with pytest.raises(ValueError, match="are not of a stage of"):
        EntityState(other).restore([records], 5)
