"""Checkpoints as files of one topic partition: data files, and manifests that name whole ones.

A manifest is written last and only adds: a crash at any point leaves the older ones as they were,
and two writers cannot harm each other, since the names of data files carry who wrote them. What a
file holds is believed only after its hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson
import pyarrow as pa

from headrace.features.capture import SlotRecords
from headrace.runtime.errors import explain
from headrace.streams.checkpoint_storage import (
    PARTIAL,
    LocalDirectory,
    ObjectDirectory,
    fsync_folder,
    prefixes,
)
from headrace.streams.errors import CheckpointError
from headrace.streams.parts import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.runtime.settings import Settings
    from headrace.streams.checkpoint_storage import Directory, Store

FORMAT = 1
MANIFESTS_KEPT = 3
_READ_BYTES = 1 << 20
_PREFIX, _SUFFIX = "manifest-", ".json"


@dataclass(frozen=True, slots=True)
class Place:
    """Whose checkpoints lie together: a group's, of one plan, of one topic partition."""

    group: str
    plan: str
    topic: str
    topic_id: str
    partition: int

    @property
    def path(self) -> tuple[str, str, str, str]:
        """Return the names of the folders, from the outermost on."""
        return self.group, self.plan, self.topic, str(self.partition)

    def folder(self, root: Path) -> Path:
        """Return where they lie below ``root``."""
        return root.joinpath(*self.path)


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a checkpoint; ``kind`` is base, segment or parts."""

    name: str
    kind: str
    sha256: str
    bytes: int
    rows: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checkpoint: the state at ``offset``, the next one of the input to read.

    ``files`` are the small parts, then the base and the segments over it, oldest first.
    ``created`` is information only. ``sends`` names the re-key topics, each as ``topic@id``, that
    hold all that comes from below the offset. ``follows``: of a state that was made ready beside
    workers of other definitions, what those had committed of each ``topic[partition]``.
    """

    plan: str
    engine: str
    topic: str
    topic_id: str
    partition: int
    offset: int
    key_count: int
    files: tuple[DataFile, ...]
    created: str = ""
    format: int = FORMAT
    sends: tuple[str, ...] = ()
    follows: dict[str, int] | None = None

    @property
    def name(self) -> str:
        """Return the manifest's file name."""
        return f"{_PREFIX}{self.offset:020d}{_SUFFIX}"

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.bytes for file in self.files)

    @property
    def chain(self) -> tuple[DataFile, ...]:
        """Base and segments, oldest first."""
        return tuple(file for file in self.files if file.kind != "parts")

    def dump(self) -> bytes:
        """Return the manifest as JSON with its own hash."""
        content = asdict(self)
        return orjson.dumps({**content, "sha256": _hash_of(content)}, option=orjson.OPT_INDENT_2)


