"""What a period's columns look like, counted batch by batch in bounded memory.

Counts do not depend on the order of batches. Nothing here draws a sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from headrace.drift.bins import bin_numbers
from headrace.drift.profile import moments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from headrace.drift.profile import ColumnProfile

    Floats = NDArray[np.float64]

#: Buckets by logarithm, 1 % wide, for values of any range: after Masson and others 2019 (DDSketch).
_LOG_WIDTH: Final = float(np.log(1.01))
_SMALLEST: Final = 1e-12
_LARGEST: Final = 1e18
_LOG_SMALLEST: Final = float(np.log(_SMALLEST))
_SIDE: Final = int((np.log(_LARGEST) - _LOG_SMALLEST) / _LOG_WIDTH) + 1
_NOVEL_MAX: Final = 1_000


class ColumnSketch:
    """One column of a period, counted against its training profile.

    ``bin_counts`` are exact. ``points`` and ``weights`` stand for the whole distribution: the mean
    of each bucket of 1 %, and its rows.
    """

    def __init__(self, profile: ColumnProfile) -> None:
        self.profile = profile
        self.rows = self.nulls = self.infinite = self.zeros = 0
        self.outside = self.novel = 0
        self.minimum, self.maximum = np.inf, -np.inf
        self.mean = 0.0
        self._squares = 0.0
        self._edges = np.array(profile.edges)
        self._values = np.array(profile.values)
        self.bin_counts = np.zeros(len(self._edges) + 1, np.int64)
        self._counts = np.zeros(2 * _SIDE + 1, np.int64)
        self._sums = np.zeros(2 * _SIDE + 1)
        self._novel: dict[float, int] = {}

    @property
    def finite(self) -> int:
        """The rows with a finite value."""
        return self.rows - self.nulls - self.infinite

    @property
    def deviation(self) -> float:
        """The standard deviation, NaN without values."""
        return float(np.sqrt(self._squares / self.finite)) if self.finite else float("nan")

    @property
    def null_share(self) -> float:
        """The share of rows without a value."""
        return self.nulls / self.rows if self.rows else 0.0

    def add(self, column: Floats) -> None:
        """Count a batch.

        Shape: float64 (n,); NaN is null.
        """
        self.rows += len(column)
        self.nulls += int(np.isnan(column).sum())
        self.infinite += int(np.isinf(column).sum())
        values = column[np.isfinite(column)] + 0.0
        if not len(values):
            return
        self._add_moments(values)
        self.zeros += int((values == 0.0).sum())
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))
        known = self.profile
        self.outside += int(((values < known.minimum) | (values > known.maximum)).sum())
        numbers = bin_numbers(self._edges, values)
        self.bin_counts += np.bincount(numbers, minlength=len(self.bin_counts))
        if len(self._values):
            self._add_novel(values[self._values[numbers] != values])
        buckets = _buckets(values)
        self._counts += np.bincount(buckets, minlength=len(self._counts))
        self._sums += np.bincount(buckets, weights=values, minlength=len(self._sums))

    def _add_moments(self, values: Floats) -> None:
        """Put a batch's mean and squares to those so far (Chan and others 1979)."""
        before = self.finite - len(values)
        mean, deviation = moments(values)
        apart = mean - self.mean
        self.mean += apart * len(values) / self.finite
        self._squares += deviation * deviation * len(values)
        self._squares += apart * apart * before * len(values) / self.finite

    def _add_novel(self, values: Floats) -> None:
        self.novel += len(values)
        different, counts = np.unique(values, return_counts=True)
        # Where nearly every value is new, the most frequent ones tell enough.
        most = np.argsort(-counts, kind="stable")[:_NOVEL_MAX]
        for value, count in zip(different[most].tolist(), counts[most].tolist(), strict=True):
            if value in self._novel or len(self._novel) < _NOVEL_MAX:
                self._novel[value] = self._novel.get(value, 0) + count

    def novel_values(self, most: int = 5) -> list[float]:
        """Return the most frequent values that training never saw, if it saw few in all."""
        ranked = sorted(self._novel, key=lambda value: (-self._novel[value], value))
        return ranked[:most]

    def value_counts(self) -> dict[float, int]:
        """Return the rows of each value, where training had few different ones."""
        counts = dict(zip(self.profile.values, self.bin_counts.tolist(), strict=True))
        numbers = bin_numbers(self._edges, np.array(sorted(self._novel)))
        for number, value in zip(numbers.tolist(), sorted(self._novel), strict=True):
            # A new value was counted in the bin of the known one above it.
            counts[self.profile.values[number]] -= self._novel[value]
        return {**counts, **self._novel}

    def distribution(self) -> tuple[Floats, NDArray[np.int64]]:
        """Return points and their rows, ascending, that stand for all finite values.

        Shape: float64 (k,), int64 (k,); k of at most about 14,000. Points are within 1 %.
        """
        there = np.flatnonzero(self._counts)
        counts = self._counts[there]
        points = self._sums[there] / counts
        return points, counts

    def quantiles(self, percents: Sequence[float]) -> Floats:
        """Return quantiles within 1 %; NaN without values.

        Shape: (k,).
        """
        points, counts = self.distribution()
        if not len(points):
            return np.full(len(percents), np.nan)
        wanted = np.array(percents) / 100 * self.finite
        at = np.searchsorted(np.cumsum(counts), wanted - 1e-9)
        found: Floats = points[np.minimum(at, len(points) - 1)]
        return found


def _buckets(values: Floats) -> NDArray[np.int64]:
    """Return each value's bucket: negative ones, those about 0, positive ones, ascending."""
    size = np.abs(values)
    steps = (np.log(np.clip(size, _SMALLEST, _LARGEST)) - _LOG_SMALLEST) / _LOG_WIDTH
    away = np.minimum(steps.astype(np.int64), _SIDE - 1) + 1
    buckets: NDArray[np.int64] = _SIDE + np.sign(values).astype(np.int64) * away
    buckets[size < _SMALLEST] = _SIDE
    return buckets


class PeriodSketch:
    """All columns of a period."""

    def __init__(self, profiles: Sequence[ColumnProfile]) -> None:
        self.columns = [ColumnSketch(profile) for profile in profiles]
        self.rows = 0

    def add(self, columns: Sequence[Floats]) -> None:
        """Count a batch: one array a column, in the profiles' order.

        Shape: each float64 (n,).
        """
        assert len(columns) == len(self.columns), len(columns)
        for sketch, column in zip(self.columns, columns, strict=True):
            sketch.add(column)
        self.rows += len(columns[0]) if columns else 0
