"""The parts of the source that need no broker: batches, positions, tickets."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from headrace.streams import intake
from headrace.streams.batch import EventBatch, Outputs
from headrace.streams.commit import CommitNote, load_note
from headrace.streams.intake import BatchSizer, batches, end_batch, group
from headrace.streams.positions import OwnedPartition
from headrace.streams.tickets import ProcessorTable, Ticket, process, serve


class FakeRow:
    """A message as the client shows it."""

    def __init__(self, topic, partition, offset, value=b"v", error=None):
        self._fields = topic, partition, offset, value
        self._error = error

    def error(self):
        return self._error

    def topic(self):
        return self._fields[0]

    def partition(self):
        return self._fields[1]

    def offset(self):
        return self._fields[2]

    def key(self):
        return b"k%d" % self._fields[2]

    def value(self):
        return self._fields[3]

    def headers(self):
        return None

    def timestamp(self):
        return 2, 1_000 + self._fields[2]


def owned(**changes):
    fields = {
        "topic": "t",
        "partition": 0,
        "epoch": 3,
        "topic_id": "id",
        "emit_from": 10,
        "committed_offset": 10,
    }
    return OwnedPartition(**{**fields, **changes})


def test_messages_are_grouped_by_partition_in_log_order_and_events_are_apart():
    end = FakeRow("t", 0, 5, error="end")
    mixed = [
        FakeRow("t", 0, 1),
        FakeRow("t", 1, 7),
        end,
        FakeRow("t", 0, 4),
        FakeRow("u", 0, 1),
    ]
    rows, events = group(mixed)

    offsets = {key: [row.offset() for row in found] for key, found in rows.items()}
    assert offsets == {("t", 0): [1, 4], ("t", 1): [7], ("u", 0): [1]}
    assert events == [end]


def test_a_batch_knows_whether_it_reaches_the_end_of_its_partition():
    rows = [FakeRow("t", 0, offset) for offset in (4, 5, 8)]
    (inside,) = batches(owned(), rows, high_offset=20)
    (at_end,) = batches(owned(), rows, high_offset=9)

    assert not inside.at_end
    assert at_end.at_end
    assert at_end.offsets.tolist() == [4, 5, 8]
    assert at_end.arrival_time_ms.tolist() == [1_004, 1_005, 1_008]
    assert (at_end.epoch, at_end.emit_from, at_end.keys) == (3, 10, [b"k4", b"k5", b"k8"])
    assert len(end_batch(owned())) == 0
    assert end_batch(owned()).at_end


def test_large_rows_are_cut_into_batches_and_only_the_last_is_at_the_end():
    half = intake.BATCH_BYTES_MAX // 2
    sizes = [half, half, 1, 3 * half, None, half]
    rows = [
        FakeRow("t", 0, i, None if size is None else bytes(size)) for i, size in enumerate(sizes)
    ]
    made = batches(owned(), rows, high_offset=6)

    assert [one.offsets.tolist() for one in made] == [[0, 1], [2], [3], [4, 5]]
    assert [one.at_end for one in made] == [False, False, False, True]


def test_rows_of_a_hand_over_follow_time_and_size():
    sizer = BatchSizer(rows_max=10_000, budget_s=0.05)
    for _ in range(40):
        sizer.worked(1_000, 0.01)
    assert sizer.rows in {4_999, 5_000}
    sizer.cut(5_000, 50)
    assert sizer.rows == 100
    for _ in range(10):
        sizer.cut(100, 1)
    assert sizer.rows in {4_999, 5_000}
    for _ in range(60):
        sizer.worked(1_000, 10.0)
    assert sizer.rows == BatchSizer.ROWS_MIN


@pytest.mark.parametrize(
    ("done", "committed", "expected"),
    [(9, 10, None), (10, 10, None), (11, 10, 11), (10, 9, 10), (12, 12, None)],
)
def test_only_what_was_emitted_and_not_committed_yet_is_committed(done, committed, expected):
    position = owned(done_offset=done, committed_offset=committed).position()
    assert (None if position is None else position.offset) == expected


def test_a_commits_note_is_read_back_and_a_foreign_one_is_none():
    assert load_note(CommitNote("abc").dump()) == CommitNote("abc")
    for foreign in (None, "", "text", "[1]", '{"other": 1}', '{"topic_id": 5}'):
        assert load_note(foreign) is None


class Counting:
    """Counts rows; refuses a batch as often as it is told to."""

    def __init__(self, refusals=0):
        self.rows = 0
        self.refusals = refusals

    def process(self, batch):
        if self.refusals:
            self.refusals -= 1
            raise LookupError("not now")
        self.rows += len(batch)
        return Outputs(events=len(batch))


def batch(partition, rows, epoch=1):
    empty = np.arange(rows, dtype=np.int64)
    nothing = [None] * rows
    return EventBatch("t", partition, epoch, empty, empty, nothing, nothing, nothing, 0, False)


def test_a_batch_of_a_partition_that_is_gone_changes_nothing():
    table, processor = ProcessorTable(), Counting()
    table.assign("t", 0, 2, processor)
    ticket = Ticket("stage", [batch(0, 5, epoch=1), batch(0, 3, epoch=2), batch(1, 9, epoch=2)])
    process(table, ticket)

    assert processor.rows == 3
    assert [one.events for one in ticket.done] == [0, 3, 0]


def test_work_that_was_interrupted_goes_on_with_the_batch_that_failed():
    table, first, second = ProcessorTable(), Counting(), Counting(refusals=1)
    table.assign("t", 0, 1, first)
    table.assign("t", 1, 1, second)
    ticket = Ticket("stage", [batch(0, 5), batch(1, 3)])
    with pytest.raises(LookupError):
        process(table, ticket)
    process(table, ticket)

    assert (first.rows, second.rows) == (5, 3)


def test_an_agent_hands_every_failure_to_who_waits_on_the_ticket():
    tickets = [Ticket("stage", []) for _ in range(3)]

    async def stream():
        for ticket in tickets:
            yield ticket

    async def work(ticket):
        if ticket is tickets[1]:
            raise LookupError("boom")
        ticket.future.set_result([])

    with pytest.raises(LookupError):
        asyncio.run(serve(stream(), work))
    assert tickets[0].future.result() == []
    assert isinstance(tickets[1].future.exception(), LookupError)
    assert not tickets[2].future.done()