def load_manifest(data: bytes, where: str) -> Manifest:
    """Return the manifest.

    Raises:
        CheckpointError: If it is none, or not as it was written.

    """
    try:
        content = orjson.loads(data)
        told = content.pop("sha256")
        if told != _hash_of(content) or content["format"] != FORMAT:
            message = explain("a manifest", f"be whole and of format {FORMAT}", told, where)
            raise CheckpointError(message)
        files = tuple(DataFile(**file) for file in content.pop("files"))
        sends = tuple(content.pop("sends", ()))
        return Manifest(files=files, sends=sends, **content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = explain("a manifest", "be JSON of its fields", data[:40], where)
        raise CheckpointError(message) from error


def _hash_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


class _Hashed:
    """A file that is hashed as it is written; Arrow takes it for a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._file.write(view)
        self._hash.update(view)
        self.bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self.bytes

    def close(self) -> None:
        """Leave closing to the owner."""

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


class CaptureFiles:
    """The data files of one capture while they grow; ``finish`` makes them lasting."""

    def __init__(self, folder: Path, offset: int, writer: str, *, whole: bool) -> None:
        """Begin files of ``offset`` in ``folder``; ``writer`` is this capture's own name."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._stem = f"{offset:020d}-{writer}"
        self._kind = "base" if whole else "segment"
        self._file: BinaryIO | None = None
        self._hashed: _Hashed | None = None
        self._stream: Any = None
        self._rows = 0
        self._made: list[Path] = []

    def add(self, records: SlotRecords) -> None:
        """Write slots; the first ones begin the file.

        Raises:
            OSError: If that fails.

        """
        batch = records.to_arrow()
        if self._stream is None:
            path = self._folder / f"{self._stem}.{self._kind}{PARTIAL}"
            self._made.append(path)
            self._file = path.open("wb")
            self._hashed = _Hashed(self._file)
            options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
            self._stream = pa.ipc.new_stream(self._hashed, batch.schema, options=options)
        self._stream.write_batch(batch)
        self._rows += len(records)

    def finish(self, parts: dict[str, Any]) -> list[DataFile]:
        """Close the files so that they last, and return them: the parts, and the slots if any."""
        data = pack(parts)
        path = self._folder / f"{self._stem}.parts"
        LocalDirectory(self._folder).write(path.name, data)
        self._made.append(path)
        files = [DataFile(path.name, "parts", hashlib.sha256(data).hexdigest(), len(data), 0)]
        if self._file is not None and self._hashed is not None:
            self._stream.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            path = self._folder / f"{self._stem}.{self._kind}"
            self._made[0].rename(path)
            self._made[0] = path
            hashed = self._hashed
            files.append(DataFile(path.name, self._kind, hashed.sha256, hashed.bytes, self._rows))
        fsync_folder(self._folder)
        return files

    def discard(self) -> None:
        """Remove all that was written."""
        if self._file is not None:
            # What is buffered cannot be written either where the disk is full.
            with contextlib.suppress(OSError):
                self._file.close()
        for path in self._made:
            path.unlink(missing_ok=True)


class CheckpointFolder:
    """The checkpoints of one topic partition in one place."""

    def __init__(self, place: Path | Directory) -> None:
        """Look at a folder, or another directory."""
        self._directory: Directory = LocalDirectory(place) if isinstance(place, Path) else place

    def names(self) -> list[str]:
        """Return the manifests' names, newest first.

        Raises:
            OSError: If the place cannot be reached.

        """
        found = self._directory.names()
        return sorted(n for n in found if n.startswith(_PREFIX) and n.endswith(_SUFFIX))[::-1]

    def load(self, name: str) -> Manifest:
        """Return a manifest; whether its files are whole is not looked at.

        Raises:
            CheckpointError: If it cannot be read.

        """
        where = self._directory.where(name)
        try:
            return load_manifest(self._directory.read(name).to_pybytes(), where)
        except OSError as error:
            raise CheckpointError(explain("a manifest", "be readable", error, where)) from error

    def publish(self, manifest: Manifest, *, alone: bool = False) -> None:
        """Add a manifest, and remove what is older than the newest ones (``alone``: than it).

        Raises:
            OSError: If it cannot be written; then there is none.

        """
        self._directory.write(manifest.name, manifest.dump())
        self._clean(manifest, 1 if alone else MANIFESTS_KEPT)

    def take(self, manifest: Manifest, origin: CheckpointFolder, *, again: bool = False) -> int:
        """Copy a manifest's files that are not here yet, and return their number.

        The manifest itself is left to be published. ``again``: also those that are here.

        Raises:
            CheckpointError: If a file of the origin is not as it was written.
            OSError: If one cannot be written.

        """
        there = set() if again else set(self._directory.names())
        lacking = [file for file in manifest.files if file.name not in there]
        for file in lacking:
            self._directory.write(file.name, origin.verified(file))
        return len(lacking)

    def verify(self, manifest: Manifest) -> None:
        """Hash each of a manifest's files.

        Raises:
            CheckpointError: At the first one that is not as it was written.

        """
        for file in manifest.files:
            self.verified(file)

    def read(self, manifest: Manifest) -> tuple[dict[str, Any], Iterator[SlotRecords]]:
        """Return a checkpoint's small parts, and its slots, newest first, after all was hashed.

        Raises:
            CheckpointError: If a file is not as it was written.

        """
        buffers = {file.name: self.verified(file) for file in manifest.files}
        parts = next(file for file in manifest.files if file.kind == "parts")
        chain = [buffers[file.name] for file in reversed(manifest.chain)]
        return unpack(bytes(buffers[parts.name])), _records(chain)

    def verified(self, file: DataFile) -> pa.Buffer:
        """Return what a file holds.

        Raises:
            CheckpointError: If it is not as it was written.

        """
        where = self._directory.where(file.name)
        try:
            buffer = self._directory.read(file.name)
        except OSError as error:
            message = explain("a checkpoint's file", "be readable", error, where)
            raise CheckpointError(message) from error
        if buffer.size != file.bytes:
            rule = f"have {file.bytes} bytes"
            raise CheckpointError(explain("a checkpoint's file", rule, buffer.size, where))
        digest = hashlib.sha256(buffer).hexdigest()
        if digest != file.sha256:
            rule = f"have the hash {file.sha256[:12]}"
            raise CheckpointError(explain("a checkpoint's file", rule, digest[:12], where))
        return buffer

    def _clean(self, newest: Manifest, kept: int) -> None:
        """Remove older manifests, and data files below the oldest kept one that none names."""
        names = [name for name in self.names() if name <= newest.name]
        for name in names[kept:]:
            self._directory.remove(name)
        used: set[str] = set()
        oldest = newest.offset
        for name in self.names():
            try:
                manifest = self.load(name)
            except CheckpointError:
                continue
            oldest = min(oldest, manifest.offset)
            used.update(file.name for file in manifest.files)
        for name in self._directory.names():
            offset = name.partition("-")[0]
            # Another writer may be about to name a file of a later offset.
            is_data = offset.isdigit() and int(offset) < (newest.offset if kept == 1 else oldest)
            if is_data and name not in used:
                self._directory.remove(name)


def checkpoint_root(settings: Settings) -> Path:
    """Return the folder below which a project's checkpoints lie."""
    return settings.stream.checkpoints.folder or settings.state_folder / "checkpoints"


def kept_folders(root: Path, group: str) -> Iterator[tuple[str, CheckpointFolder]]:
    """Yield each partition's checkpoints of a group, and where they lie."""
    for folder in sorted((root / group).glob("*/*/*")):
        yield str(folder), CheckpointFolder(folder)


def stored_folders(store: Store, group: str) -> Iterator[tuple[str, CheckpointFolder]]:
    """Yield each partition's checkpoints of a group in a store, and where they lie.

    Raises:
        OSError: If the store cannot be reached.

    """
    for prefix in prefixes(store, group):
        yield prefix, CheckpointFolder(ObjectDirectory(store.system, prefix))


def _records(chain: list[pa.Buffer]) -> Iterator[SlotRecords]:
    for buffer in chain:
        with pa.ipc.open_stream(buffer) as stream:
            for batch in stream:
                yield SlotRecords.from_arrow(batch)
