"""State of new definitions, made ready while workers of the former ones go on.

A worker that prepares is of a group of its own. It reads the sources in silence up to what the
pipeline's group has committed, fills the re-key topics that only the new definitions have, with
rows that change state and are not scored, and keeps the state as checkpoints in the place where the
pipeline's own workers look for theirs. What it has not seen by then they read themselves: each
re-keyed stage drops what it has had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confluent_kafka import TopicPartition

from headrace.streams.cutover import committed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Followed:
    """What a pipeline's group has committed; ``relays`` are the topics that it writes itself."""

    commits: Mapping[Place, TopicPartition]
    relays: frozenset[str]

    def knows(self, topic: str, partition: int) -> bool:
        """Whether the group has committed anything of a partition."""
        return (topic, partition) in self.commits

    def position(self, own: TopicPartition) -> TopicPartition:
        """Return what to take for committed of a partition, given what we have ourselves.

        Of a source that the group has not read yet, that is nothing.
        """
        found = self.commits.get((own.topic, own.partition))
        if found is None and own.topic not in self.relays:
            return TopicPartition(own.topic, own.partition)
        return own if found is None else found

    def sources(self) -> dict[str, int]:
        """Return the offset by ``topic[partition]`` of each source."""
        return {
            f"{topic}[{partition}]": found.offset
            for (topic, partition), found in self.commits.items()
            if topic not in self.relays
        }


def follow(
    client: Mapping[str, Any], group: str, places: Iterable[Place], relays: frozenset[str]
) -> Followed:
    """Return what a group has committed of partitions.

    Raises:
        KafkaUnavailableError: If the broker does not answer.

    """
    return Followed(
        {
            place: TopicPartition(
                *place, one.offset, metadata="" if one.note is None else one.note.dump()
            )
            for place, one in committed(client, group, places).items()
            if one.offset >= 0
        },
        relays,
    )
