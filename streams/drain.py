"""When a worker that only finishes what there is has finished it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.streams.positions import OwnedPartition

# Looks at which nothing may have moved: what another worker has just committed takes a moment.
QUIET_LOOKS = 3


class Drain:
    """Looks at the partitions again and again, and says when nothing is left to do in any."""

    def __init__(self, owned: Mapping[tuple[str, int], OwnedPartition]) -> None:
        """Look at ``owned`` partitions."""
        self._owned = owned
        self._seen: dict[tuple[str, int], int] = {}
        self._quiet = 0

    def is_over(self, is_settled: bool) -> bool:
        """Return whether all is read, sent and committed, and was so for a few looks.

        Args:
            is_settled: Whether nothing is under way.

        """
        seen = {place: owned.next_offset for place, owned in self._owned.items()}
        done = is_settled and all(map(_is_done, self._owned.values()))
        self._quiet = self._quiet + 1 if done and seen == self._seen else 0
        self._seen = seen
        return self._quiet >= QUIET_LOOKS


def _is_done(owned: OwnedPartition) -> bool:
    read = owned.end_told and owned.next_offset >= owned.high_offset
    return read and owned.done_offset >= owned.next_offset and owned.position() is None
