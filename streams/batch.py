"""What flows between the source thread and the processors: batches in, outputs out. Plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(slots=True)
class EventBatch:
    """Consecutive messages of one topic partition, in log order.

    Rows with an offset below ``emit_from`` are replayed in silence: they change state, nothing of
    them is emitted. ``at_end`` says that the partition held no later message when this was read;
    a batch of no rows with ``at_end`` reports exactly that.
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


@dataclass(slots=True)
class Outputs:
    """All that one batch causes, to be sent before its offset is committed.

    ``rejected`` counts rows by DLQ reason; ``scored_arrival_time_ms`` holds the broker's timestamps
    of the scored events (for the end-to-end latency), None when nothing was scored.
    ``stage_seconds`` is what the processor took; its caller sets it, since it reads no clock.
    """

    bulk: list[BulkOutput] = field(default_factory=list)
    single: list[SingleOutput] = field(default_factory=list)
    events: int = 0
    scored: int = 0
    late: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    scored_arrival_time_ms: np.ndarray | None = None
    event_time_ms_max: int | None = None
    stage_seconds: float = 0.0


class Processor(Protocol):
    """The owner of one topic partition's state; called by one thread at a time, in log order."""

    def process(self, batch: EventBatch) -> Outputs:
        """Apply the batch to the state and return what it causes."""
        ...
