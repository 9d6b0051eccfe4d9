"""Profiles: what the columns of a training set looked like. Made once, kept with the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson

from headrace.drift.bins import VALUES_MAX, bin_edges, bin_numbers, count_bins
from headrace.drift.errors import ProfileError
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FORMAT: Final = 1
DAY_MS: Final = 86_400_000
WEEK_DAYS: Final = 7
#: Of the quantiles that a profile keeps, in percent.
PERCENTS: Final = (1, 5, 10, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class ColumnProfile:
    """What one column looked like.

    ``minimum`` to ``quantiles`` are of the finite values, NaN where there are none. ``counts`` are
    the finite rows in the bins of ``edges``. ``values`` with ``value_counts`` are there when there
    are at most 50 distinct ones, else empty.

    ``days`` is the number of UTC days that had rows. The correlations are of two rows of a day: 0
    where days do not matter, 1 where the day decides (a weekend flag). ``week_correlation`` is what
    is left of it once each weekday has its own mean; 0 from less than two weeks.
    """

    name: str
    rows: int
    days: int
    nulls: int
    infinite: int
    zeros: int
    distinct: int
    minimum: float
    maximum: float
    mean: float
    deviation: float
    quantiles: tuple[float, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    values: tuple[float, ...]
    value_counts: tuple[int, ...]
    day_correlation: float
    week_correlation: float
    null_correlation: float

    @property
    def finite(self) -> int:
        """The rows with a finite value."""
        return self.rows - self.nulls - self.infinite

    @property
    def null_share(self) -> float:
        """The share of rows without a value."""
        return self.nulls / self.rows if self.rows else 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """What a training set looked like: each column of the vector, and the scores of the model."""

    rows: int
    columns: tuple[ColumnProfile, ...]
    score: ColumnProfile | None


def make_profile(
    names: Sequence[str],
    vector: Floats,
    event_time_ms: NDArray[np.int64],
    scores: Floats | None = None,
    score_time_ms: NDArray[np.int64] | None = None,
) -> Profile:
    """Return the profile of a training set.

    Args:
        names: The columns.
        vector: One row an event; NaN is null.
        event_time_ms: When each event was, epoch ms.
        scores: What the model says, of these rows or of others that it did not learn from.
        score_time_ms: Event times of the scores, if they are of other rows.

    Shape: vector (n, len(names)), event_time_ms (n,), scores (m,).

    """
    assert vector.shape == (len(event_time_ms), len(names)), vector.shape
    days = event_time_ms // DAY_MS
    columns = tuple(
        profile_column(name, np.ascontiguousarray(vector[:, index]), days)
        for index, name in enumerate(names)
    )
    score = None
    if scores is not None:
        score_days = days if score_time_ms is None else score_time_ms // DAY_MS
        name = "score" if "score" not in names else "model score"
        score = profile_column(name, scores, score_days)
    return Profile(len(vector), columns, score)


def profile_column(name: str, column: Floats, days: NDArray[np.int64]) -> ColumnProfile:
    """Return the profile of one column.

    Args:
        name: Its name.
        column: The values; NaN is null.
        days: The number of each row's day since 1970.

    Shape: float64 (n,), int64 (n,).

    """
    nulls = np.isnan(column)
    good = np.isfinite(column)
    # -0.0 and 0.0 are one value.
    finite = column[good] + 0.0
    values, counts = np.unique(finite, return_counts=True)
    edges = bin_edges(values, counts)
    few = len(values) <= VALUES_MAX
    if len(finite):
        quantiles = np.quantile(finite, np.array(PERCENTS) / 100, method="inverted_cdf")
        extent = float(finite.min()), float(finite.max()), *moments(finite)
    else:
        quantiles = np.full(len(PERCENTS), np.nan)
        extent = (np.nan, np.nan, np.nan, np.nan)
    of_day, of_week = _day_correlations(_ranks(edges, finite), days[good])
    return ColumnProfile(
        name=name,
        rows=len(column),
        days=len(np.unique(days)),
        nulls=int(nulls.sum()),
        infinite=int(np.isinf(column).sum()),
        zeros=int((finite == 0.0).sum()),
        distinct=len(values),
        minimum=extent[0],
        maximum=extent[1],
        mean=extent[2],
        deviation=extent[3],
        quantiles=tuple(quantiles.tolist()),
        edges=tuple(edges.tolist()),
        counts=tuple(count_bins(edges, finite).tolist()) if len(finite) else (),
        values=tuple(values.tolist()) if few else (),
        value_counts=tuple(counts.tolist()) if few else (),
        day_correlation=of_day,
        week_correlation=of_week,
        null_correlation=_day_correlations(nulls.astype(np.float64), days)[0],
    )


def moments(values: Floats) -> tuple[float, float]:
    """Return mean and standard deviation; NaN where they are beyond the range of numbers."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = float(values.mean()), float(values.std())
    return found if np.isfinite(found).all() else (float("nan"), float("nan"))


