"""What a comparison comes to: findings with a cause, a weight, and words for a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["none", "notice", "alarm"]
Cause = Literal[
    "nulls", "infinite", "frozen", "unit", "swapped", "novel", "shift", "spread", "shape"
]

RANK: Final[dict[Severity, int]] = {"none": 0, "notice": 1, "alarm": 2}

#: Where to look first, by cause.
LOOK_AT: Final[dict[Cause, str]] = {
    "nulls": "the producer of the field, and joins or windows that may have lost their source",
    "infinite": "a division by zero upstream",
    "frozen": "whether the source still sends new values: a stuck job, a cached or default value",
    "unit": "a release of the producer: currency, cents, seconds or milliseconds, percent",
    "swapped": "where the two fields are filled: their order or their names were exchanged",
    "novel": "the new values: a new category, a new code, or a changed encoding",
    "shift": "whether the world moved (then train again) or the way it is measured",
    "spread": "a filter, a cap or an outlier that came or went",
    "shape": "the two histograms: a group of rows that came or went",
}


#: From what size on a change is an alarm: PSI as banks use it.
PSI_ALARM: Final = 0.25
KS_ALARM: Final = 0.1


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that changed, in one column.

    ``size`` orders findings of one severity: how many times its alarm threshold it is.
    ``others`` are the columns that belong to it (the other one of a swap), ``factor`` is a unit's.
    """

    column: str
    cause: Cause
    severity: Severity
    size: float
    text: str
    others: tuple[str, ...] = ()
    factor: float | None = None

    @property
    def look_at(self) -> str:
        """Where to look first."""
        return LOOK_AT[self.cause]


@dataclass(frozen=True, slots=True)
class Picture:
    """Two histograms over the same bars; shares of the finite rows.

    ``labels`` are the values of a column that has few, else empty; ``bounds`` are the ends of bars
    (one more than bars), else empty. ``logarithmic``: the bars are equally wide by ratio.
    """

    labels: tuple[float, ...]
    bounds: tuple[float, ...]
    logarithmic: bool
    training: tuple[float, ...]
    period: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """A column's figures in training, or in the period; NaN where there is no finite value.

    ``quantiles`` are those of ``profile.PERCENTS``; a period's are within 1 %.
    """

    rows: int
    null_share: float
    mean: float
    deviation: float
    minimum: float
    maximum: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """How one column of a period compares with its training profile.

    ``compared`` is False where there are too few rows to say anything. ``psi_by_chance`` and
    ``ks_by_chance`` are what chance alone stays below. ``shift`` is the move of the mean in
    training deviations.
    """

    name: str
    compared: bool
    training: Side
    period: Side
    psi: float
    psi_by_chance: float
    ks: float
    ks_by_chance: float
    outside_share: float
    novel_share: float
    shift: float
    findings: tuple[Finding, ...]
    picture: Picture

    @property
    def severity(self) -> Severity:
        """The worst of its findings."""
        return worst(self.findings)

    @property
    def varies(self) -> bool:
        """Whether it moved far, but no further than the days of the training set among themselves.

        Then nothing can be told: a longer training period, or one without a trend, would.
        """
        far = self.psi > PSI_ALARM or self.ks > KS_ALARM
        return self.compared and not self.findings and far


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a period compares with a profile, column by column, in the vector's order."""

    rows: int
    days: int
    columns: tuple[ColumnDrift, ...]
    score: ColumnDrift | None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Every finding, worst first."""
        columns = (*self.columns, *([self.score] if self.score is not None else []))
        found = [finding for column in columns for finding in column.findings]
        return tuple(sorted(found, key=lambda one: (-RANK[one.severity], -one.size, one.column)))

    @property
    def severity(self) -> Severity:
        """The worst of all findings."""
        return worst(self.findings)


def worst(findings: tuple[Finding, ...]) -> Severity:
    """Return the worst severity of some findings."""
    return max((finding.severity for finding in findings), key=RANK.__getitem__, default="none")
