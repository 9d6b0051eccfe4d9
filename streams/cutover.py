"""Whether definitions may take over: former ones have finished, and keys lie where they lay.

Former definitions leave re-key topics that the new ones do not read. Below the offsets that the
group has committed of its sources nothing is scored again, so all of it must have been scored: the
topics that are left must be read to their end, with no row held back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition

from headrace.runtime import topics
from headrace.runtime.errors import KafkaUnavailableError, explain
from headrace.runtime.kafka import admin, partition_counts
from headrace.runtime.logging import get_logger
from headrace.streams.commit import load_note
from headrace.streams.errors import CutOverError, PositionError
from headrace.streams.flow import feeds_of
from headrace.streams.positions import moved_keys

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from headrace.features.plan import PipelinePlan
    from headrace.streams.commit import CommitNote

    Place = tuple[str, int]

log = get_logger(__name__)

ANSWER_S = 15.0
# A worker that was killed is a member of its group until its session ends.
MEMBERS_WAIT_S = 12.0
# Nothing tells when it has ended: the broker is asked again and again.
MEMBERS_LOOK_S = 0.5
READ_ROWS = 10_000
DRAIN_HINT = (
    "start `headrace worker --drain` once with the former definitions: it scores what is left, "
    "commits and ends. Who deletes the topics instead gives those rows up"
)


@dataclass(frozen=True, slots=True)
class Committed:
    """What the group has committed of a partition: the offset, and what it says of it."""

    offset: int
    note: CommitNote | None


@dataclass(frozen=True, slots=True)
class LeftTopic:
    """A re-key topic that the definitions do not read.

    ``unread`` counts the messages that nobody has processed, ``held`` the rows that were taken in
    and not scored, since they wait for others.
    """

    name: str
    unread: int
    held: int

    @property
    def is_finished(self) -> bool:
        """Whether every row of it is scored."""
        return not self.unread and not self.held


def left_topics(client: Mapping[str, Any], plan: PipelinePlan) -> list[LeftTopic]:
    """Return the pipeline's re-key topics that the plan does not read, by name.

    Raises:
        KafkaUnavailableError: If the broker does not answer.

    """
    return _looked_at(client, plan, _left(client, plan))


def _looked_at(
    client: Mapping[str, Any], plan: PipelinePlan, counts: Mapping[str, int]
) -> list[LeftTopic]:
    if not counts:
        return []
    known = _committed_of(client, plan, counts)
    sources = _committed_of(
        client, plan, partition_counts(admin(client), [source.topic for source in plan.sources])
    )
    sent = {name for one in sources.values() if one.note for name in one.note.sent.split()}
    # Nobody has worked with others: what lies in them was prepared, and is scored elsewhere.
    used = {name for (name, _), one in known.items() if one.offset >= 0} | sent
    unread = _unread(client, {at: one.offset for at, one in known.items() if at[0] in used})
    return [
        LeftTopic(
            name,
            sum(unread.get((name, partition), 0) for partition in range(count)),
            sum(_held(known[name, partition]) for partition in range(count)),
        )
        for name, count in sorted(counts.items())
    ]


def _committed_of(
    client: Mapping[str, Any], plan: PipelinePlan, counts: Mapping[str, int]
) -> dict[Place, Committed]:
    places = [(name, partition) for name, count in counts.items() for partition in range(count)]
    return committed(client, topics.group(plan.project, plan.name), places)


def _left(client: Mapping[str, Any], plan: PipelinePlan) -> dict[str, int]:
    try:
        found = admin(client).list_topics(timeout=ANSWER_S).topics
    except KafkaException as error:
        raise _unavailable(error) from error
    prefix, read = topics.rekey_prefix(plan.name), {stage.topic for stage in plan.stages}
    return {
        name: len(topic.partitions)
        for name, topic in found.items()
        if name.startswith(prefix) and name not in read
    }


def _held(one: Committed) -> int:
    return 0 if one.note is None else one.note.held


def committed(
    client: Mapping[str, Any], group: str, places: Iterable[Place]
) -> dict[Place, Committed]:
    """Return what a group has committed of partitions; offset -1 where it has not.

    Raises:
        KafkaUnavailableError: If the broker does not answer.

    """
    wanted = [TopicPartition(*place) for place in places]
    if not wanted:
        return {}
    # Held until the answer is there: a client that is collected answers nobody.
    connection = admin(client)
    try:
        asked = connection.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group, wanted)], request_timeout=ANSWER_S
        )
        found = asked[group].result(2 * ANSWER_S).topic_partitions
    except KafkaException as error:
        raise _unavailable(error) from error
    return {
        (one.topic, one.partition): Committed(max(one.offset, -1), load_note(one.metadata))
        for one in found
    }


def _unread(client: Mapping[str, Any], starts: Mapping[Place, int]) -> dict[Place, int]:
    """Count the messages from each offset on; the marks of transactions are none."""
    consumer = Consumer(
        {
            **client,
            "group.id": "headrace.cutover",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    counts = dict.fromkeys(starts, 0)
    try:
        consumer.assign([TopicPartition(*place, max(0, at)) for place, at in starts.items()])
        open_places, deadline_s = set(starts), time.monotonic() + ANSWER_S
        while open_places:
            messages = consumer.consume(READ_ROWS, 1.0)
            if not messages:
                if time.monotonic() > deadline_s:
                    hint = "see 'headrace status'"
                    text = explain("Kafka", "give what is left", sorted(open_places), "", hint)
                    raise KafkaUnavailableError(text)
                continue
            deadline_s = time.monotonic() + ANSWER_S
            for message in messages:
                place = str(message.topic()), int(message.partition() or 0)
                if message.error() is None:
                    counts[place] += 1
                else:
                    open_places.discard(place)
    except KafkaException as error:
        raise _unavailable(error) from error
    finally:
        consumer.close()
    return counts


@dataclass(frozen=True, slots=True)
class Outlook:
    """What it would mean to start a plan now.

    ``replayed`` counts the rows of the sources that the group has committed: they are read again in
    silence. ``dropped`` counts those of them that the logs no longer hold.
    """

    left: tuple[LeftTopic, ...]
    replayed: int
    dropped: int


def outlook(client: Mapping[str, Any], plan: PipelinePlan) -> Outlook:
    """Return what the broker says about a start of the plan.

    Raises:
        KafkaUnavailableError: If it does not answer.

    """
    sources = [source.topic for source in plan.sources]
    known = _committed_of(client, plan, partition_counts(admin(client), sources))
    lows = first_offsets(client, known)
    replayed = dropped = 0
    for place, one in known.items():
        if one.offset > 0:
            origin = 0 if one.note is None else one.note.origin
            replayed += max(0, one.offset - lows[place])
            dropped += max(0, lows[place] - origin)
    return Outlook(tuple(left_topics(client, plan)), replayed, dropped)


def first_offsets(client: Mapping[str, Any], places: Iterable[Place]) -> dict[Place, int]:
    """Return the oldest offset that each partition still holds.

    Raises:
        KafkaUnavailableError: If the broker does not answer.

    """
    consumer = Consumer({**client, "group.id": "headrace.cutover", "enable.auto.commit": False})
    try:
        return {
            place: consumer.get_watermark_offsets(TopicPartition(*place), timeout=ANSWER_S)[0]
            for place in places
        }
    except KafkaException as error:
        raise _unavailable(error) from error
    finally:
        consumer.close()


# --- What a worker sees to before it starts -------------------------------------------------------


def check_cut_over(client: Mapping[str, Any], plan: PipelinePlan) -> None:
    """See that the plan can take over from what ran before.

    Raises:
        CutOverError: If former definitions still run, or have left rows that are not scored.
        PositionError: If a source has another number of partitions than when it was read.
        KafkaUnavailableError: If the broker does not answer.

    """
    check_partition_counts(client, plan)
    group = topics.group(plan.project, plan.name)
    left = _left(client, plan)
    deadline_s = time.monotonic() + MEMBERS_WAIT_S
    while running := _members_reading(client, group, left):
        if time.monotonic() > deadline_s:
            rule = "have ended before other definitions take over"
            hint = "stop them first (SIGTERM), then start this one again"
            raise CutOverError(explain("workers of former definitions", rule, running, group, hint))
        log.info("waiting_for_former_workers", members=running)
        time.sleep(MEMBERS_LOOK_S)
    unfinished = [topic for topic in _looked_at(client, plan, left) if not topic.is_finished]
    if unfinished:
        got = ", ".join(
            f"{topic.name}: {topic.unread} messages unread, {topic.held} rows held back"
            for topic in unfinished
        )
        rule = "be finished before other definitions take over"
        raise CutOverError(
            explain("re-key topics of former definitions", rule, got, group, DRAIN_HINT)
        )


def _members_reading(client: Mapping[str, Any], group: str, names: Collection[str]) -> list[str]:
    """Return the members of a group that are assigned partitions of topics."""
    if not names:
        return []
    connection = admin(client)
    try:
        asked = connection.describe_consumer_groups([group], request_timeout=ANSWER_S)
        members = asked[group].result(2 * ANSWER_S).members
    except KafkaException as error:
        raise _unavailable(error) from error
    return sorted(
        str(member.group_instance_id or member.member_id)
        for member in members
        if member.assignment
        and any(one.topic in names for one in member.assignment.topic_partitions)
    )


def check_partition_counts(client: Mapping[str, Any], plan: PipelinePlan) -> None:
    """See that sources have as many partitions as when the group last committed.

    A source that no stage reads directly may have more for a plan that re-keys it into new topics.

    Raises:
        PositionError: Else: its keys would lie elsewhere than their state.

    """
    sources = [source.topic for source in plan.sources]
    counts = partition_counts(admin(client), sources)
    known = _committed_of(client, plan, counts)
    feeds = feeds_of(plan)
    direct = {stage.topic for stage in plan.stages if stage.direct}
    for (topic, _), one in known.items():
        before = 0 if one.note is None else one.note.partitions
        if not before or before == counts[topic] or one.note is None:
            continue
        if topic in direct or feeds[topic] & set(one.note.sent.split()):
            raise PositionError(moved_keys(topic, before, counts[topic]))


def _unavailable(error: KafkaException) -> KafkaUnavailableError:
    text = error.args[0].str()
    return KafkaUnavailableError(f"Kafka must answer; got {text!r}; see 'headrace status'")
