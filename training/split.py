"""Which time a model learns from and which it is tested on: the past, a gap, then later.

The gap is the label's delay: what a model that goes live at the test's start could have known.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from headrace.runtime.errors import explain
from headrace.training.errors import TrainingError

if TYPE_CHECKING:
    import numpy as np

DAY_MS = 86_400_000
TEST_MS = 7 * DAY_MS
TRAIN_MS_MAX = 28 * DAY_MS


@dataclass(frozen=True, slots=True)
class Period:
    """Event times from ``start_ms`` up to, but without, ``end_ms``."""

    start_ms: int
    end_ms: int

    @property
    def length_ms(self) -> int:
        """How long the period is."""
        return self.end_ms - self.start_ms

    def mask(self, event_time_ms: np.ndarray) -> np.ndarray:
        """Return which of the times lie in the period.

        Shape: int64 (n,) -> bool (n,).
        """
        inside: np.ndarray = (event_time_ms >= self.start_ms) & (event_time_ms < self.end_ms)
        return inside

    def __str__(self) -> str:
        """Return both ends as UTC dates, or times where they are not at midnight."""
        return f"{_when(self.start_ms)} to {_when(self.end_ms)}"


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Training and test period, and the instant by which training labels must be known."""

    train: Period
    test: Period
    label_cutoff_ms: int


def split_by_time(start_ms: int, end_ms: int, *, gap_ms: int, test_ms: int = TEST_MS) -> TimeSplit:
    """Return the split of a period: training first, then the gap, the test at its end.

    Labels for training are those known when the test begins.

    Raises:
        TrainingError: If nothing is left to train on.

    Examples:
        >>> str(split_by_time(0, 21 * DAY_MS, gap_ms=7 * DAY_MS).train)
        '1970-01-01 to 1970-01-08'

    """
    test = Period(end_ms - test_ms, end_ms)
    train = Period(start_ms, test.start_ms - gap_ms)
    if train.length_ms <= 0 or test_ms <= 0:
        message = explain(
            "period",
            f"be longer than gap and test ({(gap_ms + test_ms) / DAY_MS:g} days)",
            str(Period(start_ms, end_ms)),
            "training",
            "give more data, or a shorter --test",
        )
        raise TrainingError(message)
    return TimeSplit(train, test, test.start_ms)


def default_period(data: Period, *, gap_ms: int, reach_ms: int, test_ms: int = TEST_MS) -> Period:
    """Return the period to use of ``data`` when none is given: the last weeks whose labels are in.

    It ends at the last midnight by which the label's delay has passed for every event, and begins
    up to four training weeks before the gap; if it can, after the windows have filled, at the
    price of a quarter of the data at most.

    Args:
        data: First and last event time of the scored source.
        gap_ms: The label's delay.
        reach_ms: The longest reach back of any window.
        test_ms: Length of the test period.
    """
    end_ms = (data.end_ms - gap_ms) // DAY_MS * DAY_MS
    warm_ms = data.start_ms + min(reach_ms, data.length_ms // 4)
    warm_ms = -(-warm_ms // DAY_MS) * DAY_MS
    return Period(max(warm_ms, end_ms - test_ms - gap_ms - TRAIN_MS_MAX), end_ms)


def _when(time_ms: int) -> str:
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.strftime("%Y-%m-%d" if time_ms % DAY_MS == 0 else "%Y-%m-%dT%H:%M:%S")
