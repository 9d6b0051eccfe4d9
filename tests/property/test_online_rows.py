"""The queue of what waits for the online store, against a dictionary."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.streams.batch import OnlineBlock
from headrace.streams.online_rows import Backoff, KeyBook, PendingRows, Posted

KEYS = 40
SLOTS = st.lists(st.integers(0, KEYS - 1), max_size=12, unique=True)
STEPS = st.one_of(
    st.tuples(st.just("merge"), st.lists(SLOTS, min_size=1, max_size=4)),
    st.tuples(st.just("take"), st.integers(1, 15)),
    st.tuples(st.just("write"), st.booleans()),
    st.tuples(st.just("forget"), st.lists(st.integers(0, KEYS + 9), max_size=4, unique=True)),
)


def block_of(slots, version):
    slots = np.array(slots, np.int64)
    times = slots + 1_000 * version
    values = np.column_stack([slots, np.full(len(slots), version)]).astype(float)
    return OnlineBlock(version, slots, values, times, times + 1, 0, pa.array([], pa.int64()))


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_each_key_waits_once_with_its_newest_values_and_marks_claim_no_more_than_is_written(steps):
    pending, taken = PendingRows(2), None
    waiting, flying, written, newest, version = {}, {}, {}, {}, 0
    lacking = {}
    for what, argument in steps:
        if what == "merge":
            posted = []
            for slots in argument:
                version += 1
                posted.append(Posted(block_of(slots, version), since_ms=version))
                for slot in slots:
                    waiting.setdefault(slot, (version, version))
                    waiting[slot] = (waiting[slot][0], version)
                    newest[slot] = version
                    flying.pop(slot, None)
                    lacking.setdefault(slot, version)
            pending.merge(posted)
        elif what == "take" and taken is None:
            taken = pending.take(argument)
            flying = {slot: waiting.pop(slot)[1] for slot in taken.slots.tolist()}
        elif what == "write" and taken is not None:
            taken = pending.still(taken)
            assert dict(zip(taken.slots.tolist(), taken.version.tolist(), strict=True)) == flying
            if argument:
                written |= flying
                lacking = {slot: since for slot, since in lacking.items() if slot not in flying}
                assert (taken.aggregates[:, 1] == taken.version).all()
                assert (taken.event_time_ms == taken.slots + 1_000 * taken.version).all()
                assert (taken.as_of_ms == taken.event_time_ms + 1).all()
                taken, flying = None, {}
        elif what == "forget":
            pending.forget(np.array(argument, np.int64))
            for slot in argument:
                for known in (waiting, flying, newest, written, lacking):
                    known.pop(slot, None)
        oldest = min((since for since, _ in waiting.values()), default=None)
        assert len(pending) >= len(waiting)
        # Since when the store lacks something is never told too late.
        told = [] if taken is None or not len(taken) else [taken.since_ms.min()]
        told += [] if pending.oldest_ms is None else [pending.oldest_ms]
        assert not lacking or min(told) <= min(lacking.values())
        if oldest is not None:
            assert pending.oldest_ms <= oldest
        if taken is None:
            # All changes up to a mark are written, or newer ones of the same key wait.
            for mark in pending.reached():
                for slot, at in newest.items():
                    held = waiting[slot][1] if slot in waiting else written.get(slot, 0)
                    assert at > mark.version or held >= at


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.binary(max_size=6), max_size=50), max_size=6), st.randoms())
def test_keys_are_those_of_their_slots(parts, random):
    for kind, convert in (
        ("bytes", bytes),
        ("string", bytes.hex),
        ("int64", lambda key: int.from_bytes(key, "big") - (1 << 40)),
    ):
        book, keys = KeyBook(kind), []
        for part in parts:
            told = [convert(key) for key in part]
            arrow = {"bytes": pa.large_binary(), "string": pa.large_string(), "int64": pa.int64()}
            book.append(pa.array(told, arrow[kind]))
            keys += told
        slots = [random.randrange(len(keys)) for _ in range(20)] if keys else []
        assert book.take(np.array(slots, np.int64)).to_pylist() == [keys[slot] for slot in slots]
        assert len(book) == len(keys)


def test_many_keys_wait_and_the_room_for_them_is_given_back():
    pending = PendingRows(1)
    count = 200_000
    slots = np.arange(count)
    block = OnlineBlock(
        1, slots, slots[:, None] * 1.0, slots, slots, 0, pa.array([], pa.int64()), ended_pass=3
    )
    pending.merge([Posted(block, since_ms=5)])
    for version in range(2, 2_000):
        one = slots[:1]
        block = OnlineBlock(version, one, one[:, None] * 2.0, one, one, 0, block.keys)
        pending.merge([Posted(block, since_ms=6)])
    assert len(pending) == count
    assert pending.oldest_ms == 5
    seen = 0
    while len(taken := pending.take(7_000)):
        seen += len(taken)
    assert seen == count
    assert len(pending._columns.slots) < 2_000
    marks = pending.reached()
    assert [mark.ended_pass for mark in marks if mark.ended_pass] == [3]
    assert marks[-1].version == 1_999
    pending.merge([Posted(block_of_one(), since_ms=7)])
    assert len(pending) == 1


def block_of_one():
    one = np.array([5])
    return OnlineBlock(2_000, one, np.ones((1, 1)), one, one, 0, pa.array([], pa.int64()))


def test_a_failing_store_is_asked_after_100_ms_then_twice_as_long_5_s_at_most():
    backoff = Backoff()
    waits = []
    for _ in range(8):
        backoff.failed(1_000.0)
        waits.append(backoff.until_ms - 1_000.0)

    assert waits == [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]
    backoff.worked()
    backoff.failed(0.0)
    assert backoff.until_ms == 100.0


def test_a_key_that_comes_again_on_its_way_has_waited_since_the_first_time():
    pending = PendingRows(2)
    pending.merge([Posted(block_of(range(1_000), 1), since_ms=5)])
    taken = pending.take(1_000)
    # The queue's end has gone round to the beginning of its room when it comes.
    pending.merge([Posted(block_of([*range(1_000, 1_090), 290], 2), since_ms=9)])
    assert pending.oldest_ms == 9

    assert len(pending.still(taken)) == 999
    assert pending.oldest_ms == 5
