"""Entities, rows and an own reading of packed calls, for the tests of the online store."""

from __future__ import annotations

import hiredis
import numpy as np
import pyarrow as pa

from headrace.features.store.port import EntityRows
from headrace.features.store.views import OnlineEntity, OnlineFeature, OnlineView

DAY_MS = 86_400_000
NOW_MS = 1_700_000_000_000

TYPES = {"int64": pa.int64(), "string": pa.string(), "bytes": pa.binary()}


def view(name, features=("count_1d", "amount_mean_1d"), dtypes=("int64", "float64"), reach=DAY_MS):
    made = tuple(
        OnlineFeature(f"{name}__{feature}", name, feature, dtype, 0.0 if dtype == "int64" else None)
        for feature, dtype in zip(features, dtypes, strict=True)
    )
    return OnlineView(name, made, reach)


def entity(
    project="shop", pipeline="fraud", name="customer", kind="int64", views=None, shared=False
):
    views = views or (view("spending"),)
    expiry_ms = 2 * max(v.reach_ms for v in views)
    return OnlineEntity(project, pipeline, name, f"{name}_id", kind, views, expiry_ms, shared)


def rows(keys, values, event_time_ms=NOW_MS, as_of_ms=None, version=1, kind="int64"):
    """Return rows; what is one number holds for all of them."""
    count = len(keys)
    times = np.broadcast_to(np.asarray(event_time_ms, np.int64), (count,))
    as_of = times if as_of_ms is None else np.broadcast_to(np.int64(as_of_ms), (count,))
    versions = np.broadcast_to(np.asarray(version, np.int64), (count,))
    return EntityRows(
        pa.array(keys, TYPES[kind]), np.asarray(values, np.float64), times, as_of, versions
    )


def commands(data):
    """Return the commands in packed bytes, each a list of its arguments."""
    reader = hiredis.Reader()
    reader.feed(bytes(data))
    found = []
    while (parsed := reader.gets()) is not False:
        found.append(parsed)
    return found


def texts(message):
    """Return the texts in a MessagePack argument."""
    found, at = [], 0
    while at < len(message):
        if message[at] == 0xDA:
            length, at = int.from_bytes(message[at + 1 : at + 3], "big"), at + 3
        else:
            assert message[at] & 0xE0 == 0xA0, message[at]
            length, at = message[at] & 0x1F, at + 1
        found.append(message[at : at + length])
        at += length
    return found


def unpacked(data):
    """Return {key: (ttl, fence, {field: value})} of packed calls of the writing script."""
    found = {}
    for call in commands(data):
        assert call[0] == b"EVALSHA"
        count = int(call[2])
        keys, arguments = call[3 : 3 + count], call[3 + count + 2 :]
        assert len(arguments) == 3 * count
        for index, key in enumerate(keys):
            ttl, fence, message = arguments[3 * index : 3 * index + 3]
            pairs = texts(message)
            fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
            assert key not in found
            found[key] = (int(ttl), fence, fields)
    return found
