"""Following the topics: which there are, from where on each is read, and what comes.

Offsets come from the tables and go back to them. The consumer's group is a name that Kafka wants;
nothing is ever committed to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from headrace.lake.gather import Gather
from headrace.runtime.errors import TopicError
from headrace.runtime.kafka import admin, partition_counts, topic_ids
from headrace.runtime.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from confluent_kafka import Message

    from headrace.lake.gather import Lane
    from headrace.lake.targets import Target
    from headrace.schemas.registry import SchemaRegistry

log = get_logger(__name__)

_QUEUE_KIB: Final = 64 * 1024
_READ_ROWS_MAX: Final = 20_000
_READ_BYTES: Final = 16 << 20
_WATERMARK_TIMEOUT_S: Final = 10.0


class LaneWatcher(Protocol):
    """Who is told what the lanes meet: metrics."""

    def missed(self, topic: str, partition: int, records: int) -> None:
        """Records were deleted from the topic before they were read."""
        ...


def consumer_properties(client: Mapping[str, Any], project: str) -> dict[str, Any]:
    """Return librdkafka's properties; what the user sets wins where it is safe."""
    return {
        "queued.min.messages": 200_000,
        "queued.max.messages.kbytes": _QUEUE_KIB,
        "fetch.wait.max.ms": 100,
        "fetch.queue.backoff.ms": 2,
        # Appends and compactions take their time; there is no group to be thrown out of.
        "max.poll.interval.ms": 86_400_000,
        **client,
        "group.id": f"{project}.lake",
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "enable.partition.eof": True,
    }


