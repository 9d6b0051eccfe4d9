"""What can be wrong with the Feast repository."""

from __future__ import annotations

from headrace.features.errors import FeatureError


class FeastError(FeatureError):
    """The project cannot be a Feast repository, or Feast refused it."""
