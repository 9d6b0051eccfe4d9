"""``./dev bench drift``: which planted changes are found and named, by size, on the handbook.

The measure is the training week (2018-07-25 to 07-31), the period the fortnight from 2018-08-08.
Each change is planted in one column at a time (a swap in two), in a fresh copy of the period.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow.parquet as pq

from headrace.drift.compare import compare
from headrace.drift.profile import DAY_MS, Profile, make_profile
from headrace.drift.sketch import PeriodSketch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from headrace.drift.findings import Comparison

    Floats = NDArray[np.float64]
    Apply = Callable[[Floats, float], Floats]

ROOT: Final = Path(__file__).resolve().parent.parent
DATA: Final = ROOT.parent / "shared" / "data" / "fraud" / "transformed.parquet"
#: Days since 2018-04-01, where the data begin.
START_MS: Final = 1_522_540_800_000
TRAINING: Final = (115, 122)
FORTNIGHT: Final = (129, 143)
_BATCH: Final = 50_000
_WINDOWS: Final = (1, 7, 30)
#: Our names of the handbook's columns.
COLUMNS: Final = {
    "amount": "TX_AMOUNT",
    "during_weekend": "TX_DURING_WEEKEND",
    "during_night": "TX_DURING_NIGHT",
    **{f"customer__count_{w}d": f"CUSTOMER_ID_NB_TX_{w}DAY_WINDOW" for w in _WINDOWS},
    **{f"customer__amount_mean_{w}d": f"CUSTOMER_ID_AVG_AMOUNT_{w}DAY_WINDOW" for w in _WINDOWS},
    **{f"terminal__count_{w}d": f"TERMINAL_ID_NB_TX_{w}DAY_WINDOW" for w in _WINDOWS},
    **{f"terminal__risk_{w}d": f"TERMINAL_ID_RISK_{w}DAY_WINDOW" for w in _WINDOWS},
}
NAMES: Final = tuple(COLUMNS)
CONTINUOUS: Final = ("amount", *(f"customer__amount_mean_{w}d" for w in _WINDOWS))
COUNTS: Final = tuple(name for name in NAMES if "__count_" in name)


@dataclass(frozen=True, slots=True)
class Handbook:
    """The 15 features of all transactions, and the day of each since the first."""

    vector: Floats
    day: NDArray[np.int64]

    def rows(self, first: int, end: int) -> Floats:
        """Return the vectors of some days.

        Shape: (n, 15).
        """
        return self.vector[(self.day >= first) & (self.day < end)]

    def profile(self, first: int, end: int) -> Profile:
        """Return the profile of some days, as training makes it."""
        days = self.day[(self.day >= first) & (self.day < end)]
        return make_profile(NAMES, self.rows(first, end), START_MS + days * DAY_MS)


def read_handbook(path: Path = DATA) -> Handbook:
    """Return the published features."""
    table = pq.read_table(path, columns=[*COLUMNS.values(), "TX_TIME_DAYS"])
    columns = [table[name].to_numpy().astype(np.float64) for name in COLUMNS.values()]
    return Handbook(np.column_stack(columns), table["TX_TIME_DAYS"].to_numpy().astype(np.int64))


def measure(profile: Profile, vector: Floats, days: int) -> Comparison:
    """Return how a period compares, counted batch by batch as from the lake."""
    sketch = PeriodSketch(profile.columns)
    for start in range(0, len(vector), _BATCH):
        rows = vector[start : start + _BATCH]
        sketch.add([np.ascontiguousarray(rows[:, index]) for index in range(rows.shape[1])])
    return compare(sketch, days)


@dataclass(frozen=True, slots=True)
class Change:
    """A planted change: what it does to a column, and the cause that should be named.

    ``apply`` takes the column and its standard deviation in training.
    """

    kind: str
    size: str
    cause: str
    apply: Apply
    columns: tuple[str, ...] = NAMES


def _some(column: Floats, percent: float) -> NDArray[np.bool_]:
    """Return evenly spread rows, so many percent of all."""
    chosen: NDArray[np.bool_] = np.diff(np.arange(len(column) + 1) * percent // 100) > 0
    return chosen


def moved(by: float) -> Apply:
    """Return what adds so many training deviations."""
    return lambda column, deviation: column + by * deviation


def more(by: float) -> Apply:
    """Return what adds a number."""
    return lambda column, _: column + by


def spread(by: float) -> Apply:
    """Return what spreads the values about their mean."""
    return lambda column, _: column.mean() + by * (column - column.mean())


def scaled(by: float) -> Apply:
    """Return what multiplies."""
    return lambda column, _: column * by


def nulled(percent: float) -> Apply:
    """Return what takes so many percent of the values away."""
    return lambda column, _: np.where(_some(column, percent), np.nan, column)


def stuck(percent: float) -> Apply:
    """Return what puts the median in place of so many percent of the values."""
    return lambda column, _: np.where(_some(column, percent), np.median(column), column)


def changes() -> Iterator[Change]:
    """Yield the changes that are planted in a single column, smallest first within a kind."""
    for size in (0.05, 0.1, 0.25, 0.5, 1.0):
        yield Change("shift", f"{size:g} dev.", "shift", moved(size), CONTINUOUS)
    for size in (1.0, 2.0, 5.0):
        yield Change("shift of a count", f"+ {size:g}", "shift", more(size), COUNTS)
    for size in (1.1, 1.25, 1.5, 2.0):
        yield Change("spread", f"× {size:g}", "spread", spread(size), CONTINUOUS)
    for size in (1.1, 1.5, 60.0, 100.0, 1_000.0, 0.01):
        yield Change("unit", f"× {size:g}", "unit", scaled(size))
    for size in (0.1, 0.25, 0.5, 1.0, 5.0, 30.0):
        yield Change("nulls", f"{size:g} %", "nulls", nulled(size))
    for size in (5.0, 10.0, 30.0):
        yield Change("a default value", f"{size:g} %", "shape", stuck(size))
    yield Change("frozen", "all", "frozen", stuck(100))


def plant(vector: Floats, profile: Profile, name: str, change: Change) -> Floats:
    """Return a copy of a period with a change in one column."""
    index = NAMES.index(name)
    planted = vector.copy()
    planted[:, index] = change.apply(vector[:, index], profile.columns[index].deviation)
    return planted


def swap(vector: Floats, one: str, other: str) -> Floats:
    """Return a copy of a period with two columns swapped."""
    indices = [NAMES.index(one), NAMES.index(other)]
    planted = vector.copy()
    planted[:, indices] = planted[:, indices[::-1]]
    return planted


def main(arguments: Sequence[str]) -> int:
    """Print which changes are found."""
    parser = argparse.ArgumentParser(prog="bench drift", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="the handbook's features")
    parser.add_argument("--rows", type=int, default=0, help="only so many rows of the fortnight")
    options = parser.parse_args(arguments)
    handbook = read_handbook(options.data)
    profile = handbook.profile(*TRAINING)
    period = handbook.rows(*FORTNIGHT)
    if options.rows:
        period = period[:: max(len(period) // options.rows, 1)][: options.rows]
    days = FORTNIGHT[1] - FORTNIGHT[0]
    _print_quiet(handbook, profile)
    print(f"\n## Planted in {len(period):,} rows\n")
    print("| change | size | columns | alarm | notice | nothing | cause named |")
    print("|---|---|---|---|---|---|---|")
    for change in changes():
        _print_change(change, profile, period, days)
    _print_swaps(profile, period, days)
    _print_cost(profile, period)
    return 0


def _print_quiet(handbook: Handbook, profile: Profile) -> None:
    print("## Nothing planted\n")
    print("| period | rows | findings | largest PSI | largest KS |")
    print("|---|---|---|---|---|")
    for first, end in [(day, day + 14) for day in (45, 59, 73, 87, 101, 129, 143, 157)] + [
        *((171, 183), (129, 136), (129, 139), (131, 133), (132, 133))
    ]:
        found = measure(profile, handbook.rows(first, end), end - first)
        date = np.datetime64("2018-04-01")
        psi, psi_of = max((one.psi, one.name) for one in found.columns)
        ks, ks_of = max((one.ks, one.name) for one in found.columns)
        print(
            f"| {date + first} to {date + end - 1} | {found.rows:,} | {len(found.findings)} "
            f"| {psi:.4f} ({psi_of}) | {ks:.4f} ({ks_of}) |"
        )


def _print_change(change: Change, profile: Profile, period: Floats, days: int) -> None:
    counts = {"alarm": 0, "notice": 0, "none": 0}
    named = 0
    for name in change.columns:
        found = measure(profile, plant(period, profile, name, change), days)
        column = found.columns[NAMES.index(name)]
        counts[column.severity] += 1
        named += any(one.cause == change.cause for one in column.findings)
        strangers = [one.column for one in found.findings if one.column != name]
        assert not strangers, (change, name, strangers)
    print(
        f"| {change.kind} | {change.size} | {len(change.columns)} "
        f"| {counts['alarm']} | {counts['notice']} | {counts['none']} | {named} |"
    )


def _print_swaps(profile: Profile, period: Floats, days: int) -> None:
    pairs = list(combinations(NAMES, 2))
    counts = {"alarm": 0, "notice": 0, "none": 0}
    named, missed = 0, []
    for one, other in pairs:
        found = measure(profile, swap(period, one, other), days)
        counts[found.severity] += 1
        causes = {(finding.column, finding.cause) for finding in found.findings}
        if causes == {(one, "swapped"), (other, "swapped")}:
            named += 1
        else:
            missed.append(f"{one} ↔ {other}")
    print(
        f"| swapped | pairs | {len(pairs)} | {counts['alarm']} | {counts['notice']} "
        f"| {counts['none']} | {named} |"
    )
    print(f"\nSwaps not named: {', '.join(missed) or 'none'}.")


def _print_cost(profile: Profile, period: Floats) -> None:
    started = time.process_time()
    rounds = 5
    for _ in range(rounds):
        measure(profile, period, 14)
    spent = (time.process_time() - started) / rounds
    cells = len(period) * len(NAMES)
    print(f"\nCounting and comparing: {spent:.3f} CPU-s, {spent / cells * 1e9:.0f} ns a value.")
