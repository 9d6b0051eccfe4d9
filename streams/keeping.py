"""A processor's side of a checkpoint: what it hands out slice by slice, and what it takes back.

Lives with the processor and is called by its thread only. No I/O, no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from headrace.streams.batch import Kept, Outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from headrace.features.capture import SlotRecords
    from headrace.features.state import EntityState
    from headrace.streams.batch import Keep


class Restorable(Protocol):
    """A processor whose state can be kept and put back; every processor is one."""

    def keep(self, keep: Keep) -> Outputs:
        """Return a slice of the state as it was when the capture was opened."""
        ...

    def restore(
        self, parts: dict[str, Any], records: Iterable[SlotRecords], key_count: int, offset: int
    ) -> None:
        """Be, from empty, what was kept at ``offset``; ``records`` come newest first."""
        ...


class Keeper:
    """Captures one processor: its small parts at once, its state's slots bit by bit.

    It knows nothing of the processor: the two would keep each other alive, with all of the state,
    until a collection that a worker hardly ever makes.
    """

    def __init__(self, state: EntityState | None = None) -> None:
        """Keep the slots of ``state``."""
        self._state = state
        self._number = 0

    def track(self) -> None:
        """Take note of changes from now on, so that a segment can follow what is restored."""
        if self._state is not None:
            self._state.captures  # noqa: B018 - looking at them makes them

    def keep(self, keep: Keep, dump: Callable[[], dict[str, Any]]) -> Outputs:
        """Open a capture of what ``dump`` returns, or go on with one.

        One that was cancelled meanwhile says so.
        """
        state, parts, count = self._state, None, 0
        if keep.opens:
            self.cancel()
            self._number = keep.number
            parts = dump()
            if state is not None:
                if keep.lost:
                    state.captures.lose()
                state.open_capture(whole=keep.whole)
                count = state.key_count
        elif keep.number != self._number:
            return Outputs(kept=Kept(keep.number, cancelled=True))
        records = [] if state is None else state.capture(keep.words_max)
        ended = state is None or not state.captures.is_open
        if ended:
            self._number = 0
        return Outputs(kept=Kept(keep.number, records, parts, count, ended))

    def cancel(self) -> None:
        """Give an open capture up: the state that it shows is not to be."""
        if self._number and self._state is not None and self._state.captures.is_open:
            self._state.captures.lose()
        self._number = 0
