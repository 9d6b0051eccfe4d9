"""What a reader of the online store may see, told from the events alone. Pure.

All events of a run lie in all of its windows, so the features of a key after its n-th event are n
and the mean of its first n amounts. A value is right if it is of some n; it is old by the time that
has passed since event n + 1 was sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.features.store.freshness import FRESH, STALE, STATUSES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

VIEW, WINDOWS = "customer", ("1d", "7d", "30d")
COUNTS = tuple(f"{VIEW}__count_{window}" for window in WINDOWS)
MEANS = tuple(f"{VIEW}__amount_mean_{window}" for window in WINDOWS)
STATUS = f"{VIEW}__status"
MEAN_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Seen:
    """What reads gave, a row a key.

    Args:
        at_s: float64[n], when the read began, monotonic clock.
        key: int64[n].
        status: int64[n], as an index of ``STATUSES``.
        counts: float64[n, windows]; null is NaN.
        means: float64[n, windows]; null is NaN.

    """

    at_s: NDArray[np.float64]
    key: NDArray[np.int64]
    status: NDArray[np.int64]
    counts: NDArray[np.float64]
    means: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.key)

    @classmethod
    def of(cls, at_s: float, key: NDArray[np.int64], columns: dict[str, list[Any]]) -> Seen:
        """Return an answer's columns as rows."""
        status = [STATUSES.index(one) for one in columns[STATUS]]
        return cls(
            np.full(len(key), at_s),
            key,
            np.array(status, np.int64),
            np.array([columns[name] for name in COUNTS], np.float64).T,
            np.array([columns[name] for name in MEANS], np.float64).T,
        )

    @classmethod
    def joined(cls, parts: Sequence[Seen]) -> Seen:
        """Return the rows of all, one after the other."""
        columns: dict[str, list[Any]] = {name: [] for name in (STATUS, *COUNTS, *MEANS)}
        nothing = cls.of(0.0, np.zeros(0, np.int64), columns)
        several = [nothing, *parts]
        return cls(
            np.concatenate([one.at_s for one in several]),
            np.concatenate([one.key for one in several]),
            np.concatenate([one.status for one in several]),
            np.concatenate([one.counts for one in several]),
            np.concatenate([one.means for one in several]),
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said of the reads of a stretch, in values read.

    ``wrong_unflagged``: not of any n, a zero or a null, and not STALE. ``wrong_flagged``: the same
    with STALE, but a null, which says itself that it is none. ``fresh_old_s_max``: of FRESH ones.
    """

    statuses: dict[str, int]
    wrong_unflagged: int
    wrong_flagged: int
    fresh_old_s_p99: float
    fresh_old_s_max: float


class Judge:
    """Knows the events up to now.

    Args:
        key: int64[n], by event, in the order in which they were sent.
        cents: int64[n], their amounts.
        sent_s: float64[n], when, monotonic clock; ascending.

    """

    def __init__(
        self, key: NDArray[np.int64], cents: NDArray[np.int64], sent_s: NDArray[np.float64]
    ) -> None:
        self._sent_s = sent_s
        self._order = np.argsort(key, kind="stable")
        self._count = np.bincount(key)
        self._start = np.cumsum(self._count) - self._count
        self._sums = np.concatenate([[0], np.cumsum(cents[self._order])])
        self._places = key[self._order] * np.int64(len(key)) + self._order

    def features(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return count and mean of its key as of each event, in the order in which they were sent.

        Shapes: (n,) and (n,).
        """
        start = np.repeat(self._start, self._count)
        place = np.arange(len(self._order))
        count = np.empty(len(place), np.int64)
        mean = np.empty(len(place))
        count[self._order] = place - start + 1
        mean[self._order] = (self._sums[place + 1] - self._sums[start]) / 100 / (place - start + 1)
        return count, mean

    def is_value(self, seen: Seen) -> NDArray[np.bool_]:
        """Return which rows are what a key's features were after some event of its. Shape: (n,)."""
        first = seen.counts[:, 0]
        there = (first >= 1) & (first <= self._count[seen.key])
        count = np.where(there, first, 1).astype(np.int64)
        start = self._start[seen.key]
        mean = (self._sums[start + count] - self._sums[start]) / 100 / count
        far = np.abs(seen.means / mean[:, None] - 1)
        one = (seen.counts == first[:, None]) & (far <= MEAN_TOLERANCE)
        value: NDArray[np.bool_] = there & one.all(axis=1)
        return value

    def old_s(self, seen: Seen) -> NDArray[np.float64]:
        """Return for how long each value has not been the newest; it must be a value. Shape: (n,).

        0 where it is the newest that could be.
        """
        count = seen.counts[:, 0].astype(np.int64)
        newer = count < self._count[seen.key]
        place = np.where(newer, self._start[seen.key] + count, 0)
        passed = seen.at_s - self._sent_s[self._order[place]]
        old_s: NDArray[np.float64] = np.where(newer, np.maximum(0.0, passed), 0.0)
        return old_s

    def wrong(self, seen: Seen, sent_s: float) -> NDArray[np.bool_]:
        """Return which rows are not FRESH, no value, or lack an event sent before ``sent_s``."""
        known = np.searchsorted(self._sent_s, sent_s)
        sought = seen.key * np.int64(len(self._order)) + known
        due = np.searchsorted(self._places, sought) - self._start[seen.key]
        fresh = seen.status == STATUSES.index(FRESH)
        right: NDArray[np.bool_] = fresh & self.is_value(seen) & (seen.counts[:, 0] >= due)
        return ~right

    def verdict(self, seen: Seen) -> Verdict:
        """Return what is to be said of reads of keys of which at least one event was written."""
        value = self.is_value(seen)
        stale = seen.status == STATUSES.index(STALE)
        null = np.isnan(seen.counts).all(axis=1) & np.isnan(seen.means).all(axis=1)
        fresh = value & (seen.status == STATUSES.index(FRESH))
        old_s = self.old_s(Seen(*(getattr(seen, name)[fresh] for name in Seen.__slots__)))
        counted = np.bincount(seen.status, minlength=len(STATUSES)).tolist()
        return Verdict(
            dict(zip(STATUSES, counted, strict=True)),
            int((~value & ~stale).sum()),
            int((~value & stale & ~null).sum()),
            float(np.percentile(old_s, 99)) if len(old_s) else 0.0,
            float(old_s.max(initial=0.0)),
        )
