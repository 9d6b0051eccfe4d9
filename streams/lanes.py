"""What a re-keyed stage knows of the lanes that feed it: high-water, watermark, rows held back.

A lane is one sender: an input of the stage and the partition of the sender's own input log. All
here is a function of the prefix of the stage's log: no clock, no randomness, so that a replay
holds back and releases the same rows at the same messages.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headrace.runtime.errors import explain
from headrace.streams.errors import LaneError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    import pyarrow as pa

LANE_HEADER = "headrace.lane"
ALIVE_HEADER = "headrace.alive"
"""Marks a message that only says which lanes are still at their end; see ``streams.flow``."""
TRUST_MS = 3_000
"""For how long of the broker's time a lane's word that it is at its end is taken."""
NEVER = -(1 << 62)
"""Watermark of a lane that no message has told of: it blocks every row."""
RESUMED = -1
"""``LaneNote.previous`` of a sender's first message after a start: all before it was delivered."""


class Lane(NamedTuple):
    """Index of the input in the receiving stage, and the partition of the sender's input log."""

    input: int
    partition: int


@dataclass(frozen=True, slots=True)
class LaneNote:
    """What a re-keyed message tells of its lane, beside its rows.

    The message holds every row for its receiver of the lane's positions in (``previous``,
    ``last``]. A position is the source's offset, or the count of rows that a re-keyed sender has
    sent on. ``watermark_ms`` is the largest time the sender has seen; ``at_end`` says that its
    log held nothing more, so that nobody need wait for it.
    """

    fingerprint: str
    source: str
    lane: Lane
    previous: int
    last: int
    watermark_ms: int
    at_end: bool

    def header(self) -> tuple[str, bytes]:
        """Return the Kafka header that carries the note, as text that an operator can read."""
        text = (
            f"{self.fingerprint} {self.source} {self.lane.input} {self.lane.partition}"
            f" {self.previous} {self.last} {self.watermark_ms} {int(self.at_end)}"
        )
        return LANE_HEADER, text.encode()

    @classmethod
    def parse(cls, text: bytes) -> LaneNote:
        """Read what ``header`` has written."""
        parts = text.decode().split(" ")
        fingerprint, source = parts[0], parts[1]
        lane_input, partition, previous, last, watermark_ms, at_end = map(int, parts[2:])
        lane = Lane(lane_input, partition)
        return cls(fingerprint, source, lane, previous, last, watermark_ms, bool(at_end))

    @classmethod
    def from_headers(cls, headers: Iterable[tuple[str, bytes]] | None, where: str) -> LaneNote:
        """Read the note of a message that has one; else as ``all_from_headers``."""
        return cls.all_from_headers(headers, where)[0]

    @classmethod
    def all_from_headers(
        cls, headers: Iterable[tuple[str, bytes]] | None, where: str
    ) -> list[LaneNote]:
        """Read the notes of a message: one, if it has rows; ``where`` names it in the error.

        Raises:
            LaneError: If the message carries none: something else writes to an internal topic.

        """
        notes = [cls.parse(value) for name, value in headers or () if name == LANE_HEADER]
        if notes:
            return notes
        raise LaneError(
            explain(
                "a re-keyed message",
                f"carry the header {LANE_HEADER}",
                [name for name, _ in headers or ()],
                where,
                "only headrace workers may write to this topic",
            )
        )


class Released(NamedTuple):
    """Consecutive rows of one lane that were let through together, in (time, position) order."""

    lane: Lane
    rows: pa.RecordBatch
    event_time_ms: np.ndarray


class _Held(NamedTuple):
    """Rows of one message not yet let through, oldest first; ordered by their first row's time."""

    first_ms: int
    sequence: int
    lane: Lane
    rows: pa.RecordBatch
    event_time_ms: np.ndarray


