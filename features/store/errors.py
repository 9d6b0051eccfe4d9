"""What can go wrong between the workers, the online store and its readers."""

from __future__ import annotations

from headrace.features.errors import FeatureError


class StoreError(FeatureError):
    """The root of the online store's errors."""


class StoreUnavailableError(StoreError):
    """Redis cannot be reached, does not answer in time, or refuses to be written to for now."""

    exit_code = 4


class StoreFullError(StoreError):
    """Redis is at its memory limit: what was not written yet is refused, no entity is half written.

    Attributes:
        written: Entities of the call that were written before, or were newer already.
        refused: Entities of the call that were not.

    """

    def __init__(self, message: str, written: int, refused: int) -> None:
        super().__init__(message)
        self.written = written
        self.refused = refused


class OnlineError(StoreError):
    """What is asked of the online store cannot be answered: names, keys, or their types."""
