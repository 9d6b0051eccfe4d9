"""What `./dev parity` compares: the stream's vectors with the handbook's table and with history."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

AVERAGE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Column:
    """A feature of ours and the handbook's column that it must equal."""

    feature: str
    handbook: str
    tolerance: float


def _columns() -> tuple[Column, ...]:
    columns = [
        Column("during_weekend", "TX_DURING_WEEKEND", 0.0),
        Column("during_night", "TX_DURING_NIGHT", 0.0),
    ]
    for days in (1, 7, 30):
        window = f"{days}DAY_WINDOW"
        columns += [
            Column(f"customer__count_{days}d", f"CUSTOMER_ID_NB_TX_{window}", 0.0),
            Column(
                f"customer__amount_mean_{days}d",
                f"CUSTOMER_ID_AVG_AMOUNT_{window}",
                AVERAGE_TOLERANCE,
            ),
            Column(f"terminal__count_{days}d", f"TERMINAL_ID_NB_TX_{window}", 0.0),
            Column(f"terminal__risk_{days}d", f"TERMINAL_ID_RISK_{window}", 0.0),
        ]
    return tuple(columns)


#: The handbook's 12 window features and two flags. Counts and risk must be equal bit for bit; the
#: handbook's averages are running float sums, so they are compared within a tolerance.
COLUMNS = _columns()


@dataclass(frozen=True, slots=True)
class Comparison:
    """One feature over all rows."""

    feature: str
    rows: int
    mismatches: int
    largest: float
    first_row: int | None


class Collected:
    """The vectors that came out of the stream, by transaction id, each row as often as it comes.

    A row that comes again must be the same bytes: ``differing`` holds the ids of those that were
    not.
    """

    def __init__(self, rows: int, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.vectors = np.full((rows, len(self.names)), np.nan)
        self.times_seen = np.zeros(rows, np.int32)
        self.differing: set[int] = set()
        self._digest = np.zeros(rows, np.int64)

    @property
    def rows_seen(self) -> int:
        """How many different rows have come."""
        return int((self.times_seen > 0).sum())

    @property
    def duplicates(self) -> int:
        """How many came although they had come before."""
        return int(self.times_seen.sum()) - self.rows_seen

    def add(
        self, ids: NDArray[np.int64], values: Sequence[bytes], vectors: NDArray[np.float64]
    ) -> None:
        """Take rows as they come out of the topic.

        Args:
            ids: Transaction id of each row, within the range of rows.
            values: The messages' bytes.
            vectors: The decoded features.

        Shape: ``vectors`` (len(ids), len(names)).
        """
        _, first = np.unique(ids, return_index=True)
        if len(first) < len(ids):
            # A row twice in one call: the second is compared with the first like any other.
            rest = np.setdiff1d(np.arange(len(ids)), first)
            for part in (first, rest):
                self.add(ids[part], [values[index] for index in part], vectors[part])
            return
        # Python's hash of bytes is 64 bits, and its salt is the same throughout a process.
        digest = np.fromiter(map(hash, values), np.int64, len(values))
        seen = self.times_seen[ids] > 0
        again = ids[seen]
        self.differing.update(again[self._digest[again] != digest[seen]].tolist())
        fresh = ~seen
        self._digest[ids[fresh]] = digest[fresh]
        self.vectors[ids[fresh]] = vectors[fresh]
        self.times_seen[ids] += 1

    def column(self, name: str) -> NDArray[np.float64]:
        """Return one feature of all rows; NaN is null, or a row that did not come."""
        return self.vectors[:, self.names.index(name)]


def compare_handbook(collected: Collected, transformed: pa.Table) -> list[Comparison]:
    """Compare every feature at every row with the handbook's own.

    Row n of ``transformed`` has transaction id n.
    """
    results = []
    for column in COLUMNS:
        ours = collected.column(column.feature)
        theirs = transformed[column.handbook].to_numpy().astype(np.float64)
        results.append(_comparison(column.feature, ours, theirs, column.tolerance))
    return results


def compare_bits(
    collected: Collected, history: Mapping[str, NDArray[np.float64]]
) -> list[Comparison]:
    """Compare every feature at every row with history's, bit for bit; null equals null."""
    results = []
    for name in collected.names:
        ours, theirs = collected.column(name), history[name]
        same = (ours.view(np.int64) == theirs.view(np.int64)) | (np.isnan(ours) & np.isnan(theirs))
        results.append(_result(name, ~same, np.abs(ours - theirs)))
    return results


def _comparison(
    name: str, ours: NDArray[np.float64], theirs: NDArray[np.float64], tolerance: float
) -> Comparison:
    difference = np.abs(ours - theirs)
    # Written so that a NaN of ours counts as wrong.
    within = difference <= tolerance
    if tolerance:
        # Also relative; an amount of 0 is about 1e-13 in the handbook's running sums.
        within &= (difference <= tolerance * np.abs(theirs)) | (difference <= 1e-12)
    return _result(name, ~within, difference)


def _result(name: str, wrong: NDArray[np.bool_], difference: NDArray[np.float64]) -> Comparison:
    rows = np.flatnonzero(wrong)
    finite = difference[np.isfinite(difference)]
    return Comparison(
        feature=name,
        rows=len(wrong),
        mismatches=len(rows),
        largest=float(finite.max()) if len(finite) else float("nan"),
        first_row=int(rows[0]) if len(rows) else None,
    )


@dataclass(slots=True)
class ParityReport:
    """All that a parity run found."""

    handbook: list[Comparison] = field(default_factory=list)
    history: list[Comparison] = field(default_factory=list)
    missing: int = 0
    duplicates: int = 0
    differing: int = 0
    restarts: int = 0
    outages: int = 0
    made_at_kill: int = 0

    @property
    def killed_in_the_middle(self) -> bool:
        """Whether the worker was killed when some rows were out and others were not."""
        rows = self.handbook[0].rows if self.handbook else 0
        return self.restarts > 0 and 0 < self.made_at_kill < rows

    @property
    def holds(self) -> bool:
        """Whether every row came, never in two ways, with every value right, kill included."""
        compared = [*self.handbook, *self.history]
        return (
            bool(self.handbook)
            and bool(self.history)
            and self.killed_in_the_middle
            and not self.missing
            and not self.differing
            and not any(comparison.mismatches for comparison in compared)
        )
