"""Profile × period → findings. Pure: counts in, figures and words out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from headrace.drift.causes import Suspect, moved, swapped_pairs, unit_factor
from headrace.drift.findings import (
    KS_ALARM,
    PSI_ALARM,
    RANK,
    ColumnDrift,
    Comparison,
    Finding,
    Side,
)
from headrace.drift.measures import (
    CHANCE,
    ks,
    ks_by_chance,
    psi,
    psi_by_chance,
    share_by_chance,
    share_distance,
    weigh,
)
from headrace.drift.pictures import picture
from headrace.drift.profile import PERCENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.drift.findings import Cause, Severity
    from headrace.drift.measures import Weight
    from headrace.drift.profile import ColumnProfile
    from headrace.drift.sketch import ColumnSketch, PeriodSketch

#: Fewer values than this on either side say nothing.
ROWS_MIN: Final = 200
#: From what size on a change matters: notice, alarm. PSI as banks use it; shares by Cohen's h.
PSI_SIZES: Final = (0.1, PSI_ALARM)
KS_SIZES: Final = (0.05, KS_ALARM)
SHARE_SIZES: Final = (0.1, 0.2)
#: A column that stands still is worse than any but the largest move.
_FROZEN_SIZE: Final = 25.0
_NOTHING: Final[tuple[Severity, float]] = ("none", 0.0)


def compare(sketch: PeriodSketch, days: int, score: ColumnSketch | None = None) -> Comparison:
    """Return how a period compares with a training set's profile.

    A finding needs both: more than chance gives (once in a million), and a size that matters.

    Args:
        sketch: The period, counted against the training set's profile.
        days: How many days the period spans, at least 1.
        score: The period's scores, counted against the profile's.

    """
    measured = [_measure(column, days) for column in sketch.columns]
    scored = None if score is None else _named([_measure(score, days)])[0]
    return Comparison(sketch.rows, days, tuple(_named(measured)), scored)


@dataclass(frozen=True, slots=True)
class _Measured:
    """A column with its figures, and whether its distribution needs a cause."""

    sketch: ColumnSketch
    drift: ColumnDrift
    severity: Severity
    size: float


def _measure(sketch: ColumnSketch, days: int) -> _Measured:
    profile = sketch.profile
    weight = weigh(profile, sketch.finite, days)
    compared = min(profile.finite, sketch.finite) >= ROWS_MIN
    findings: list[Finding] = []
    if min(profile.rows, sketch.rows) >= ROWS_MIN:
        null_weight = weigh(profile, sketch.rows, days, of_nulls=True)
        findings += _of_nulls(sketch, null_weight)
    index, groups, distance = 0.0, 2, 0.0
    if compared:
        counts = np.array(profile.counts)
        index, groups = psi(counts, sketch.bin_counts)
        distance = ks(counts, sketch.bin_counts)
    drift = ColumnDrift(
        name=profile.name,
        compared=compared,
        training=_training_side(profile),
        period=_period_side(sketch),
        psi=index,
        psi_by_chance=psi_by_chance(groups, weight),
        ks=distance,
        ks_by_chance=ks_by_chance(weight),
        outside_share=sketch.outside / sketch.finite if sketch.finite else 0.0,
        novel_share=sketch.novel / sketch.finite if sketch.finite else 0.0,
        shift=_shift(sketch),
        findings=(),
        picture=picture(profile, sketch),
    )
    severity, size = _distribution(drift, weight) if compared else _NOTHING
    frozen = _frozen(sketch, weight) if compared else None
    if frozen is not None:
        findings.append(frozen)
        severity, size = _NOTHING
    return _Measured(sketch, replace(drift, findings=tuple(findings)), severity, size)


def _shift(sketch: ColumnSketch) -> float:
    profile = sketch.profile
    if not sketch.finite or not profile.finite:
        return 0.0
    apart = sketch.mean - profile.mean
    return apart / profile.deviation if profile.deviation > 0 else 0.0


def _training_side(profile: ColumnProfile) -> Side:
    return Side(
        profile.rows,
        profile.null_share,
        profile.mean,
        profile.deviation,
        profile.minimum,
        profile.maximum,
        profile.quantiles,
    )


def _period_side(sketch: ColumnSketch) -> Side:
    there = sketch.finite > 0
    return Side(
        sketch.rows,
        sketch.null_share,
        sketch.mean if there else float("nan"),
        sketch.deviation,
        sketch.minimum if there else float("nan"),
        sketch.maximum if there else float("nan"),
        tuple(sketch.quantiles(PERCENTS).tolist()),
    )


def _grade(value: float, by_chance: float, sizes: tuple[float, float]) -> Severity:
    notice, alarm = sizes
    if value <= by_chance or value < notice:
        return "none"
    return "alarm" if value >= alarm else "notice"


def _distribution(drift: ColumnDrift, weight: Weight) -> tuple[Severity, float]:
    """Return how bad a column's change of distribution is, and its size in alarm thresholds."""
    by_chance = share_by_chance(weight)
    graded = [(drift.psi, drift.psi_by_chance, PSI_SIZES), (drift.ks, drift.ks_by_chance, KS_SIZES)]
    graded += [
        (share_distance(0.0, share), by_chance, SHARE_SIZES)
        for share in (drift.outside_share, drift.novel_share)
    ]
    grades: list[tuple[Severity, float]] = [(_grade(*one), one[0] / one[2][1]) for one in graded]
    return max(grades, key=lambda one: (RANK[one[0]], one[1]))


