"""A consumer group's coordinator: members, generations, and cooperative, sticky assignments."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.simulate.broker import Place
    from bench.simulate.world import World

SESSION_TIMEOUT_S = 6.0


class GroupClient(Protocol):
    """A consumer that is a member."""

    @property
    def held(self) -> set[Place]:
        """What nobody else may have."""
        ...

    @property
    def responds(self) -> bool:
        """Whether its process runs, so that heartbeats come."""
        ...


@dataclass(slots=True, eq=False)
class Member:
    """A member as the coordinator knows it; a static one has an ``instance``."""

    name: str
    instance: str | None
    client: GroupClient
    wanted: set[Place] = field(default_factory=set)


class Group:
    """One group over a fixed set of partitions."""

    def __init__(self, world: World, places: Sequence[Place]) -> None:
        self._world = world
        self._places = list(places)
        self._names = itertools.count()
        self.generation = 0
        self.members: dict[str, Member] = {}

    def join(self, client: GroupClient, instance: str | None) -> Member:
        """Become a member; a static one that is known takes over what it had."""
        name = f"{instance or 'member'}-{next(self._names)}"
        member = Member(name, instance, client)
        former = next(
            (m for m in self.members.values() if instance and m.instance == instance), None
        )
        if former is not None:
            del self.members[former.name]
            member.wanted = former.wanted
            self.members[name] = member
            self._world.note("group", "took over", name)
            return member
        self.members[name] = member
        self.rebalance()
        return member

    def leave(self, member: Member) -> None:
        """Stop being a member."""
        if self.members.pop(member.name, None) is not None:
            self._world.note("group", "left", member.name)
            self.rebalance()

    def watch(self, member: Member) -> None:
        """Miss a member that does not respond by the end of the session's timeout."""

        def expire() -> None:
            if not member.client.responds and self.members.get(member.name) is member:
                self.leave(member)

        self._world.after(SESSION_TIMEOUT_S, expire)

    def is_valid(self, name: str, generation: int) -> bool:
        """Whether offsets of this member and generation are taken."""
        return name in self.members and generation == self.generation

    def rejoined(self) -> None:
        """A member has given partitions up and joined again."""
        self.generation += 1

    def free(self, member: Member) -> set[Place]:
        """Return what the member wants, has not, and nobody else holds."""
        held: set[Place] = set()
        for other in self.members.values():
            if other is not member:
                held |= other.client.held
        return member.wanted - member.client.held - held

    def rebalance(self) -> None:
        """Give each member its share, and as much as possible of what it has."""
        self.generation += 1
        members = list(self.members.values())
        if not members:
            return
        places = list(self._places)
        self._world.draw.shuffle(places)
        least, more = divmod(len(places), len(members))
        self._world.draw.shuffle(members)
        for index, member in enumerate(members):
            quota = least + (index < more)
            kept = [place for place in places if place in member.wanted][:quota]
            member.wanted = set(kept)
            places = [place for place in places if place not in member.wanted]
        for index, member in enumerate(members):
            quota = least + (index < more)
            missing = quota - len(member.wanted)
            member.wanted |= set(places[:missing])
            places = places[missing:]
        self._world.note("group", "generation", self.generation, len(members))
        self._world.tell()
