"""The parts of exactly-once that need no broker: pace, identity, what an abort takes back."""

from __future__ import annotations

import contextlib
import gc
import threading
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import KafkaError, KafkaException

from headrace.streams.batch import EventBatch, Outputs
from headrace.streams.clients import BoundedProducer, KafkaClients
from headrace.streams.commit import CommitNote, load_note
from headrace.streams.errors import IdentityError
from headrace.streams.identity import given_ordinal, identify
from headrace.streams.pace import INTERVAL_MAX_S, SPACING_MIN_S, CommitPace
from headrace.streams.positions import OwnedPartition
from headrace.streams.tickets import ProcessorTable, Ticket, process
from headrace.streams.transaction import (
    RETRY_MS,
    SLICE_S,
    TransactionalProducer,
    transactional_properties,
)


class Summing:
    """A processor whose state is the sum of its offsets."""

    def __init__(self):
        self.sum = 0
        self.saved = None

    def process(self, batch):
        self.sum += int(batch.offsets.sum())
        return Outputs()

    def begin(self):
        assert self.saved is None
        self.saved = self.sum

    def commit(self):
        assert self.saved is not None
        self.saved = None

    def abort(self):
        self.sum, self.saved = self.saved, None


def batch(first, last, *, emit_from=0, topic="t"):
    offsets = np.arange(first, last, dtype=np.int64)
    nothing = [None] * len(offsets)
    return EventBatch(
        topic, 0, 1, offsets, offsets, nothing, nothing, nothing, emit_from, at_end=False
    )


@pytest.fixture
def table():
    return ProcessorTable(undoes=True)


def test_an_abort_goes_back_to_where_the_transaction_began_in_every_partition(table):
    first, second = Summing(), Summing()
    table.assign("t", 0, 1, first, 5)
    table.assign("u", 0, 1, second, 0)
    process(table, Ticket("stage", [batch(5, 8)]))
    table.commit()
    process(table, Ticket("stage", [batch(8, 10), batch(0, 3, topic="u"), batch(10, 12)]))

    assert table.abort() == {("t", 0): 8, ("u", 0): 0}
    assert (first.sum, second.sum) == (5 + 6 + 7, 0)
    process(table, Ticket("stage", [batch(8, 9)]))
    assert table.abort() == {("t", 0): 8}


def test_a_silent_replay_is_not_undone_but_the_batch_that_leaves_it_is(table):
    processor = Summing()
    table.assign("t", 0, 1, processor)
    process(table, Ticket("stage", [batch(0, 4, emit_from=6)]))
    assert not table.is_open("t", 0)
    process(table, Ticket("stage", [batch(4, 8, emit_from=6)]))

    assert table.abort() == {("t", 0): 4}
    assert processor.sum == 0 + 1 + 2 + 3


def test_a_batch_of_no_rows_opens_where_the_partition_is(table):
    table.assign("t", 0, 1, Summing(), 7)
    process(table, Ticket("stage", [batch(7, 7)]))
    assert table.abort() == {("t", 0): 7}


def test_a_partition_that_left_is_not_undone(table):
    table.assign("t", 0, 1, Summing())
    process(table, Ticket("stage", [batch(0, 2)]))
    table.drop("t", 0)
    assert table.abort() == {}


def test_without_transactions_nothing_is_opened():
    table = ProcessorTable()
    table.assign("t", 0, 1, Summing())
    process(table, Ticket("stage", [batch(0, 2)]))
    assert table.abort() == {}


def test_positions_carry_the_next_version_and_come_again_for_what_was_sent():
    owned = OwnedPartition("t", 0, 1, "id", emit_from=4, committed_offset=4, version=9)
    owned.done_offset = 4
    assert owned.position() is None
    again = owned.position(again=True)
    assert again is not None
    assert (again.offset, again.version) == (4, 10)
    owned.committed(again)
    assert owned.version == 10
    owned.done_offset = 3
    assert owned.position(again=True) is None


def test_notes_keep_what_a_lost_answer_is_looked_up_by():
    note = CommitNote("id", 7, "p.q.0", "c1")
    assert load_note(note.dump()) == note
    assert load_note('{"topic_id":"id","version":"7"}') == CommitNote("id")


