"""What becomes of a ticket's outputs: sent, noted with the partition, committed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from headrace.streams.batch import Outputs
from headrace.streams.clients import KafkaClients
from headrace.streams.committing import Committer
from headrace.streams.flow import Flow
from headrace.streams.handover import HandOver
from headrace.streams.intake import backlog_batch, end_batch
from headrace.streams.pace import SPACING_MIN_S
from headrace.streams.positions import OwnedPartition
from headrace.streams.source_options import Route, SourceOptions
from headrace.streams.tickets import ProcessorTable

PLACE = ("relay", 0)


class Kept:
    """A guarantee that takes note of what it is given."""

    undoes, open_s = False, 0.0

    def __init__(self):
        self.sent, self.positions = [], []

    def begin(self):
        pass

    def send(self, outputs):
        self.sent.append(outputs)

    def commit(self, positions, *_):
        self.positions += positions
        return True


class Watcher:
    def sent(self, batch, outputs):
        pass


class Transaction(Kept):
    """One that is open, and takes five milliseconds to commit."""

    undoes, open_s = True, 0.01

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def commit(self, positions, *_, **__):
        self.clock.now_s += 0.005
        return super().commit(positions)


class Clock(KafkaClients):
    """A clock that stands, but for a wait: a ticket is done after 40 ms of it."""

    now_s = 100.0

    def monotonic_s(self):
        return self.now_s

    def wait(self, ticket, _timeout_s):
        self.now_s += 0.04
        ticket.future.set_result([Outputs()])
        return True


class Scene:
    """A committer with one partition, whose tickets are done when the test says so."""

    def __init__(self, guarantee=None, clients=None):
        options = SourceOptions("g", {"relay": Route("stage", 0)}, {}, {}, {}, 100, 10, 100)
        self.owned = OwnedPartition(*PLACE, 1, "id", 0, 0, next_offset=7, high_offset=7)
        self.tickets = []
        self.guarantee = guarantee or Kept()
        owned = {PLACE: self.owned}
        clients = clients or KafkaClients()
        self.hand_over = HandOver(options.routes, self.tickets.append, clients)
        self.committer = Committer(
            options, clients, None, self.guarantee, self.hand_over, owned, ProcessorTable(), (),
            Watcher(), Flow({}, owned),
        )  # fmt: skip

    def done(self, ticket, outputs):
        ticket.future.set_result([outputs])
        self.committer.settle_done()


@pytest.fixture
def scene():
    return Scene()


def test_a_commit_says_how_many_rows_the_stage_holds_back(scene):
    row = np.array([6])
    told = {"offsets": row, "arrival_time_ms": row, "values": [b""]}
    scene.hand_over.submit_all([dataclasses.replace(backlog_batch(scene.owned), **told)])
    outputs = Outputs(held=3, waits_for_ms=9)

    scene.done(scene.tickets[0], outputs)
    scene.committer.commit(wait=True)

    assert scene.guarantee.sent == [outputs]
    (position,) = scene.guarantee.positions
    assert (position.offset, position.held) == (7, 3)


def test_an_end_is_done_only_when_what_came_since_is(scene):
    scene.owned.end_told = True
    scene.hand_over.submit_all([end_batch(scene.owned)])
    scene.hand_over.submit_all([backlog_batch(scene.owned)])

    scene.done(scene.tickets[0], Outputs())
    assert scene.owned.done_offset == 0

    scene.hand_over.submit_all([end_batch(scene.owned)])
    scene.done(scene.tickets[1], Outputs())
    scene.done(scene.tickets[2], Outputs())
    assert scene.owned.done_offset == 7


def test_with_light_traffic_the_rows_that_a_commit_waited_for_do_not_put_the_next_one_off():
    clock = Clock()
    scene = Scene(Transaction(clock), clock)
    for _ in range(100):
        scene.hand_over.submit_all([end_batch(scene.owned)])
        scene.committer.commit(wait=False)

    assert clock.now_s == pytest.approx(100.0 + 100 * 0.045)
    assert scene.committer.next_s - clock.now_s == pytest.approx(SPACING_MIN_S)


def test_rows_are_gathered_for_the_next_commit_only_while_traffic_is_light_and_somebody_commits():
    clock = Clock()
    scene = Scene(Transaction(clock), clock)
    scene.committer.commit(wait=False)
    assert scene.committer.gather_until_s - clock.now_s == pytest.approx(SPACING_MIN_S)

    scene.owned.high_offset = 7 + scene.committer.sizer.rows + 1
    assert scene.committer.gather_until_s < clock.now_s

    at_least_once = Scene(Kept(), clock)
    at_least_once.committer.commit(wait=False)
    assert at_least_once.committer.gather_until_s < clock.now_s
