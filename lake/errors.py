"""What can be wrong with what history is asked for."""

from __future__ import annotations

from headrace.runtime.errors import HeadraceError


class LakeError(HeadraceError):
    """The root of this room's errors."""


class HistoryError(LakeError):
    """A spine, a source's data or the features asked for cannot be used as they are."""