def test_light_traffic_is_committed_at_once_and_load_only_as_often_as_costs_little():
    pace = CommitPace(1.0)
    for _ in range(50):
        pace.took(0.02)
    assert pace.spacing_s(waited_for=True, behind=False) == SPACING_MIN_S
    assert pace.spacing_s(waited_for=True, behind=True) == pytest.approx(0.4, rel=0.01)
    assert pace.spacing_s(waited_for=False, behind=False) == 1.0
    assert CommitPace(60.0).spacing_s(waited_for=False, behind=True) == INTERVAL_MAX_S


def test_a_refused_transactional_request_is_asked_again_soon_unless_the_user_says_when():
    assert transactional_properties({}, 0.0, "p.q.0")["retry.backoff.ms"] == RETRY_MS
    slower = transactional_properties({"retry.backoff.ms": 100}, 0.0, "p.q.0")
    assert slower["retry.backoff.ms"] == 100
    # Ours is below what an attempt at a commit waits for an answer, or it would never be used.
    assert RETRY_MS / 1000 < SLICE_S


def test_workers_without_an_ordinal_take_the_lowest_free_one(tmp_path):
    with contextlib.ExitStack() as stack:
        names = []
        for _ in range(3):
            identity = identify(tmp_path, "p.q", None)
            stack.callback(identity.release)
            names.append(identity.name)
            if len(names) == 2:
                identity.release()
    assert names == ["p.q.0", "p.q.1", "p.q.1"]


def test_a_second_holder_of_an_ordinal_is_refused_by_name(tmp_path):
    held = identify(tmp_path, "p.q", 4)
    with pytest.raises(IdentityError, match=r"worker p\.q\.4 must be one process; .*process \d+"):
        identify(tmp_path, "p.q", 4)
    held.release()
    identify(tmp_path, "p.q", 4).release()


def test_only_a_replica_of_a_stateful_set_is_named_by_its_host():
    inside = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert given_ordinal(None, inside, "worker-12") == 12
    assert given_ordinal(None, inside, "worker-7d9f8") is None
    assert given_ordinal(None, {}, "ip-10-0-0-12") is None
    assert given_ordinal(5, inside, "worker-12") == 5


def client_threads():
    """Return the ids of the threads that Kafka's clients have in this process."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            if (task / "comm").read_text().startswith("rdk:"):
                found.add(task.name)
    return found


def test_a_producer_that_is_thrown_away_takes_its_threads_with_it(wait_until):
    """A worker makes a new one for each commit in doubt; it runs for months."""
    before = client_threads()
    properties = transactional_properties({"bootstrap.servers": "127.0.0.1:9"}, 5, "p.q.0")
    gc.disable()
    try:
        producer = TransactionalProducer(properties, lambda: None, KafkaClients())
        wait_until(lambda: client_threads() - before)
        made = client_threads() - before
        assert not producer.init(0.1)

        producer.close()

        wait_until(lambda: not made & client_threads(), 20.0)
    finally:
        gc.enable()


def test_a_transactional_call_that_never_comes_back_fails_like_one_that_is_not_answered(
    monkeypatch,
):
    monkeypatch.setattr("headrace.streams.clients.HUNG_S", 0.001)
    hung, ended = threading.Event(), threading.Event()
    producer = BoundedProducer({"bootstrap.servers": "127.0.0.1:9", "transactional.id": "p.q.0"})

    def hang(_timeout_s):
        hung.set()
        ended.wait()

    for call in (hang, lambda _timeout_s: None):
        with pytest.raises(KafkaException) as caught:
            producer._bounded(call, 0.001)
        assert not caught.value.args[0].retriable()
    assert hung.is_set()
    ended.set()


def test_what_a_transactional_call_returns_or_raises_comes_through():
    producer = BoundedProducer({"bootstrap.servers": "127.0.0.1:9", "transactional.id": "p.q.0"})
    seen = []

    producer._bounded(lambda one, timeout_s: seen.append((one, timeout_s)), 0.5, "offsets")

    assert seen == [("offsets", 0.5)]
    with pytest.raises(KafkaException) as caught:
        producer.commit_transaction(0.5)
    assert caught.value.args[0].code() == KafkaError._STATE
