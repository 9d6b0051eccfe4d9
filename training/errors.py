"""Errors of the training room."""

from __future__ import annotations

from headrace.runtime.errors import HeadraceError


class TrainingError(HeadraceError):
    """A model cannot be trained from what is given: plan, data, periods or parameters."""


class ModelRegistryError(HeadraceError):
    """The model registry has no such model, version or alias, or cannot take one."""
