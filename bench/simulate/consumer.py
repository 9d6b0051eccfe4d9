"""confluent-kafka's consumer, as far as workers use it, over the broker in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from confluent_kafka import OFFSET_INVALID, KafkaError, TopicPartition

from bench.simulate.producer import GROUP_FENCED, SOCKET_TIMEOUT_S, timed_out, trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bench.simulate.broker import Broker, Entry, Place
    from bench.simulate.group import Group, Member
    from bench.simulate.process import Process

# A client learns of a new generation a while after the coordinator has made it.
REFRESHED = 0.9


@dataclass(frozen=True, slots=True)
class Received:
    """A message or an event, with the methods of confluent-kafka's ``Message``."""

    place: Place
    at: int
    entry: Entry | None = None
    event: KafkaError | None = None

    def error(self) -> KafkaError | None:
        """Return what it reports."""
        return self.event

    def topic(self) -> str:
        """Return the topic."""
        return self.place[0]

    def partition(self) -> int:
        """Return the partition."""
        return self.place[1]

    def offset(self) -> int:
        """Return the offset."""
        return self.at

    def key(self) -> bytes | None:
        """Return the key."""
        return self._entry.key

    def value(self) -> bytes | None:
        """Return the value."""
        return self._entry.value

    def headers(self) -> list[tuple[str, bytes]] | None:
        """Return the headers."""
        return self._entry.headers or None

    def timestamp(self) -> tuple[int, int]:
        """Return the kind of timestamp and the time."""
        return 1, self._entry.timestamp_ms

    @property
    def _entry(self) -> Entry:
        assert self.entry is not None, "an event"
        return self.entry


