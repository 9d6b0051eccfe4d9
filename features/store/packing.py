"""Entities to the bytes of Redis commands: one kernel writes keys, fences, times and values.

A block is cut into calls of the script of ``scripts.WRITE``; nothing is copied on the way to the
socket. In Python each entity would cost more than Redis takes to store it.

The fields of an entity and their values are one MessagePack argument, which Lua turns into the
arguments of HSET at once: as arguments of their own they cost Redis 20 us for 18 features, so 7.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from headrace.features.kernels.compiled import entry, inlined
from headrace.features.kernels.keys import byte_buffers, read_only
from headrace.features.store.layout import (
    DOUBLE_TAG,
    FENCE_BYTES,
    FENCE_WIDTHS,
    INT64_TAG,
    NANOS_TAG,
    SECONDS_TAG,
    KeyLayout,
    feature_field,
    fence_field,
    time_field,
    typed_keys,
)
from headrace.features.store.resp import bulk

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.features.store.port import EntityRows
    from headrace.features.store.views import OnlineEntity

# A call of 200 keys keeps Redis from its readers for 0.7 ms (measured with seven fields a key).
_KEYS_A_CALL: Final = 200
_VALUES_A_CALL: Final = 4_000
# Beyond this Redis refuses a time to live; 317 years.
_TTL_MS_MAX: Final = 10_000_000_000_000
_TTL_MS_MIN: Final = 1_000

# Bytes at most: "$", a length, CR LF before each argument, CR LF behind it.
_FRAME_BYTES: Final = 16
_NUMBER_BYTES: Final = _FRAME_BYTES + 20
_ROW_BYTES: Final = _NUMBER_BYTES + (_FRAME_BYTES + FENCE_BYTES) + _FRAME_BYTES
# As MessagePack: one byte before a text of up to 31.
_TIME_BYTES: Final = 1 + 17
_VALUE_BYTES: Final = 1 + 11
_SHORT: Final = 0xA0
_SHORT_MAX: Final = 31
_LONG: Final = 0xDA


def key_bytes(keys: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return (data uint8, offsets int64[n + 1]) of canonical keys as Feast writes their values."""
    if keys.type != pa.int64():
        offsets, data = byte_buffers(keys)
        return data, offsets
    numbers = np.asarray(keys.to_numpy(zero_copy_only=True), dtype="<i8")
    offsets = read_only(np.arange(0, 8 * len(numbers) + 1, 8, dtype=np.int64))
    return read_only(numbers.view(np.uint8)), offsets


