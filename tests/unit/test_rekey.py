"""Hops: what they carry, how rows find their receiver, what a receiver is told when."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from stream_cases import (
    differences,
    expected,
    make_payments,
    make_reports,
    one_stage,
    three_stages,
    two_stages,
)

from headrace.features.columns import EventColumns
from headrace.features.layouts import entity_keys, needed_columns
from headrace.streams.batch import Outputs
from headrace.streams.errors import CutOverError
from headrace.streams.exits import Onward, SilentExit
from headrace.streams.lanes import NEVER, RESUMED, LaneNote
from headrace.streams.rekey import (
    MESSAGE_BYTES_MAX,
    LaneSender,
    StreamRows,
    cut,
    hop_to,
)
from headrace.streams.testing import Driver

TERMINALS = [7, None, 8, 7, None, 9]


def make_rows(hop, terminals=TERMINALS):
    count = len(terminals)
    times = np.arange(count) * 1_000
    columns = {
        "payment_id": pa.array(range(count), pa.int64()),
        "customer_id": pa.array([f"c{i}" for i in range(count)]),
        "terminal_id": pa.array(terminals, pa.int64()),
        "city": pa.array(["Łódź"] * count),
        "amount": pa.array([1.5, None] * (count // 2), pa.float64()),
        "event_time": pa.array(times),
    }
    return StreamRows(
        EventColumns(hop.source, count, times, times, columns),
        np.full(count, 2, np.int32),
        np.arange(100, 100 + count),
        np.arange(count) + 5,
        pa.array([None if i == 3 else b"k%d" % i for i in range(count)], pa.binary()),
        {name: np.arange(count) / 3 for name in hop.features},
        {view: np.array([np.nan, *range(count - 1)]) for view in hop.ages},
        np.arange(count) == 4,
        np.arange(count) == 2,
    )


def notes(messages):
    return {m.partition: LaneNote.from_headers(m.headers, "here") for m in messages}


def test_a_hop_carries_what_is_still_needed_and_no_time_twice():
    plan = three_stages()
    assert [stage.entity for stage in plan.stages] == ["customer", "terminal", "city"]

    to_terminal, to_city = needed_columns(plan, 1, 1), needed_columns(plan, 2, 0)
    reports = needed_columns(plan, 1, 0)

    assert to_terminal == ("payment_id", "customer_id", "terminal_id", "city", "amount")
    assert to_city == to_terminal
    assert reports == ("terminal_id",)
    assert entity_keys(plan) == {
        "customer": "customer_id",
        "terminal": "terminal_id",
        "city": "city",
    }
    assert "city" not in needed_columns(two_stages(), 1, 1)


@pytest.mark.parametrize("stage", [1, 2])
def test_rows_survive_the_hop(stage):
    plan = three_stages()
    hop = hop_to(plan, stage, len(plan.stages[stage].inputs) - 1)
    rows = make_rows(hop)

    packed = hop.pack(rows, np.arange(40, 46))
    body = packed.serialize().to_pybytes()
    found = hop.unpack(pa.ipc.read_record_batch(pa.py_buffer(body), hop.schema), 2)

    assert hop.relayed == (stage == 2)
    assert hop.positions(packed).tolist() == list(range(40, 46) if stage == 2 else range(100, 106))
    assert found.keys.equals(rows.keys)
    for name in (*hop.columns, "event_time"):
        assert found.events.columns[name].equals(rows.events.columns[name]), name
    for ours, theirs in (
        (found.events.event_time_ms, rows.events.event_time_ms),
        (found.events.known_at_ms, rows.events.known_at_ms),
        (found.partition, rows.partition),
        (found.offset, rows.offset),
        (found.arrival_time_ms, rows.arrival_time_ms),
        (found.incomplete, rows.incomplete),
        (found.silent, rows.silent),
        *((found.features[name], rows.features[name]) for name in hop.features),
        *((found.ages[view], rows.ages[view]) for view in hop.ages),
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_key_has_one_receiver_and_a_row_without_one_goes_by_its_offset():
    hop = hop_to(two_stages(partitions=5), 1, 1)
    rows = make_rows(hop)

    receivers = hop.receiver_of(rows)

    assert receivers[0] == receivers[3]
    later = make_rows(hop, [None] * 40)
    assert len(set(hop.receiver_of(later).tolist())) > 1
    np.testing.assert_array_equal(hop.receiver_of(later), hop.receiver_of(later))


def test_every_row_reaches_its_receiver_once_and_in_order():
    hop = hop_to(two_stages(partitions=3), 1, 1)
    rows = make_rows(hop, [*range(50), *range(50)])
    sender = LaneSender(hop, 2)

    messages = sender.send(rows, rows.offset, 205, 9_000, at_end=False)

    offsets = []
    for message in messages:
        packed = pa.ipc.read_record_batch(pa.py_buffer(message.value), hop.schema)
        found = hop.unpack(packed, 2)
        assert set(hop.receiver_of(found).tolist()) == {message.partition}
        assert (np.diff(found.offset) > 0).all()
        offsets += found.offset.tolist()
    assert sorted(offsets) == rows.offset.tolist()
    assert {note.last for note in notes(messages).values()} == {205}


def test_receivers_without_rows_are_told_when_the_watermark_has_moved_half_the_alignment():
    hop = hop_to(two_stages(partitions=3, alignment_ms=1_000), 1, 1)
    sender = LaneSender(hop, 0)

    def told(last, watermark_ms):
        return sorted(notes(sender.send(None, None, last, watermark_ms, at_end=False)))

    assert told(0, NEVER) == []
    assert told(1, 10_000) == [0, 1, 2]
    assert told(2, 10_500) == []
    assert told(3, 10_501) == [0, 1, 2]


def test_the_end_of_a_lane_is_told_once_and_its_opening_too():
    hop = hop_to(two_stages(partitions=3), 1, 1)
    sender = LaneSender(hop, 0)

    first = sender.send(None, None, 5, 10_000, at_end=True)
    assert {note.at_end for note in notes(first).values()} == {True}
    assert len(first) == 3
    assert sender.send(None, None, 6, 10_001, at_end=True) == []

    # Live traffic comes and goes: that there is one more batch is not worth a message.
    assert sender.send(None, None, 7, 10_002, at_end=False) == []
    assert len(sender.send(None, None, 7, 10_002, at_end=False, opening=True)) == 3
    assert sender.send(None, None, 7, 10_002, at_end=False, opening=True) == []
    assert len(sender.send(None, None, 8, 10_003, at_end=True)) == 3


def test_a_sender_names_what_it_sent_before_so_that_a_gap_shows():
    hop = hop_to(two_stages(partitions=1), 1, 1)
    sender = LaneSender(hop, 0)

    spans = []
    for last, watermark_ms in ((4, 10_000), (9, 90_000)):
        note = notes(sender.send(None, None, last, watermark_ms, at_end=False))[0]
        spans.append((note.previous, note.last))

    assert spans == [(RESUMED, 4), (4, 9)]


def test_an_abort_forgets_what_was_told():
    hop = hop_to(two_stages(partitions=2), 1, 1)
    sender = LaneSender(hop, 0)

    sender.begin()
    first = sender.send(None, None, 4, 10_000, at_end=True)
    sender.abort()
    sender.begin()
    again = sender.send(None, None, 4, 10_000, at_end=True)
    sender.commit()

    assert again == first
    assert sender.send(None, None, 4, 10_000, at_end=True) == []


def test_after_an_abort_an_end_is_said_again_to_all_however_lately_it_was_told():
    hop = hop_to(two_stages(partitions=2), 1, 1)
    sender = LaneSender(hop, 0)
    sender.send(None, None, 4, 10_000, at_end=True)
    assert sender.say_again(4, 10_000) == []
    sender.say_again(4, 10_000)
    sender.begin()
    sender.abort()

    assert sorted(notes(sender.say_again(4, 10_000))) == [0, 1]

    sender.send(None, None, 5, 20_000, at_end=False, opening=True)
    sender.send(None, None, 6, 20_000, at_end=True)
    sender.begin()
    sender.abort()
    # Told before the transaction, which may have lasted long.
    assert sorted(notes(sender.say_again(6, 20_000))) == [0, 1]


def test_cut_rows_stay_whole_and_below_the_limit():
    batch = pa.RecordBatch.from_pydict({"text": ["x" * (10 + i * 7 % 90) for i in range(500)]})

    pieces = cut(batch, 2_000)

    assert pa.concat_batches(pieces).equals(batch)
    assert all(piece.nbytes <= 2_000 for piece in pieces)
    assert cut(pa.RecordBatch.from_pydict({"text": ["x" * 5_000]}), 2_000)[0].num_rows == 1


@pytest.mark.parametrize("seed", range(3))
def test_large_rows_travel_in_several_messages_and_crashes_between_them_lose_nothing(seed):
    payments = [row | {"city": row["city"] * 4_000} for row in make_payments(120, seed=9)]
    logs = {"payments": payments, "reports": make_reports(payments, seed=10)}
    plan = three_stages(alignment_ms=0, partitions=2)
    driver = Driver(plan, partitions=1, seed=seed, batch_rows=120)
    for source, rows in logs.items():
        driver.send(source, rows)

    driver.run(crash_odds=0.2)

    sizes = [
        len(message.value) for stage in plan.stages[1:] for message in driver.messages(stage.topic)
    ]
    assert MESSAGE_BYTES_MAX / 2 < max(sizes) < MESSAGE_BYTES_MAX + 4_096
    assert driver.crashes
    assert differences(driver.snapshots(), expected(plan, logs)) == []


def test_what_the_fingerprint_leaves_out_but_a_hop_depends_on_is_in_its_layout():
    with_id, without = two_stages(), two_stages(event_id=None)
    assert with_id.fingerprint == without.fingerprint

    assert hop_to(with_id, 1, 1).fingerprint != hop_to(without, 1, 1).fingerprint
    assert one_stage().stages[0].direct


@pytest.mark.parametrize(("silent", "refused"), [([True, True], False), ([True, False], True)])
def test_who_prepares_takes_only_rows_that_others_have_scored(silent, refused):
    rows = SimpleNamespace(silent=np.array(silent))
    onward = Onward(rows, None, 0, 0, at_end=False, opening=False)
    outputs = Outputs()

    with pytest.raises(CutOverError, match="before a worker") if refused else nullcontext():
        SilentExit().write(onward, outputs)
    assert outputs == Outputs()
