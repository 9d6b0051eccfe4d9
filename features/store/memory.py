"""An online store in memory, with the fence, expiry and markers of the one in Redis. For tests."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.features.store.errors import StoreFullError, StoreUnavailableError
from headrace.features.store.port import EntityRows, Marker, Rebuild

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from headrace.features.store.views import OnlineEntity

_Scope = tuple[str, str, str]


@dataclass(slots=True)
class StoredRow:
    """What the store holds of one key and pipeline."""

    values: dict[str, float]
    event_time_ms: int
    fence: tuple[int, int, int]
    partition: int
    expiry_ms: int


@dataclass(slots=True)
class MemoryOnlineStore:
    """Dictionaries behind the port.

    Args:
        available: False lets every call raise ``StoreUnavailableError``.
        room: Number of keys from which on ``write`` raises ``StoreFullError``; None: no limit.

    """

    available: bool = True
    room: int | None = None
    _rows: dict[tuple[_Scope, Any], StoredRow] = field(default_factory=dict)
    _markers: dict[tuple[_Scope, int], tuple[str, Marker]] = field(default_factory=dict)
    _requests: dict[_Scope, int] = field(default_factory=dict)
    _rebuilds: dict[_Scope, dict[int, Rebuild]] = field(default_factory=dict)
    _runs: int = 1

    def write(
        self, entity: OnlineEntity, partition: int, lineage: int, rows: EntityRows, clock_ms: int
    ) -> int:
        """Write what is not older than what is there."""
        self._check()
        names = [feature.name for feature in entity.features]
        keys = rows.keys.to_pylist()
        assert rows.values.shape == (len(keys), len(names)), "one column per feature"
        assert None not in keys, "a key is not null"
        written = 0
        for index, key in enumerate(keys):
            fence = (lineage, int(rows.version[index]), int(rows.as_of_ms[index]))
            place = (_scope(entity), key)
            before = self._rows.get(place)
            if before is not None and before.fence > fence:
                continue
            if before is None and self.room is not None and len(self._rows) >= self.room:
                text = f"the store must have room for its keys; got {self.room} for {entity.entity}"
                raise StoreFullError(text, index, len(keys) - index)
            newest = int(rows.event_time_ms[index])
            values = dict(zip(names, rows.values[index].tolist(), strict=True))
            left_ms = max(1_000, newest + entity.expiry_ms - clock_ms)
            self._rows[place] = StoredRow(values, newest, fence, partition, clock_ms + left_ms)
            written += 1
        return written

    def row(self, entity: OnlineEntity, key: object) -> StoredRow | None:
        """Return what is held of a key."""
        return self._rows.get((_scope(entity), key))

    def rows(self, entity: OnlineEntity) -> dict[Any, StoredRow]:
        """Return what is held, by key."""
        return {key: row for (scope, key), row in self._rows.items() if scope == _scope(entity)}

    def delete(self, entity: OnlineEntity, keys: pa.Array) -> int:
        """Erase keys, whoever wrote them."""
        self._check()
        wanted = set(keys.to_pylist())
        found = {
            (scope, key)
            for scope, key in self._rows
            if scope[0] == entity.project and scope[2] == entity.entity and key in wanted
        }
        for place in found:
            del self._rows[place]
        return len({key for _, key in found})

    def flush(self) -> None:
        """Lose everything, as FLUSHALL does."""
        for content in (self._rows, self._markers, self._requests, self._rebuilds):
            content.clear()

    def restart(self) -> None:
        """Become another run of the server, with the same content."""
        self._runs += 1

    def open(self, entity: OnlineEntity, partition: int, token: str, now_ms: int) -> Marker:
        """Return the marker, or start a lineage."""
        self._check()
        place = (_scope(entity), partition)
        known, marker = self._markers.get(place, ("", None))
        if marker is None or known != token:
            highest = max((m.lineage for m in self.markers(entity).values()), default=0)
            lineage = max(highest + 1, now_ms)
            marker = Marker(lineage, 0, complete=False, beat_ms=now_ms)
        self._markers[place] = (token, marker)
        return self._as_now(entity, marker)

    def beat(self, entity: OnlineEntity, partition: int, marker: Marker) -> Marker | None:
        """Keep the marker, if the store is what it was."""
        self._check()
        place = (_scope(entity), partition)
        token, known = self._markers.get(place, ("", None))
        if known is None or known.lineage != marker.lineage or marker.server != str(self._runs):
            return None
        self._markers[place] = (token, marker)
        return self._as_now(entity, marker)

    def request_rebuild(self, entity: OnlineEntity) -> int:
        """Count up the requests."""
        self._check()
        scope = _scope(entity)
        self._requests[scope] = self._requests.get(scope, 0) + 1
        return self._requests[scope]

    def report_rebuild(self, entity: OnlineEntity, partition: int, progress: Rebuild) -> None:
        """Keep the report."""
        self._check()
        self._rebuilds.setdefault(_scope(entity), {})[partition] = progress

    def rebuilds(self, entity: OnlineEntity) -> Mapping[int, Rebuild]:
        """Return the reports."""
        self._check()
        return dict(self._rebuilds.get(_scope(entity), {}))

    def markers(self, entity: OnlineEntity) -> Mapping[int, Marker]:
        """Return the markers."""
        self._check()
        return {
            partition: self._as_now(entity, marker)
            for (scope, partition), (_, marker) in self._markers.items()
            if scope == _scope(entity)
        }

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def _as_now(self, entity: OnlineEntity, marker: Marker) -> Marker:
        request = self._requests.get(_scope(entity), 0)
        return dataclasses.replace(marker, rebuild=request, server=str(self._runs))

    def _check(self) -> None:
        if not self.available:
            message = "the online store must answer; got nothing for the store in memory"
            raise StoreUnavailableError(message)


def _scope(entity: OnlineEntity) -> _Scope:
    return (entity.project, entity.pipeline, entity.entity)
