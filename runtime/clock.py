"""The only place that reads the wall clock; who needs time takes a ``Clock``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def now_ms(self) -> int:
        """Return the time of day, epoch ms UTC."""
        ...

    def monotonic_ms(self) -> float:
        """Return a time that never steps back, in ms from an unknown start."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Return the time of day, epoch ms UTC."""
        return time.time_ns() // 1_000_000  # noqa: TID251 - this is the Clock.

    def monotonic_ms(self) -> float:
        """Return a time that never steps back, in ms from an unknown start."""
        return time.monotonic_ns() / 1e6


@dataclass(slots=True)
class ManualClock:
    """A clock that stands still until it is told to move.

    Examples:
        >>> clock = ManualClock(1_000)
        >>> clock.advance(500)
        >>> clock.now_ms()
        1500

    """

    time_ms: int = 0

    def now_ms(self) -> int:
        """Return the time it was set to."""
        return self.time_ms

    def monotonic_ms(self) -> float:
        """Return the same time as ``now_ms``."""
        return float(self.time_ms)

    def advance(self, by_ms: int) -> None:
        """Move forward by ``by_ms`` >= 0."""
        assert by_ms >= 0, by_ms
        self.time_ms += by_ms
