"""The only place that reads the wall clock; who needs time takes a ``Clock``."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

#: Names a file with by how many ms the process's time of day is to be wrong; for trials only.
OFFSET_FILE_VARIABLE = "HEADRACE_CLOCK_OFFSET_FILE"


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


class WrongClock(SystemClock):
    """The machine's clock with a time of day that is off by what a file says at the moment.

    So a trial sets it ahead, or back while a process runs. Monotonic time is the machine's.
    """

    def __init__(self, offset_file: Path) -> None:
        """Be off by the whole number of ms in ``offset_file``; replace it, do not write into it."""
        self._offset_file = offset_file

    def now_ms(self) -> int:
        """Return the wrong time of day, epoch ms UTC."""
        return super().now_ms() + int(self._offset_file.read_text(encoding="ascii"))


def process_clock() -> Clock:
    """Return the clock of this process: the machine's, unless ``OFFSET_FILE_VARIABLE`` is set."""
    offset_file = os.environ.get(OFFSET_FILE_VARIABLE)
    return WrongClock(Path(offset_file)) if offset_file else SystemClock()


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
