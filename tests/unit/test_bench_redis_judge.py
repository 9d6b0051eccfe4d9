"""The judge of what readers of the online store see: right, old, torn or never so."""

from __future__ import annotations

import numpy as np
import pytest

from bench.redis_judge import Judge, Seen
from headrace.features.store.freshness import FRESH, MISSING, STALE, STATUSES

# Key 0 at 1, 3, 5 s and key 1 at 2 s.
KEYS, CENTS, SENT_S = np.array([0, 1, 0, 0]), np.array([100, 700, 300, 500]), [1.0, 2.0, 3.0, 5.0]
NULL = float("nan")


@pytest.fixture
def judge():
    return Judge(KEYS, CENTS, np.array(SENT_S))


def seen(at_s, key, status, count, mean, other_count=None):
    counts = [count, count, count if other_count is None else other_count]
    return Seen(
        np.array([at_s]),
        np.array([key]),
        np.array([STATUSES.index(status)]),
        np.array([counts], float),
        np.array([[mean] * 3]),
    )


def test_features_are_of_the_events_of_the_key_up_to_the_event(judge):
    count, mean = judge.features()

    assert count.tolist() == [1, 1, 2, 3]
    assert mean.tolist() == [1.0, 7.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("status", "count", "mean", "other", "unflagged", "flagged"),
    [
        (FRESH, 2, 2.0, None, 0, 0),
        (STALE, 1, 1.0, None, 0, 0),
        (STALE, NULL, NULL, None, 0, 0),
        # Zeros, nulls that nobody takes back, more than was ever sent, another's mean, two halves.
        (FRESH, 0, NULL, None, 1, 0),
        (MISSING, 0, NULL, None, 1, 0),
        (FRESH, NULL, NULL, None, 1, 0),
        (FRESH, 4, 4.0, None, 1, 0),
        (FRESH, 2, 3.0, None, 1, 0),
        (FRESH, 2, 2.0, 1, 1, 0),
        (STALE, 0, NULL, None, 0, 1),
        (STALE, 2, 3.0, None, 0, 1),
    ],
)
def test_what_was_never_so_is_wrong(judge, status, count, mean, other, unflagged, flagged):
    found = judge.verdict(seen(9.0, 0, status, count, mean, other))

    assert (found.wrong_unflagged, found.wrong_flagged) == (unflagged, flagged)
    assert found.statuses[status] == 1


def test_a_value_is_old_since_the_next_event_was_sent(judge):
    found = judge.verdict(Seen.joined([seen(9.0, 0, FRESH, 1, 1.0), seen(9.0, 1, FRESH, 1, 7.0)]))

    assert found.fresh_old_s_max == 6.0


def test_a_store_is_right_when_it_holds_what_was_sent_before_an_instant(judge):
    def wrong(sent_s, status, count, mean):
        return bool(judge.wrong(seen(9.0, 0, status, count, mean), sent_s)[0])

    assert not wrong(4.9, FRESH, 2, 2.0)
    assert wrong(5.1, FRESH, 2, 2.0)
    assert not wrong(4.9, FRESH, 3, 3.0)
    assert not wrong(5.1, FRESH, 3, 3.0)
    assert wrong(5.1, STALE, 3, 3.0)
    assert wrong(5.1, FRESH, 3, 2.0)