class WritePacker:
    """Packs rows of one entity into calls of the script with the given SHA-1 (hex)."""

    def __init__(self, entity: OnlineEntity, script: str) -> None:
        self._entity = entity
        self._script = script.encode()
        shared = b"1" if entity.shared else b"0"
        self._constants = _array(bulk(fence_field(entity.pipeline)) + bulk(shared))
        fields = [time_field(view.name) for view in entity.views]
        self._times = len(fields)
        fields = [_packed_text(field) for field in (*fields, *map(feature_field, entity.features))]
        self._fields = _array(b"".join(fields))
        self._field_ends = read_only(np.cumsum([0, *map(len, fields)], dtype=np.int64))
        layout = KeyLayout.of(entity)
        self._prefix, self._suffix = _array(layout.prefix), _array(layout.suffix)
        self._whole = read_only(np.array([f.dtype == "int64" for f in entity.features], bool))
        self.keys_a_call = max(1, min(_KEYS_A_CALL, _VALUES_A_CALL // len(self._whole)))

    def pack(
        self, partition: int, lineage: int, rows: EntityRows, clock_ms: int
    ) -> tuple[memoryview, int]:
        """Return the bytes of all calls, and how many calls they are."""
        count = len(rows)
        assert rows.values.shape == (count, len(self._whole)), "one column per feature"
        assert 0 <= lineage < 10 ** FENCE_WIDTHS[0]
        assert 0 <= partition < 10 ** FENCE_WIDTHS[3]
        if count == 0:
            return memoryview(b""), 0
        data, offsets = key_bytes(typed_keys(self._entity.key_kind, rows.keys))
        times = np.asarray(rows.event_time_ms, np.int64)
        ttl_ms = np.clip(times + (self._entity.expiry_ms - clock_ms), _TTL_MS_MIN, _TTL_MS_MAX)
        # The last call may have fewer keys.
        full = min(self.keys_a_call, count)
        heads = [self._head(full), self._head(count % full or full)]
        calls = -(-count // full)
        key_frame = _FRAME_BYTES + len(self._prefix) + 4 + len(self._suffix)
        fields = len(self._fields) + _TIME_BYTES * self._times + _VALUE_BYTES * len(self._whole)
        row_bytes = key_frame + _ROW_BYTES + fields
        room = calls * (len(self._constants) + max(map(len, heads))) + count * row_bytes
        out = np.empty(room + int(offsets[-1] - offsets[0]), np.uint8)
        length = _write_calls(
            _array(heads[0]),
            _array(heads[1]),
            self._constants,
            self._fields,
            self._field_ends,
            self._times,
            self._prefix,
            self._suffix,
            data,
            offsets,
            read_only(np.asarray(rows.values, np.float64)),
            self._whole,
            read_only(times),
            read_only(np.maximum(np.asarray(rows.as_of_ms, np.int64), 0)),
            read_only(np.asarray(rows.version, np.int64)),
            read_only(ttl_ms),
            lineage,
            partition,
            full,
            out,
        )
        assert length <= len(out), (length, len(out))
        return out[:length].data, calls

    def _head(self, keys: int) -> bytes:
        """Return how a call of so many keys begins."""
        count = 3 + keys + 2 + keys * 3
        start = b"*%d\r\n" % count
        return start + b"".join(map(bulk, (b"EVALSHA", self._script, b"%d" % keys)))


def _packed_text(data: bytes) -> bytes:
    """Return a text as MessagePack."""
    if len(data) <= _SHORT_MAX:
        return bytes([_SHORT | len(data)]) + data
    return bytes([_LONG]) + len(data).to_bytes(2, "big") + data


def _array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


# --- The kernel ---------------------------------------------------------------------------------


@inlined
def _copy(out: np.ndarray, at: int, data: np.ndarray, start: int, count: int) -> int:
    # Unsigned: a signed index is asked each time whether it counts from the end.
    to, source = np.uint64(at), np.uint64(start)
    for index in range(np.uint64(count)):
        out[to + index] = data[source + index]
    return at + count


@inlined
def _digits(value: int) -> int:
    count = 1
    while value >= 10:
        value //= 10
        count += 1
    return count


@inlined
def _put_decimal(out: np.ndarray, at: int, value: int, width: int) -> int:
    """Write a number >= 0 with leading zeros."""
    left = np.uint64(value)
    for place in range(width):
        tenth = left // np.uint64(10)
        out[at + width - 1 - place] = np.uint8(left - tenth * np.uint64(10)) + np.uint8(48)
        left = tenth
    return at + width


@inlined
def _put_end(out: np.ndarray, at: int) -> int:
    out[at], out[at + 1] = 13, 10
    return at + 2


@inlined
def _put_length(out: np.ndarray, at: int, length: int) -> int:
    out[at] = 36
    return _put_end(out, _put_decimal(out, at + 1, length, _digits(length)))


@inlined
def _varint_bytes(value: int) -> int:
    left, count = np.uint64(value), 1
    while left >= np.uint64(128):
        left >>= np.uint64(7)
        count += 1
    return count


@inlined
def _put_varint(out: np.ndarray, at: int, value: int) -> int:
    left = np.uint64(value)
    while left >= np.uint64(128):
        out[at] = np.uint8(left & np.uint64(127)) | np.uint8(128)
        left >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(left)
    return at + 1


@inlined
def _time_bytes(seconds: int, nanos: int) -> int:
    length = 0
    if seconds != 0:
        length += 1 + _varint_bytes(seconds)
    if nanos != 0:
        length += 1 + _varint_bytes(nanos)
    return length


@inlined
def _put_time(out: np.ndarray, at: int, seconds: int, nanos: int) -> int:
    """Write a Timestamp; what is 0 is left out."""
    out[at] = _SHORT | _time_bytes(seconds, nanos)
    at += 1
    if seconds != 0:
        out[at] = SECONDS_TAG
        at = _put_varint(out, at + 1, seconds)
    if nanos != 0:
        out[at] = NANOS_TAG
        at = _put_varint(out, at + 1, nanos)
    return at


@inlined
def _value_bytes(value: float, whole: bool) -> int:
    """Count the bytes of a Value message: none for null."""
    if np.isnan(value) or (whole and not np.isfinite(value)):
        return 0
    return 1 + _varint_bytes(int(value)) if whole else 9


@inlined
def _put_value(out: np.ndarray, at: int, value: float, bits: int, whole: bool) -> int:
    length = _value_bytes(value, whole)
    out[at] = _SHORT | length
    if length == 0:
        return at + 1
    if whole:
        out[at + 1] = INT64_TAG
        return _put_varint(out, at + 2, int(value))
    out[at + 1] = DOUBLE_TAG
    for index in range(8):
        out[at + 2 + index] = np.uint8(np.uint64(bits) >> np.uint64(8 * index))
    return at + 10


@inlined
def _put_key(
    out: np.ndarray,
    at: int,
    prefix: np.ndarray,
    suffix: np.ndarray,
    data: np.ndarray,
    start: int,
    length: int,
) -> int:
    at = _put_length(out, at, len(prefix) + 4 + length + len(suffix))
    at = _copy(out, at, prefix, 0, len(prefix))
    for index in range(4):
        out[at + index] = np.uint8(length >> (8 * index) & 255)
    at = _copy(out, at + 4, data, start, length)
    return _put_end(out, _copy(out, at, suffix, 0, len(suffix)))


@inlined
def _put_fence(
    out: np.ndarray, at: int, lineage: int, version: int, as_of_ms: int, partition: int
) -> int:
    at = _put_decimal(out, _put_length(out, at, FENCE_BYTES), lineage, FENCE_WIDTHS[0])
    out[at] = 58
    at = _put_decimal(out, at + 1, version, FENCE_WIDTHS[1])
    out[at] = 58
    at = _put_decimal(out, at + 1, as_of_ms, FENCE_WIDTHS[2])
    out[at] = 58
    return _put_end(out, _put_decimal(out, at + 1, partition, FENCE_WIDTHS[3]))


# numba's cache knows this file, not that the layout's constants come from another one.
_LAYOUT: Final = (*FENCE_WIDTHS, FENCE_BYTES, INT64_TAG, DOUBLE_TAG, SECONDS_TAG, NANOS_TAG)


def _make_write_calls(stamp: int) -> Callable[..., int]:
    compiled_for = (stamp, *_LAYOUT)

    def write_calls(
        head: np.ndarray,
        last_head: np.ndarray,
        constants: np.ndarray,
        fields: np.ndarray,
        field_ends: np.ndarray,
        time_count: int,
        prefix: np.ndarray,
        suffix: np.ndarray,
        key_data: np.ndarray,
        key_offsets: np.ndarray,
        values: np.ndarray,
        whole: np.ndarray,
        times: np.ndarray,
        as_of: np.ndarray,
        versions: np.ndarray,
        ttls: np.ndarray,
        lineage: int,
        partition: int,
        keys_a_call: int,
        out: np.ndarray,
    ) -> int:
        _ = compiled_for
        bits = values.view(np.int64)
        count, columns = values.shape
        at = 0
        for first in range(0, count, keys_a_call):
            last = min(first + keys_a_call, count)
            if last == count:
                at = _copy(out, at, last_head, 0, len(last_head))
            else:
                at = _copy(out, at, head, 0, len(head))
            for row in range(first, last):
                start = key_offsets[row]
                length = key_offsets[row + 1] - start
                at = _put_key(out, at, prefix, suffix, key_data, start, length)
            at = _copy(out, at, constants, 0, len(constants))
            for row in range(first, last):
                digits = _digits(ttls[row])
                at = _put_length(out, at, digits)
                at = _put_end(out, _put_decimal(out, at, ttls[row], digits))
                at = _put_fence(out, at, lineage, versions[row], as_of[row], partition)
                seconds = times[row] // 1000
                nanos = (times[row] - seconds * 1000) * 1_000_000
                length = len(fields) + time_count * (1 + _time_bytes(seconds, nanos))
                for column in range(columns):
                    length += 1 + _value_bytes(values[row, column], whole[column])
                at = _put_length(out, at, length)
                for field in range(time_count):
                    start = field_ends[field]
                    at = _copy(out, at, fields, start, field_ends[field + 1] - start)
                    at = _put_time(out, at, seconds, nanos)
                for column in range(columns):
                    start = field_ends[time_count + column]
                    stop = field_ends[time_count + column + 1]
                    at = _copy(out, at, fields, start, stop - start)
                    at = _put_value(out, at, values[row, column], bits[row, column], whole[column])
                at = _put_end(out, at)
        return at

    return write_calls


_write_calls: Any = entry(_make_write_calls)
