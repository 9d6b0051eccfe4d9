"""What of one partition still has to be written to the online store: the newest values by key.

Bounded by the number of keys however long the store is away. One thread only.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.features.plan import KeyKind
    from headrace.streams.batch import OnlineBlock

_FIRST_ROWS = 1_024
_KEPT_ROWS = 65_536
_MARKS_MAX = 256


class KeyBook:
    """The keys of slots 0, 1, …, as they were told."""

    def __init__(self, kind: KeyKind) -> None:
        self._kind = kind
        self._count = 0
        self._integers = np.zeros(_FIRST_ROWS, np.int64)
        self._offsets = np.zeros(_FIRST_ROWS + 1, np.int64)
        self._data = np.zeros(_FIRST_ROWS, np.uint8)

    def __len__(self) -> int:
        return self._count

    def append(self, keys: pa.Array) -> None:
        """Add the next slots' keys, as ``EntityState.keys`` returns them."""
        last = self._count + len(keys)
        if self._kind == "int64":
            self._integers = _with_room(self._integers, last)
            self._integers[self._count : last] = keys.to_numpy()
        elif len(keys):
            offsets = np.frombuffer(keys.buffers()[1], np.int64)[: len(keys) + 1]
            data = np.frombuffer(keys.buffers()[2], np.uint8)[: offsets[-1]]
            start = int(self._offsets[self._count])
            self._offsets = _with_room(self._offsets, last + 1)
            self._data = _with_room(self._data, start + len(data))
            self._offsets[self._count + 1 : last + 1] = start + offsets[1:]
            self._data[start : start + len(data)] = data
        self._count = last

    def take(self, slots: np.ndarray) -> pa.Array:
        """Return the keys of ``slots``: int64, large strings or large binary."""
        if self._kind == "int64":
            return pa.array(self._integers[slots])
        kind = pa.large_string() if self._kind == "string" else pa.large_binary()
        buffers = [None, pa.py_buffer(self._offsets), pa.py_buffer(self._data)]
        return pa.Array.from_buffers(kind, self._count, buffers).take(pa.array(slots))


class Round(NamedTuple):
    """Rows that are written together; ``since_ms`` is when their keys began to wait."""

    places: np.ndarray
    slots: np.ndarray
    aggregates: np.ndarray
    event_time_ms: np.ndarray
    as_of_ms: np.ndarray
    version: np.ndarray
    since_ms: np.ndarray

    def __len__(self) -> int:
        return len(self.slots)

    def only(self, chosen: np.ndarray) -> Round:
        """Return the chosen rows."""
        return Round(*(column[chosen] for column in self))


class Mark(NamedTuple):
    """What holds once all rows before ``place`` are written."""

    place: int
    version: int
    ended_pass: int


class Posted(NamedTuple):
    """A block, and when it was committed."""

    block: OnlineBlock
    since_ms: int


