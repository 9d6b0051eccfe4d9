"""The card job computed from its definition, plainly and slowly, to check every output against.

A window of W hours at an event in hour h holds the events that came before it in the log, the event
included, whose hour lies in (h - W, h]. Amounts are whole cents, so sums are exact here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.card.job import FEATURES, HOUR_MS, Events

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

WINDOWS_HOURS = (24, 168, 720)


def reference_vectors(events: Events) -> NDArray[np.float64]:
    """Return the model's input of each event.

    Customers are independent of each other and each one's events keep their order on the way, so
    one customer is counted after the other, hour by hour.

    Shape: (len(events), len(FEATURES)), in the order of ``FEATURES``.
    Cost: about 10 us per event.
    """
    hour = events.ts_ms // HOUR_MS
    cents = np.rint(events.amount * 100).astype(np.int64)
    first_hour = int(hour.min()) - max(WINDOWS_HOURS)
    events_of = np.zeros(int(hour.max()) - first_hour + 1, np.int64)
    cents_of = np.zeros_like(events_of)
    vectors = np.empty((len(events), len(FEATURES)))
    order = np.argsort(events.customer, kind="stable")
    ends = np.flatnonzero(np.diff(events.customer[order], append=-1)) + 1
    start = 0
    for end in ends.tolist():
        rows = order[start:end]
        for row in rows.tolist():
            at = int(hour[row]) - first_hour
            events_of[at] += 1
            cents_of[at] += cents[row]
            for index, hours in enumerate(WINDOWS_HOURS):
                window = slice(at - hours + 1, at + 1)
                count = int(events_of[window].sum())
                vectors[row, 2 + index] = count
                vectors[row, 5 + index] = int(cents_of[window].sum()) / 100 / count
        events_of[hour[rows] - first_hour] = 0
        cents_of[hour[rows] - first_hour] = 0
        start = end
    vectors[:, 0] = events.amount
    vectors[:, 1] = hour % 24
    return vectors


def reference_rows(events: Events, model: Path, cache: Path) -> NDArray[np.float64]:
    """Return [score, features…] of each event, kept in a file once computed.

    Shape: (len(events), 1 + len(FEATURES)).
    """
    if cache.exists():
        kept: NDArray[np.float64] = np.load(cache)
        return kept
    import lightgbm

    vectors = reference_vectors(events)
    scores = np.asarray(lightgbm.Booster(model_file=model).predict(vectors, num_threads=1))
    rows = np.column_stack([scores, vectors])
    part = cache.with_suffix(".part.npy")
    np.save(part, rows)
    part.rename(cache)
    return rows


def wrong_rows(
    ids: NDArray[np.int64], rows: NDArray[np.float64], reference: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the positions in ``rows`` that differ from their event's reference by more than 1e-6.

    The measure is the peers': |difference| < 1e-6 x (|reference| + 1e-6), in each column.
    """
    expected = reference[ids]
    # Written so that a NaN counts as wrong.
    within = np.abs(rows - expected) < 1e-6 * (np.abs(expected) + 1e-6)
    return np.flatnonzero(~within.all(axis=1))
