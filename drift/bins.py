"""Bins of a column, made once from its training values, in which later values are counted."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Counts = NDArray[np.int64]

#: A column of so few distinct values has a bin for each of them.
VALUES_MAX: Final = 50
#: One bin a percent: the Kolmogorov-Smirnov distance at the edges is then within 0.01 of the exact.
_BINS: Final = 100
#: What stands between two frequent values may be rare: it gets bins of its own all the same.
_RARE_BINS: Final = 20
_RARE_ROWS: Final = 100
#: The usual number of bins for the population stability index.
_GROUPS: Final = 20


def bin_edges(values: Floats, counts: Counts) -> Floats:
    """Return the inner edges of bins ``(-inf, e0], (e0, e1], … (ek, inf)``.

    About a percent of the rows to a bin. A value that two percent of the rows share has a bin of
    its own, so that a flood of zeros does not hide what lies beside it.

    Args:
        values: Distinct finite values, ascending.
        counts: Rows of each.

    Shape: float64 (k,), int64 (k,) -> float64 (at most about 150,), strictly ascending.

    Examples:
        >>> bin_edges(np.array([0.0, 1.0, 7.0]), np.array([5, 3, 2])).tolist()
        [0.0, 1.0]

    """
    if len(values) <= VALUES_MAX:
        return values[:-1].copy()
    rows = int(counts.sum())
    frequent = np.flatnonzero(counts * _BINS >= 2 * rows)
    edges: list[float] = []
    bounds = [-1, *frequent.tolist(), len(values)]
    for before, after in pairwise(bounds):
        if after - before > 1:
            edges += _split(values[before + 1 : after], counts[before + 1 : after], rows)
        if after < len(values):
            # The frequent value alone: from just below it to itself.
            edges += [float(np.nextafter(values[after], -np.inf)), float(values[after])]
    inner: Floats = np.unique(np.array(edges))
    inside: Floats = inner[(inner >= values[0]) & (inner < values[-1])]
    return inside


def _split(values: Floats, counts: Counts, rows: int) -> list[float]:
    """Return the upper ends of bins that hold about as many rows each."""
    total = int(counts.sum())
    number = max(round(total * _BINS / rows), min(_RARE_BINS, total // _RARE_ROWS), 1)
    wanted = np.arange(1, number + 1) * total / number
    at = np.minimum(np.searchsorted(np.cumsum(counts), wanted - 1e-9), len(values) - 1)
    return [float(value) for value in values[np.unique(at)]]


def bin_numbers(edges: Floats, values: Floats) -> NDArray[np.intp]:
    """Return the bin of each value.

    Shape: (k,), (n,) -> (n,), from 0 to k.
    """
    return np.searchsorted(edges, values, side="left")


def count_bins(edges: Floats, values: Floats) -> Counts:
    """Return how many values lie in each bin.

    Shape: (k,), (n,) -> int64 (k + 1,).
    """
    return np.bincount(bin_numbers(edges, values), minlength=len(edges) + 1).astype(np.int64)


def group_starts(counts: Counts) -> NDArray[np.int64]:
    """Return the first bin of each group of bins that holds at least a twentieth of the rows.

    A bin with a tenth of the rows is not put together with others, and what is left beside one
    stands alone however rare it is.

    Shape: int64 (k,) -> int64 (at most 40,), from 0 on, ascending.

    Examples:
        >>> group_starts(np.array([900, 5, 5, 60, 30])).tolist()
        [0, 1]
        >>> group_starts(np.array([10, 10, 900, 7])).tolist()
        [0, 2, 3]

    """
    least = counts.sum() / _GROUPS
    starts, held = [0], 0
    large = counts >= 2 * least
    for index, count in enumerate(counts.tolist()):
        if index and (held >= least or large[index] or large[index - 1]):
            starts.append(index)
            held = 0
        held += count
    if len(starts) > 1 and held < least and not large[starts[-1] - 1]:
        starts.pop()
    return np.array(starts, np.int64)
