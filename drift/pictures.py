"""The two histograms of a column, over the same bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from headrace.drift.findings import Picture

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headrace.drift.profile import ColumnProfile
    from headrace.drift.sketch import ColumnSketch

    Floats = NDArray[np.float64]

_BARS: Final = 40
_LABELS_MAX: Final = 24
#: Of the rows at each end that a histogram leaves to its outer bars.
_TAIL_PERCENT: Final = 0.5
#: If one side is so many times as wide as the other, only a logarithmic scale shows both.
_RATIO: Final = 12.0


def picture(profile: ColumnProfile, sketch: ColumnSketch) -> Picture:
    """Return a column's histograms in training and in the period."""
    if not profile.finite or not sketch.finite:
        return Picture((), (), False, (), ())
    novel = sketch.novel_values(_LABELS_MAX)
    labels = sorted({*profile.values, *novel})
    if profile.values and len(labels) <= _LABELS_MAX and len(novel) < _LABELS_MAX:
        return _of_values(profile, sketch, labels)
    low, high = _limits(profile, sketch)
    bounds, logarithmic = _bounds(profile, sketch, low, high)
    before = _profile_function(profile, bounds[1:-1])
    points, counts = sketch.distribution()
    held = np.concatenate([[0], np.cumsum(counts)])
    now = held[np.searchsorted(points, bounds[1:-1], side="right")] / held[-1]
    return Picture((), tuple(bounds.tolist()), logarithmic, _shares(before), _shares(now))


def _of_values(profile: ColumnProfile, sketch: ColumnSketch, labels: list[float]) -> Picture:
    before = dict(zip(profile.values, profile.value_counts, strict=True))
    now = sketch.value_counts()
    return Picture(
        tuple(labels),
        (),
        False,
        tuple(before.get(value, 0) / profile.finite for value in labels),
        tuple(now.get(value, 0) / sketch.finite for value in labels),
    )


def _limits(profile: ColumnProfile, sketch: ColumnSketch) -> tuple[float, float]:
    """Return where the bars begin and end: where all but the last rows of both sides are."""
    ends = np.array([_TAIL_PERCENT, 100 - _TAIL_PERCENT])
    middle = np.array([*profile.edges, profile.maximum])
    shares = np.cumsum(profile.counts) / profile.finite
    at = np.minimum(np.searchsorted(shares, ends / 100), len(middle) - 1)
    before = middle[at]
    now = sketch.quantiles([_TAIL_PERCENT, 100 - _TAIL_PERCENT])
    # A bin's end says nothing of where its lowest row is.
    low = profile.minimum if at[0] == 0 else before[0]
    return float(min(low, now[0])), float(max(before[1], now[1]))


def _bounds(
    profile: ColumnProfile, sketch: ColumnSketch, low: float, high: float
) -> tuple[Floats, bool]:
    """Return the bars' ends, and whether they are equally wide by ratio."""
    if not low < high:
        return np.linspace(low - 0.5, high + 0.5, 3), False
    wide = profile.quantiles[-1] - profile.quantiles[0]
    now = sketch.quantiles([1, 99])
    width = now[1] - now[0]
    apart = max(wide, width) / max(min(wide, width), 1e-300)
    least = min(profile.quantiles[0], float(now[0]))
    if apart > _RATIO and least > 0 and min(wide, width) > 0:
        return np.geomspace(max(least, high * 1e-9), high, _BARS + 1), True
    if _whole([*profile.quantiles, profile.minimum, profile.maximum, *sketch.novel_values()]):
        # Bars between whole numbers, each with as many of them.
        step = max(np.ceil((high - low + 1) / _BARS), 1.0)
        return np.arange(np.floor(low) - 0.5, high + step, step), False
    return np.linspace(low, high, _BARS + 1), False


def _whole(values: list[float]) -> bool:
    return all(float(value).is_integer() for value in values)


def _profile_function(profile: ColumnProfile, at: Floats) -> Floats:
    """Return the share of training rows up to each point, straight between a bin's ends."""
    ends = np.array([profile.minimum, *profile.edges, profile.maximum])
    shares = np.concatenate([[0.0], np.cumsum(profile.counts) / profile.finite])
    if profile.values:
        # Each value stands at its bin's end alone.
        return np.array(
            [
                shares[1:][np.searchsorted(profile.values, x, side="right") - 1]
                if x >= ends[0]
                else 0
                for x in at
            ]
        )
    between: Floats = np.interp(at, ends, shares, left=0.0, right=1.0)
    return between


def _shares(function: Floats) -> tuple[float, ...]:
    """Return each bar's share; the outer ones hold all that lies beyond."""
    return tuple(np.diff(np.concatenate([[0.0], function, [1.0]])).tolist())
