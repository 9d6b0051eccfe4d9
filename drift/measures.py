"""Distances between a training profile and a period, and how large chance alone makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.special import chdtri

from headrace.drift.bins import group_starts
from headrace.drift.profile import WEEK_DAYS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headrace.drift.profile import ColumnProfile

    Floats = NDArray[np.float64]
    Counts = NDArray[np.int64]

#: How often chance alone may pass a test. Small, since a report makes hundreds of tests.
CHANCE: Final = 1e-6
#: Quantile of the Kolmogorov distribution at that chance: sqrt(-ln(chance / 2) / 2).
_KS_AT_CHANCE: Final = float(np.sqrt(-np.log(CHANCE / 2) / 2))
#: Quantile of the normal distribution at that chance, both sides.
_NORMAL_AT_CHANCE: Final = 4.892


@dataclass(frozen=True, slots=True)
class Weight:
    """How many independent rows training and period are worth.

    Rows of a day are alike where the day decides: a fortnight of a weekend flag is 14 rows.
    """

    training: float
    period: float

    @property
    def noise(self) -> float:
        """The variance that chance gives a difference of two shares: 1/n + 1/m."""
        if min(self.training, self.period) <= 0:
            return float("inf")
        return 1 / self.training + 1 / self.period


def weigh(
    profile: ColumnProfile,
    period_rows: int,
    period_days: int,
    *,
    of_nulls: bool = False,
) -> Weight:
    """Return what training and period are worth for a column.

    Args:
        profile: The column's.
        period_rows: Rows of the period.
        period_days: Days that the period touches.
        of_nulls: For the share of nulls instead of the values.

    """
    weeks = profile.days % WEEK_DAYS == 0 and period_days % WEEK_DAYS == 0
    if of_nulls:
        alike, rows = profile.null_correlation, profile.rows
    else:
        # Whole weeks against whole weeks: that Sundays differ from Mondays does not matter.
        alike = profile.week_correlation if weeks else profile.day_correlation
        rows = profile.finite
    return Weight(
        _independent(rows, profile.days, alike), _independent(period_rows, period_days, alike)
    )


def _independent(rows: int, days: int, alike: float) -> float:
    a_day = rows / max(days, 1)
    return rows / (1 + max(a_day - 1, 0) * alike)


def psi(training: Counts, period: Counts) -> tuple[float, int]:
    """Return the population stability index over groups of bins, and the number of groups.

    The sum of ``(q - p) ln(q / p)``; half a row is added to each group, so that an empty one counts
    by the size of the other side.

    Shape: int64 (k,), int64 (k,).

    Examples:
        >>> psi(np.array([50, 50]), np.array([50, 50]))
        (0.0, 2)

    """
    starts = group_starts(training)
    before = np.add.reduceat(training, starts) + 0.5
    now = np.add.reduceat(period, starts) + 0.5
    p, q = before / before.sum(), now / now.sum()
    return float(np.sum((q - p) * np.log(q / p))), len(starts)


def psi_by_chance(groups: int, weight: Weight) -> float:
    """Return what the index stays below by chance: it is chi-squared × (1/n + 1/m).

    Source: Yurdakul 2018, Statistical properties of the population stability index.
    """
    return float(chdtri(max(groups - 1, 1), CHANCE)) * weight.noise


def ks(training: Counts, period: Counts) -> float:
    """Return the largest difference of the two distribution functions at the bins' edges.

    Shape: int64 (k,), int64 (k,).
    """
    before = np.cumsum(training) / training.sum()
    now = np.cumsum(period) / period.sum()
    return float(np.abs(before - now).max())


def ks_by_chance(weight: Weight) -> float:
    """Return what the Kolmogorov-Smirnov distance stays below by chance."""
    return _KS_AT_CHANCE * float(np.sqrt(weight.noise))


def share_distance(before: float, now: float) -> float:
    """Return Cohen's h: how far two shares are apart on a scale where chance is alike everywhere.

    0 to 1 % is 0.2 ("small"), 0 to 6 % is 0.5 ("medium"), 50 to 60 % is 0.2.

    Examples:
        >>> round(share_distance(0.0, 0.05), 3)
        0.451

    """
    return abs(2 * float(np.arcsin(np.sqrt(now)) - np.arcsin(np.sqrt(before))))


def share_by_chance(weight: Weight) -> float:
    """Return what Cohen's h stays below by chance."""
    return _NORMAL_AT_CHANCE * float(np.sqrt(weight.noise))


def ks_of_points(profile: ColumnProfile, points: Floats, counts: Counts) -> float:
    """Return the distance of a profile from a distribution given by points and their rows.

    Args:
        profile: A column's.
        points: Values, ascending.
        counts: The rows at each.

    Shape: (k,), (k,).
    """
    if not profile.finite or not len(points):
        return 0.0
    edges = np.array([np.nextafter(profile.minimum, -np.inf), *profile.edges, profile.maximum])
    # A point that is a product may miss the edge that it means by a rounding; an edge just below
    # a frequent value means what lies below that value.
    reach = 1e-6 * np.abs(edges)
    reach[:-1][np.diff(edges) <= reach[:-1]] *= -1
    reach += edges
    held = np.concatenate([[0], np.cumsum(counts)])
    now = held[np.searchsorted(points, reach, side="right")] / held[-1]
    before = np.concatenate([[0], np.cumsum(profile.counts)]) / profile.finite
    return float(np.abs(before - now).max())
