"""When to commit a transaction: at once when traffic is light, rarely under load. Pure."""

from __future__ import annotations

# Of the time under load, a twentieth may go into commits and the drain before them.
LOAD_FACTOR = 20
# Weight of the newest commit in the running mean of what one costs.
NEWEST_WEIGHT = 0.2
COST_GUESS_S = 0.01
# With light traffic rows come so long in company; each hand-over costs as much, however few.
SPACING_MIN_S = 0.002
# An open transaction must end long before the broker ends it.
INTERVAL_MAX_S = 2.0


class CommitPace:
    """Says how long after a commit the next one is due.

    What is sent becomes readable with its commit, so light traffic is committed as soon as there is
    some. Behind, the interval grows until commits cost little.
    """

    def __init__(self, interval_s: float) -> None:
        """Wait at most ``interval_s``."""
        self._interval_s = min(interval_s, INTERVAL_MAX_S)
        self._cost_s = COST_GUESS_S

    def took(self, cost_s: float) -> None:
        """Take note of what a commit took, with the drain before it."""
        self._cost_s += NEWEST_WEIGHT * (cost_s - self._cost_s)

    def spacing_s(self, *, waited_for: bool, behind: bool) -> float:
        """Return the seconds from the end of one commit to the start of the next.

        Args:
            waited_for: Something was sent that readers do not see yet.
            behind: There is more to read than one hand-over takes.

        """
        if not waited_for:
            return self._interval_s
        if not behind:
            return min(self._interval_s, SPACING_MIN_S)
        return min(self._interval_s, max(self._cost_s * LOAD_FACTOR, SPACING_MIN_S))
