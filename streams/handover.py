"""What is handed over and not settled yet, in order, and what was read and not handed over yet."""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING

from headrace.streams.tickets import Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from headrace.streams.batch import EventBatch, Forget, Keep, Look
    from headrace.streams.clients import Clients
    from headrace.streams.intake import Row
    from headrace.streams.source_options import Route

# One ticket is worked on, one waits for the worker, one is being filled or sent.
TICKETS_MAX = 3


class HandOver:
    """The tickets under way. Truthy while there are any."""

    def __init__(
        self, routes: Mapping[str, Route], submit: Callable[[Ticket], None], clients: Clients
    ) -> None:
        self._routes = routes
        self._submit = submit
        self._clients = clients
        self._tickets: deque[Ticket] = deque()
        self.stash: list[Row] = []

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def room(self) -> int:
        """How many tickets more can be under way."""
        return max(0, TICKETS_MAX - len(self._tickets))

    @property
    def first_done(self) -> bool:
        """Whether the oldest ticket waits to be settled."""
        return bool(self._tickets) and self._tickets[0].future.done()

    def submit_all(self, made: Sequence[EventBatch | Forget]) -> None:
        """Hand batches over, downstream first, in one ticket for each kind in a row."""
        routes = self._routes
        made = sorted(made, key=lambda batch: -routes[batch.topic].rank)
        for kind, members in itertools.groupby(made, lambda batch: routes[batch.topic].kind):
            self._send_off(kind, list(members))

    def submit_one(self, item: Look | Forget | Keep) -> None:
        """Hand one item over, in a ticket of its own."""
        self._send_off(self._routes[item.topic].kind, [item])

    def wait(self, timeout_s: float) -> bool:
        """Wait until the oldest ticket is done; False when it is not after ``timeout_s``."""
        return self._clients.wait(self._tickets[0], timeout_s)

    def holds(self, topic: str, partition: int) -> bool:
        """Whether anything of a partition is under way."""
        return any(
            batch.topic == topic and batch.partition == partition
            for ticket in self._tickets
            for batch in ticket.batches
        )

    def pop(self) -> Ticket:
        """Take the oldest ticket out."""
        return self._tickets.popleft()

    def clear(self) -> None:
        """Forget all tickets: nobody settles them any more."""
        self._tickets.clear()

    def forget_rows(self, places: Collection[tuple[str, int]]) -> None:
        """Drop the rows of partitions that were read and not handed over."""
        self.stash = [row for row in self.stash if (row.topic(), row.partition()) not in places]

    def _send_off(self, kind: str, batches: Sequence[EventBatch | Look | Forget | Keep]) -> None:
        ticket = Ticket(kind, list(batches), submitted_s=self._clients.monotonic_s())
        self._tickets.append(ticket)
        self._submit(ticket)
