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
class Belief:
    """What a value's writer makes of it: whether it stands by it, and the time by its clock."""

    vouched: bool
    clock_ms: int


class Witness:
    """What the writers of one entity said of themselves, seen at a moment.

    Args:
        markers: By partition.
        now_ms: Wall clock of the reader.
        stale_after_ms: How long a writer may be silent.

    Attributes:
        absent: The status of what is not there: MISSING only if all writers are complete.

    """

    __slots__ = ("_live", "_markers", "_now_ms", "absent")

    def __init__(self, markers: Mapping[int, Marker], now_ms: int, stale_after_ms: int) -> None:
        self._markers = markers
        self._now_ms = now_ms
        self._live = {
            partition
            for partition, marker in markers.items()
            if marker.complete and now_ms - marker.beat_ms <= stale_after_ms
        }
        self.absent = MISSING if markers and len(self._live) == len(markers) else STALE

    def believe(self, fence: Fence | None) -> Belief:
        """Return what the writer makes of a value; one that no worker wrote is nobody's."""
        marker = self._markers.get(fence.partition) if fence else None
        if fence is None or marker is None:
            return Belief(vouched=False, clock_ms=self._now_ms)
        vouched = fence.partition in self._live and marker.lineage == fence.lineage
        return Belief(vouched, self._now_ms + marker.clock_ahead_ms)

    def judge(
        self, belief: Belief, event_time_ms: int | None, reach_ms: int
    ) -> tuple[str, int | None]:
        """Return the status of a view's values, and their age.

        Args:
            belief: What its writer makes of the entity.
            event_time_ms: The newest event's time; None: the view is not there.
            reach_ms: After this age no window holds an event.

        """
        if event_time_ms is None:
            return self.absent, None
        # The clock is as of the last beat; an event may have come since.
        age_ms = max(0, belief.clock_ms - event_time_ms)
        if not belief.vouched:
            return STALE, age_ms
        return (EXPIRED if age_ms >= reach_ms else FRESH), age_ms
