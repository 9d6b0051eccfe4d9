"""What can be wrong with what history is asked for."""

from __future__ import annotations

from headrace.runtime.errors import HeadraceError


class LakeError(HeadraceError):
    """The root of this room's errors."""


class HistoryError(LakeError):
    """A spine, a source's data or the features asked for cannot be used as they are."""


class UnstorableError(LakeError):
    """Records have fields that a Delta table cannot have."""


class SecondWriterError(LakeError):
    """Another process writes to the same tables."""


class TableBusyError(LakeError):
    """An append did not go through, and can be made again: disk full, a conflict, no permission."""


class QueryError(LakeError):
    """A query over the lake's tables is wrong, or needs more than it may use."""
