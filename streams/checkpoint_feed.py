"""The source thread's side of checkpoints: when one is due, and when it may be believed.

A capture shows the state at an offset that may not be committed yet; it is published by the commit
that covers it. Called by the source thread only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.runtime.logging import get_logger
from headrace.streams.batch import Forget, Keep
from headrace.streams.checkpoint_files import CheckpointFolder, Place
from headrace.streams.checkpoint_storage import below
from headrace.streams.checkpoint_writer import Capture
from headrace.streams.companions import Companion
from headrace.streams.restore import Lineage, restore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from headrace.runtime.clock import Clock
    from headrace.streams.batch import EventBatch, Look, Outputs, Processor
    from headrace.streams.checkpoint_files import DataFile, Manifest
    from headrace.streams.checkpoint_storage import Store
    from headrace.streams.checkpoint_writer import CheckpointWatcher, CheckpointWriter
    from headrace.streams.positions import OwnedPartition

log = get_logger(__name__)

#: A chain of so many segments is begun anew, and one whose segments are half as large as its base.
SEGMENTS_MAX = 12
#: Partitions that begin together are kept in turn, by this number of steps of an interval.
STEPS = 8
#: While so much waits for the disk, no slice makes more.
WAITING_BYTES_MAX = 64 << 20


@dataclass(slots=True)
class _Kept:
    """A partition: when it is kept next, on which files, and the capture that is under way."""

    owned: OwnedPartition
    place: Place
    next_ms: float
    chain: tuple[DataFile, ...]
    offset: int
    capture: Capture | None = None
    asked: bool = False
    ended: bool = False
    posted: bool = False
    lost: bool = False
    erased: bool = False


class CheckpointFeed(Companion):
    """Says which slices to take, and hands them to the writer."""

    def __init__(
        self,
        root: Path,
        group: str,
        plan: str,
        writer: CheckpointWriter,
        clock: Clock,
        interval_ms: int,
        watcher: CheckpointWatcher,
        lineage: Lineage | None = None,
        store: Store | None = None,
    ) -> None:
        """Keep each partition of ``group`` about every ``interval_ms``, below ``root``.

        ``plan`` is the plan's fingerprint. ``store`` may have what ``root`` has not.
        """
        self._store = store
        self._lineage = lineage or Lineage()
        self._root = root
        self._group = group
        self._plan = plan
        self._writer = writer
        self._clock = clock
        self._interval_ms = interval_ms
        self._watcher = watcher
        self._restored: dict[tuple[str, int], Manifest] = {}
        self._kept: dict[tuple[str, int], _Kept] = {}
        self._number = 0

    def place(self, owned: OwnedPartition) -> Place:
        """Return where a partition's checkpoints lie."""
        return Place(self._group, self._plan, owned.topic, owned.topic_id, owned.partition)

    def wanted(self, owned: OwnedPartition) -> bool:
        """Whether there are checkpoints of the partition."""
        # A store is not asked within the callback.
        return self._store is not None or bool(self._folder(owned).names())

    def _folder(self, owned: OwnedPartition) -> CheckpointFolder:
        return CheckpointFolder(self.place(owned).folder(self._root))

    def _copies(self, owned: OwnedPartition) -> CheckpointFolder | None:
        if self._store is None:
            return None
        return CheckpointFolder(below(self._store, self.place(owned).path))

    def restore(self, owned: OwnedPartition, make: Callable[[], Processor]) -> Processor:
        """Return the partition's processor, and let it go on from where that stands.

        What is committed of the partition and no checkpoint holds is replayed.
        """
        started_ms = self._clock.monotonic_ms()
        low, committed = owned.next_offset, owned.committed_offset
        restored = restore(
            self._folder(owned),
            self._copies(owned),
            lambda manifest: self._lineage.usable(manifest, self.place(owned), owned),
            low,
            make,
        )
        if restored.manifest is not None:
            manifest = restored.manifest
            if owned.is_fresh:
                owned.emit_from = restored.offset
            owned.next_offset = owned.done_offset = restored.offset
            owned.checkpoint = str(restored.offset)
            self._restored[owned.topic, owned.partition] = manifest
            seconds = (self._clock.monotonic_ms() - started_ms) / 1000
            self._watcher.checkpoint_restored(manifest, seconds)
            log.info(
                "checkpoint_restored",
                place=f"{owned.topic}[{owned.partition}]",
                offset=restored.offset,
                keys=manifest.key_count,
                seconds=round(seconds, 3),
                rows_to_replay=committed - restored.offset,
            )
        return restored.processor

    def assigned(self, partitions: Sequence[OwnedPartition]) -> None:
        """Keep newly assigned partitions, one after the other; go on where they were restored."""
        now_ms = self._clock.monotonic_ms()
        for owned in partitions:
            step = 1 + owned.partition % STEPS
            manifest = self._restored.pop((owned.topic, owned.partition), None)
            self._kept[owned.topic, owned.partition] = _Kept(
                owned,
                self.place(owned),
                now_ms + self._interval_ms * step / STEPS,
                () if manifest is None else manifest.chain,
                owned.next_offset,
            )

    def released(self, places: Collection[tuple[str, int]], *, flush: bool) -> None:
        """Let partitions go; what no commit covers is dropped."""
        del flush
        for key in places:
            kept = self._kept.pop(key, None)
            if kept is not None and kept.capture is not None and not kept.posted:
                self._writer.discard(kept.capture)

    def due(self, room: int) -> Sequence[Keep]:
        """Return the slices to take now: of one capture at a time, and one of it."""
        return self._keeps() if room else ()

    def _keeps(self) -> list[Keep]:
        now_ms = self._clock.monotonic_ms()
        for kept in self._kept.values():
            self._look_after(kept)
        if self._writer.waiting_bytes >= WAITING_BYTES_MAX:
            return []
        for kept in self._kept.values():
            if kept.capture is not None and not kept.ended:
                return [] if kept.asked else [self._ask(kept, opens=False)]
        for kept in self._kept.values():
            if kept.capture is None and now_ms >= kept.next_ms:
                kept.next_ms = now_ms + self._interval_ms
                if self._has_moved(kept):
                    return [self._begin(kept)]
        return []

    @staticmethod
    def _has_moved(kept: _Kept) -> bool:
        # What is still to be sent on lies below: nobody could go on from here.
        return not kept.owned.unsent and (kept.owned.next_offset > kept.offset or kept.erased)

    @property
    def is_settled(self) -> bool:
        """Whether all that was read is kept."""
        for kept in self._kept.values():
            self._look_after(kept)
        kept_all = self._kept.values()
        return not any(one.capture is not None or self._has_moved(one) for one in kept_all)

    def settled(self, item: EventBatch | Look | Forget | Keep, outputs: Outputs) -> None:
        """Take a slice; a key that was forgotten ends the capture that still has it."""
        kept = self._kept.get((item.topic, item.partition))
        if kept is None:
            return
        if isinstance(item, Forget):
            kept.erased = True
            self._drop(kept)
        if not isinstance(item, Keep) or kept.capture is None:
            return
        found = outputs.kept
        if item.number != kept.capture.number:
            return
        kept.asked = False
        if found is None or found.cancelled:
            self._drop(kept)
            return
        self._writer.post(kept.capture, found)
        if found.ended:
            kept.ended = True
            self._publish(kept)

    def committed(self) -> None:
        """Publish what is covered now."""
        for kept in self._kept.values():
            self._publish(kept)

    def aborted(self, starts: Mapping[tuple[str, int], int]) -> None:
        """Drop captures of what was undone."""
        del starts
        for kept in self._kept.values():
            if kept.capture is not None and kept.capture.offset > kept.owned.committed_offset:
                self._drop(kept)

    def _begin(self, kept: _Kept) -> Keep:
        self._number += 1
        whole = kept.erased or not kept.chain or self._is_long(kept.chain)
        kept.capture = Capture(
            kept.place,
            self._number,
            kept.owned.next_offset,
            whole,
            () if whole else kept.chain,
            alone=kept.erased,
            sends=self._lineage.named(kept.owned.sends_to),
            follows=self._lineage.follows,
        )
        kept.ended = kept.posted = kept.erased = False
        keep = self._ask(kept, opens=True)
        kept.lost = False
        return keep

    def _ask(self, kept: _Kept, *, opens: bool) -> Keep:
        assert kept.capture is not None
        owned, capture = kept.owned, kept.capture
        kept.asked = True
        return Keep(
            owned.topic,
            owned.partition,
            owned.epoch,
            capture.number,
            capture.offset,
            opens=opens,
            whole=capture.whole,
            lost=kept.lost and opens,
        )

    def _publish(self, kept: _Kept) -> None:
        capture = kept.capture
        if capture is None or not kept.ended or kept.posted:
            return
        if capture.offset <= kept.owned.committed_offset:
            kept.posted = True
            self._writer.publish(capture)

    def _look_after(self, kept: _Kept) -> None:
        """Take note of what the writer has made of a capture."""
        capture = kept.capture
        if capture is None:
            return
        if capture.manifest is not None:
            kept.chain, kept.offset = capture.manifest.chain, capture.offset
            kept.owned.checkpoint = str(capture.offset)
            kept.capture = None
        elif capture.failed:
            self._lose(kept, capture)

    def _drop(self, kept: _Kept) -> None:
        capture = kept.capture
        if capture is not None and not kept.posted:
            self._writer.discard(capture)
            self._lose(kept, capture)

    def _lose(self, kept: _Kept, capture: Capture) -> None:
        """Let the next capture make up for one that came to nothing."""
        kept.capture, kept.lost, kept.asked = None, True, False
        kept.erased |= capture.alone

    @staticmethod
    def _is_long(chain: tuple[DataFile, ...]) -> bool:
        base, *segments = chain
        over = sum(segment.bytes for segment in segments)
        return len(segments) >= SEGMENTS_MAX or 2 * over > base.bytes
