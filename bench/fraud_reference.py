"""The fraud example's features computed another way: sorted arrays and differences of prefix sums.

Windows are (t - delay - length, t - delay]. It takes for granted that every report is known within
the terminals' delay of seven days, as the generator's are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

DAY_MS = 86_400_000
DELAY_MS = 7 * DAY_MS


def reference_features(transactions: pa.Table, reports: pa.Table) -> dict[str, NDArray[np.float64]]:
    """Return every feature of the example's pipeline at every transaction.

    Args:
        transactions: In time order; of a customer no two at the same millisecond.
        reports: Every fraud among them.

    """
    time_ms = transactions["event_time"].cast("int64").to_numpy()
    amount = transactions["amount"].to_numpy()
    fraud = np.isin(transactions["transaction_id"].to_numpy(), reports["transaction_id"].to_numpy())
    hour = time_ms // 3_600_000
    features: dict[str, NDArray[np.float64]] = {
        "amount": amount,
        # The first day of the epoch was a Thursday; Monday is 0.
        "during_weekend": ((time_ms // DAY_MS + 3) % 7 >= 5).astype(np.float64),
        "during_night": (hour % 24 <= 6).astype(np.float64),
    }
    customers = _Windows(transactions["customer_id"], time_ms)
    terminals = _Windows(transactions["terminal_id"], time_ms)
    cents = np.rint(amount * 100).astype(np.int64)
    for days in (1, 7, 30):
        ones = np.ones(len(time_ms), np.int64)
        count = customers.sums(ones, 0, days * DAY_MS)
        total = customers.sums(cents, 0, days * DAY_MS)
        features[f"customer__count_{days}d"] = count.astype(np.float64)
        features[f"customer__amount_mean_{days}d"] = total / 100 / count
        count = terminals.sums(ones, DELAY_MS, days * DAY_MS)
        frauds = terminals.sums(fraud.astype(np.int64), DELAY_MS, days * DAY_MS)
        features[f"terminal__count_{days}d"] = count.astype(np.float64)
        # Of no transactions none is a fraud: the risk of nothing is 0.
        features[f"terminal__risk_{days}d"] = frauds / np.maximum(count, 1)
    return features


class _Windows:
    """Sums over the rows of the same key in a window of time before each row."""

    def __init__(self, keys: pa.ChunkedArray, time_ms: NDArray[np.int64]) -> None:
        group = keys.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        # One number orders by key, then time; keys lie further apart than any window reaches.
        self._from_ms = int(time_ms.min()) if len(time_ms) else 0
        span_ms = (int(time_ms.max()) - self._from_ms if len(time_ms) else 0) + 64 * DAY_MS
        place = group * span_ms + (time_ms - self._from_ms) + 40 * DAY_MS
        self._order = np.argsort(place, kind="stable")
        self._sorted = place[self._order]

    def sums(self, values: NDArray[np.int64], delay_ms: int, length_ms: int) -> NDArray[np.int64]:
        """Return, per row, the sum over (t - delay - length, t - delay] of its key."""
        prefix = np.zeros(len(values) + 1, np.int64)
        np.cumsum(values[self._order], out=prefix[1:])
        upper = np.searchsorted(self._sorted, self._sorted - delay_ms, side="right")
        lower = np.searchsorted(self._sorted, self._sorted - delay_ms - length_ms, side="right")
        result = np.empty(len(values), np.int64)
        result[self._order] = prefix[upper] - prefix[lower]
        return result