def _ranks(edges: Floats, values: Floats) -> Floats:
    """Return where each value stands among all, 0 to 1: heavy tails must not decide about days."""
    numbers = bin_numbers(edges, values)
    shares = np.bincount(numbers, minlength=len(edges) + 1) / max(len(values), 1)
    middle: Floats = (np.cumsum(shares) - shares / 2)[numbers]
    return middle


def _day_correlations(values: Floats, days: NDArray[np.int64]) -> tuple[float, float]:
    """Return how alike two rows of a day are: as they are, and with weekdays' means taken off.

    The intraclass correlation, from the variances between and within days.
    """
    if not len(values):
        return 0.0, 0.0
    numbers, day_of_row = np.unique(days, return_inverse=True)
    sizes = np.bincount(day_of_row)
    means = np.bincount(day_of_row, weights=values) / sizes
    inside = float(np.sum((values - means[day_of_row]) ** 2))
    by_day = _intraclass(means, sizes, inside, len(numbers) - 1)
    weekday = numbers % WEEK_DAYS
    seen = np.bincount(weekday, weights=sizes, minlength=WEEK_DAYS)
    usual = np.bincount(weekday, weights=sizes * means, minlength=WEEK_DAYS)
    mean_of_weekday = usual / np.maximum(seen, 1)
    free = len(numbers) - int((seen > 0).sum())
    if free < WEEK_DAYS:
        return by_day, 0.0
    return by_day, _intraclass(means - mean_of_weekday[weekday], sizes, inside, free)


def _intraclass(means: Any, sizes: NDArray[np.intp], inside: float, free: int) -> float:
    rows = int(sizes.sum())
    if free < 1 or rows <= len(sizes):
        return 0.0
    centre = float(np.average(means, weights=sizes))
    between = float(np.sum(sizes * (means - centre) ** 2)) / free
    within = inside / (rows - len(sizes))
    size = rows / len(sizes)
    spread = between + (size - 1) * within
    return float(np.clip((between - within) / spread, 0.0, 1.0)) if spread > 0 else 0.0


def encode_profile(profile: Profile) -> bytes:
    """Return a profile as JSON; equal profiles give equal bytes, and no bit is lost."""
    content = {"format": FORMAT, **asdict(profile)}
    return orjson.dumps(content, option=orjson.OPT_INDENT_2)


def decode_profile(raw: bytes, where: str) -> Profile:
    """Return the profile that ``raw`` holds.

    Raises:
        ProfileError: If it is not one of format 1, whole and consistent.

    """
    try:
        data = orjson.loads(raw)
        if data["format"] != FORMAT:
            text = explain("profile", f"be of format {FORMAT}", data["format"], where, "upgrade")
            raise ProfileError(text)
        return Profile(
            rows=_whole(data["rows"]),
            columns=tuple(_column(column) for column in data["columns"]),
            score=None if data["score"] is None else _column(data["score"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        text = explain("profile", "hold every field in its form", str(error), where)
        raise ProfileError(text) from error


_WHOLE: Final = ("rows", "days", "nulls", "infinite", "zeros", "distinct")
_WHOLES: Final = ("counts", "value_counts")
_NUMBERS: Final = ("quantiles", "edges", "values")


def _column(data: dict[str, Any]) -> ColumnProfile:
    given: dict[str, Any] = {}
    for field in fields(ColumnProfile):
        value = data[field.name]
        if field.name == "name":
            given["name"] = str(value)
        elif field.name in _WHOLE:
            given[field.name] = _whole(value)
        elif field.name in _WHOLES:
            given[field.name] = tuple(_whole(count) for count in _many(value))
        elif field.name in _NUMBERS:
            given[field.name] = tuple(_number(number) for number in _many(value))
        else:
            given[field.name] = _number(value)
    column = ColumnProfile(**given)
    sizes_fit = len(column.quantiles) == len(PERCENTS) and len(column.values) == len(
        column.value_counts
    )
    ascending = bool(np.all(np.diff(column.edges) > 0)) and bool(np.all(np.diff(column.values) > 0))
    held = sum(column.counts) == column.finite
    bins_fit = len(column.counts) == (len(column.edges) + 1 if column.finite else 0)
    if not (sizes_fit and ascending and held and bins_fit):
        message = f"column {column.name!r} does not agree with itself"
        raise ValueError(message)
    return column


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        message = f"a whole number is missing; got {value!r}"
        raise ValueError(message)
    return value


def _many(value: object) -> list[Any]:
    if not isinstance(value, list):
        message = f"a list is missing; got {value!r}"
        raise TypeError(message)
    return value


def _number(value: object) -> float:
    # JSON has no NaN: it is written as null.
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = f"a number is missing; got {value!r}"
        raise TypeError(message)
    return float(value)
