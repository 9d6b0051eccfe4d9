"""In which order the events of several files are published, and when. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(slots=True)
class Chunk:
    """Consecutive events of one source, ready to be produced.

    Shape: ``time_ms`` int64[n], non-decreasing over all chunks of a source: when each is due.
    """

    topic: str
    time_ms: np.ndarray
    messages: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.messages)

    def part(self, first: int, last: int) -> Chunk:
        """Return the events from ``first`` to before ``last``."""
        return Chunk(self.topic, self.time_ms[first:last], self.messages[first:last])


def due_times(time_ms: np.ndarray, newest_ms: int) -> np.ndarray:
    """Return times that never step back, from ``newest_ms`` on: the order of the rows is kept.

    Examples:
        >>> due_times(np.array([5, 3, 9]), 4).tolist()
        [5, 5, 9]

    """
    return np.maximum(np.maximum.accumulate(time_ms), newest_ms)


class _Lane:
    """One source's chunks, with the place of the next event; an empty chunk is never current."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = iter(chunks)
        self._chunk: Chunk | None = None
        self._at = 0
        self._advance()

    @property
    def head_ms(self) -> int | None:
        """When the next event is due, None at the end."""
        return None if self._chunk is None else int(self._chunk.time_ms[self._at])

    def take_until(self, limit_ms: int | None, *, inclusive: bool) -> Chunk:
        """Return the events of the current chunk that are due before (or at) ``limit_ms``."""
        chunk = self._chunk
        assert chunk is not None
        last = len(chunk)
        if limit_ms is not None:
            after = limit_ms + 1 if inclusive else limit_ms
            last = int(np.searchsorted(chunk.time_ms, after))
        taken = chunk.part(self._at, last)
        self._at = last
        if last == len(chunk):
            self._advance()
        return taken

    def _advance(self) -> None:
        self._at = 0
        self._chunk = next((chunk for chunk in self._chunks if len(chunk)), None)


def merge(lanes: list[Iterable[Chunk]]) -> Iterator[Chunk]:
    """Yield the events of all lanes by due time; at equal time the earlier lane of the list first.

    Each lane's own order is kept; chunks are read only when their turn comes.
    """
    heads = [_Lane(chunks) for chunks in lanes]
    while True:
        waiting = [(h.head_ms, rank) for rank, h in enumerate(heads) if h.head_ms is not None]
        if not waiting:
            return
        (_, rank), *others = sorted(waiting)
        limit_ms, other = others[0] if others else (None, rank)
        yield heads[rank].take_until(limit_ms, inclusive=rank < other)


@dataclass(slots=True)
class Pace:
    """When the next event may go: by a rate, by the events' own time, or at once.

    ``rate`` is events per wall second, ``speedup`` event time per wall time; both may be given, and
    the later moment holds.
    """

    rate: float | None = None
    speedup: float | None = None
    _sent: int = 0
    _first_ms: int | None = None

    def allowed(self, time_ms: np.ndarray, elapsed_s: float) -> int:
        """Count the first events of ``time_ms`` that may go ``elapsed_s`` after the start."""
        count = len(time_ms)
        if self._first_ms is None and count:
            self._first_ms = int(time_ms[0])
        if self.rate is not None:
            count = min(count, max(0, int(self.rate * elapsed_s) + 1 - self._sent))
        if self.speedup is not None and self._first_ms is not None:
            reached_ms = self._first_ms + int(elapsed_s * 1000 * self.speedup)
            count = min(count, int(np.searchsorted(time_ms, reached_ms, side="right")))
        return count

    def went(self, count: int) -> None:
        """Take note of ``count`` events sent."""
        self._sent += count
