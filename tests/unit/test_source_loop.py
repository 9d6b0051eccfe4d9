"""What the source's loop asks of its clients, step by step, on a clock that stands."""

from __future__ import annotations

import pytest

from headrace.streams.pace import SPACING_MIN_S
from headrace.streams.source import Source
from headrace.streams.source_options import Route, SourceOptions
from headrace.streams.tickets import ProcessorTable

COME_AFTER_S = 0.0005


class Row:
    """A message of no partition that is owned."""

    def error(self):
        return None

    def topic(self):
        return "t"

    def partition(self):
        return 0


class Consumer:
    """Has a row whenever it is polled, a while later, and no more of them."""

    def __init__(self, clients):
        self.clients, self.gathered_s = clients, []

    def poll(self, _timeout_s):
        self.clients.now_s += COME_AFTER_S
        return Row()

    def consume(self, _count, timeout_s):
        self.gathered_s.append(timeout_s)
        return []


class Producer:
    """Has nothing to do."""

    def __len__(self):
        return 0

    def poll(self, _timeout_s):
        return 0


class Clients:
    """Makes what the source talks to."""

    now_s = 100.0

    def monotonic_s(self):
        return self.now_s

    def consumer(self, _properties):
        self.made = Consumer(self)
        return self.made

    def producer(self, _properties):
        return Producer()


class Watcher:
    def ticked(self, _owned):
        pass


@pytest.mark.parametrize(
    ("worker", "gathered_s"), [("g.0", SPACING_MIN_S - COME_AFTER_S), (None, 0.0)]
)
def test_rows_are_gathered_until_a_commit_is_due_that_readers_wait_for(worker, gathered_s):
    clients = Clients()
    options = SourceOptions("g", {"t": Route("router", 0)}, {}, {}, {}, 300, 10, 100, worker=worker)
    source = Source(options, ProcessorTable(), None, None, Watcher(), clients=clients)

    # The first one commits, since none ever was; the second comes after that.
    source._step()
    source._step()

    assert clients.made.gathered_s[-1] == pytest.approx(gathered_s)
