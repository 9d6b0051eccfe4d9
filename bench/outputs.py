"""Read a pipeline's predictions and snapshots back and turn them into columns by event id."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bench.measure import BenchError, read_topic
from headrace.schemas.codec import SchemaDecoder
from headrace.schemas.registry import SchemaRegistry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

HEADER_BYTES = 5
CHUNK = 50_000


class OutputDecoder:
    """Decodes the messages of an output topic by the schema that the first one names."""

    def __init__(self, registry_url: str) -> None:
        self._registry_url = registry_url
        self._schema_id: int | None = None
        self._decoder: SchemaDecoder | None = None

    def decode(self, values: Sequence[bytes]) -> pa.RecordBatch:
        """Return the messages as a batch, in order.

        Raises:
            BenchError: If one is not a record of the first one's schema.

        """
        if self._decoder is None:
            self._schema_id = int.from_bytes(values[0][1:HEADER_BYTES], "big")
            with SchemaRegistry(self._registry_url) as registry:
                self._decoder = SchemaDecoder(registry.schema(self._schema_id))
        header = b"\0" + (self._schema_id or 0).to_bytes(4, "big")
        if any(value[:HEADER_BYTES] != header for value in values):
            msg = f"outputs must all have schema {self._schema_id}"
            raise BenchError(msg)
        decoded = self._decoder.decode([value[HEADER_BYTES:] for value in values])
        if decoded.rejected:
            msg = f"outputs must decode; got {decoded.rejected[0]}"
            raise BenchError(msg)
        return decoded.batch


def event_ids(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Return the outputs' event ids as the integers that they were."""
    ids: NDArray[np.int64] = batch["event_id"].cast(pa.int64()).to_numpy(zero_copy_only=False)
    return ids


def matrix(batch: pa.RecordBatch, names: Sequence[str]) -> NDArray[np.float64]:
    """Return columns side by side, null as NaN.

    Shape: (rows, len(names)).
    """
    columns = [batch[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in names]
    return np.column_stack(columns)


def read_columns(
    bootstrap_servers: str, registry_url: str, topic: str, partitions: int, names: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the event ids of all messages of an output topic, and columns of theirs.

    Shape: (messages,) and (messages, len(names)).
    """
    decoder = OutputDecoder(registry_url)
    ids, rows = [], []
    for values in _chunks(bootstrap_servers, topic, partitions):
        batch = decoder.decode(values)
        ids.append(event_ids(batch))
        rows.append(matrix(batch, names))
    return np.concatenate(ids), np.concatenate(rows)


def _chunks(bootstrap_servers: str, topic: str, partitions: int) -> Iterator[list[bytes]]:
    values: list[bytes] = []
    for message in read_topic(bootstrap_servers, topic, partitions):
        values.append(message.value())
        if len(values) == CHUNK:
            yield values
            values = []
    if values:
        yield values
