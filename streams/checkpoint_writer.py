"""The thread that writes checkpoints: neither source nor processors ever wait for the disk."""

from __future__ import annotations

import queue
import threading
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from headrace.runtime.logging import get_logger
from headrace.streams.checkpoint_files import CaptureFiles, CheckpointFolder, Manifest, Place
from headrace.streams.checkpoint_storage import below
from headrace.streams.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from headrace.runtime.clock import Clock
    from headrace.streams.batch import Kept
    from headrace.streams.checkpoint_files import DataFile
    from headrace.streams.checkpoint_storage import Store

log = get_logger(__name__)

STOP_BUDGET_S = 30.0


class CheckpointWatcher(Protocol):
    """Who is told what becomes of checkpoints; called by the writer's thread."""

    def checkpoint_written(self, manifest: Manifest) -> None:
        """Take note of one that can be restored."""
        ...

    def checkpoint_restored(self, manifest: Manifest, seconds: float) -> None:
        """Take note of one that a partition began with; by the source's thread."""
        ...

    def checkpoint_failed(self) -> None:
        """Take note of one that could not be written."""
        ...


@dataclass(slots=True)
class Capture:
    """One capture on its way to the disk; what the writer made of it is in the last fields.

    ``chain`` holds the files that a segment lies over. ``manifest`` is set once it is published,
    ``failed`` when that will never be.
    """

    place: Place
    number: int
    offset: int
    whole: bool
    chain: tuple[DataFile, ...]
    alone: bool = False
    sends: tuple[str, ...] = ()
    follows: dict[str, int] | None = None
    manifest: Manifest | None = None
    failed: bool = False
    parts: dict[str, Any] = field(default_factory=dict)
    key_count: int = 0
    files: CaptureFiles | None = None
    made: list[DataFile] = field(default_factory=list)


class CheckpointWriter:
    """Writes captures one after the other; a failure costs that checkpoint and nothing else."""

    def __init__(
        self,
        root: Path,
        engine: str,
        clock: Clock,
        watcher: CheckpointWatcher,
        store: Store | None = None,
    ) -> None:
        """Write below ``root``, and copy what can be restored to ``store``."""
        self._root = root
        self._store = store
        self._engine = engine
        self._clock = clock
        self._watcher = watcher
        self._name = uuid.uuid4().hex[:8]
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="headrace-checkpoints", daemon=True)
        self._waiting_bytes = 0
        self._lock = threading.Lock()

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait to be written."""
        return self._waiting_bytes

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write what was posted, and end."""
        self._jobs.put(None)
        self._thread.join(STOP_BUDGET_S)

    def post(self, capture: Capture, kept: Kept) -> None:
        """Write a slice of a capture; with its last one the files are made lasting."""
        size = sum(records.nbytes for records in kept.records)
        self._count(size)
        self._jobs.put(lambda: self._write(capture, kept, size))

    def publish(self, capture: Capture) -> None:
        """Make a capture that was posted to its end one that can be restored."""
        self._jobs.put(lambda: self._publish(capture))

    def discard(self, capture: Capture) -> None:
        """Remove what was written of a capture."""
        self._jobs.put(lambda: self._discard(capture))

    def _count(self, size: int) -> None:
        with self._lock:
            self._waiting_bytes += size

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _write(self, capture: Capture, kept: Kept, size: int) -> None:
        try:
            if not capture.failed:
                self._add(capture, kept)
        except OSError as error:
            self._fail(capture, error)
        finally:
            self._count(-size)

    def _add(self, capture: Capture, kept: Kept) -> None:
        if capture.files is None:
            folder, name = capture.place.folder(self._root), f"{self._name}-{capture.number}"
            capture.files = CaptureFiles(folder, capture.offset, name, whole=capture.whole)
        if kept.parts is not None:
            capture.parts, capture.key_count = kept.parts, kept.key_count
        for records in kept.records:
            capture.files.add(records)
        if kept.ended:
            capture.made = capture.files.finish(capture.parts)

    def _publish(self, capture: Capture) -> None:
        if capture.failed:
            return
        parts, *slots = capture.made
        place = capture.place
        created = datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC)
        manifest = Manifest(
            plan=place.plan,
            engine=self._engine,
            topic=place.topic,
            topic_id=place.topic_id,
            partition=place.partition,
            offset=capture.offset,
            key_count=capture.key_count,
            files=(parts, *capture.chain, *slots),
            created=created.isoformat(timespec="seconds"),
            sends=capture.sends,
            follows=capture.follows,
        )
        folder = CheckpointFolder(place.folder(self._root))
        try:
            folder.publish(manifest, alone=capture.alone)
        except OSError as error:
            self._fail(capture, error)
            return
        capture.manifest = manifest
        self._watcher.checkpoint_written(manifest)
        if self._store is not None:
            self._copy(capture, manifest, folder, self._store)

    def _copy(
        self, capture: Capture, manifest: Manifest, folder: CheckpointFolder, store: Store
    ) -> None:
        copies = CheckpointFolder(below(store, capture.place.path))
        try:
            copies.take(manifest, folder)
            copies.publish(manifest, alone=capture.alone)
        except (OSError, CheckpointError) as error:
            # The folder has it; the next one brings along what is lacking.
            place = f"{capture.place.topic}[{capture.place.partition}]"
            log.warning("checkpoint_not_copied", place=place, error=str(error))
            self._watcher.checkpoint_failed()

    def _fail(self, capture: Capture, error: OSError) -> None:
        place = f"{capture.place.topic}[{capture.place.partition}]"
        log.warning("checkpoint_not_written", place=place, offset=capture.offset, error=str(error))
        self._discard(capture)
        self._watcher.checkpoint_failed()

    def _discard(self, capture: Capture) -> None:
        if capture.files is not None and capture.manifest is None:
            capture.files.discard()
        capture.failed = capture.manifest is None
