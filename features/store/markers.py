"""Markers as they stand in Redis: the hash of an entity, with a field for each partition.

``lineage:version:complete:beat:clock ahead``, in decimals; ``rebuild`` beside them is the number of
the newest request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.features.store.port import Marker

if TYPE_CHECKING:
    from collections.abc import Mapping

REBUILD: Final = b"rebuild"


def marker_text(marker: Marker) -> bytes:
    """Return what stands in the partition's field."""
    return b"%d:%d:%d:%d:%d" % (
        marker.lineage,
        marker.version,
        marker.complete,
        marker.beat_ms,
        marker.clock_ahead_ms,
    )


def read_marker(text: bytes, rebuild: int, server: str = "") -> Marker:
    """Return the marker of a field."""
    lineage, version, complete, beat_ms, ahead_ms = map(int, text.split(b":"))
    return Marker(lineage, version, bool(complete), beat_ms, ahead_ms, rebuild, server)


def read_markers(fields: Mapping[bytes, bytes]) -> dict[int, Marker]:
    """Return the markers by partition, from the whole hash."""
    rebuild = int(fields.get(REBUILD, b"0"))
    return {
        int(field): read_marker(text, rebuild) for field, text in fields.items() if field.isdigit()
    }
