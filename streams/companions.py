"""Who goes along with the source: told of what happens to partitions, with items to hand over.

The online store's feed, the erasures' and whatever comes later are one list; the loop knows none
of them by name. Called by the source thread only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from headrace.streams.batch import EventBatch, Forget, Keep, Look, Outputs, Processor
    from headrace.streams.positions import OwnedPartition

    Item = EventBatch | Look | Forget | Keep
    Place = tuple[str, int]


class Companion:
    """One that goes along, and so far takes no notice of anything."""

    def assigned(self, partitions: Sequence[OwnedPartition]) -> None:
        """Take in partitions whose state stands where reading them begins."""

    def restored(self, owned: OwnedPartition, processor: Processor) -> None:
        """Take note that an assigned partition's state was brought back, and not replayed."""

    def released(self, places: Collection[Place], *, flush: bool) -> None:
        """Let partitions go; ``flush``: nobody else has them yet."""

    def cut(
        self, owned: OwnedPartition, parts: list[EventBatch | Forget]
    ) -> list[EventBatch | Forget]:
        """Return what is about to be handed over of a partition, with more between its rows."""
        del owned
        return parts

    def due(self, room: int) -> Sequence[Look | Forget | Keep]:
        """Return what is to be handed over now; ``room`` tickets can be had without a wait."""
        del room
        return []

    def settled(self, item: Item, outputs: Outputs) -> None:
        """Take what an item caused, after it was sent."""

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing left to do until more is read."""
        return True

    def committed(self) -> None:
        """Take note that the partitions' committed offsets have moved."""

    def aborted(self, starts: Mapping[Place, int]) -> None:
        """Take note that partitions are back, each at an offset: all since is undone."""


class Restorer(Protocol):
    """Who brings a newly assigned partition's state to where reading begins."""

    def wanted(self, owned: OwnedPartition) -> bool:
        """Whether there may be something to restore; within the callback of a rebalance."""
        ...

    def restore(self, owned: OwnedPartition, make: Callable[[], Processor]) -> Processor:
        """Return the partition's processor, and let ``owned`` stand where its state does.

        That is at most at the committed offset. ``make`` returns an empty processor. Called by the
        loop, with nothing of the partition handed over.
        """
        ...


class NoRestorer:
    """Lets every partition begin at the beginning of its log."""

    def wanted(self, owned: OwnedPartition) -> bool:
        """Say that there is nothing."""
        del owned
        return False

    def restore(self, owned: OwnedPartition, make: Callable[[], Processor]) -> Processor:
        """Never called."""
        raise AssertionError((owned, make))
