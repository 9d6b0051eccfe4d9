"""Records of rows: what the kernel writes is what fastavro reads."""

from __future__ import annotations

import io
import itertools
import json
import math

import fastavro
import numpy as np
import pyarrow as pa
import pytest

from headrace.schemas.errors import EncodeError
from headrace.streams.records import (
    Constant,
    Long,
    Number,
    RecordProgram,
    RowColumns,
    RowName,
    Text,
    text_buffers,
)

FIELDS = {
    "name": "string",
    "partition": "int",
    "time": "long",
    "id": ["null", "string"],
    "key": ["null", "string"],
    "status": "string",
    "score": ["null", "double"],
    "count": ["null", "long"],
    "model": ["null", "string"],
    "version": ["null", "string"],
    "revision": "long",
    "role": "string",
}
BINDINGS = {
    "name": RowName("topic-"),
    "partition": Long(0),
    "time": Long(2),
    "id": Long(3, as_text=True, valid=0),
    "key": Text(0, valid=1),
    "status": Text(1, nullable=False),
    "score": Number(0),
    "count": Number(1),
    "model": Constant(None),
    "version": Constant("v7"),
    "revision": Constant(-3),
    "role": Constant("größer"),
}
LONGS = [
    [0, 0, -1, 0],
    [3, 9, 1_600_000_000_000, -(2**63)],
    [12, 10, 63, 2**63 - 1],
    [2_000_000, 99_999_999_999, 64, -10],
    [1, 100, -(2**62), 7],
]
NUMBERS = [
    [0.1, 3.0],
    [-0.0, -(2.0**53)],
    [math.nan, math.nan],
    [math.inf, -math.inf],
    [1e308, 64.0],
]
KEYS = ["", "Łódź", None, "x" * 300, "c1"]
STATUSES = ["ok", "no_score", "ok", "", "incomplete"]


def schema(fields=None):
    listed = [{"name": name, "type": kind} for name, kind in (fields or FIELDS).items()]
    return {"type": "record", "name": "Row", "fields": listed}


def columns():
    texts = [pa.array(KEYS), pa.array(["skipped", *STATUSES]).slice(1)]
    pieces = [text_buffers(column) for column in texts]
    ends = np.stack([pieces[0][0], pieces[1][0] + len(pieces[0][1])])
    valid = np.array([[True, True, True, False, True], [key is not None for key in KEYS]])
    return RowColumns(
        np.array(LONGS), np.array(NUMBERS), valid, np.concatenate([p[1] for p in pieces]), ends
    )


def test_every_kind_of_field_reads_back_as_it_was_given():
    parsed = fastavro.parse_schema(schema())

    blob, cuts = RecordProgram(json.dumps(schema()), 258, BINDINGS).encode(columns())

    assert cuts[-1] == len(blob)
    for row, (start, stop) in enumerate(itertools.pairwise(cuts)):
        assert blob[start : start + 5] == b"\0\0\0\1\2"
        body = io.BytesIO(blob[start + 5 : stop])
        found = fastavro.schemaless_reader(body, parsed, None)
        assert body.read() == b""
        partition, offset, time, identity = LONGS[row]
        score, count = NUMBERS[row]
        assert found == {
            "name": f"topic-{partition}-{offset}",
            "partition": partition,
            "time": time,
            "id": None if row == 3 else str(identity),
            "key": KEYS[row],
            "status": STATUSES[row],
            "score": None if math.isnan(score) else score,
            "count": int(count) if math.isfinite(count) else None,
            "model": None,
            "version": "v7",
            "revision": -3,
            "role": "größer",
        }


@pytest.mark.parametrize(
    ("kind", "binding"),
    [
        ("double", Number(0)),
        ("string", Constant(None)),
        ("long", Constant("1")),
        (["null", "string"], Text(0, nullable=False)),
        (["string", "null"], Text(0)),
        ("string", Long(0)),
        ("bytes", Constant("x")),
        ("long", None),
    ],
)
def test_a_field_bound_to_what_it_cannot_hold_is_refused(kind, binding):
    record = json.dumps(schema({"field": kind}))

    with pytest.raises(EncodeError, match="field of Row"):
        RecordProgram(record, 1, {} if binding is None else {"field": binding})


def test_no_rows_are_no_bytes():
    none = RowColumns(
        np.empty((0, 4), np.int64),
        np.empty((0, 2)),
        np.ones((2, 0), bool),
        np.empty(0, np.uint8),
        np.zeros((2, 1), np.int64),
    )

    assert RecordProgram(json.dumps(schema()), 1, BINDINGS).encode(none) == (b"", [0])


def test_text_buffers_of_a_slice_begin_at_nought():
    ends, data = text_buffers(pa.array(["ab", "c", None, "dé"]).slice(1))

    assert ends.tolist() == [0, 1, 1, 4]
    assert bytes(data) == "cdé".encode()
