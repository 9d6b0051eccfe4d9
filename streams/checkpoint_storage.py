"""Where files of checkpoints lie: a folder, or an object store. Nothing is half there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from headrace.runtime.errors import explain
from headrace.streams.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pyarrow.fs import FileSystem

PARTIAL = ".partial"


class Directory(Protocol):
    """Files by name, without folders. Every method may raise ``OSError``."""

    def names(self) -> list[str]:
        """Return all names, also of what another writer is still at; none if it is not there."""
        ...

    def read(self, name: str) -> pa.Buffer:
        """Return what a file holds."""
        ...

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Make a file that is there wholly, and lasts, or not at all."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def where(self, name: str) -> str:
        """Return what to call a file in a message."""
        ...


class LocalDirectory:
    """A folder of a disk or a share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Return all names."""
        return [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []

    def read(self, name: str) -> pa.Buffer:
        """Return a file as it lies in the page cache."""
        path = self.folder / name
        # An empty file cannot be mapped.
        return pa.memory_map(str(path)).read_buffer() if path.stat().st_size else pa.py_buffer(b"")

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write beside, and rename."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        partial = path.with_name(name + PARTIAL)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        fsync_folder(self.folder)

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self.folder / name).unlink(missing_ok=True)

    def where(self, name: str) -> str:
        """Return the path."""
        return str(self.folder / name)


class ObjectDirectory:
    """A prefix of what Arrow can reach: S3 and what speaks like it, Google's, Azure's, a share.

    An object is there when its upload has ended, and not before.
    """

    def __init__(self, system: FileSystem, prefix: str) -> None:
        self._system = system
        self._prefix = prefix

    def names(self) -> list[str]:
        """Return all names."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._prefix, allow_not_found=True)
        return [info.base_name for info in self._system.get_file_info(selector) if info.is_file]

    def read(self, name: str) -> pa.Buffer:
        """Fetch an object."""
        with self._system.open_input_file(self.where(name)) as file:
            return file.read_buffer()

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Upload an object; on a share it is written beside and renamed."""
        self._system.create_dir(self._prefix, recursive=True)
        renames = self._system.type_name == "local"
        path = self.where(name)
        with self._system.open_output_stream(path + PARTIAL if renames else path) as stream:
            stream.write(data)
        if renames:
            self._system.move(path + PARTIAL, path)

    def remove(self, name: str) -> None:
        """Delete an object."""
        try:
            self._system.delete_file(self.where(name))
        except FileNotFoundError:
            return

    def where(self, name: str) -> str:
        """Return bucket and key."""
        return f"{self._prefix}/{name}"


@dataclass(frozen=True, slots=True)
class Store:
    """An object store, and the prefix in it below which all is."""

    system: FileSystem
    prefix: str


def object_store(url: str) -> Store:
    """Return a store; credentials come from the environment.

    Raises:
        CheckpointError: If the URL names nothing that can be reached.

    """
    from pyarrow.fs import FileSystem

    try:
        system, prefix = FileSystem.from_uri(url)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        rule = "name an object store or a share"
        hint = f"as s3://bucket/prefix?region=eu-central-1 or file:///shared/states ({error})"
        message = explain("stream.checkpoints.url", rule, url, "headrace.yaml", hint)
        raise CheckpointError(message) from error
    return Store(system, prefix.rstrip("/"))


def below(store: Store, parts: Sequence[str]) -> ObjectDirectory:
    """Return the directory of some path below a store's prefix."""
    return ObjectDirectory(store.system, "/".join((store.prefix, *parts)))


def prefixes(store: Store, group: str) -> list[str]:
    """Return the prefixes below a group's that hold objects.

    Raises:
        OSError: If the store cannot be reached.

    """
    from pyarrow.fs import FileSelector

    selector = FileSelector(f"{store.prefix}/{group}", allow_not_found=True, recursive=True)
    found = store.system.get_file_info(selector)
    return sorted({info.path.rpartition("/")[0] for info in found if info.is_file})


def fsync_folder(folder: Path) -> None:
    """Let names in a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
