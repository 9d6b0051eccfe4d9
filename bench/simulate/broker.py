"""Kafka's logs and transactions in memory, as a read_committed client can tell them.

Offsets have gaps where control records stand. Markers are written a while after a transaction was
decided; until then the last stable offset holds readers back. A request to end a transaction names
producer id and epoch only, so one that arrives late ends whatever is open by then (the protocol
that librdkafka speaks).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.simulate.world import World

Place = tuple[str, int]
Header = tuple[str, bytes]

TRANSACTION_TIMEOUT_S = 12.0


class FencedProducerError(Exception):
    """The producer's epoch is not the newest of its transactional id."""


class TransactionStateError(Exception):
    """There is no transaction that could be ended so."""


@dataclass(slots=True)
class Entry:
    """A record, or a control record (``value`` and ``key`` None, ``control`` true)."""

    key: bytes | None
    value: bytes | None
    headers: list[Header]
    timestamp_ms: int
    transaction: str | None = None
    control: bool = False
    aborted: bool = False


@dataclass(slots=True)
class Log:
    """A partition: entries by offset, and the first offset of each open transaction."""

    entries: list[Entry] = field(default_factory=list)
    open: dict[str, int] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The next offset."""
        return len(self.entries)

    @property
    def stable(self) -> int:
        """The last stable offset: below it all is decided."""
        return min(self.open.values(), default=len(self.entries))

    def committed(self) -> list[tuple[int, Entry]]:
        """Return what a read_committed reader sees now, with offsets."""
        return [
            (offset, entry)
            for offset, entry in enumerate(self.entries[: self.stable])
            if not entry.control and not entry.aborted
        ]


@dataclass(frozen=True, slots=True)
class Committed:
    """An offset with its metadata; ``sequence`` tells which of two was written later."""

    offset: int
    metadata: str
    sequence: int


@dataclass(slots=True)
class Transaction:
    """What the coordinator knows of a transactional id."""

    name: str
    epoch: int = 0
    number: int = 0
    open: bool = False
    ending: bool = False
    last: str = ""
    places: set[Place] = field(default_factory=set)
    offsets: dict[str, dict[Place, Committed]] = field(default_factory=dict)
    markers: int = 0


class Broker:
    """All logs and transactions; requests take effect when they are called."""

    def __init__(self, world: World, epoch_ms: int) -> None:
        self._world = world
        self._epoch_ms = epoch_ms
        self.logs: dict[Place, Log] = {}
        self.transactions: dict[str, Transaction] = {}
        self.committed: dict[str, dict[Place, Committed]] = {}
        self._sequence = itertools.count()
        self.pending: dict[str, dict[Place, int]] = {}
        self.away_until_s = 0.0

    @property
    def away(self) -> bool:
        """Whether nobody answers."""
        return self._world.now_s < self.away_until_s

    @property
    def now_ms(self) -> int:
        """The broker's time of day."""
        return self._epoch_ms + int(self._world.now_s * 1000)

    @property
    def quiet(self) -> bool:
        """Whether no transaction is open or ending."""
        return not any(one.open or one.ending for one in self.transactions.values())

    def append(self, place: Place, entry: Entry, epoch: int = 0) -> None:
        """Append a record, within its transaction if it names one.

        Raises:
            FencedProducerError: If the producer is an old one.

        """
        log = self.logs[place]
        if entry.transaction is not None:
            transaction = self._of_epoch(entry.transaction, epoch)
            self._opened(transaction)
            transaction.places.add(place)
            log.open.setdefault(entry.transaction, log.end)
        log.entries.append(entry)
        self._world.tell()

    def begin(self, name: str) -> int | None:
        """Fence former producers of an id; return the new epoch, None while one still ends."""
        transaction = self.transactions.setdefault(name, Transaction(name))
        if transaction.open:
            transaction.epoch += 1
            self._decide(transaction, commit=False)
        if transaction.ending:
            return None
        transaction.epoch += 1
        transaction.last = ""
        self._world.note("broker", "init", name, transaction.epoch)
        return transaction.epoch

    def is_ending(self, name: str) -> bool:
        """Whether markers of the last transaction are still to be written."""
        return self.transactions[name].ending

    def add_offsets(
        self, name: str, epoch: int, group: str, offsets: dict[Place, tuple[int, str]]
    ) -> None:
        """Let a group's offsets go with the transaction.

        Raises:
            FencedProducerError: If the producer is an old one.

        """
        transaction = self._of_epoch(name, epoch)
        self._opened(transaction)
        known = transaction.offsets.setdefault(group, {})
        pending = self.pending.setdefault(group, {})
        for place in offsets:
            if place not in known:
                pending[place] = pending.get(place, 0) + 1
        known.update(self._written(offsets))

    def commit(self, group: str, offsets: dict[Place, tuple[int, str]]) -> None:
        """Take a group's offsets outside of any transaction."""
        self.committed.setdefault(group, {}).update(self._written(offsets))
        self._world.tell()

    def is_pending(self, group: str, place: Place) -> bool:
        """Whether a transaction that is not over has an offset of the place."""
        return self.pending.get(group, {}).get(place, 0) > 0

    def _written(self, offsets: dict[Place, tuple[int, str]]) -> dict[Place, Committed]:
        return {
            place: Committed(offset, metadata, next(self._sequence))
            for place, (offset, metadata) in offsets.items()
        }

    def end(self, name: str, epoch: int, *, commit: bool) -> None:
        """End the open transaction, if there is one of this epoch.

        Raises:
            FencedProducerError: If the producer is an old one.
            TransactionStateError: If the last one ended in the other way.

        """
        transaction = self._of_epoch(name, epoch)
        wanted = "commit" if commit else "abort"
        if transaction.open:
            self._decide(transaction, commit=commit)
        elif transaction.last != wanted:
            raise TransactionStateError(name)

    def takes(self, name: str | None, epoch: int) -> bool:
        """Whether a request that comes late is still of the open transaction."""
        if self.away:
            return False
        if name is None:
            return True
        transaction = self.transactions[name]
        return transaction.open and transaction.epoch == epoch

    def _of_epoch(self, name: str, epoch: int) -> Transaction:
        transaction = self.transactions[name]
        if transaction.epoch != epoch:
            raise FencedProducerError(name)
        return transaction

    def _opened(self, transaction: Transaction) -> None:
        assert not transaction.ending, "the client waits for the markers"
        if transaction.open:
            return
        transaction.open = True
        transaction.number += 1
        number = transaction.number

        def expire() -> None:
            if transaction.open and transaction.number == number:
                transaction.epoch += 1
                self._world.note("broker", "transaction timed out", transaction.name)
                self._decide(transaction, commit=False)

        self._world.after(TRANSACTION_TIMEOUT_S, expire)

    def _decide(self, transaction: Transaction, *, commit: bool) -> None:
        self._world.note("broker", "commit" if commit else "abort", transaction.name)
        transaction.open, transaction.ending = False, True
        transaction.last = "commit" if commit else "abort"
        draw = self._world.draw
        slow = 0.4 if draw.random() < 0.1 else 0.004
        places = sorted(transaction.places)
        transaction.markers = len(places) + 1
        for place in places:
            self._world.after(
                draw.random() * slow,
                lambda place=place: self._mark(transaction, place, commit=commit),  # type: ignore[misc]
            )
        self._world.after(
            draw.random() * slow, lambda: self._mark_group(transaction, commit=commit)
        )

    def _mark(self, transaction: Transaction, place: Place, *, commit: bool) -> None:
        log = self.logs[place]
        first = log.open.pop(transaction.name)
        if not commit:
            for entry in log.entries[first:]:
                if entry.transaction == transaction.name and not entry.control:
                    entry.aborted = True
        log.entries.append(
            Entry(None, None, [], self.now_ms, transaction=transaction.name, control=True)
        )
        self._marked(transaction)

    def _mark_group(self, transaction: Transaction, *, commit: bool) -> None:
        for group, offsets in transaction.offsets.items():
            known = self.committed.setdefault(group, {})
            for place, one in offsets.items():
                # What was committed outside of the transaction after it was written stays.
                if commit and (place not in known or known[place].sequence < one.sequence):
                    known[place] = one
        self._marked(transaction)

    def _marked(self, transaction: Transaction) -> None:
        transaction.markers -= 1
        if not transaction.markers:
            transaction.ending = False
            for group, offsets in transaction.offsets.items():
                for place in offsets:
                    self.pending[group][place] -= 1
            transaction.places.clear()
            transaction.offsets.clear()
        self._world.tell()
