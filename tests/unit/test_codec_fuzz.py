"""Damaged records: nothing uncaught, nothing accepted with bytes left over, no good row lost."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from decimal import Decimal
from typing import Any

import fastavro
import numpy as np
import pytest

from headrace.schemas.arrays import batch_of
from headrace.schemas.avro import parse_record, without_logical_types
from headrace.schemas.codec import Decoded, SchemaDecoder
from headrace.schemas.resolver import compile_reader

MUTANTS = 20_000
GOOD_SHARE = 0.2

FLAT = {
    "type": "record",
    "name": "Flat",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "customer", "type": "string"},
        {"name": "amount", "type": "double"},
        {"name": "note", "type": ["null", "string"]},
        {"name": "small", "type": ["int", "null"]},
        {"name": "fee", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9}},
        {"name": "online", "type": "boolean"},
    ],
}
NESTED = {
    "type": "record",
    "name": "Nested",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "numbers", "type": {"type": "array", "items": "long"}},
        {
            "name": "lines",
            "type": {
                "type": "map",
                "values": [
                    "null",
                    {
                        "type": "record",
                        "name": "Line",
                        "fields": [
                            {
                                "name": "code",
                                "type": {"type": "enum", "name": "E", "symbols": list("abc")},
                            },
                            {"name": "any", "type": ["null", "int", "string", "double"]},
                            {
                                "name": "parts",
                                "type": {"type": "array", "items": ["null", "bytes"]},
                            },
                        ],
                    },
                ],
            },
        },
        {"name": "hash", "type": {"type": "fixed", "name": "H", "size": 5}},
        {"name": "ratio", "type": "float"},
    ],
}


def flat_row(number: int) -> dict[str, Any]:
    return {
        "id": number,
        "ts": 1_700_000_000_000 + number,
        "customer": f"C{number}é",
        "amount": number * 1.5,
        "note": None if number % 2 else "note",
        "small": number if number % 3 else None,
        "fee": Decimal(number - 500),
        "online": number % 2 == 0,
    }


def nested_row(number: int) -> dict[str, Any]:
    line = {
        "code": "abc"[number % 3],
        "any": [None, 7, "text", 0.5][number % 4],
        "parts": [None, b"xy"],
    }
    return {
        "id": f"id{number}",
        "numbers": list(range(number % 5)),
        "lines": {f"k{i}": line if i else None for i in range(number % 3)},
        "hash": b"12345",
        "ratio": 0.25,
    }


def encoded(schema: dict[str, Any], row: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), row)
    return stream.getvalue()


def damaged(rng: random.Random, record: bytes) -> bytes:
    out = bytearray(record)
    for _ in range(rng.randint(1, 3)):
        kind = rng.random()
        if kind < 0.5 and out:
            out[rng.randrange(len(out))] = rng.randrange(256)
        elif kind < 0.7:
            del out[rng.randrange(len(out) + 1) :]
        elif kind < 0.85:
            out += rng.randbytes(rng.randint(1, 5))
        elif out:
            del out[rng.randrange(len(out))]
    return bytes(out)


def decode_in_batches(
    schema: str, payloads: list[bytes], size: int
) -> tuple[list[Any], dict[int, str]]:
    decoder = SchemaDecoder(schema)
    rows: list[Any] = [None] * len(payloads)
    reasons: dict[int, str] = {}
    for start in range(0, len(payloads), size):
        decoded: Decoded = decoder.decode(payloads[start : start + size])
        decoded.batch.validate(full=True)
        assert np.all(np.diff(decoded.rows) > 0)
        for place, row in zip(decoded.rows.tolist(), decoded.batch.to_pylist(), strict=True):
            rows[start + place] = row
        reasons |= {start + one.index: one.reason for one in decoded.rejected}
    return rows, reasons


def read_by_fastavro(schema: Any, payload: bytes) -> bool:
    """Return whether fastavro reads the record, and all of it."""
    stream = io.BytesIO(payload)
    try:
        fastavro.schemaless_reader(stream, schema)
    except (
        EOFError,
        ValueError,
        IndexError,
        OverflowError,
        MemoryError,
        fastavro.read.SchemaResolutionError,
    ):
        return False
    return stream.tell() == len(payload)


@pytest.mark.parametrize(
    ("schema", "make"), [(FLAT, flat_row), (NESTED, nested_row)], ids=["flat", "nested"]
)
def test_damaged_records_are_refused_or_read_as_fastavro_reads_them(schema, make) -> None:
    rng = random.Random(20_260)
    whole = [encoded(schema, make(rng.randrange(1000))) for _ in range(500)]
    payloads, good = [], []
    for _ in range(MUTANTS):
        record = rng.choice(whole)
        good.append(rng.random() < GOOD_SHARE)
        payloads.append(record if good[-1] else damaged(rng, record))
    text = json.dumps(schema)

    rows, reasons = decode_in_batches(text, payloads, 1000)

    record_type = parse_record(text)
    read = compile_reader(record_type, record_type)
    raw_schema = fastavro.parse_schema(json.loads(without_logical_types(text)))
    outcomes: Counter[tuple[str, bool]] = Counter()
    for index, payload in enumerate(payloads):
        fine = read_by_fastavro(raw_schema, payload)
        outcomes[reasons.get(index, "good"), fine] += 1
        if index in reasons:
            assert not good[index], reasons[index]
            continue
        assert fine
        value, end = read(payload, 0)
        assert end == len(payload)
        slow = batch_of(record_type, [value])
        assert repr(slow.to_pylist()[0]) == repr(rows[index])
    # What fastavro reads is refused for what Avro forbids only, never for its length.
    assert {reason for reason, fine in outcomes if fine} <= {"good", "invalid"}
    assert {"truncated", "trailing_bytes", "invalid_utf8", "invalid"} <= set(reasons.values())
    assert len([one for one in good if one]) > MUTANTS * GOOD_SHARE * 0.9
