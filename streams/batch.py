"""What flows between the source thread and the processors: batches in, outputs out. Plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from headrace.features.capture import SLICE_WORDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pyarrow as pa

    from headrace.features.capture import SlotRecords


@dataclass(slots=True)
class EventBatch:
    """Consecutive messages of one topic partition, in log order.

    Rows with an offset below ``emit_from`` are replayed in silence: they change state, nothing of
    them is emitted. ``at_end`` says that the partition held no later message when this was read;
    a batch of no rows with ``at_end`` reports exactly that. With ``alive`` it was reported before,
    and is said once more to those who wait for it, in messages that carry this mark. ``unsent``
    names the re-key topics that lack the rows below ``emit_from``, which another plan has emitted:
    they are sent there, as silent ones.
    """

    topic: str
    partition: int
    epoch: int
    offsets: np.ndarray
    arrival_time_ms: np.ndarray
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[list[tuple[str, bytes]] | None]
    emit_from: int
    at_end: bool
    alive: bytes | None = None
    unsent: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.values)


@dataclass(slots=True)
class BulkOutput:
    """Many small messages of one topic: ``{"value", "key", "partition"}``, no headers."""

    topic: str
    messages: list[dict[str, object]]


@dataclass(slots=True)
class SingleOutput:
    """One message with headers: re-keyed batches, DLQ and late records."""

    topic: str
    value: bytes | None
    key: bytes | None
    partition: int | None
    headers: list[tuple[str, bytes]]
    timestamp_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """A wish to look at the keys of one topic partition, worked on between two batches.

    ``clock_ms`` is the partition's clock: keys whose values are others by then are told as of it;
    None: no key is. With a ``pass_number`` above 0 all keys are gone over, from the first one on,
    and those told that changed after version ``since``; 0: what is under way goes on.
    """

    topic: str
    partition: int
    epoch: int
    clock_ms: int | None = None
    pass_number: int = 0
    since: int = 0


@dataclass(frozen=True, slots=True)
class Forget:
    """A wish that the state of one topic partition forgets a key, between two batches.

    Rows of the partition's log before ``position`` are worked on already. ``key`` holds the one
    key, in the type that the stage keeps; from now on rows of it that lie below ``bounds`` (by
    source, int64 by partition of the source) count for nothing. ``request`` names the erasure.
    """

    topic: str
    partition: int
    epoch: int
    request: str
    position: int
    key: pa.Array
    bounds: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Keep:
    """A wish for a slice of a checkpoint of one topic partition, between two batches.

    One that ``opens`` begins capture ``number``, of the state at ``position``: of all keys
    (``whole``) or those changed since the last one. ``lost``: that one came to nothing.
    """

    topic: str
    partition: int
    epoch: int
    number: int
    position: int
    opens: bool = False
    whole: bool = False
    lost: bool = False
    words_max: int = SLICE_WORDS


@dataclass(frozen=True, slots=True)
class Kept:
    """A slice of capture ``number``: slots, and when it opened the small parts and all keys' count.

    ``cancelled``: what it began with was undone, and nothing more will come.
    """

    number: int
    records: list[SlotRecords] = field(default_factory=list)
    parts: dict[str, Any] | None = None
    key_count: int = 0
    ended: bool = False
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class OnlineBlock:
    """What some keys of a stage's partition look like, for the online store.

    ``slots`` int64[n] number the keys, ``aggregates`` is float64[n, a], ``event_time_ms`` int64[n]
    the keys' newest events, ``as_of_ms`` int64[n] the time that the aggregates are of. ``version``
    is the next offset of the stage's input: all changes by offsets below are in this block or in
    ones before it. ``keys`` are those of the slots from ``first_key`` on, told here first.

    Of a pass over ``total`` keys ``left`` are still to come; ``ended_pass`` is its number in its
    last block, 0 in all others. ``more``: another look would tell more at once.
    """

    version: int
    slots: np.ndarray
    aggregates: np.ndarray
    event_time_ms: np.ndarray
    as_of_ms: np.ndarray
    first_key: int
    keys: pa.Array
    total: int = 0
    left: int = 0
    ended_pass: int = 0
    more: bool = False

    def __len__(self) -> int:
        return len(self.slots)


@dataclass(slots=True)
class Outputs:
    """All that one batch causes, to be sent before its offset is committed.

    ``online`` may go to the online store once the batch's offset is committed. ``forgotten`` holds
    the slot of a key that was forgotten, if there was one. ``kept`` is a checkpoint's slice.

    ``rejected`` counts rows by DLQ reason; ``duplicates`` by source those whose id had come before;
    ``out_of_window`` those that count although it had, or could not be looked up.
    ``scored_arrival_time_ms`` holds the broker's timestamps of the scored events (for the
    end-to-end latency), None when nothing was scored. ``held`` counts the rows that a re-keyed
    stage holds back after the batch; ``waits_for_ms`` is how far the slowest lane has come that it
    waits for. ``stage_seconds`` is what the processor took; its caller sets it, since it reads no
    clock.
    """

    bulk: list[BulkOutput] = field(default_factory=list)
    single: list[SingleOutput] = field(default_factory=list)
    events: int = 0
    scored: int = 0
    late: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)
    out_of_window: Counter[str] = field(default_factory=Counter)
    scored_arrival_time_ms: np.ndarray | None = None
    event_time_ms_max: int | None = None
    online: list[OnlineBlock] = field(default_factory=list)
    forgotten: np.ndarray | None = None
    held: int = 0
    waits_for_ms: int | None = None
    kept: Kept | None = None
    stage_seconds: float = 0.0


class Undoable(Protocol):
    """What can go back to where it was."""

    def begin(self) -> None:
        """Remember the state, for ``abort``."""
        ...

    def commit(self) -> None:
        """Forget what ``begin`` remembered."""
        ...

    def abort(self) -> None:
        """Go back to the state at ``begin``."""
        ...


class Viewer(Protocol):
    """A processor whose keys are served online; called by the thread that calls ``process``."""

    def look(self, look: Look) -> Outputs:
        """Return a bounded number of keys as blocks."""
        ...


class Forgetter(Protocol):
    """A processor that keeps keys; called by the thread that calls ``process``."""

    def forget(self, forget: Forget) -> Outputs:
        """Drop what is kept of a key."""
        ...


class Processor(Protocol):
    """The owner of one topic partition's state; called by one thread at a time, in log order."""

    def process(self, batch: EventBatch) -> Outputs:
        """Apply the batch to the state and return what it causes."""
        ...
