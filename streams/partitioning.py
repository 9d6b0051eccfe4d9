"""The check of a source that is read directly: does each record lie where its key says.

Two facts are checked on every row: the Kafka key is the event's key column in one of the usual
encodings, and the declared partitioner puts that key on this partition. Else one key could have
two half states on two partitions, and nobody would notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.features.kernels.hashing import crc32, crc32_table, murmur2
from headrace.features.kernels.keys import read_only
from headrace.runtime.errors import explain
from headrace.streams.errors import PartitioningError
from headrace.streams.records import text_buffers

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.features.plan import SourcePlan

_CRC32_TABLE = crc32_table()
_HINT = "define the source without a partitioner: its records are then re-keyed by headrace"


def as_text(column: pa.Array) -> pa.Array:
    """Encode a key as text in UTF-8, bytes as they are."""
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    return column.view(pa.binary())


def as_quoted_text(column: pa.Array) -> pa.Array:
    """Encode a text key as JSON does where nothing needs an escape."""
    if not pa.types.is_string(column.type):
        return pa.nulls(len(column), pa.binary())
    quote = pa.scalar(b'"')
    return pc.binary_join_element_wise(quote, column.cast(pa.binary()), quote, b"")


def as_long(column: pa.Array) -> pa.Array:
    """Encode an integer key as Java's LongSerializer does."""
    return _big_endian(column, np.dtype(">i8"))


def as_int(column: pa.Array) -> pa.Array:
    """Encode an integer key as Java's IntegerSerializer does."""
    return _big_endian(column, np.dtype(">i4"))


ENCODINGS: tuple[Callable[[pa.Array], pa.Array], ...] = (as_text, as_long, as_int, as_quoted_text)


def placing(source: SourcePlan, raw_keys: pa.Array) -> pa.Array:
    """Return for each Kafka key whether it decided about the partition.

    Producers put null keys anywhere, and librdkafka empty ones too.
    """
    if source.partitioner == "crc32":
        ends, _ = text_buffers(raw_keys)
        return pa.array(ends[1:] > ends[:-1])
    return raw_keys.is_valid()


class PartitioningCheck:
    """Checks one partition of a source; remembers the encoding that its first row showed."""

    def __init__(self, source: SourcePlan, partition: int, partitions: int) -> None:
        """Check rows of ``partition`` of the source's ``partitions``."""
        assert source.partitioner in {"murmur2", "crc32"}, source.partitioner
        self._source = source
        self._partition = partition
        self._partitions = partitions
        self._encode: Callable[[pa.Array], pa.Array] | None = None

    def dump(self) -> dict[str, Any]:
        """Return which encoding the rows have shown, for a checkpoint."""
        return {"encoding": None if self._encode is None else ENCODINGS.index(self._encode)}

    def load(self, kept: dict[str, Any]) -> None:
        """Take over what ``dump`` returned."""
        encoding = kept["encoding"]
        self._encode = None if encoding is None else ENCODINGS[encoding]

    def check(self, raw_keys: pa.Array, column: pa.Array, offsets: np.ndarray) -> None:
        """Check rows that have a key in the event, and a Kafka key that says where it lies.

        Args:
            raw_keys: The Kafka keys, binary, without nulls.
            column: The event's key column, without nulls.
            offsets: int64[n], for the message.

        Raises:
            PartitioningError: At the first row that breaks a rule; nothing has changed then.

        """
        if not len(raw_keys):
            return
        if self._encode is None:
            self._encode = self._recognise(raw_keys, column, int(offsets[0]))
        encoded = self._encode(column)
        ends, data = text_buffers(raw_keys)
        if not _equal(encoded, ends, data):
            row = _first_other(encoded, raw_keys)
            raise self._other_key(raw_keys[row].as_py(), column[row].as_py(), int(offsets[row]))
        partitions = self._partitions_of(ends, data)
        if (partitions != self._partition).any():
            row = int(np.flatnonzero(partitions != self._partition)[0])
            rule = (
                f"lie where {self._source.partitioner} puts its key,"
                f" on partition {int(partitions[row])} of {self._partitions}"
            )
            got = raw_keys[row].as_py()
            raise PartitioningError(
                explain("a record", rule, got, self._where(int(offsets[row])), _HINT)
            )

    def _partitions_of(self, ends: np.ndarray, data: np.ndarray) -> np.ndarray:
        partitions = np.empty(len(ends) - 1, np.int32)
        data = read_only(data if data.size else np.zeros(1, np.uint8))
        if self._source.partitioner == "murmur2":
            murmur2(data, read_only(ends), self._partitions, partitions)
        else:
            crc32(data, read_only(ends), _CRC32_TABLE, self._partitions, partitions)
        return partitions

    def _recognise(
        self, raw_keys: pa.Array, column: pa.Array, offset: int
    ) -> Callable[[pa.Array], pa.Array]:
        first_raw, first = raw_keys[0].as_py(), column.slice(0, 1)
        for encode in ENCODINGS:
            if _equal(encode(first), *text_buffers(raw_keys.slice(0, 1))):
                return encode
        raise self._other_key(first_raw, first[0].as_py(), offset)

    def _other_key(self, raw: bytes, key: object, offset: int) -> PartitioningError:
        rule = f"be the event's {self._source.key} {key!r} as text, number or bytes"
        return PartitioningError(explain("the Kafka key", rule, raw, self._where(offset), _HINT))

    def _where(self, offset: int) -> str:
        return f"{self._source.topic}-{self._partition} offset {offset}"


def _equal(encoded: pa.Array, ends: np.ndarray, data: np.ndarray) -> bool:
    """Whether the keys are these texts; compared as a whole, since they nearly always are."""
    if encoded.null_count:
        return False
    encoded_ends, encoded_data = text_buffers(encoded)
    return np.array_equal(encoded_ends, ends) and np.array_equal(encoded_data, data)


def _first_other(encoded: pa.Array, raw_keys: pa.Array) -> int:
    """Return the first row whose keys differ."""
    pairs = zip(encoded.to_pylist(), raw_keys.to_pylist(), strict=True)
    return next(row for row, (ours, theirs) in enumerate(pairs) if ours != theirs)


def _big_endian(column: pa.Array, dtype: np.dtype[Any]) -> pa.Array:
    """Return the bytes of an integer column, null where they do not hold the number."""
    if not pa.types.is_integer(column.type):
        return pa.nulls(len(column), pa.binary())
    numbers = column.to_numpy(zero_copy_only=False)
    narrow = numbers.astype(dtype)
    fixed = pa.Array.from_buffers(
        pa.binary(dtype.itemsize), len(narrow), [None, pa.py_buffer(narrow.tobytes())]
    )
    fits = pa.array(narrow == numbers)
    return pc.if_else(fits, fixed.cast(pa.binary()), pa.scalar(None, pa.binary()))
