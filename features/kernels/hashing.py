"""xxHash64 and the two partitioners of Kafka clients, over Arrow's byte buffers.

The 64-bit hash decides partitions of re-key topics and buckets of history: it must never change.
Source: the xxHash specification 0.1.1 (XXH64); librdkafka rdcrc32.c; Kafka's Utils.murmur2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.features.kernels.compiled import entry, inner

if TYPE_CHECKING:
    from collections.abc import Callable

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_M2 = np.uint32(0x5BD1E995)


@inner
def _rotate(x: np.uint64, bits: int) -> np.uint64:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@inner
def _round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate(lane + word * _P2, 31) * _P1


@inner
def _word(data: np.ndarray, at: int, size: int) -> np.uint64:
    """Return ``size`` bytes as a little-endian number."""
    word = np.uint64(0)
    for byte in range(size):
        word |= np.uint64(data[at + byte]) << np.uint64(8 * byte)
    return word


@inner
def _stripes(data: np.ndarray, at: int, end: int, seed: np.uint64) -> np.uint64:
    """Digest the whole 32-byte stripes of [at, end)."""
    a, b, c, d = seed + _P1 + _P2, seed + _P2, seed, seed - _P1
    while at + 32 <= end:
        a = _round(a, _word(data, at, 8))
        b = _round(b, _word(data, at + 8, 8))
        c = _round(c, _word(data, at + 16, 8))
        d = _round(d, _word(data, at + 24, 8))
        at += 32
    digest = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
    zero = np.uint64(0)
    for lane in (a, b, c, d):
        digest = (digest ^ _round(zero, lane)) * _P1 + _P4
    return digest


@inner
def _tail_word(digest: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate(digest ^ _round(np.uint64(0), word), 27) * _P1 + _P4


@inner
def _avalanche(digest: np.uint64) -> np.uint64:
    digest = (digest ^ (digest >> np.uint64(33))) * _P2
    digest = (digest ^ (digest >> np.uint64(29))) * _P3
    return digest ^ (digest >> np.uint64(32))


@inner
def xxh64(data: np.ndarray, start: int, end: int, seed: np.uint64) -> np.uint64:
    """Return XXH64 of data[start:end]."""
    length, at = end - start, start
    digest = seed + _P5
    if length >= 32:
        digest = _stripes(data, start, end, seed)
        at += length - length % 32
    digest += np.uint64(length)
    while at + 8 <= end:
        digest = _tail_word(digest, _word(data, at, 8))
        at += 8
    if at + 4 <= end:
        digest = _rotate(digest ^ (_word(data, at, 4) * _P1), 23) * _P2 + _P3
        at += 4
    while at < end:
        digest = _rotate(digest ^ (np.uint64(data[at]) * _P5), 11) * _P1
        at += 1
    return _avalanche(digest)


def _make_hash_bytes(stamp: int) -> Callable[..., Any]:
    def hash_bytes(
        data: np.ndarray, offsets: np.ndarray, seed: np.uint64, hashes: np.ndarray
    ) -> None:
        """Fill ``hashes`` with the XXH64 of each item; 0 becomes 1, as 0 is the null key."""
        for row in range(hashes.shape[0] if stamp >= 0 else 0):
            digest = xxh64(data, offsets[row], offsets[row + 1], seed)
            hashes[row] = digest if digest != np.uint64(0) else np.uint64(1)

    return hash_bytes


hash_bytes = entry(_make_hash_bytes)


def _make_hash_integers(stamp: int) -> Callable[..., Any]:
    def hash_integers(integers: np.ndarray, seed: np.uint64, hashes: np.ndarray) -> None:
        """Fill ``hashes`` with the XXH64 of each number's 8 bytes, little-endian; 0 becomes 1."""
        for row in range(hashes.shape[0] if stamp >= 0 else 0):
            digest = _tail_word(seed + _P5 + np.uint64(8), np.uint64(integers[row]))
            digest = _avalanche(digest)
            hashes[row] = digest if digest != np.uint64(0) else np.uint64(1)

    return hash_integers


hash_integers = entry(_make_hash_integers)


@inner
def _murmur2(data: np.ndarray, start: int, end: int) -> np.uint32:
    """Return Kafka's 32-bit murmur2 (seed 0x9747b28c) of data[start:end].

    numba widens uint32 arithmetic to 64 bits: each step is cut back by hand.
    """
    length = end - start
    digest = np.uint32(0x9747B28C) ^ np.uint32(length)
    at = start
    while at + 4 <= end:
        word = np.uint32(np.uint32(_word(data, at, 4)) * _M2)
        word = np.uint32((word ^ (word >> np.uint32(24))) * _M2)
        digest = np.uint32(np.uint32(digest * _M2) ^ word)
        at += 4
    rest = end - at
    if rest > 0:
        digest = np.uint32((digest ^ np.uint32(_word(data, at, rest))) * _M2)
    digest = np.uint32((digest ^ (digest >> np.uint32(13))) * _M2)
    return np.uint32(digest ^ (digest >> np.uint32(15)))


def _make_murmur2(stamp: int) -> Callable[..., Any]:
    def murmur2(data: np.ndarray, offsets: np.ndarray, count: int, partitions: np.ndarray) -> None:
        """Fill in the partition that Java clients choose for each key."""
        for row in range(partitions.shape[0] if stamp >= 0 else 0):
            digest = np.int64(_murmur2(data, offsets[row], offsets[row + 1]))
            partitions[row] = (digest & 0x7FFFFFFF) % count

    return murmur2


murmur2 = entry(_make_murmur2)


@inner
def _crc32(data: np.ndarray, start: int, end: int, table: np.ndarray) -> np.uint32:
    digest = np.uint32(0xFFFFFFFF)
    for at in range(start, end):
        index = (digest ^ np.uint32(data[at])) & np.uint32(0xFF)
        digest = np.uint32(table[index] ^ (digest >> np.uint32(8)))
    return np.uint32(digest ^ np.uint32(0xFFFFFFFF))


def _make_crc32(stamp: int) -> Callable[..., Any]:
    def crc32(
        data: np.ndarray,
        offsets: np.ndarray,
        table: np.ndarray,
        count: int,
        partitions: np.ndarray,
    ) -> None:
        """Fill in the partition that librdkafka's ``consistent`` chooses for each key."""
        for row in range(partitions.shape[0] if stamp >= 0 else 0):
            digest = np.int64(_crc32(data, offsets[row], offsets[row + 1], table))
            partitions[row] = digest % count

    return crc32


crc32 = entry(_make_crc32)


def crc32_table() -> np.ndarray:
    """Return the table of the reflected polynomial 0xEDB88320, uint32[256]."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        odd = (table & 1).astype(bool)
        table = np.where(odd, (table >> np.uint32(1)) ^ np.uint32(0xEDB88320), table >> 1)
    return table.astype(np.uint32)
