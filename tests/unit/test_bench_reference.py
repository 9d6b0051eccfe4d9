"""The card job's reference is right by the job's definition, and its inputs are what they claim."""

from __future__ import annotations

import io
import math

import fastavro
import numpy as np
import pytest

from bench.card.job import (
    COUNTRIES,
    FEATURES,
    HOUR_MS,
    SCHEMA,
    Events,
    customer_name,
    encode,
    make_events,
)
from bench.card.reference import reference_vectors, wrong_rows

SEED = 11


def few_events(count: int = 400, customers: int = 5) -> Events:
    """Draw events that are dense enough for every window to lose some again."""
    rng = np.random.default_rng(SEED)
    ts_ms = 1_700_000_000_000 + np.sort(rng.integers(0, 60 * 24 * HOUR_MS, count))
    ts_ms -= (rng.random(count) < 0.2) * rng.integers(0, HOUR_MS, count)
    return Events(
        ts_ms=ts_ms,
        customer=rng.integers(0, customers, count),
        terminal=rng.integers(0, 10, count),
        amount=np.round(rng.lognormal(3.5, 1, count), 2),
        country=rng.integers(0, len(COUNTRIES), count),
    )


def test_every_window_counts_the_whole_hours_of_the_definition():
    events = few_events()
    vectors = reference_vectors(events)
    hour = events.ts_ms // HOUR_MS

    for row in range(len(events)):
        before = [r for r in range(row + 1) if events.customer[r] == events.customer[row]]
        expected = [events.amount[row], hour[row] % 24]
        windows = [
            [events.amount[r] for r in before if hour[row] - hours < hour[r] <= hour[row]]
            for hours in (24, 168, 720)
        ]
        expected += [len(window) for window in windows]
        expected += [math.fsum(window) / len(window) for window in windows]

        assert vectors[row] == pytest.approx(expected, rel=1e-13)


def test_the_windows_of_the_sample_do_lose_events_again():
    vectors = reference_vectors(few_events())

    assert (vectors[:, 4] < 400 / 5).all()
    assert (vectors[:, 2] < vectors[:, 4]).any()


def test_one_wrong_value_in_a_million_is_found():
    reference = np.random.default_rng(SEED).uniform(1, 100, (1_000, 1 + len(FEATURES)))
    ids = np.random.default_rng(SEED).permutation(1_000)
    rows = reference[ids]
    rows[17, 3] *= 1 + 1e-5
    rows[400, 0] = np.nan

    assert wrong_rows(ids, rows, reference).tolist() == [17, 400]


def test_the_encoded_events_decode_to_the_drawn_ones_also_from_the_kept_file(tmp_path):
    events = make_events(500)
    cache = tmp_path / "events.arrow"
    made = encode(events, cache)
    kept = encode(events, cache)
    schema = fastavro.parse_schema(SCHEMA)

    assert kept.equals(made)
    for number, body in enumerate(kept.to_pylist()):
        row = fastavro.schemaless_reader(io.BytesIO(body), schema, None)
        assert row == {
            "transaction_id": number,
            "ts": events.ts_ms[number],
            "customer_id": customer_name(events.customer[number]),
            "terminal_id": f"T{events.terminal[number]:06d}",
            "amount": events.amount[number],
            "country": COUNTRIES[events.country[number]],
        }


def test_the_first_events_are_those_of_the_published_generator():
    # Written down from a run of the peers' generator, whose draws depend on the count.
    events = make_events(1_000_000)

    assert events.amount[:3].tolist() == [16.25, 120.96, 59.34]
    assert np.bincount(events.customer).max() / len(events) == pytest.approx(0.25, abs=0.01)
    assert events.ts_ms.min() >= 1_700_000_000_000 - HOUR_MS
