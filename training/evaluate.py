"""How good are scores that an investigator works through day by day?

Ranking figures, and the precision of the daily list of keys (cards) that a team of limited size can
check. Source: the protocol of the Fraud Detection Handbook (Le Borgne et al. 2022, chapters 3 and
4), as described in prose there; the code is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from headrace.runtime.errors import explain
from headrace.training.errors import TrainingError
from headrace.training.split import DAY_MS

if TYPE_CHECKING:
    from headrace.training.split import Period

CHECKED_A_DAY = 100
#: ``positive_known_at_ms`` of an event that has no positive label.
NEVER_MS = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of one set of scores.

    ``key_precision`` is the mean over the days of the share of true ones among the
    ``checked_a_day`` keys of the highest scores.
    """

    auc: float
    average_precision: float
    key_precision: float
    checked_a_day: int
    rows: int
    positives: int

    def as_metrics(self, prefix: str) -> dict[str, float]:
        """Return the figures by name, as an artefact's manifest holds them."""
        return {
            f"{prefix}_auc": self.auc,
            f"{prefix}_average_precision": self.average_precision,
            f"{prefix}_key_precision_at_{self.checked_a_day}": self.key_precision,
            f"{prefix}_rows": float(self.rows),
            f"{prefix}_positives": float(self.positives),
        }


def evaluate(
    scores: np.ndarray,
    labels: np.ndarray,
    keys: np.ndarray,
    event_time_ms: np.ndarray,
    *,
    checked_a_day: int = CHECKED_A_DAY,
) -> Evaluation:
    """Return the figures of scores against the truth.

    Args:
        scores: Higher means more likely positive; float64.
        labels: 0 or 1.
        keys: Whom a check is about (a card, a customer): any type that sorts.
        event_time_ms: Event times; the days are those of UTC.
        checked_a_day: How many keys can be checked in a day.

    Raises:
        TrainingError: If the labels are not of both kinds.

    Shape: (n,) each.
    """
    positives = int(np.count_nonzero(labels))
    if positives in {0, len(labels)}:
        message = explain(
            "test period",
            "hold positive and negative labels",
            f"{positives} positive of {len(labels)}",
            "the evaluation",
            "choose a period whose labels have arrived",
        )
        raise TrainingError(message)
    days = event_time_ms // DAY_MS
    return Evaluation(
        auc=float(roc_auc_score(labels, scores)),
        average_precision=float(average_precision_score(labels, scores)),
        key_precision=key_precision(scores, labels, keys, days, checked_a_day),
        checked_a_day=checked_a_day,
        rows=len(labels),
        positives=positives,
    )


def key_precision(
    scores: np.ndarray,
    labels: np.ndarray,
    keys: np.ndarray,
    days: np.ndarray,
    checked_a_day: int,
) -> float:
    """Return the mean daily precision of the list of keys to check.

    Each day every key counts with its highest score and its highest label. The highest
    ``checked_a_day`` are checked; those found positive are blocked, and left out of later days.
    Equal scores go by key, so that the figure depends on the data alone.

    Shape: (n,) each.

    Examples:
        >>> day = np.zeros(4, int)
        >>> key_precision(np.array([.9, .8, .7, .1]), np.array([1, 0, 1, 0]), np.arange(4), day, 2)
        0.5

    """
    codes = np.unique(keys, return_inverse=True)[1]
    blocked = np.zeros(codes.max(initial=-1) + 1, bool)
    found = 0
    for day in np.unique(days):
        rows = np.flatnonzero((days == day) & ~blocked[codes])
        present, group = np.unique(codes[rows], return_inverse=True)
        highest = np.full(len(present), -np.inf)
        np.maximum.at(highest, group, scores[rows])
        truth = np.zeros(len(present), bool)
        np.logical_or.at(truth, group, labels[rows] > 0)
        checked = np.argsort(-highest, kind="stable")[:checked_a_day]
        found += int(np.count_nonzero(truth[checked]))
        blocked[present[checked[truth[checked]]]] = True
    return found / (checked_a_day * len(np.unique(days)))


def unknown_at_day_start(
    keys: np.ndarray,
    event_time_ms: np.ndarray,
    positive_known_at_ms: np.ndarray,
    test: Period,
) -> np.ndarray:
    """Return which rows of the test period are about keys not yet known as positive that day.

    A key is known from the first midnight after the first report about any of its rows here: so
    give the rows since the training began, those of the gap too.

    Args:
        keys: Whom the rows are about.
        event_time_ms: Event times.
        positive_known_at_ms: When the row was first reported positive; ``NEVER_MS`` if never.
        test: The test period.

    Shape: (n,) each -> bool (n,).
    """
    codes = np.unique(keys, return_inverse=True)[1]
    known_ms = np.full(codes.max(initial=-1) + 1, NEVER_MS)
    np.minimum.at(known_ms, codes, positive_known_at_ms)
    day_start_ms = event_time_ms // DAY_MS * DAY_MS
    fresh: np.ndarray = (known_ms[codes] >= day_start_ms) & test.mask(event_time_ms)
    return fresh
