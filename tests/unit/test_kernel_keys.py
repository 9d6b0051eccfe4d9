"""Hashes and partitions are contracts with other programs and with our own past."""

from __future__ import annotations

import zlib

import numpy as np
import pyarrow as pa
import pytest

from headrace.features.kernels.compiled import entry
from headrace.features.kernels.hashing import xxh64
from headrace.features.kernels.keys import (
    crc32_partitions,
    hash_keys,
    murmur2_partitions,
    partition_of,
)


def _make_digest(stamp):
    def digest(data, size, seed):
        return xxh64(data, stamp * 0, size, seed)

    return digest


_digest = entry(_make_digest)


# Known answers published with xxHash.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
        (b"Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
    ],
)
def test_the_hash_is_xxh64(text, expected):
    data = np.frombuffer(text + b"\0", dtype=np.uint8)

    assert int(_digest(data, len(text), np.uint64(0))) == expected


def test_an_integer_hashes_as_its_eight_bytes_with_seed_one():
    number = -123_456_789_012
    data = np.frombuffer(number.to_bytes(8, "little", signed=True), dtype=np.uint8)

    assert hash_keys(pa.array([number]))[0] == _digest(data, 8, np.uint64(1))


def test_hashes_never_change():
    hashes = [
        int(hash_keys(array)[0])
        for array in (pa.array([1]), pa.array(["1"]), pa.array([b"1"]), pa.array([""]))
    ]

    assert hashes == FROZEN


# Re-key topics that exist were written with these.
FROZEN = [
    0x8AFB45D6A8B39709,
    0xF48516583F7609F0,
    0xC5365B0551C4FCD8,
    0x5A68F3B1643C966F,
]


def test_the_width_of_an_integer_and_the_form_of_a_string_do_not_matter():
    number = [hash_keys(pa.array([7], kind))[0] for kind in (pa.int8(), pa.int32(), pa.int64())]
    text = [
        hash_keys(pa.array(["héadrace"], kind))[0]
        for kind in (pa.string(), pa.large_string(), pa.string_view())
    ]
    text.append(hash_keys(pa.array(["héadrace"]).dictionary_encode())[0])

    assert len(set(number)) == 1
    assert len(set(text)) == 1


def test_null_hashes_to_zero_and_a_slice_hashes_as_a_copy():
    keys = pa.array(["a", None, "bb", "", "ccc" * 20])

    hashes = hash_keys(keys)

    assert hashes[1] == 0
    assert (hashes[[0, 2, 3, 4]] != 0).all()
    np.testing.assert_array_equal(hash_keys(keys.slice(1, 3)), hashes[1:4])
    np.testing.assert_array_equal(hash_keys(pa.chunked_array([keys, keys])), [*hashes, *hashes])
    assert hash_keys(pa.array([], pa.string())).shape == (0,)
    assert hash_keys(pa.nulls(2)).tolist() == [0, 0]


def test_a_float_is_no_key():
    with pytest.raises(TypeError, match="a key must be an integer, a string or bytes; got double"):
        hash_keys(pa.array([1.5]))


def test_partitions_are_even():
    counts = np.bincount(partition_of(hash_keys(pa.array(np.arange(120_000))), 12))

    assert counts.min() > 9_500
    assert counts.max() < 10_500


# Made with org.apache.kafka.common.utils.Utils.murmur2 (its own unit test's table).
@pytest.mark.parametrize(
    ("key", "digest"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_java_clients_partition_by_murmur2(key, digest):
    assert murmur2_partitions([key], 97)[0] == (digest & 0x7FFFFFFF) % 97


def test_librdkafka_partitions_by_crc32():
    keys = [f"customer-{n}".encode() for n in range(200)]

    assert crc32_partitions(keys, 12).tolist() == [zlib.crc32(key) % 12 for key in keys]
    assert crc32_partitions([None, b"", b"x"], 1).tolist() == [-1, -1, 0]
    assert murmur2_partitions([None, b"x"], 1).tolist() == [-1, 0]