def _of_nulls(sketch: ColumnSketch, weight: Weight) -> list[Finding]:
    """Return findings about rows without a value, and with an infinite one."""
    profile = sketch.profile
    found = []
    infinite = profile.infinite / profile.rows, sketch.infinite / sketch.rows
    shares: list[tuple[Cause, str, tuple[float, float]]] = [
        ("nulls", "have no value", (profile.null_share, sketch.null_share)),
        ("infinite", "are infinite", infinite),
    ]
    for cause, what, (before, now) in shares:
        apart = share_distance(before, now)
        severity = _grade(apart, share_by_chance(weight), SHARE_SIZES)
        if severity != "none":
            text = f"{_percent(now)} of the rows {what}; in training {_percent(before)}"
            size = apart / SHARE_SIZES[1]
            found.append(Finding(profile.name, cause, severity, size, text))
    return found


def _frozen(sketch: ColumnSketch, weight: Weight) -> Finding | None:
    """Return the finding that all values are one, where training makes that very unlikely."""
    profile = sketch.profile
    if sketch.minimum < sketch.maximum or profile.distinct < 2:
        return None
    value = sketch.minimum
    share = _share_of(profile, value)
    if weight.period * np.log(max(share, 1 / profile.finite)) > np.log(CHANCE):
        return None
    text = f"every value is {_number(value)}; training had {profile.distinct:,} different ones"
    return Finding(profile.name, "frozen", "alarm", _FROZEN_SIZE, text)


def _share_of(profile: ColumnProfile, value: float) -> float:
    """Return at most what share of the training rows had this value."""
    if profile.values:
        shares = dict(zip(profile.values, profile.value_counts, strict=True))
        return shares.get(value, 0) / profile.finite
    number = int(np.searchsorted(profile.edges, value, side="left"))
    return profile.counts[number] / profile.finite


def _named(measured: Sequence[_Measured]) -> list[ColumnDrift]:
    """Return the columns with findings whose causes are named."""
    changed = {index: one for index, one in enumerate(measured) if one.severity != "none"}
    suspects = {
        index: Suspect(index, one.sketch.profile, one.sketch, one.drift.ks)
        for index, one in changed.items()
    }
    partners: dict[int, str] = {}
    for first, second in swapped_pairs(list(suspects.values())):
        partners[first.index] = second.profile.name
        partners[second.index] = first.profile.name
    drifts = [one.drift for one in measured]
    for index, one in changed.items():
        finding = _explain(one, suspects[index], partners.get(index))
        drifts[index] = replace(one.drift, findings=(*one.drift.findings, finding))
    return drifts


def _explain(one: _Measured, suspect: Suspect, partner: str | None) -> Finding:
    """Return the finding about a column whose distribution changed: the simplest change first."""
    drift = one.drift
    others: tuple[str, ...] = ()
    factor = None
    cause: Cause
    if partner is not None:
        cause, others = "swapped", (partner,)
        text = f"looks as {partner} did in training, and {partner} as {drift.name} did"
    elif (factor := unit_factor(suspect)) is not None:
        cause = "unit"
        text = f"every value is {_times(factor)} what it was; undone, the distributions agree"
    else:
        cause, text = _plain(one, suspect)
    return Finding(drift.name, cause, one.severity, one.size, text, others, factor)


def _plain(one: _Measured, suspect: Suspect) -> tuple[Cause, str]:
    drift, sketch = one.drift, one.sketch
    before, now = drift.training, drift.period
    if share_distance(0.0, drift.novel_share) >= SHARE_SIZES[0]:
        new = ", ".join(_number(value) for value in sketch.novel_values())
        return "novel", f"{_percent(drift.novel_share)} of the values are new: {new}"
    shifted, spread = moved(suspect)
    ratio = now.deviation / before.deviation if before.deviation > 0 else float("inf")
    moves = f"mean {_number(before.mean)} → {_number(now.mean)}"
    deviates = f"deviation {_number(before.deviation)} → {_number(now.deviation)}"
    by_mean = abs(drift.shift) >= 0.1 and shifted <= 0.6 * suspect.distance
    # What moved by half a deviation or more has moved, whatever else it did.
    by_spread = abs(drift.shift) < 0.5 and not 0.85 < ratio < 1.18
    by_spread = by_spread and spread <= 0.6 * suspect.distance
    if by_spread and not (by_mean and shifted <= spread):
        return "spread", f"the values spread {ratio:.2f} times as wide; {deviates}, {moves}"
    if by_mean or abs(drift.shift) >= 0.25:
        way = "up" if drift.shift > 0 else "down"
        return "shift", f"moved {way} by {abs(drift.shift):.2f} training deviations; {moves}"
    if not 0.85 < ratio < 1.18:
        return "spread", f"the values spread {ratio:.2f} times as wide; {deviates}, {moves}"
    outside = f"; {_percent(drift.outside_share)} outside training's range"
    text = f"the shape changed (KS {drift.ks:.3f}, PSI {drift.psi:.3f}); {moves}, {deviates}"
    return "shape", text + (outside if drift.outside_share >= 0.001 else "")


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _times(factor: float) -> str:
    if abs(factor) >= 1:
        return f"{factor:.6g} times"
    return f"{factor:.6g} times (1/{1 / factor:.6g} of)"
