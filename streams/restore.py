"""Starting a processor from the newest checkpoint that can be believed. No Kafka."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from headrace.runtime.logging import get_logger
from headrace.streams.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from headrace.streams.batch import Processor
    from headrace.streams.checkpoint_files import CheckpointFolder, Manifest, Place
    from headrace.streams.keeping import Restorable
    from headrace.streams.positions import OwnedPartition

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """A processor that starts at ``offset``; ``manifest`` None: from the beginning, empty."""

    processor: Processor
    offset: int
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a state has to do with topics other than its own.

    ``topic_ids`` are Kafka's own ids. ``committed`` is what the group has committed of each
    ``topic[partition]`` of the sources; ``follows`` the same, of who prepares states for it.
    """

    topic_ids: Mapping[str, str] = field(default_factory=dict)
    committed: Mapping[str, int] = field(default_factory=dict)
    follows: dict[str, int] | None = None

    def named(self, topics: Collection[str]) -> tuple[str, ...]:
        """Return topics as manifests name them."""
        return tuple(f"{topic}@{self.topic_ids.get(topic, '')}" for topic in sorted(topics))

    def usable(self, manifest: Manifest, place: Place, owned: OwnedPartition) -> str | None:
        """Say why a manifest cannot be used for a partition; None if it can."""
        if manifest.plan != place.plan:
            return f"it is of plan {manifest.plan}"
        if manifest.topic_id != place.topic_id:
            return f"it is of topic id {manifest.topic_id}"
        low, high = owned.next_offset, owned.committed_offset
        # Made ready from nothing that the group has read, it says nothing about what was scored.
        if owned.is_fresh and manifest.follows:
            high = owned.high_offset
            if any(self.committed.get(name, -1) < at for name, at in manifest.follows.items()):
                return "it was prepared for more than the group has read"
        if not low <= manifest.offset <= high:
            return f"offset {manifest.offset} is not between {low} and {high}"
        lacking = set(self.named(owned.unsent)) - set(manifest.sends)
        return f"{sorted(lacking)} lack what came before" if lacking else None


def restore(
    folder: CheckpointFolder,
    copies: CheckpointFolder | None,
    usable: Callable[[Manifest], str | None],
    low: int,
    make: Callable[[], Processor],
) -> Restored:
    """Return a processor as it was at the newest usable checkpoint, or an empty one.

    Each checkpoint that cannot be used is named in the log, and the next older one is taken.

    Args:
        folder: The checkpoints of the partition.
        copies: Where there may be more of them; what is used of these is brought to ``folder``.
        usable: Says why a manifest cannot be used; None if it can.
        low: Where an empty one begins: the oldest offset that the log still holds.
        make: Makes an empty processor.

    """
    for name, is_copy in _candidates(folder, copies):
        try:
            manifest = (copies if is_copy and copies else folder).load(name)
            reason = usable(manifest)
            if reason is not None:
                log.info("checkpoint_not_used", manifest=name, reason=reason)
                continue
            if is_copy and copies is not None:
                # What lies here under the same names was found wanting, or is not there.
                fetched = folder.take(manifest, copies, again=True)
                folder.publish(manifest)
                log.info("checkpoint_fetched", manifest=name, files=fetched)
            parts, records = folder.read(manifest)
            processor = make()
            restorable = cast("Restorable", processor)
            restorable.restore(parts, records, manifest.key_count, manifest.offset)
        except (CheckpointError, OSError, ValueError) as error:
            log.warning("checkpoint_not_usable", manifest=name, error=str(error))
            continue
        return Restored(processor, manifest.offset, manifest)
    return Restored(make(), low, None)


def _candidates(
    folder: CheckpointFolder, copies: CheckpointFolder | None
) -> list[tuple[str, bool]]:
    """Return names of manifests, newest first, and whether each is a copy; those come last."""
    found = [(name, False) for name in folder.names()]
    if copies is not None:
        try:
            found += [(name, True) for name in copies.names()]
        except OSError as error:
            log.warning("checkpoint_store_not_reached", error=str(error))
    # Of the same name the one that is here goes first.
    return sorted(found, key=lambda one: (one[0], not one[1]), reverse=True)