class Follower:
    """Reads all partitions of all targets into their gathers. For one thread.

    ``read`` calls ``poll`` before ``consume``, which waits until it has all it was asked for.
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        project: str,
        folder: Path,
        registry: SchemaRegistry,
        watcher: LaneWatcher,
    ) -> None:
        self._admin = admin(client)
        self._consumer = Consumer(consumer_properties(client, project))
        self._folder = folder
        self._registry = registry
        self._watcher = watcher
        self.gathers: dict[str, Gather] = {}
        self._by_topic: dict[str, Gather] = {}
        self._is_stale = False
        self._row_bytes = 1_000

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def lanes(self) -> Iterable[tuple[Gather, Lane]]:
        """Return every lane with its gather."""
        return [(g, lane) for g in self.gathers.values() for lane in g.lanes.values()]

    def look(self, targets: Sequence[Target]) -> None:
        """See which topics and partitions there are, and follow just these.

        Raises:
            KafkaUnavailableError: If the broker does not answer; all stays as it was.

        """
        counts = partition_counts(self._admin, [target.topic for target in targets])
        try:
            ids = topic_ids(self._admin, counts)
        except TopicError:
            return  # One was deleted between the two questions: the next look finds it gone.
        wanted = {target.table: target for target in targets if target.topic in counts}
        changed = self._drop([name for name in self.gathers if name not in wanted])
        for name, target in wanted.items():
            gather = self.gathers.get(name)
            if gather is not None and self._is_other(gather, target, ids[target.topic]):
                self._drop([name])
                gather = None
            if gather is None:
                gather = Gather(target, ids[target.topic], self._folder, self._registry)
                self.gathers[name] = gather
                log.info("following", topic=target.topic, topic_id=gather.topic_id, table=name)
            gather.redefine(target)
            for partition in range(counts[target.topic]):
                if partition not in gather.lanes:
                    gather.add_lane(partition)
                    changed = True
        for gather, lane in self.lanes():
            if lane.is_beyond_end:
                self._reset(gather, lane)
        if changed or self._is_stale:
            self.assign()

    def _is_other(self, gather: Gather, target: Target, topic_id: str) -> bool:
        return gather.topic_id != topic_id or gather.target.topic != target.topic

    def _drop(self, names: list[str]) -> bool:
        for name in names:
            gather = self.gathers.pop(name)
            log.warning(
                "topic_gone", topic=gather.target.topic, topic_id=gather.topic_id, rows=gather.rows
            )
        return bool(names)

    def drop_recreated(self) -> None:
        """Drop what was gathered of topics that are new ones under their old names by now.

        Called between reading and appending: what was read before a look that still finds the old
        id was the old topic's.

        Raises:
            KafkaUnavailableError: If the broker does not answer.
            TopicError: If a topic was deleted just now.

        """
        topics = {gather.target.topic: name for name, gather in self.gathers.items()}
        there = partition_counts(self._admin, topics)
        ids = topic_ids(self._admin, there)
        other = [
            name
            for topic, name in topics.items()
            if topic in ids and ids[topic] != self.gathers[name].topic_id
        ]
        if self._drop(other):
            self.assign()

    def assign(self) -> None:
        """Read every lane from its next offset on."""
        self._by_topic = {gather.target.topic: gather for gather in self.gathers.values()}
        places = []
        for gather, lane in self.lanes():
            lane.at_end = False
            if not lane.is_beyond_end:
                begin = OFFSET_BEGINNING if lane.next_offset is None else lane.next_offset
                places.append(TopicPartition(gather.target.topic, lane.partition, begin))
        self._consumer.assign(places)
        self._is_stale = False

    def read(self, rows_max: int, timeout_s: float) -> int:
        """Gather what has come, at most about ``rows_max`` rows; wait for the first for a while."""
        first = self._consumer.poll(timeout_s)
        if first is None:
            return 0
        fitting = max(1, _READ_BYTES // self._row_bytes)
        wanted = max(1, min(rows_max, fitting, _READ_ROWS_MAX) - 1)
        return self._take([first, *self._consumer.consume(wanted, 0)])

    def _take(self, messages: list[Message]) -> int:
        found: dict[tuple[str, int], list[Message]] = {}
        events = []
        for message in messages:
            if message.error() is not None:
                events.append(message)
                continue
            key = message.topic(), message.partition()
            rows = found.get(key)  # type: ignore[arg-type]
            if rows is None:
                found[key] = rows = []  # type: ignore[index]
            rows.append(message)
        for (topic, partition), rows in found.items():
            gather = self._by_topic.get(topic)
            if gather is not None and partition in gather.lanes:
                before = gather.bytes
                gather.add(partition, rows)
                self._row_bytes = max(1, (gather.bytes - before) // len(rows))
        for event in events:
            self._note(event)
        return sum(map(len, found.values()))

    def _note(self, event: Message) -> None:
        error = event.error()
        assert error is not None
        gather = self._by_topic.get(event.topic() or "")
        lane = None if gather is None else gather.lanes.get(event.partition() or 0)
        if gather is None or lane is None:
            return
        if error.code() == KafkaError._PARTITION_EOF:
            # What lies before the end and did not come were control records and aborted ones.
            lane.next_offset = max(lane.next_offset or 0, event.offset() or 0)
            lane.end_offset = lane.next_offset
            lane.at_end = True
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            self._reset(gather, lane)
            self.assign()
        elif not error.retriable():
            log.warning("consumer_trouble", error=error.str(), topic=gather.target.topic)
            self._is_stale = True

    def _reset(self, gather: Gather, lane: Lane) -> None:
        """Find a place to go on for a lane whose next offset the broker does not have."""
        topic = gather.target.topic
        try:
            low, high = self._consumer.get_watermark_offsets(
                TopicPartition(topic, lane.partition), timeout=_WATERMARK_TIMEOUT_S
            )
        except KafkaException as error:
            log.warning("consumer_trouble", error=str(error), topic=topic)
            self._is_stale = True
            return
        begin = lane.next_offset or 0
        was_beyond, lane.is_beyond_end = lane.is_beyond_end, begin > high
        if begin < low:
            log.error("records_gone", topic=topic, partition=lane.partition, missed=low - begin)
            self._watcher.missed(topic, lane.partition, low - begin)
            lane.next_offset = low
        elif lane.is_beyond_end and not was_beyond:
            log.error("log_cut", topic=topic, partition=lane.partition, end=high, next=begin)
        self._is_stale = self._is_stale or was_beyond != lane.is_beyond_end

    def refresh_ends(self) -> None:
        """Take each lane's end from what the last fetches told; asks nobody."""
        for gather, lane in self.lanes():
            place = TopicPartition(gather.target.topic, lane.partition)
            known = self._consumer.get_watermark_offsets(place, cached=True)
            if known is not None and known[1] > 0:
                lane.end_offset = max(known[1], lane.next_offset or 0)
