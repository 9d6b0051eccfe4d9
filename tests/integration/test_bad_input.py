"""Bad records of every kind among good ones: each in the DLQ with its reason, none lost."""

from __future__ import annotations

import math
import struct
from collections import Counter

import numpy as np
import pytest
from live import LiveWorker, make_project, payments

START_MS = 1_750_000_000_000
GOOD = 100_000
EACH = 1_000
HUGE, HUGE_BYTES = 20, 10_000_000
COMPRESSIBLE, COMPRESSIBLE_BYTES = 1_000, 1_200_000
RSS_MB_MAX = 900
SETTINGS = """
topics:
  properties:
    max.message.bytes: 20971520
"""


@pytest.fixture
def project(project_folder):
    made = make_project(project_folder, SETTINGS)
    yield made
    made.close()


def zigzag(value: int) -> bytes:
    """Encode an Avro long."""
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def bad_values(project, i):
    """Return one value of each kind, by the reason that the DLQ must give."""
    at_ms = START_MS + 100 * i
    good = project.payment(10_000_000 + i, at_ms, f"c{i % 50}", 1.0)
    head = struct.pack(">bI", 0, project.schema_id)
    fixed = zigzag(10_000_000 + i) + zigzag(at_ms)
    billion = zigzag(1) + zigzag(10**9)
    return [
        ("empty", b"" if i % 2 else None),
        ("bad_magic", b"\x07" + good[1:]),
        ("unknown_schema", struct.pack(">bI", 0, 999_999) + good[5:]),
        ("truncated", good[:-3]),
        ("trailing_bytes", good + b"\x00\x01"),
        ("invalid", head + fixed + zigzag(7) + good[-8:]),
        ("invalid_utf8", head + fixed + zigzag(1) + zigzag(2) + b"\xff\xfe" + good[-8:]),
        # A string that declares a billion bytes.
        ("truncated", head + fixed + billion + good[-8:]),
        ("not_finite", project.payment(i, at_ms, f"c{i % 50}", math.nan)),
        ("not_finite", project.payment(i, at_ms, f"c{i % 50}", math.inf if i % 2 else -math.inf)),
        ("negative_time", project.payment(i, -5 - i, f"c{i % 50}", 1.0)),
        ("future_time", project.payment(i, 4_000_000_000_000, f"c{i % 50}", 1.0)),
    ]


def test_each_bad_record_is_kept_with_its_reason_and_every_good_one_is_scored(project):
    good, rows = payments(project, GOOD, START_MS, seed=6)
    expected = Counter()
    bad = []
    for i in range(EACH):
        for reason, value in bad_values(project, i):
            expected[reason] += 1
            bad.append((f"c{i % 50}".encode(), value))
    null_keys = [(None, project.payment(20_000_000 + i, START_MS, None, 1.0)) for i in range(EACH)]
    random = np.random.default_rng(7)
    huge = [(b"c1", random.bytes(HUGE_BYTES)) for _ in range(HUGE)]
    compressible = [(b"c2", b"\x00" * COMPRESSIBLE_BYTES) for _ in range(COMPRESSIBLE)]
    expected["too_large"] = HUGE + COMPRESSIBLE
    mixed = good + bad
    order = random.permutation(len(bad)) + random.integers(0, GOOD, len(bad))
    places = np.concatenate([np.arange(GOOD) + 0.5, np.sort(order % GOOD)])
    mixed = [mixed[i] for i in np.argsort(places, kind="stable")]

    with LiveWorker(project.folder) as worker:
        project.send(null_keys)
        project.send(mixed[: GOOD // 2])
        project.send(huge)
        project.send(compressible, **{"compression.type": "lz4"})
        project.send(mixed[GOOD // 2 :])
        predictions = project.read("predictions", GOOD + EACH, timeout_s=120)
        refused = project.read("dlq", expected.total(), timeout_s=60)
        assert worker.process.poll() is None
        assert worker.metrics()["headrace_partitions"] == project.partitions
        peak_mb = worker.rss_mb()
        assert worker.terminate() == 0, worker.output()

    scored = {project.decode(one.value())["event_id"] for one in predictions}
    assert scored == {str(row[0]) for row in rows} | {str(20_000_000 + i) for i in range(EACH)}
    reasons = Counter(dict(one.headers())["headrace.errors.reason"].decode() for one in refused)
    assert reasons == expected
    sent = Counter(bad + huge + compressible)
    assert Counter((one.key(), one.value()) for one in refused) == sent
    assert peak_mb < RSS_MB_MAX, peak_mb
