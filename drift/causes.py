"""Names the cause of a changed distribution: which simple change would explain what is seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Final

import numpy as np

from headrace.drift.measures import ks_of_points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from headrace.drift.profile import ColumnProfile
    from headrace.drift.sketch import ColumnSketch

    Floats = NDArray[np.float64]
    Counts = NDArray[np.int64]

#: A change explains a column if what is left after undoing it is at most this distance …
_AGREES: Final = 0.05
#: … and at most this part of the distance there was.
_PART: Final = 0.35
#: Constants that units differ by. Others are reported as they are, from a factor of 1.5 on.
_UNITS: Final = (
    *(10.0, 100.0, 1_000.0, 10_000.0, 100_000.0, 1e6, 1e9),
    *(7.0, 12.0, 24.0, 30.0, 60.0, 365.25, 1_440.0, 3_600.0, 86_400.0, 3.6e6, 8.64e7),
    *(1_024.0, 1_048_576.0, 2.54, 1.609344, 2.2046226, 3.2808399),
)
#: How far chance may move the factor that is measured from the unit's; rare values move it most.
_UNIT_WITHIN: Final = 0.1
_KNOWN: Final = frozenset((1.0, *_UNITS, *(1 / unit for unit in _UNITS)))
_FACTOR_LEAST: Final = 1.5
#: Pairs grow with the square of their number, and a person reads a few.
_SWAP_COLUMNS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Suspect:
    """A column whose distribution changed, with its distance."""

    index: int
    profile: ColumnProfile
    sketch: ColumnSketch
    distance: float


def unit_factor(suspect: Suspect) -> float | None:
    """Return the constant by which a column is scaled; None if none explains it.

    The zeros are left out of the comparison, since they stay zeros and may be most of the rows.
    """
    profile, sketch = suspect.profile, suspect.sketch
    points, counts = _without_zero(*sketch.distribution())
    before = _without_zeros(profile)
    if before is None or not len(points):
        return None
    there = ks_of_points(before, points, counts)
    found: list[tuple[bool, float, float]] = []
    for factor in _factors(profile, sketch):
        scaled = points / factor
        order = slice(None) if factor > 0 else slice(None, None, -1)
        left = ks_of_points(before, scaled[order], counts[order])
        if left <= _AGREES and left <= _PART * there:
            found.append((not _is_unit(abs(factor)), left, factor))
    return min(found)[2] if found else None


def _is_unit(size: float) -> bool:
    return size in _KNOWN


def _factors(profile: ColumnProfile, sketch: ColumnSketch) -> list[float]:
    """Return constants to try: what mean, deviation and median would be explained by."""
    median = sketch.quantiles([50])[0]
    at = len(profile.quantiles) // 2
    raw = [
        _ratio(sketch.mean, profile.mean),
        _ratio(sketch.deviation, profile.deviation),
        -_ratio(sketch.deviation, profile.deviation),
        _ratio(median, profile.quantiles[at]),
    ]
    tried: set[float] = set()
    for factor in raw:
        if not np.isfinite(factor) or factor == 0:
            continue
        size = abs(factor)
        near = [unit for unit in _KNOWN if abs(size / unit - 1) <= _UNIT_WITHIN]
        tried |= {float(np.copysign(unit, factor)) for unit in near}
        if max(size, 1 / size) >= _FACTOR_LEAST:
            tried.add(float(factor))
    return sorted(tried - {1.0})


def _ratio(above: float, below: float) -> float:
    return above / below if below else float("nan")


def _without_zero(points: Floats, counts: Counts) -> tuple[Floats, Counts]:
    kept = points != 0.0
    return points[kept], counts[kept]


def _without_zeros(profile: ColumnProfile) -> ColumnProfile | None:
    """Return the profile of the rows that are not zero."""
    if profile.zeros == 0:
        return profile
    if profile.zeros >= profile.finite:
        return None
    counts = list(profile.counts)
    counts[int(np.searchsorted(profile.edges, 0.0, side="left"))] -= profile.zeros
    return replace(profile, rows=profile.rows - profile.zeros, zeros=0, counts=tuple(counts))


def swapped_pairs(suspects: Sequence[Suspect]) -> list[tuple[Suspect, Suspect]]:
    """Return pairs of columns that each look as the other one did, best agreement first."""
    known = sorted(suspects, key=lambda one: -one.distance)[:_SWAP_COLUMNS_MAX]
    spread = {one.index: one.sketch.distribution() for one in known}
    found = []
    for one, other in combinations(known, 2):
        left = max(
            ks_of_points(other.profile, *spread[one.index]),
            ks_of_points(one.profile, *spread[other.index]),
        )
        if left <= _AGREES and left <= _PART * min(one.distance, other.distance):
            found.append((left, one.index, other.index, one, other))
    taken: set[int] = set()
    pairs = []
    for _, first, second, one, other in sorted(found, key=lambda pair: pair[:3]):
        if not {first, second} & taken:
            taken |= {first, second}
            pairs.append((one, other) if first < second else (other, one))
    return pairs


def moved(suspect: Suspect) -> tuple[float, float]:
    """Return what distance is left once the median, and once also the spread is put back."""
    profile, sketch = suspect.profile, suspect.sketch
    points, counts = sketch.distribution()
    middle = len(profile.quantiles) // 2
    by = sketch.quantiles([50])[0] - profile.quantiles[middle]
    shifted = ks_of_points(profile, points - by, counts)
    if not sketch.deviation > 0:
        return shifted, suspect.distance
    scale = profile.deviation / sketch.deviation
    spread = ks_of_points(profile, (points - sketch.mean) * scale + profile.mean, counts)
    return shifted, spread
