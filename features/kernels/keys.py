"""Keys from Arrow to numbers: canonical typed hashes, our partitions, and those of producers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.features.kernels.canonical import canonical_keys
from headrace.features.kernels.hashing import (
    crc32,
    crc32_table,
    hash_bytes,
    hash_integers,
    murmur2,
)
from headrace.features.kernels.slots import Keys

if TYPE_CHECKING:
    from collections.abc import Sequence

# The seed is the key's type, so that 1, "1" and b"1" are three keys.
_SEEDS = {"int64": np.uint64(1), "string": np.uint64(2), "bytes": np.uint64(3)}
_CRC32_TABLE = crc32_table()


def key_columns(keys: pa.Array | pa.ChunkedArray) -> Keys:
    """Return the batch's keys as the kernels read them; shape (n,), hash 0 where null."""
    canonical = canonical_keys(keys)
    count = len(canonical)
    hashes = np.empty(count, dtype=np.uint64)
    if canonical.type == pa.int64():
        integers = _integers(canonical)
        hash_integers(integers, _SEEDS["int64"], hashes)
        offsets, data = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.uint8)
        are_integers = True
    else:
        offsets, data = byte_buffers(canonical)
        integers = np.zeros(1, dtype=np.int64)
        kind = "string" if canonical.type == pa.large_string() else "bytes"
        hash_bytes(data, offsets, _SEEDS[kind], hashes)
        are_integers = False
    if canonical.null_count:
        hashes[pc.is_null(canonical).to_numpy(zero_copy_only=False)] = 0
    return Keys(hashes, read_only(integers), offsets, data, are_integers)


def hash_keys(keys: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return uint64[n]: XXH64 of each key, seeded by its type; null is 0.

    Integers of all widths hash alike, as 8 bytes little-endian; strings as UTF-8.
    """
    return key_columns(keys).hashes


def partition_of(hashes: np.ndarray, count: int) -> np.ndarray:
    """Return int32[n]: the re-key partition of each hash, out of ``count``."""
    partitions: np.ndarray = (hashes % np.uint64(count)).astype(np.int32)
    return partitions


def murmur2_partitions(keys: Sequence[bytes | None] | pa.Array, count: int) -> np.ndarray:
    """Return int32[n]: where Java clients put each raw key; -1 for null (they choose freely)."""
    offsets, data, null = _raw_keys(keys)
    partitions = np.empty(len(offsets) - 1, dtype=np.int32)
    murmur2(data, offsets, count, partitions)
    partitions[null] = -1
    return partitions


def crc32_partitions(keys: Sequence[bytes | None] | pa.Array, count: int) -> np.ndarray:
    """Return int32[n]: where librdkafka puts each raw key; -1 for null (it chooses freely).

    ``consistent_random``, its default, also chooses freely for empty keys: -1.
    """
    offsets, data, null = _raw_keys(keys)
    partitions = np.empty(len(offsets) - 1, dtype=np.int32)
    crc32(data, offsets, _CRC32_TABLE, count, partitions)
    partitions[null | (np.diff(offsets) == 0)] = -1
    return partitions


def _raw_keys(
    keys: Sequence[bytes | None] | pa.Array,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not isinstance(keys, pa.Array):
        keys = pa.array(keys, pa.large_binary())
    canonical = keys.cast(pa.large_binary())
    null = pc.is_null(canonical).to_numpy(zero_copy_only=False)
    return *byte_buffers(canonical), null


def _integers(canonical: pa.Array) -> np.ndarray:
    """Return an int64 array's values without a copy; anything where null."""
    values = np.frombuffer(canonical.buffers()[1], dtype=np.int64)
    return values[canonical.offset : canonical.offset + len(canonical)]


def byte_buffers(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return (offsets int64[n + 1], data uint8) of a large string or binary array, no copy."""
    buffers = array.buffers()
    if len(array) == 0:
        return read_only(np.zeros(1, dtype=np.int64)), read_only(np.zeros(1, dtype=np.uint8))
    offsets = np.frombuffer(buffers[1], dtype=np.int64)
    offsets = offsets[array.offset : array.offset + len(array) + 1]
    data = np.zeros(1, dtype=np.uint8)
    if buffers[2] is not None and buffers[2].size:
        data = np.frombuffer(buffers[2], dtype=np.uint8)
    return read_only(offsets), read_only(data)


def read_only(array: np.ndarray) -> np.ndarray:
    """Return a read-only contiguous view: kernels are compiled for one kind of array only."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
