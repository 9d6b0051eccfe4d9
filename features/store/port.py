"""What a worker asks of the online store, whatever it is made of.

Calls come from one thread of the worker, which can wait; nothing here is on the path of a score.
Readers use ``features.store.reader``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pyarrow as pa

    from headrace.features.store.views import OnlineEntity


@dataclass(frozen=True, slots=True)
class EntityRows:
    """Keys with their values, each as of a moment.

    Args:
        keys: The entity's keys: of ``key_kind``, none null, none twice.
        values: float64[n, len(entity.features)]; NaN is null.
        event_time_ms: int64[n], the key's newest event, epoch ms.
        as_of_ms: int64[n], when the values hold: the newest event's time, or a later tick's.
        version: int64[n], the next offset of the partition's input when the state was looked at.

    """

    keys: pa.Array
    values: np.ndarray
    event_time_ms: np.ndarray
    as_of_ms: np.ndarray
    version: np.ndarray

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self.version)

    def part(self, first: int, last: int) -> EntityRows:
        """Return the rows from ``first`` up to ``last``, without a copy."""
        cut = slice(first, last)
        return EntityRows(
            self.keys.slice(first, max(0, last - first)),
            self.values[cut],
            self.event_time_ms[cut],
            self.as_of_ms[cut],
            self.version[cut],
        )


@dataclass(frozen=True, slots=True)
class Marker:
    """What the store holds of an entity's partition, by its writer's word.

    Args:
        lineage: Goes up whenever what was written before means nothing any more.
        version: All changes by offsets below it are in the store.
        complete: Every key of the state is there, not only those that changed since ``open``.
        beat_ms: When the writer last said so, wall clock; or since when rows wait that it could not
            write yet.
        clock_ahead_ms: The partition's clock minus the wall clock then; far below 0 in a replay.
        rebuild: Number of the newest rebuild that was asked for; 0: none yet.
        server: Names the run of the server that said so; only the store's own business.

    """

    lineage: int
    version: int
    complete: bool
    beat_ms: int
    clock_ahead_ms: int = 0
    rebuild: int = 0
    server: str = ""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """How far a partition's writer is with rebuild ``request``, in keys."""

    request: int
    written: int
    total: int

    @property
    def done(self) -> bool:
        """Return whether all is written."""
        return self.written >= self.total


class OnlineStore(Protocol):
    """Newest values by entity. Every method may raise ``StoreUnavailableError``."""

    def write(
        self, entity: OnlineEntity, partition: int, lineage: int, rows: EntityRows, clock_ms: int
    ) -> int:
        """Write rows whose (lineage, version, as of) is not older than what is there.

        Args:
            entity: Whose keys they are.
            partition: Of the stage's input topic.
            lineage: As ``open`` gave it.
            rows: The keys with all of their values; each key's are written together.
            clock_ms: The partition's clock, from which the keys' expiry counts.

        Returns:
            How many were written. The others were older, which is no error.

        Raises:
            StoreFullError: At the memory limit. Write the same rows again later.
            StoreUnavailableError: Some may be written. Write the same rows again later.

        """
        ...

    def delete(self, entity: OnlineEntity, keys: pa.Array) -> int:
        """Erase all that the project's pipelines wrote of the keys; return how many were there."""
        ...

    def open(self, entity: OnlineEntity, partition: int, token: str, now_ms: int) -> Marker:
        """Return what is there already, or start a new lineage.

        Args:
            entity: Whose keys this writer is about to write.
            partition: Of the stage's input topic.
            token: Of what values depend on (plan, topic). If the marker has another one, or there
                is no marker, what is there means nothing: higher lineage, version 0, not complete.
            now_ms: Wall clock.

        """
        ...

    def beat(self, entity: OnlineEntity, partition: int, marker: Marker) -> Marker | None:
        """Say that ``marker`` holds now.

        Args:
            entity: Whose keys were written.
            partition: Of the stage's input topic.
            marker: The last one that ``open`` or ``beat`` gave, with version, complete, beat_ms and
                clock_ahead_ms as of now (``dataclasses.replace``).

        Returns:
            The marker with the newest rebuild request. None if the store is not what it was when
            the marker came from it: emptied, started again, or of another lineage. ``open`` then
            says what it holds.

        """
        ...

    def request_rebuild(self, entity: OnlineEntity) -> int:
        """Ask the writers of all partitions to write all of their keys again; return its number."""
        ...

    def report_rebuild(self, entity: OnlineEntity, partition: int, progress: Rebuild) -> None:
        """Say how far the partition's writer is."""
        ...

    def rebuilds(self, entity: OnlineEntity) -> Mapping[int, Rebuild]:
        """Return by partition what its writer last reported."""
        ...

    def markers(self, entity: OnlineEntity) -> Mapping[int, Marker]:
        """Return the markers by partition."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...
