"""Starting a processor from the newest checkpoint that can be believed. No Kafka."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from headrace.runtime.logging import get_logger
from headrace.streams.checkpoint_files import CheckpointFolder, Manifest, Place
from headrace.streams.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from headrace.streams.batch import Processor
    from headrace.streams.keeping import Restorable

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """A processor that starts at ``offset``; ``manifest`` None: from the beginning, empty."""

    processor: Processor
    offset: int
    manifest: Manifest | None


def usable(manifest: Manifest, place: Place, low: int, committed: int) -> str | None:
    """Say why a manifest cannot be used for ``place``; None if it can."""
    if manifest.plan != place.plan:
        return f"it is of plan {manifest.plan}"
    if manifest.topic_id != place.topic_id:
        return f"it is of topic id {manifest.topic_id}"
    if not low <= manifest.offset <= committed:
        return f"offset {manifest.offset} is not between {low} and {committed}"
    return None


def restore(
    root: Path, place: Place, low: int, committed: int, make: Callable[[], Processor]
) -> Restored:
    """Return a processor as it was at the newest usable checkpoint, or an empty one.

    Each checkpoint that cannot be used is named in the log, and the next older one is taken.

    Args:
        root: The folder of all checkpoints.
        place: Whose.
        low: The oldest offset that the log still holds.
        committed: The group's offset; what was kept beyond it may have been undone.
        make: Makes an empty processor.

    """
    folder = CheckpointFolder(place.folder(root))
    for name in folder.names():
        try:
            manifest = folder.load(name)
            reason = usable(manifest, place, low, committed)
            if reason is not None:
                log.info("checkpoint_not_used", manifest=name, reason=reason)
                continue
            parts, records = folder.read(manifest)
            processor = make()
            restorable = cast("Restorable", processor)
            restorable.restore(parts, records, manifest.key_count, manifest.offset)
        except (CheckpointError, ValueError) as error:
            log.warning("checkpoint_not_usable", manifest=name, error=str(error))
            continue
        return Restored(processor, manifest.offset, manifest)
    return Restored(make(), low, None)
