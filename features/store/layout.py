"""Feast's layout of an entity in Redis, byte for byte: keys, field names, values, timestamps.

A key is Feast's serialised entity key (version 3) with the project behind it; its hash holds each
feature under a hash of ``view:feature``, and ``_ts:<view>`` with the time of the newest event. Ours
alone is the fence ``_hr:<pipeline>``. Feast is not imported: golden tests hold the two together.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from headrace.features.kernels.canonical import canonical_keys
from headrace.features.store.murmur3 import field_name

if TYPE_CHECKING:
    from headrace.features.plan import KeyKind
    from headrace.features.store.views import OnlineEntity, OnlineFeature

# Feast's ValueType. Avro's int and long are both int64 here, as in our state.
_VALUE_TYPES: Final[dict[KeyKind, int]] = {"bytes": 1, "string": 2, "int64": 4}
_STRING: Final = 2

#: Tags of the one field that is set in Feast's Value message; no field at all is null.
INT64_TAG: Final = 0x20
DOUBLE_TAG: Final = 0x29
#: Tags of google.protobuf.Timestamp.
SECONDS_TAG: Final = 0x08
NANOS_TAG: Final = 0x10

#: ``lineage:version:as of:partition`` in decimals of fixed width, so that order is that of texts,
#: and within 64 bytes, up to which Redis keeps a hash packed.
FENCE_WIDTHS: Final = (15, 19, 19, 5)
FENCE_BYTES: Final = sum(FENCE_WIDTHS) + len(FENCE_WIDTHS) - 1

#: What keys of each kind are in Arrow.
KEY_TYPES: Final[dict[KeyKind, pa.DataType]] = {
    "int64": pa.int64(),
    "string": pa.large_string(),
    "bytes": pa.large_binary(),
}

_INT64: Final = struct.Struct("<q")
_DOUBLE: Final = struct.Struct("<d")
_WORDS: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class KeyLayout:
    """A key in Redis: ``prefix``, the value's length as 4 bytes, the value, ``suffix``.

    Integers are 8 bytes little-endian, strings UTF-8.
    """

    prefix: bytes
    suffix: bytes

    @classmethod
    def of(cls, entity: OnlineEntity) -> KeyLayout:
        """Return the layout of an entity's keys."""
        name = entity.join_key.encode()
        prefix = struct.pack("<III", 1, _STRING, len(name)) + name
        prefix += struct.pack("<I", _VALUE_TYPES[entity.key_kind])
        return cls(prefix, entity.project.encode())

    def key(self, value: bytes) -> bytes:
        """Return the key of one value that is in its bytes already."""
        return b"".join((self.prefix, struct.pack("<I", len(value)), value, self.suffix))


def typed_keys(kind: KeyKind, keys: pa.Array) -> pa.Array:
    """Return keys as int64, large string or large binary; they must be of the kind, none null."""
    canonical = canonical_keys(keys)
    assert canonical.type == KEY_TYPES[kind], (canonical.type, kind)
    assert canonical.null_count == 0, "a key is not null"
    return canonical


def key_values(kind: KeyKind, keys: pa.Array) -> list[bytes]:
    """Return the value of each key as ``KeyLayout.key`` takes it."""
    if kind == "int64":
        return [_INT64.pack(number) for number in typed_keys(kind, keys).to_pylist()]
    values: list[bytes] = typed_keys(kind, keys).cast(pa.large_binary()).to_pylist()
    return values


def feature_field(feature: OnlineFeature) -> bytes:
    """Return the field of a feature."""
    return field_name(feature.view, feature.feature)


def time_field(view: str) -> bytes:
    """Return the field with the time of a view's newest event."""
    return f"_ts:{view}".encode()


def fence_field(pipeline: str) -> bytes:
    """Return the field with a pipeline's fence."""
    return f"_hr:{pipeline}".encode()


def marker_key(entity: OnlineEntity) -> bytes:
    """Return the key of the hash with the markers of the entity's partitions.

    It ends with the project as Feast's keys do, so that one pattern grants access to both.
    """
    return f"_hr:{entity.pipeline}:{entity.entity}:{entity.project}".encode()


@dataclass(frozen=True, slots=True)
class Fence:
    """Which state a value comes from; ordered as (lineage, version, as of)."""

    lineage: int
    version: int
    as_of_ms: int
    partition: int

    @classmethod
    def read(cls, text: bytes) -> Fence:
        """Return what a field holds."""
        lineage, version, as_of_ms, partition = text.split(b":")
        return cls(int(lineage), int(version), int(as_of_ms), int(partition))


def read_value(data: bytes | None) -> float | int | None:
    """Return a feature's value from Feast's Value message.

    Examples:
        >>> read_value(bytes.fromhex("2003")), read_value(bytes.fromhex("29000000000000e03f"))
        (3, 0.5)
        >>> read_value(b""), read_value(None)
        (None, None)

    """
    if not data:
        return None
    if data[0] == DOUBLE_TAG:
        value: float = _DOUBLE.unpack_from(data, 1)[0]
        return value
    if data[0] == INT64_TAG:
        return data[1] if len(data) == 2 else _varint(data, 1)[0]
    return None


def read_time_ms(data: bytes | None) -> int | None:
    """Return epoch ms from a Timestamp message; fractions of a millisecond are cut off."""
    if data is None:
        return None
    seconds = nanos = at = 0
    while at < len(data):
        tag = data[at]
        value, at = _varint(data, at + 1)
        if tag == SECONDS_TAG:
            seconds = value
        elif tag == NANOS_TAG:
            nanos = value
    return seconds * 1000 + nanos // 1_000_000


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a signed number of 64 bits, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value - _WORDS if value >> 63 else value, at
        shift += 7
