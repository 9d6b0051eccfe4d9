"""What the model found, against the reports that have arrived by now. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Finding:
    """How good the transactions with the highest scores are.

    ``precision`` is the share of them that was reported; since reports come up to a week late, it
    can only rise. ``recall`` is their share of all reported, by number; ``amount_recall`` by money.
    """

    name: str
    alerts: int
    reported: int
    amount: float
    precision: float
    recall: float
    amount_recall: float


def find(
    score: NDArray[np.float64],
    amount: NDArray[np.float64],
    reported: NDArray[np.bool_],
    threshold: float,
    tops: tuple[int, ...],
) -> list[Finding]:
    """Judge the ``tops`` highest scores, and all at or above the threshold.

    Args:
        score: Score of each transaction; NaN where there is none.
        amount: Its amount.
        reported: Whether it is reported as a fraud by now.
        threshold: From which score on it is an alert.
        tops: How many of the highest scores to judge, each on its own line.

    Shape: all arrays (transactions,).
    """
    known = np.where(np.isnan(score), -np.inf, score)
    order = np.argsort(-known, kind="stable")
    scored = int(np.isfinite(score).sum())
    alerts = int((known >= threshold).sum())
    chosen = [(f"top {top:,}", order[: min(top, scored)]) for top in tops]
    chosen.append((f"score ≥ {threshold:g}", order[:alerts]))
    total, total_amount = int(reported.sum()), float(amount[reported].sum())
    return [
        Finding(
            name=name,
            alerts=len(rows),
            reported=int(reported[rows].sum()),
            amount=float(amount[rows][reported[rows]].sum()),
            precision=_share(float(reported[rows].sum()), len(rows)),
            recall=_share(float(reported[rows].sum()), total),
            amount_recall=_share(float(amount[rows][reported[rows]].sum()), total_amount),
        )
        for name, rows in chosen
    ]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