class SimulatedConsumer:
    """A member of a group; callbacks run within ``poll``, ``consume`` and ``close``."""

    def __init__(
        self,
        process: Process,
        broker: Broker,
        groups: Callable[[str], Group],
        properties: Mapping[str, Any],
    ) -> None:
        self._process = process
        self._broker = broker
        self._group_name = str(properties["group.id"])
        self._group = groups(self._group_name)
        self._instance: str | None = properties.get("group.instance.id")
        self._stable = properties.get("isolation.level") != "read_uncommitted"
        self._errored = properties.get("error_cb", lambda _: None)
        self._on_commit = properties.get("on_commit", lambda _error, _partitions: None)
        self._callbacks: tuple[Callable[[Any, list[TopicPartition]], None], ...] = ()
        self._member: Member | None = None
        self._generation = -1
        self._fenced = self._calling = False
        # As the real client does, it keeps a pause for the next time that it owns a partition.
        self._paused: set[Place] = set()
        self._ends: dict[Place, int] = {}
        self._answers: list[tuple[KafkaError | None, list[TopicPartition]]] = []
        self._taking: list[Place] = []
        self.assigned: dict[Place, int] = {}

    @property
    def held(self) -> set[Place]:
        """What nobody else may have: what is assigned, or is about to be."""
        return {*self.assigned, *self._taking}

    @property
    def responds(self) -> bool:
        """Whether heartbeats come."""
        return self._process.responds

    def be_missed(self) -> None:
        """Let the session time out, unless the process goes on before."""
        if self._member is not None:
            self._group.watch(self._member)

    def subscribe(
        self,
        topics: list[str],
        on_assign: Callable[[Any, list[TopicPartition]], None],
        on_revoke: Callable[[Any, list[TopicPartition]], None],
        on_lost: Callable[[Any, list[TopicPartition]], None],
    ) -> None:
        """Join with the next poll."""
        self._process.step("subscribe")
        assert topics
        self._callbacks = on_assign, on_revoke, on_lost

    def poll(self, timeout: float) -> Received | None:
        """Return one message or event."""
        self._process.step("poll")
        assert not self._calling, "a callback must not poll: the client would end the process"
        deadline_s = self._process.world.now_s + timeout
        while True:
            self._serve()
            found = self._fetch(1)
            left_s = deadline_s - self._process.world.now_s
            if found or left_s <= 0:
                return found[0] if found else None
            self._process.listen(left_s)

    def consume(self, num_messages: int, timeout: float) -> list[Received]:
        """Return what is there, and what comes in ``timeout`` if that is not enough."""
        self._process.step("consume")
        assert not self._calling, "a callback must not poll: the client would end the process"
        deadline_s = self._process.world.now_s + timeout
        found = self._fetch(num_messages // 2)
        while True:
            self._serve()
            # What was fetched before a rebalance took it away is not given out.
            found = [row for row in found if row.place in self.assigned]
            found += self._fetch(num_messages - len(found))
            left_s = deadline_s - self._process.world.now_s
            if len(found) >= num_messages or left_s <= 0:
                return found
            self._process.listen(left_s)

    def assignment(self) -> list[TopicPartition]:
        """Return what is assigned."""
        return [TopicPartition(*place) for place in self.assigned]

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        """Read partitions from their offsets on."""
        for one in partitions:
            assert (one.topic, one.partition) not in self.assigned
            assert one.offset >= 0
            self.assigned[one.topic, one.partition] = one.offset

    def pause(self, partitions: list[TopicPartition]) -> None:
        """Give nothing of partitions."""
        self._paused |= {(one.topic, one.partition) for one in partitions}

    def resume(self, partitions: list[TopicPartition]) -> None:
        """Give messages of partitions again."""
        self._paused -= {(one.topic, one.partition) for one in partitions}

    def seek(self, partition: TopicPartition) -> None:
        """Go to an offset."""
        place = partition.topic, partition.partition
        assert place in self.assigned, place
        self.assigned[place] = partition.offset
        self._ends.pop(place, None)

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> None:
        """Commit offsets as a member of the generation that this client knows."""
        self._process.step("commit_offsets")
        wanted = {(p.topic, p.partition): (p.offset, p.metadata or "") for p in offsets}
        fate = self._process.chaos.fate(self._process, "commit_offsets")
        _, member, generation = self.consumer_group_metadata()

        def arrive() -> KafkaError | None:
            if self._broker.away or fate == "lost_request":
                return KafkaError(KafkaError._TRANSPORT, "no answer")
            if not self._group.is_valid(member, generation):
                return KafkaError(KafkaError.ILLEGAL_GENERATION, GROUP_FENCED)
            self._broker.commit(self._group_name, wanted)
            return None if not fate else KafkaError(KafkaError._TIMED_OUT, "no answer")

        if not asynchronous:
            error = arrive()
            if error is not None:
                if error.code() != KafkaError.ILLEGAL_GENERATION:
                    self._process.sleep(SOCKET_TIMEOUT_S)
                raise trouble(error.code(), error.str())
            return
        self._process.world.after(
            self._process.world.draw.random() * 0.01,
            lambda: self._answers.append((arrive(), offsets)),
        )

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        """Return the group's offsets; where only stable ones count, wait for them."""
        self._process.step("committed")
        places = [(one.topic, one.partition) for one in partitions]
        deadline_s = self._process.world.now_s + timeout
        if self._process.chaos.trouble(self._process, "committed"):
            raise timed_out("committed")
        while self._broker.away or (
            self._stable and any(self._broker.is_pending(self._group_name, p) for p in places)
        ):
            left_s = deadline_s - self._process.world.now_s
            if left_s <= 0:
                raise timed_out("committed")
            self._process.listen(min(left_s, 1.0))
        known = self._broker.committed.get(self._group_name, {})
        return [
            TopicPartition(*place, known[place].offset, metadata=known[place].metadata)
            if place in known
            else TopicPartition(*place, OFFSET_INVALID)
            for place in places
        ]

    def get_watermark_offsets(
        self, partition: TopicPartition, timeout: float = -1, cached: bool = False
    ) -> tuple[int, int] | None:
        """Return the first offset and the end."""
        log = self._broker.logs[partition.topic, partition.partition]
        if cached:
            return 0, log.end
        deadline_s = self._process.world.now_s + timeout
        while self._broker.away:
            if self._process.world.now_s >= deadline_s:
                raise timed_out("watermarks")
            self._process.listen(1.0)
        return 0, log.stable

    def consumer_group_metadata(self) -> tuple[str, str, int]:
        """Return group, member and the generation that this client knows."""
        member = self._member
        if member is None:
            return self._group_name, "", -1
        known = self._group.members.get(member.name) is member
        if known and self._process.world.draw.random() < REFRESHED:
            self._generation = self._group.generation
        return self._group_name, member.name, self._generation

    def close(self) -> None:
        """Give everything back; a static member stays one until its session times out."""
        self._process.step("close")
        if self._member is None:
            return
        if self.assigned:
            self._callbacks[1](self, self.assignment())
        self.assigned.clear()
        if self._instance is None:
            self._group.leave(self._member)
        else:
            self._group.watch(self._member)
        self._member = None

    # --- Inside -------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Be told of the group; at most one callback of a rebalance, and none within another."""
        for answer in self._answers:
            self._on_commit(*answer)
        self._answers.clear()
        if not self._callbacks or self._fenced or self._calling:
            return
        self._calling = True
        try:
            self._rebalance()
        finally:
            self._calling = False

    def _rebalance(self) -> None:
        on_assign, on_revoke, on_lost = self._callbacks
        if self._member is None:
            if not self._broker.away:
                self._member = self._group.join(self, self._instance)
                self._generation = self._group.generation
            return
        if self._group.members.get(self._member.name) is not self._member:
            self._removed(on_lost)
            return
        gone = [place for place in self.assigned if place not in self._member.wanted]
        if gone:
            self._generation = self._group.generation
            self._process.world.note(self._process.name, "revoke", *gone)
            on_revoke(self, [TopicPartition(*place) for place in gone])
            self._forget(gone)
            self._group.rejoined()
            self._process.world.tell()
            return
        free = sorted(self._group.free(self._member))
        if free and not self._broker.away:
            self._generation = self._group.generation
            self._process.world.note(self._process.name, "assign", *free)
            self._taking = free
            on_assign(self, [TopicPartition(*place) for place in free])
            self._taking = []

    def _removed(self, on_lost: Callable[[Any, list[TopicPartition]], None]) -> None:
        """Learn that the group went on without us, or that another has taken our name."""
        if any(m.instance == self._instance is not None for m in self._group.members.values()):
            self._fenced = True
            self._errored(KafkaError(KafkaError._FENCED, "fenced instance", fatal=True))
            return
        lost = list(self.assigned)
        if lost:
            self._process.world.note(self._process.name, "lost", *lost)
            on_lost(self, [TopicPartition(*place) for place in lost])
            self._forget(lost)
        self._member = None

    def _forget(self, places: list[Place]) -> None:
        for place in places:
            self.assigned.pop(place, None)
            self._ends.pop(place, None)

    def _fetch(self, count: int) -> list[Received]:
        """Return up to so many messages and events, of some partitions, of each a run."""
        if self._broker.away or not self.assigned or count <= 0:
            return []
        draw = self._process.world.draw
        places = [place for place in self.assigned if place not in self._paused]
        if len(places) > 1:
            draw.shuffle(places)
        rows: list[Received] = []
        for place in places:
            rows += self._fetch_place(place, draw.randint(1, max(1, count - len(rows))))
            if len(rows) >= count:
                break
        return rows

    def _fetch_place(self, place: Place, count: int) -> list[Received]:
        log = self._broker.logs[place]
        rows: list[Received] = []
        position, stable = self.assigned[place], log.stable
        while position < stable and len(rows) < count:
            entry = log.entries[position]
            if not entry.control and not entry.aborted:
                rows.append(Received(place, position, entry))
            position += 1
        self.assigned[place] = position
        if not rows and position == stable and self._ends.get(place) != position:
            self._ends[place] = position
            error = KafkaError(KafkaError._PARTITION_EOF, "end")
            rows.append(Received(place, position, event=error))
        return rows
