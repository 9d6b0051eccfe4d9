"""Checkpoints that are not as they were written: a wrong bit, an end that is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headrace.streams.checkpoint_files import CheckpointFolder, load_manifest
from headrace.streams.errors import CheckpointError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from headrace.streams.checkpoint_files import Manifest
    from headrace.streams.stage import DirectStageProcessor

#: Files are cut at each so many bytes, and get so many wrong bits, one at a time.
CUT_BYTES, FLIPS = 4096, 16
#: What comes of files that were believed without their hash.
_CRASHES = (OSError, ValueError, LookupError, TypeError, AssertionError, MemoryError)


class KeptFolder(CheckpointFolder):
    """A folder of checkpoints that knows where it is, for who does harm to it."""

    def __init__(self, folder: Path) -> None:
        """Look at a folder."""
        super().__init__(folder)
        self.folder = folder


def newest(folder: KeptFolder) -> Manifest:
    """Return the newest checkpoint."""
    return folder.load(folder.names()[0])


def content(processor: DirectStageProcessor) -> bytes:
    """Return what a processor's state answers for each of its keys."""
    state = processor.state
    aggregates: bytes = state.probe(np.arange(state.key_count)).aggregates.tobytes()
    return aggregates


# --- The newest checkpoint, in one way --------------------------------------------------------


def _cut_manifest(folder: KeptFolder, draw: random.Random) -> None:
    _cut(folder.folder / folder.names()[0], draw)


def _flip_manifest(folder: KeptFolder, draw: random.Random) -> None:
    """Turn a bit of the hash: of a space, it might change nothing."""
    path = folder.folder / folder.names()[0]
    first = path.read_bytes().rindex(b'"sha256": "') + len(b'"sha256": "')
    _flip(path, first + draw.randrange(64), 0)


def _flip_slots(folder: KeptFolder, draw: random.Random) -> None:
    path = folder.folder / newest(folder).chain[-1].name
    _flip(path, draw.randrange(path.stat().st_size), draw.randrange(8))


def _cut_parts(folder: KeptFolder, draw: random.Random) -> None:
    (parts,) = (file for file in newest(folder).files if file.kind == "parts")
    _cut(folder.folder / parts.name, draw)


def _cut_base(folder: KeptFolder, draw: random.Random) -> None:
    """Cut what all checkpoints of a chain stand on."""
    _cut(folder.folder / newest(folder).chain[0].name, draw)


def _all_empty(folder: KeptFolder, _draw: random.Random) -> None:
    for path in folder.folder.iterdir():
        path.write_bytes(b"")


SPOIL: Mapping[str, Callable[[KeptFolder, random.Random], None]] = {
    "manifest cut": _cut_manifest,
    "base cut": _cut_base,
    "slots with a wrong bit": _flip_slots,
    "all empty": _all_empty,
    "manifest with a wrong bit": _flip_manifest,
    "parts cut": _cut_parts,
}


def _cut(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])


def _flip(path: Path, byte: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


# --- Each file of a partition's checkpoints, in every way -------------------------------------


def spoil_each(
    folder: KeptFolder,
    restored: Callable[[], tuple[int, bytes]],
    draw: random.Random,
    faults: list[str],
) -> int:
    """Spoil one file after another and see what is restored; return how often.

    Args:
        folder: Whole checkpoints of one partition; they are so again at the end.
        restored: Restores, and returns from which offset, 0 for none, and what the state answers.
        draw: Draws where bits are wrong.
        faults: Gets what was not as it must be.

    """
    manifests = [folder.load(name) for name in folder.names()]
    good = _good_states(folder, manifests, restored)
    tried = 0
    for path in sorted(folder.folder.iterdir()):
        data = path.read_bytes()
        left = [one.offset for one in manifests if not _has(one, path.name)]
        for spoilt in _spoilt(data, draw):
            if path.suffix == ".json" and _means(spoilt, data):
                continue
            path.write_bytes(spoilt)
            tried += 1
            wanted = max(left, default=0)
            try:
                offset, state = restored()
            except _CRASHES as error:
                faults.append(f"{path.name}: {error!r}")
                continue
            if offset != wanted or state != good[wanted]:
                faults.append(f"{path.name}: {wanted} was to be restored, and {offset} was")
        path.write_bytes(data)
    return tried


def _good_states(
    folder: KeptFolder,
    manifests: list[Manifest],
    restored: Callable[[], tuple[int, bytes]],
) -> dict[int, bytes]:
    """Return what the state answers at each checkpoint, and without any."""
    good = {}
    taken: dict[Path, bytes] = {}
    for _ in range(len(manifests) + 1):
        offset, state = restored()
        good[offset] = state
        for name in folder.names()[:1]:
            path = folder.folder / name
            taken[path] = path.read_bytes()
            path.unlink()
    for path, data in taken.items():
        path.write_bytes(data)
    assert sorted(good) == sorted({0, *(one.offset for one in manifests)}), good.keys()
    return good


def _has(manifest: Manifest, name: str) -> bool:
    return name == manifest.name or any(file.name == name for file in manifest.files)


def _means(data: bytes, other: bytes) -> bool:
    """Whether two manifests say the same: a space may have become another one."""
    try:
        return load_manifest(data, "") == load_manifest(other, "")
    except CheckpointError:
        return False


def _spoilt(data: bytes, draw: random.Random) -> Iterator[bytes]:
    for end in {*range(0, len(data), CUT_BYTES), len(data) - 1} if data else ():
        yield data[:end]
    for _ in range(FLIPS if data else 0):
        wrong = bytearray(data)
        wrong[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        yield bytes(wrong)
    yield data + b"\0"
