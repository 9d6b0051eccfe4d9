"""A processor's small parts as bytes: plain trees of numbers, text, arrays and Arrow batches. Pure.

The head is JSON that an operator can read; arrays and batches lie behind it, by number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pyarrow as pa

_LENGTH_BYTES = 8
_ARRAY, _BATCH, _BYTES = "$array", "$batch", "$bytes"


def pack(tree: dict[str, Any]) -> bytes:
    """Return a tree of dicts (text keys), lists, scalars, bytes, arrays and record batches.

    Arrays come back read-only.
    """
    blobs: list[bytes] = []
    head = orjson.dumps({"tree": _plain(tree, blobs), "sizes": [len(blob) for blob in blobs]})
    return b"".join([len(head).to_bytes(_LENGTH_BYTES, "big"), head, *blobs])


def unpack(data: bytes) -> dict[str, Any]:
    """Return what ``pack`` was given.

    Raises:
        ValueError: If the bytes are not from ``pack``.

    """
    length = int.from_bytes(data[:_LENGTH_BYTES], "big")
    start = _LENGTH_BYTES + length
    if len(data) < start:
        message = f"{len(data)} bytes hold no head of {length}"
        raise ValueError(message)
    head = orjson.loads(data[_LENGTH_BYTES:start])
    blobs = []
    for size in head["sizes"]:
        blobs.append(data[start : start + size])
        start += size
    if start != len(data):
        message = f"{len(data)} bytes are not the {start} that their head tells of"
        raise ValueError(message)
    tree: dict[str, Any] = _full(head["tree"], blobs)
    return tree


def _plain(value: Any, blobs: list[bytes]) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item, blobs) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, blobs) for item in value]
    if isinstance(value, np.ndarray):
        blobs.append(np.ascontiguousarray(value).tobytes())
        return {_ARRAY: len(blobs) - 1, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, pa.RecordBatch):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        blobs.append(sink.getvalue().to_pybytes())
        return {_BATCH: len(blobs) - 1}
    if isinstance(value, bytes):
        blobs.append(value)
        return {_BYTES: len(blobs) - 1}
    assert value is None or isinstance(value, bool | int | float | str), type(value)
    return value


def _full(value: Any, blobs: list[bytes]) -> Any:
    if isinstance(value, list):
        return [_full(item, blobs) for item in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        flat = np.frombuffer(blobs[value[_ARRAY]], dtype=np.dtype(value["dtype"]))
        return flat.reshape(value["shape"])
    if _BATCH in value:
        (batch,) = pa.ipc.open_stream(pa.py_buffer(blobs[value[_BATCH]]))
        return batch
    if _BYTES in value:
        return blobs[value[_BYTES]]
    return {key: _full(item, blobs) for key, item in value.items()}