class LaneTable:
    """The lanes of one stage partition.

    A row of time t passes when every lane that is not at its end has a watermark of at least
    t - ``alignment_ms``; of a lane that only updates, one beyond t. A lane that nobody has told of
    blocks, and one that was at its end but has not said so for ``TRUST_MS`` of the log's own time:
    whoever read it may be gone, with rows there that nobody has read.
    """

    def __init__(
        self,
        lanes: Iterable[Lane],
        ranks: dict[Lane, int],
        alignment_ms: int,
        updates: Collection[Lane] = (),
    ) -> None:
        """Take the lanes that the plan knows of, and their rank among rows of equal time.

        ``updates`` are those whose rows are not scored but count in what others get.
        """
        self._ranks = ranks
        self._alignment_ms = alignment_ms
        self._updates = frozenset(updates)
        self._high_water = dict.fromkeys(lanes, -1)
        self._watermark_ms = dict.fromkeys(self._high_water, NEVER)
        self._open = set(self._high_water)
        self._log_time_ms = NEVER
        # When lanes that are at their end last said so; no earlier than ``_oldest_ms``.
        self._ended_ms: dict[Lane, int] = {}
        self._oldest_ms = -NEVER
        self._held: list[_Held] = []
        self._held_count = 0
        self._sequence = 0
        self._limit_ms = self._compute_limit()
        self._saved: tuple[object, ...] | None = None
        self.dropped_messages = 0

    @property
    def all_at_end(self) -> bool:
        """Whether every lane is at its end: then nothing is held back."""
        return not self._open

    @property
    def watermark_ms(self) -> int:
        """The smallest watermark of the lanes still open; ``NEVER`` when there is none."""
        return min((self._watermark_ms[lane] for lane in self._open), default=NEVER)

    def input_time_ms(self, input_index: int) -> int:
        """Return how far an input has come: its slowest open lane, the newest if all are ended."""
        lanes = [lane for lane in self._high_water if lane.input == input_index]
        still_open = [self._watermark_ms[lane] for lane in lanes if lane in self._open]
        if still_open:
            return min(still_open)
        return max(self._watermark_ms[lane] for lane in lanes)

    @property
    def held_count(self) -> int:
        """How many rows are held back."""
        return self._held_count

    def knows(self, lane: Lane) -> bool:
        """Whether the plan has this lane."""
        return lane in self._high_water

    def high_water(self, lane: Lane) -> int:
        """Return the last position of the lane that this stage has taken in, -1 for none."""
        return self._high_water[lane]

    def pass_time(self, broker_time_ms: int) -> bool:
        """Take note of the log's time at the next message; return whether a lane opens by it."""
        self._log_time_ms = max(self._log_time_ms, broker_time_ms)
        if self._log_time_ms - self._oldest_ms <= TRUST_MS:
            return False
        bound_ms = self._log_time_ms - TRUST_MS
        silent = [lane for lane, ended_ms in self._ended_ms.items() if ended_ms < bound_ms]
        for lane in silent:
            del self._ended_ms[lane]
        self._oldest_ms = min(self._ended_ms.values(), default=-NEVER)
        self._open.update(silent)
        self._limit_ms = self._compute_limit()
        return bool(silent)

    def accept(self, note: LaneNote) -> bool:
        """Note what a message tells; return whether its rows beyond the high-water may count.

        A message that does not continue what was taken in so far is as if it had never come: one
        before it was lost on the way, so its sender has committed neither and will send both again.
        """
        lane = note.lane
        if note.previous > self._high_water[lane]:
            self.dropped_messages += 1
            return False
        fresh = note.last > self._high_water[lane]
        if fresh:
            self._high_water[lane] = note.last
        self._watermark_ms[lane] = max(self._watermark_ms[lane], note.watermark_ms)
        if not note.at_end:
            self._open.add(lane)
            self._ended_ms.pop(lane, None)
        elif note.last == self._high_water[lane]:
            # Else it is old: more was sent after it, by whoever reads the lane now.
            self._open.discard(lane)
            self._ended_ms[lane] = self._log_time_ms
            self._oldest_ms = min(self._oldest_ms, self._log_time_ms)
        self._limit_ms = self._compute_limit()
        return fresh

    def hold(self, lane: Lane, rows: pa.RecordBatch, event_time_ms: np.ndarray) -> None:
        """Keep new rows of a lane, given in position order, until ``release`` lets them through."""
        if event_time_ms.size == 0:
            return
        if np.any(event_time_ms[1:] < event_time_ms[:-1]):
            order = np.argsort(event_time_ms, kind="stable")
            rows, event_time_ms = rows.take(order), event_time_ms[order]
        self._sequence += 1
        self._held_count += event_time_ms.size
        held = _Held(int(event_time_ms[0]), self._sequence, lane, rows, event_time_ms)
        heapq.heappush(self._held, held)

    def release(self) -> list[Released]:
        """Let the rows through that need not wait any more.

        Returns:
            Runs of rows, each in (event time, position) order, by (rank, partition, arrival): a
            stable sort of them all by event time gives the order of processing.

        """
        passed: list[_Held] = []
        while self._held and self._held[0].first_ms <= self._limit_ms:
            held = heapq.heappop(self._held)
            count = int(np.searchsorted(held.event_time_ms, self._limit_ms, side="right"))
            if count < held.event_time_ms.size:
                times = held.event_time_ms[count:]
                rest = held._replace(
                    first_ms=int(times[0]), rows=held.rows.slice(count), event_time_ms=times
                )
                heapq.heappush(self._held, rest)
                held = held._replace(
                    rows=held.rows.slice(0, count), event_time_ms=held.event_time_ms[:count]
                )
            passed.append(held)
        if len(passed) > 1:
            passed.sort(key=lambda held: (self._ranks[held.lane], held.lane, held.sequence))
        self._held_count -= sum(held.event_time_ms.size for held in passed)
        return [Released(held.lane, held.rows, held.event_time_ms) for held in passed]

    def begin(self) -> None:
        """Remember the state, for ``abort``."""
        self._saved = (
            dict(self._high_water),
            dict(self._watermark_ms),
            set(self._open),
            list(self._held),
            self._held_count,
            self._sequence,
            self.dropped_messages,
            self._log_time_ms,
            dict(self._ended_ms),
            self._oldest_ms,
        )

    def commit(self) -> None:
        """Forget what ``begin`` remembered."""
        self._saved = None

    def abort(self) -> None:
        """Go back to the state at ``begin``."""
        assert self._saved is not None
        (
            self._high_water,
            self._watermark_ms,
            self._open,
            self._held,
            self._held_count,
            self._sequence,
            self.dropped_messages,
            self._log_time_ms,
            self._ended_ms,
            self._oldest_ms,
        ) = self._saved  # type: ignore[assignment]
        self._saved = None
        self._limit_ms = self._compute_limit()

    def dump(self) -> dict[str, Any]:
        """Return the state, for a checkpoint."""
        lanes = list(self._high_water)
        return {
            "lanes": [list(lane) for lane in lanes],
            "high_water": [self._high_water[lane] for lane in lanes],
            "watermark_ms": [self._watermark_ms[lane] for lane in lanes],
            "open": [lane in self._open for lane in lanes],
            "ended_ms": [self._ended_ms.get(lane) for lane in lanes],
            "log_time_ms": self._log_time_ms,
            "sequence": self._sequence,
            "dropped_messages": self.dropped_messages,
            "held": [
                {
                    "lane": list(held.lane),
                    "sequence": held.sequence,
                    "rows": held.rows,
                    "event_time_ms": held.event_time_ms,
                }
                for held in self._held
            ],
        }

    def load(self, kept: dict[str, Any]) -> None:
        """Take over what ``dump`` returned of a table of the same lanes."""
        lanes = [Lane(*lane) for lane in kept["lanes"]]
        assert set(lanes) == set(self._high_water), lanes
        self._high_water = dict(zip(lanes, kept["high_water"], strict=True))
        self._watermark_ms = dict(zip(lanes, kept["watermark_ms"], strict=True))
        self._open = {lane for lane, is_open in zip(lanes, kept["open"], strict=True) if is_open}
        told = zip(lanes, kept["ended_ms"], strict=True)
        self._ended_ms = {lane: ended_ms for lane, ended_ms in told if ended_ms is not None}
        self._oldest_ms = min(self._ended_ms.values(), default=-NEVER)
        self._log_time_ms = kept["log_time_ms"]
        self._sequence = kept["sequence"]
        self.dropped_messages = kept["dropped_messages"]
        # In the order of the heap that they came from, so they are one.
        self._held = [
            _Held(
                int(held["event_time_ms"][0]),
                held["sequence"],
                Lane(*held["lane"]),
                held["rows"],
                held["event_time_ms"],
            )
            for held in kept["held"]
        ]
        self._held_count = sum(held.event_time_ms.size for held in self._held)
        self._limit_ms = self._compute_limit()

    def _compute_limit(self) -> int:
        if not self._open:
            return -NEVER
        return min(
            self._watermark_ms[lane] + (-1 if lane in self._updates else self._alignment_ms)
            for lane in self._open
        )