class PendingRows:
    """A queue of keys, each once, with the newest values of each.

    Places in the queue are counted from 0 and never used twice. A key that is in it already keeps
    its place and takes the new values; one that was taken out since stands at the end again.
    """

    def __init__(self, aggregate_count: int) -> None:
        self._head = self._tail = 0
        self._place = np.full(_FIRST_ROWS, -1, np.int64)
        self._columns = _columns(_FIRST_ROWS, aggregate_count)
        self._marks: deque[Mark] = deque()

    def __len__(self) -> int:
        """Return the keys that wait; those that were forgotten count until their turn comes."""
        return self._tail - self._head

    @property
    def oldest_ms(self) -> int | None:
        """Return since when the key that waits longest does."""
        if self._head == self._tail:
            return None
        since_ms, first = self._columns.since_ms, self._head & (self._room - 1)
        last = first + self._tail - self._head
        oldest_ms = int(since_ms[first:last].min())
        if last > self._room:
            oldest_ms = min(oldest_ms, int(since_ms[: last - self._room].min()))
        return oldest_ms

    @property
    def _room(self) -> int:
        return len(self._columns.slots)

    def merge(self, blocks: Sequence[Posted]) -> None:
        """Take the values of blocks, which come in the order of their versions."""
        told = [posted for posted in blocks if len(posted.block)]
        if told:
            self._merge_rows(told)
        for block, _ in blocks[:-1]:
            if block.ended_pass:
                self._mark(Mark(self._tail, block.version, block.ended_pass))
        last = blocks[-1].block
        self._mark(Mark(self._tail, last.version, last.ended_pass))

    def _merge_rows(self, told: Sequence[Posted]) -> None:
        lengths = [len(block) for block, _ in told]
        all_slots = np.concatenate([block.slots for block, _ in told])
        slots, first, newest = _first_and_last(all_slots)
        highest = int(slots.max())
        if highest >= len(self._place):
            grown = np.full(max(highest + 1, 2 * len(self._place)), -1, np.int64)
            grown[: len(self._place)] = self._place
            self._place = grown
        new = self._place[slots] < self._head
        count = int(np.count_nonzero(new))
        self._see_to_room(self._tail - self._head + count)
        self._place[slots[new]] = np.arange(self._tail, self._tail + count)
        self._tail += count
        rows = self._place[slots] & (self._room - 1)
        columns = self._columns
        columns.places[rows] = self._place[slots]
        columns.slots[rows] = slots
        for name in ("aggregates", "event_time_ms", "as_of_ms"):
            values = np.concatenate([getattr(block, name) for block, _ in told])
            getattr(columns, name)[rows] = values[newest]
        versions = np.repeat([block.version for block, _ in told], lengths)
        columns.version[rows] = versions[newest]
        since_ms = np.repeat([since_ms for _, since_ms in told], lengths)
        columns.since_ms[rows[new]] = since_ms[first][new]

    def take(self, count: int) -> Round:
        """Take up to ``count`` keys out, those that waited longest."""
        places = np.arange(self._head, min(self._head + count, self._tail))
        self._head += len(places)
        taken = Round(*(column[places & (self._room - 1)] for column in self._columns))
        if self._head == self._tail and self._room > _KEPT_ROWS:
            # An outage is over.
            self._columns = _columns(_FIRST_ROWS, self._columns.aggregates.shape[1])
        return self.still(taken)

    def still(self, taken: Round) -> Round:
        """Return what of a round is still the newest that there is to write.

        What is not waits in the queue again: since when the round's did.
        """
        places = self._place[taken.slots]
        newest = places == taken.places
        if newest.all():
            return taken
        again = ~newest & (places >= self._head)
        rows, since_ms = places[again] & (self._room - 1), self._columns.since_ms
        since_ms[rows] = np.minimum(since_ms[rows], taken.since_ms[again])
        return taken.only(newest)

    def forget(self, slots: np.ndarray) -> None:
        """Write nothing of keys that was told up to now."""
        self._place[slots[slots < len(self._place)]] = -1

    def reached(self) -> list[Mark]:
        """Take out the marks that hold, given that all that was taken is written."""
        marks = []
        while self._marks and self._marks[0].place <= self._head:
            marks.append(self._marks.popleft())
        return marks

    def _mark(self, mark: Mark) -> None:
        last = self._marks[-1] if self._marks else None
        # A later place says less, never too much; the end of a pass is kept as it is.
        if (
            last is not None
            and not last.ended_pass
            and (last.place == mark.place or len(self._marks) >= _MARKS_MAX)
        ):
            self._marks.pop()
        self._marks.append(mark)

    def _see_to_room(self, count: int) -> None:
        if count <= self._room:
            return
        room = self._room
        while room < count:
            room *= 2
        places = np.arange(self._head, self._tail)
        grown = _columns(room, self._columns.aggregates.shape[1])
        for old, new in zip(self._columns, grown, strict=True):
            new[places & (room - 1)] = old[places & (self._room - 1)]
        self._columns = grown


def _first_and_last(slots: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct slots in the order in which they come, and where each is first and last.

    Examples:
        >>> [found.tolist() for found in _first_and_last(np.array([7, 5, 7, 9]))]
        [[7, 5, 9], [0, 1, 3], [2, 1, 3]]

    """
    distinct, first, inverse = np.unique(slots, return_index=True, return_inverse=True)
    last = np.zeros(len(distinct), np.int64)
    np.maximum.at(last, inverse, np.arange(len(slots)))
    order = np.argsort(first)
    return distinct[order], first[order], last[order]


def _columns(room: int, aggregate_count: int) -> Round:
    longs = (np.zeros(room, np.int64) for _ in range(6))
    return Round(next(longs), next(longs), np.zeros((room, aggregate_count)), *longs)


@dataclass(slots=True)
class Backoff:
    """When to try again: 0.1 s after the first failure, then twice as long, 5 s at most."""

    first_ms: float = 100.0
    most_ms: float = 5_000.0
    wait_ms: float = 0.0
    until_ms: float = 0.0

    def failed(self, now_ms: float) -> None:
        """Wait, longer than the last time."""
        self.wait_ms = min(self.most_ms, max(self.first_ms, 2 * self.wait_ms))
        self.until_ms = now_ms + self.wait_ms

    def worked(self) -> None:
        """Wait no more."""
        self.wait_ms = self.until_ms = 0.0


def _with_room(array: np.ndarray, needed: int) -> np.ndarray:
    if needed <= len(array):
        return array
    grown = np.zeros(max(needed, 2 * len(array)), array.dtype)
    grown[: len(array)] = array
    return grown
