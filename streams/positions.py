"""Where a worker starts in each topic partition, and how far it has come. No thread of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from headrace.runtime.errors import explain
from headrace.runtime.logging import get_logger
from headrace.streams.commit import CommitNote, Position, load_note
from headrace.streams.commit import committed as offsets_of
from headrace.streams.errors import PositionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace.streams.clients import ConsumerClient
    from headrace.streams.preparing import Followed

log = get_logger(__name__)

Answer = TypeVar("Answer")

# What to do about committed offsets that do not fit the topic: stop and let a person decide,
# process and emit what the topic holds now, or take what it holds for emitted.
Mismatch = Literal["stop", "replay", "skip"]
BROKER_TIMEOUT_S = 15.0
# A broker that is away when partitions are given is waited for; other errors come at once.
ATTEMPTS = 10
CHOICES = (
    "start once with `headrace worker --on-mismatch replay` to process and emit everything that "
    "the topic holds now, or `--on-mismatch skip` to take it as emitted already"
)


# librdkafka spells its local codes with a leading underscore.
_NO_ANSWER = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
    }
)
# Answered at once, and otherwise before long: somebody is about to lead, or connections were cut
# and the client has yet to take new ones.
_NOT_YET = frozenset(
    {
        KafkaError._DESTROY_BROKER,
        KafkaError._WAIT_COORD,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    }
)
NOT_YET_WAIT_S = 1.0


@dataclass(slots=True)
class OwnedPartition:
    """One assigned topic partition.

    Offsets: below ``emit_from`` rows are replayed in silence; ``next_offset`` is the next one to
    hand over, ``done_offset`` the next one whose outputs are not sent yet, ``committed_offset``
    what the group knows. ``end_told`` says that the processor knows it has seen all there is.
    ``version`` counts the transactions that have committed the partition. ``checkpoint`` names its
    newest one, ``origin`` is the first offset that the group ever read.

    ``partitions`` is how many the topic has. ``sends_to`` are the re-key topics that its rows go
    on into; ``unsent`` those of them that lack the rows below ``emit_from``, since other
    definitions were at work then. ``held`` counts the rows that its stage holds back.
    ``refilled``: what the log no longer holds came from the lake.
    ``stop_offset`` is where reading ends; None: nowhere. ``is_fresh``: the group has committed
    nothing of it yet.
    """

    topic: str
    partition: int
    epoch: int
    topic_id: str
    emit_from: int
    committed_offset: int
    next_offset: int = 0
    done_offset: int = 0
    high_offset: int = 0
    end_told: bool = False
    newest_arrival_ms: int | None = None
    version: int = 0
    checkpoint: str = ""
    origin: int = 0
    partitions: int = 0
    sends_to: frozenset[str] = frozenset()
    unsent: frozenset[str] = frozenset()
    held: int = 0
    stop_offset: int | None = None
    is_fresh: bool = False
    refilled: bool = False

    @property
    def replay_rows(self) -> int:
        """Count the offsets still to be replayed in silence."""
        return max(0, self.emit_from - self.done_offset)

    @property
    def lag_rows(self) -> int:
        """Count the offsets between what is done and the end of the partition."""
        return max(0, self.high_offset - self.done_offset)

    @property
    def lacks_history(self) -> bool:
        """Whether the group once read what neither log nor checkpoint nor lake has given back."""
        kept = self.checkpoint or self.refilled
        return bool(self.emit_from and not kept and self.next_offset > self.origin)

    def position(self, *, again: bool = False) -> Position | None:
        """Return what there is to commit, None when the group knows all of it.

        ``again``: even then, since what was sent for the partition must go with its offset.
        """
        known = self.done_offset <= self.committed_offset and not again and not self.unsent
        if known or self.done_offset < self.emit_from:
            return None
        return Position(
            self.topic,
            self.partition,
            self.done_offset,
            self.topic_id,
            self.version + 1,
            self.checkpoint,
            self.origin,
            self.partitions,
            names(self.sends_to),
            self.held,
        )

    def committed(self, position: Position) -> None:
        """Take note that the group knows ``position``."""
        self.committed_offset = position.offset
        self.version = position.version
        self.unsent = frozenset()

    def rewind(self, offset: int) -> None:
        """Be at ``offset`` again: what came after it was undone."""
        self.next_offset = self.done_offset = offset
        self.end_told = False


def own(
    consumer: ConsumerClient,
    partitions: list[TopicPartition],
    topic_ids: Mapping[str, str],
    epoch: int,
    mismatch: Mismatch,
    feeds: Mapping[str, frozenset[str]],
    partition_counts: Mapping[str, int],
    sleep: Callable[[float], None],
    followed: Followed | None = None,
) -> list[OwnedPartition]:
    """Return the start of each newly assigned partition: offset 0, silent up to what is committed.

    Without checkpoints the state is rebuilt from the beginning of the log. Who follows other
    workers reads up to what they have committed.

    Raises:
        PositionError: If a committed offset belongs to another topic of the same name, or lies
            outside of what the topic holds; or if there are more partitions than there were.
        KafkaException: If the broker refuses, or does not answer however often it is asked.

    """
    owned = []
    known = patiently(lambda: offsets_of(consumer, partitions, BROKER_TIMEOUT_S), sleep)
    for committed in known if followed is None else map(followed.position, known):
        marks = _marks(consumer, committed, sleep)
        assert marks is not None, "only a cached answer may be missing"
        low, high = marks
        topic_id = topic_ids[committed.topic]
        count = partition_counts.get(committed.topic, 0)
        if count and committed.partition >= count:
            raise PositionError(moved_keys(committed.topic, count, committed.partition + 1))
        offset = max(committed.offset, 0)
        note = load_note(committed.metadata)
        fault = _fault(committed, low, high, topic_id)
        if fault is not None:
            if mismatch == "stop":
                raise PositionError(fault)
            offset = low if mismatch == "replay" else high
        sends_to = feeds.get(committed.topic, frozenset())
        sent = frozenset() if note is None else frozenset(note.sent.split())
        owned.append(
            OwnedPartition(
                topic=committed.topic,
                partition=committed.partition,
                epoch=epoch,
                topic_id=topic_id,
                emit_from=offset,
                committed_offset=-1 if fault is not None else offset,
                next_offset=low,
                done_offset=low,
                high_offset=high,
                version=0 if note is None else note.version,
                origin=low if note is None or fault is not None else note.origin,
                partitions=count,
                sends_to=sends_to,
                held=0 if note is None else note.held,
                is_fresh=committed.offset < 0,
                unsent=frozenset() if fault is not None or not offset else sends_to - sent,
            )
        )
    return owned


def _marks(
    consumer: ConsumerClient, partition: TopicPartition, sleep: Callable[[float], None]
) -> tuple[int, int] | None:
    return patiently(
        lambda: consumer.get_watermark_offsets(partition, timeout=BROKER_TIMEOUT_S), sleep
    )


def patiently(
    ask: Callable[[], Answer], sleep: Callable[[float], None], attempts: int = ATTEMPTS
) -> Answer:
    """Return a broker's answer; ask again where it may yet give one.

    Within a rebalance there is nobody to come back to: partitions that are given and not begun
    would be read by nobody.
    """
    left = attempts
    while True:
        try:
            return ask()
        except KafkaException as error:
            left -= 1
            reason = error.args[0]
            not_yet = reason.code() in _NOT_YET
            if not left or not (not_yet or reason.retriable() or reason.code() in _NO_ANSWER):
                raise
            log.warning("waiting_for_positions", error=reason.str())
            if not_yet:
                sleep(NOT_YET_WAIT_S)


def refuse_lost_history(owned: OwnedPartition, mismatch: Mismatch) -> None:
    """See to it that a state without its beginning is nobody's surprise.

    Raises:
        PositionError: If the log no longer holds what the group once read, and nothing else does.

    """
    if not owned.lacks_history:
        return
    where = f"{owned.topic}[{owned.partition}]"
    if mismatch != "stop":
        log.warning("history_is_missing", place=where, start=owned.next_offset)
        owned.origin = owned.next_offset
        if mismatch == "replay":
            owned.emit_from, owned.committed_offset = owned.next_offset, -1
        return
    rule = f"begin at offset {owned.origin}, where the group first read, or at a checkpoint"
    got = f"a log from offset {owned.next_offset} on, committed up to {owned.emit_from}"
    hint = (
        "put the checkpoint folder back, or start once with `headrace worker --on-mismatch skip`"
        " (goes on at the committed offset) or `replay` (emits all again): the history before"
        " is missing then. Definitions that have changed need all of the history: go back to the"
        " former ones, or name a new topic that holds it"
    )
    raise PositionError(explain("the state", rule, got, where, hint))


def claim(consumer: ConsumerClient, owned: list[OwnedPartition], writer: str) -> None:
    """Commit where partitions stand, so that whoever owns them next knows whom to fence.

    A claim that fails is made by the first transaction.
    """
    offsets = [
        TopicPartition(
            one.topic,
            one.partition,
            max(one.emit_from, one.next_offset),
            metadata=CommitNote(
                one.topic_id,
                one.version,
                writer,
                one.checkpoint,
                one.origin,
                one.partitions,
                names(one.sends_to - one.unsent),
                one.held,
            ).dump(),
        )
        for one in owned
    ]
    try:
        consumer.commit(offsets=offsets, asynchronous=False)
    except KafkaException as error:
        log.info("partitions_not_claimed", reason=error.args[0].str())


def moved_keys(topic: str, before: int, now: int) -> str:
    """Return what to tell of a source that got more partitions."""
    rule = f"keep the {before} partitions that its keys were spread over"
    hint = (
        f"either keep the number: copy it to a topic with {before} partitions and name that with "
        "topic=; or start a new version: give the pipeline another name, and the source no "
        "partitioner, so that headrace spreads its keys and replays all of it; see "
        "docs/changing-definitions.md"
    )
    return explain("a source's topic", rule, now, topic, hint)


def names(topics: frozenset[str]) -> str:
    """Return topics as a commit note holds them."""
    return " ".join(sorted(topics))


def _fault(committed: TopicPartition, low: int, high: int, topic_id: str) -> str | None:
    """Say what is wrong with a committed offset; None where there is none, or nothing is wrong."""
    if committed.offset < 0:
        return None
    where = f"{committed.topic}[{committed.partition}]"
    note = load_note(committed.metadata)
    if note is not None and note.topic_id != topic_id:
        rule = f"belong to the topic as it is now (id {topic_id})"
        got: object = f"offset {committed.offset} of topic id {note.topic_id}"
        return explain("the committed offset", rule, got, where, f"recreated topic; {CHOICES}")
    if committed.offset > high:
        rule = f"be at most the end of the partition ({high})"
        return explain("the committed offset", rule, committed.offset, where, CHOICES)
    if committed.offset < low:
        rule = f"be at least the oldest offset that is retained ({low})"
        return explain("the committed offset", rule, committed.offset, where, CHOICES)
    return None
