"""What the source is told: its options, the consumer's properties, and who watches it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from headrace.streams.transaction import TransactionWatcher

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.streams.batch import EventBatch, Outputs
    from headrace.streams.positions import Mismatch, OwnedPartition
    from headrace.streams.preparing import Followed

# How long the broker may hold back an answer of few bytes. A hand-over costs half a millisecond
# for each partition however few its rows are, and requests to the broker: company is cheaper.
FETCH_WAIT_MS = 4
# Of the time after which the group takes a worker that does not poll for dead, so much may a revoke
# take: who waits for the partitions waits no longer, and the rest is there for what went before.
REVOKE_SHARE = 0.2
POLL_INTERVAL_MS = 300_000


@dataclass(frozen=True, slots=True)
class Route:
    """Which agent serves a topic's batches, and how far downstream the topic is."""

    kind: str
    rank: int


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How the source runs.

    Of what is read at once, the batches of topics of higher rank go first: downstream before
    upstream. ``producer`` and ``consumer`` are librdkafka's properties. ``worker`` names this one
    worker of the group where outputs and offsets are to be one transaction (exactly-once), and is
    its transactional id and group instance id. ``feeds``: by topic, the re-key topics that its rows
    go on into. ``partition_counts``: how many partitions each topic had when the worker started.
    With ``drained`` the source reads the pipeline's sources up to where they end at first, then
    what that causes to its end; when all of it is committed it tells ``drained`` and ends. With
    ``followed`` the end is where other workers were, nothing is scored, and the state is kept.
    """

    group: str
    routes: Mapping[str, Route]
    topic_ids: Mapping[str, str]
    consumer: Mapping[str, Any]
    producer: Mapping[str, Any]
    commit_interval_ms: int
    batch_budget_ms: int
    batch_rows_max: int
    linger_ms: float = 0.0
    mismatch: Mismatch = "stop"
    worker: str | None = None
    feeds: Mapping[str, frozenset[str]] = field(default_factory=dict)
    partition_counts: Mapping[str, int] = field(default_factory=dict)
    drained: Callable[[], None] | None = None
    followed: Followed | None = None


class SourceWatcher(TransactionWatcher, Protocol):
    """Who is told what the source does: metrics, health, the line that says ready."""

    def assigned(self, owned: Sequence[OwnedPartition]) -> None:
        """All partitions owned now, after a change."""
        ...

    def sent(self, batch: EventBatch, outputs: Outputs) -> None:
        """The outputs of a batch were handed to the producer."""
        ...

    def ticked(self, owned: Sequence[OwnedPartition]) -> None:
        """About once a second."""
        ...

    def caught_up(self) -> None:
        """Every owned partition is replayed up to its committed offset."""
        ...


def consumer_properties(options: SourceOptions) -> dict[str, Any]:
    """Return librdkafka's properties of the consumer; what the user sets wins where it is safe."""
    return {
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": 6_000,
        "heartbeat.interval.ms": 1_500,
        "queued.min.messages": 50_000,
        # Records that compress well come out of one fetch many times as large.
        "queued.max.messages.kbytes": 32 * 1024,
        "max.partition.fetch.bytes": 256 * 1024,
        # Few rows wait for company at the broker, which also answers fewer fetches for it.
        "fetch.min.bytes": 64 * 1024,
        "fetch.wait.max.ms": FETCH_WAIT_MS,
        # librdkafka's default of 1 s would let a full queue run dry.
        "fetch.queue.backoff.ms": 2,
        "isolation.level": "read_committed",
        **options.consumer,
        # Static membership: a worker that starts again takes its partitions back at once.
        **({} if options.worker is None else {"group.instance.id": options.worker}),
        "group.id": options.group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "enable.partition.eof": True,
    }


def revoke_budget_s(options: SourceOptions) -> float:
    """Return how long a revoke may drain and commit, seconds."""
    interval_ms = options.consumer.get("max.poll.interval.ms", POLL_INTERVAL_MS)
    return REVOKE_SHARE * float(interval_ms) / 1000
