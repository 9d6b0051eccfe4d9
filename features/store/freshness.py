"""How far an answer of the online store can be believed: its age and its status. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.features.store.layout import Fence
    from headrace.features.store.port import Marker

#: The writer was heard of a moment ago and says that everything is written.
FRESH: Final = "FRESH"
#: Nobody vouches for the value: the writer was not heard of for too long, has not written all yet,
#: or never was there. What is missing then may exist, so it is null and no default.
STALE: Final = "STALE"
#: The newest event has left all windows: the value is what they decay to.
EXPIRED: Final = "EXPIRED"
#: There was no event of this key, or it is long gone: the value is what empty windows give.
MISSING: Final = "MISSING"

STATUSES: Final = (FRESH, STALE, EXPIRED, MISSING)


@dataclass(frozen=True, slots=True)
class Witness:
    """What the writers of one entity said of themselves, seen at a moment.

    Args:
        markers: By partition.
        now_ms: Wall clock of the reader.
        stale_after_ms: How long a writer may be silent.

    """

    markers: Mapping[int, Marker]
    now_ms: int
    stale_after_ms: int

    def speaks_for_all(self) -> bool:
        """Return whether every partition known is written and its writer heard of."""
        return bool(self.markers) and all(self._is_live(m) for m in self.markers.values())

    def vouches_for(self, fence: Fence | None) -> bool:
        """Return whether the writer of a value stands by it."""
        marker = self.markers.get(fence.partition) if fence else None
        if fence is None or marker is None:
            return False
        return marker.lineage == fence.lineage and self._is_live(marker)

    def clock_ms(self, fence: Fence | None) -> int:
        """Return the time by which a value ages: that of its partition's events."""
        marker = self.markers.get(fence.partition) if fence else None
        return self.now_ms + (marker.clock_ahead_ms if marker else 0)

    def judge(
        self, fence: Fence | None, event_time_ms: int | None, reach_ms: int
    ) -> tuple[str, int | None]:
        """Return the status of a view's values, and their age.

        Args:
            fence: Of the value; None where no worker wrote one.
            event_time_ms: The newest event's time; None: the view is not there.
            reach_ms: After this age no window holds an event.

        """
        if event_time_ms is None:
            return (MISSING if self.speaks_for_all() else STALE), None
        age_ms = self.clock_ms(fence) - event_time_ms
        if not self.vouches_for(fence):
            return STALE, age_ms
        return (EXPIRED if age_ms >= reach_ms else FRESH), age_ms

    def _is_live(self, marker: Marker) -> bool:
        return marker.complete and self.now_ms - marker.beat_ms <= self.stale_after_ms
