"""Rows at rest that the stream left out because their event id had come before (docs/adr/0027).

The same verdicts as on the stream, in the order of arrival; nothing is forgotten, so a copy that
comes late is found, too. Only rows whose id comes more than once are looked at one by one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from headrace.features.columns import check_rows, event_columns
from headrace.features.duplicates import IdMemory, RowIds, row_ids
from headrace.features.kernels.ids import CONFLICT, DUPLICATE
from headrace.lake.stored import partition_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headrace.features.plan import SourcePlan
    from headrace.lake.events import EventReader

    Integers = NDArray[np.int64]

_REASONS: Final = {DUPLICATE: "duplicate", CONFLICT: "id_conflict"}


@dataclass(slots=True)
class Repeats:
    """Rows of a source that do not count: sorted positions, and how many by reason."""

    position: Integers
    reasons: Counter[str] = field(default_factory=Counter)

    def among(self, position: Integers) -> NDArray[np.bool_]:
        """Return which of the rows at these positions do not count."""
        places = np.searchsorted(self.position, position)
        places[places == len(self.position)] = 0
        if not len(self.position):
            return np.zeros(len(position), bool)
        found: NDArray[np.bool_] = self.position[places] == position
        return found


@dataclass(slots=True)
class _Rows:
    """Good rows with an id, columns of one length."""

    ids: RowIds
    position: Integers
    arrival_ms: Integers
    time_ms: Integers

    def take(self, indices: Integers) -> _Rows:
        return _Rows(
            self.ids.take(indices),
            self.position[indices],
            self.arrival_ms[indices],
            self.time_ms[indices],
        )


def find_repeats(
    source: SourcePlan, reader: EventReader, *, scored: bool, rows_in_memory: int
) -> Repeats:
    """Return the rows of a source whose id came before; none where it declares no ``dedupe``.

    Args:
        source: The source.
        reader: Its events. Files are in the order of arrival; rows of the lake are put into the
            order in which the broker got them.
        scored: Whether its events are scored: then an event's own time is what counts.
        rows_in_memory: With more rows than this the ids are gone through in several passes.

    Cost: a pass over the reader, 36 bytes a row in memory at the peak.
    """
    if not source.dedupe_ms:
        return Repeats(np.zeros(0, np.int64))
    passes = max(1, -(-reader.row_count // max(1, rows_in_memory)))
    positions: list[Integers] = []
    reasons: Counter[str] = Counter()
    for number in range(passes):
        rows = _repeated(source, reader, scored, number, passes)
        if rows is None:
            continue
        verdict = IdMemory.of(source).judge(rows.ids, rows.time_ms)
        for code, reason in _REASONS.items():
            found = rows.position[verdict == code]
            if len(found):
                positions.append(found)
                reasons[reason] += len(found)
    if not positions:
        return Repeats(np.zeros(0, np.int64))
    return Repeats(np.sort(np.concatenate(positions)), reasons)


def _repeated(
    source: SourcePlan, reader: EventReader, scored: bool, number: int, passes: int
) -> _Rows | None:
    """Return the rows of one pass that share their id with another, in the order of arrival."""
    parts = []
    for part in reader.parts([column.name for column in source.columns]):
        events = event_columns(part.batch, source)
        ids = row_ids(events)
        wanted = (check_rows(events, part.arrival_time_ms) == 0) & ids.known
        # Other bits than those that choose a place in a table.
        wanted &= (ids.hashes >> np.uint64(48)) % np.uint64(passes) == number
        arrival = part.position if part.arrival_time_ms is None else part.arrival_time_ms
        time_ms = events.event_time_ms if scored else events.known_at_ms
        rows = _Rows(ids, part.position, arrival, time_ms)
        parts.append(rows.take(np.flatnonzero(wanted)))
    if not parts:
        return None
    rows = _concatenated(parts)
    order = np.argsort(rows.position, kind="stable")
    rows = rows.take(order)
    if not reader.ordered:
        rows = rows.take(_by_arrival(rows))
    _, inverse, counts = np.unique(rows.ids.hashes, return_inverse=True, return_counts=True)
    return rows.take(np.flatnonzero(counts[inverse] > 1))


def _by_arrival(rows: _Rows) -> Integers:
    """Return the order in which the broker got rows; in a partition it is that of the offsets."""
    log = partition_of(rows.position)
    starts = np.flatnonzero(np.diff(log, prepend=-1))
    arrival = rows.arrival_ms.copy()
    for start, stop in zip(starts, [*starts[1:], len(log)], strict=False):
        arrival[start:stop] = np.maximum.accumulate(arrival[start:stop])
    order: Integers = np.argsort(arrival, kind="stable")
    return order


def _concatenated(parts: list[_Rows]) -> _Rows:
    return _Rows(
        RowIds(
            np.concatenate([part.ids.hashes for part in parts]),
            np.concatenate([part.ids.known for part in parts]),
            np.concatenate([part.ids.payload for part in parts]),
        ),
        np.concatenate([part.position for part in parts]),
        np.concatenate([part.arrival_ms for part in parts]),
        np.concatenate([part.time_ms for part in parts]),
    )
