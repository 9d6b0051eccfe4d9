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
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson
import pyarrow as pa

from headrace.features.capture import SlotRecords
from headrace.runtime.errors import explain
from headrace.streams.errors import CheckpointError
from headrace.streams.parts import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMAT = 1
MANIFESTS_KEPT = 3
_READ_BYTES = 1 << 20
_PREFIX, _SUFFIX, _PARTIAL = "manifest-", ".json", ".partial"


@dataclass(frozen=True, slots=True)
class Place:
    """Whose checkpoints lie together: a group's, of one plan, of one topic partition."""

    group: str
    plan: str
    topic: str
    topic_id: str
    partition: int

    def folder(self, root: Path) -> Path:
        """Return where they lie below ``root``."""
        return root / self.group / self.plan / self.topic / str(self.partition)


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
            path = self._folder / f"{self._stem}.{self._kind}{_PARTIAL}"
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
        self._made.append(path.with_name(path.name + _PARTIAL))
        _write_lasting(path, data)
        self._made[-1] = path
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
        _fsync_folder(self._folder)
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
    """The checkpoints of one topic partition in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Return the manifests' names, newest first."""
        if not self.folder.is_dir():
            return []
        found = self.folder.glob(f"{_PREFIX}*{_SUFFIX}")
        return sorted((path.name for path in found), reverse=True)

    def load(self, name: str) -> Manifest:
        """Return a manifest; whether its files are whole is not looked at.

        Raises:
            CheckpointError: If it cannot be read.

        """
        path = self.folder / name
        try:
            return load_manifest(path.read_bytes(), str(path))
        except OSError as error:
            raise CheckpointError(explain("a manifest", "be readable", error, str(path))) from error

    def publish(self, manifest: Manifest, *, alone: bool = False) -> None:
        """Add a manifest, and remove what is older than the newest ones (``alone``: than it).

        Raises:
            OSError: If it cannot be written; then there is none.

        """
        _write_lasting(self.folder / manifest.name, manifest.dump())
        _fsync_folder(self.folder)
        self._clean(manifest, 1 if alone else MANIFESTS_KEPT)

    def verify(self, manifest: Manifest) -> None:
        """Hash each of a manifest's files.

        Raises:
            CheckpointError: At the first one that is not as it was written.

        """
        for file in manifest.files:
            self._verified(file)

    def read(self, manifest: Manifest) -> tuple[dict[str, Any], Iterator[SlotRecords]]:
        """Return a checkpoint's small parts, and its slots, newest first, after all was hashed.

        Raises:
            CheckpointError: If a file is not as it was written.

        """
        buffers = {file.name: self._verified(file) for file in manifest.files}
        parts = next(file for file in manifest.files if file.kind == "parts")
        chain = [buffers[file.name] for file in reversed(manifest.chain)]
        return unpack(bytes(buffers[parts.name])), _records(chain)

    def _verified(self, file: DataFile) -> pa.Buffer:
        path = self.folder / file.name
        try:
            if path.stat().st_size != file.bytes:
                rule, got = f"have {file.bytes} bytes", path.stat().st_size
                raise CheckpointError(explain("a checkpoint's file", rule, got, str(path)))
            if not file.bytes:
                return pa.py_buffer(b"")
            buffer = pa.memory_map(str(path)).read_buffer()
        except OSError as error:
            message = explain("a checkpoint's file", "be readable", error, str(path))
            raise CheckpointError(message) from error
        digest = hashlib.sha256(buffer).hexdigest()
        if digest != file.sha256:
            rule = f"have the hash {file.sha256[:12]}"
            raise CheckpointError(explain("a checkpoint's file", rule, digest[:12], str(path)))
        return buffer

    def _clean(self, newest: Manifest, kept: int) -> None:
        """Remove older manifests, and data files below the oldest kept one that none names."""
        names = [name for name in self.names() if name <= newest.name]
        for name in names[kept:]:
            (self.folder / name).unlink(missing_ok=True)
        used: set[str] = set()
        oldest = newest.offset
        for name in self.names():
            try:
                manifest = self.load(name)
            except CheckpointError:
                continue
            oldest = min(oldest, manifest.offset)
            used.update(file.name for file in manifest.files)
        for path in self.folder.iterdir():
            offset = path.name.partition("-")[0]
            # Another writer may be about to name a file of a later offset.
            is_data = offset.isdigit() and int(offset) < (newest.offset if kept == 1 else oldest)
            if is_data and path.name not in used:
                path.unlink(missing_ok=True)


def _records(chain: list[pa.Buffer]) -> Iterator[SlotRecords]:
    for buffer in chain:
        with pa.ipc.open_stream(buffer) as stream:
            for batch in stream:
                yield SlotRecords.from_arrow(batch)


def _write_lasting(path: Path, data: bytes) -> None:
    """Write a file that is there wholly or not at all, whatever happens."""
    partial = path.with_name(path.name + _PARTIAL)
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
