"""Errors of the scoring room: artefacts and deployments that are not what they must be."""

from __future__ import annotations

from headrace.runtime.errors import HeadraceError


class ScoringError(HeadraceError):
    """The root of this room's errors."""


class ArtefactError(ScoringError):
    """An artefact folder is missing, incomplete, or not what its manifest says."""


class ModelTextError(ScoringError):
    """A model's text is not a model that can be loaded without harm.

    ``line`` is the 1-based line of the text that shows it, 0 if no single line does.
    """

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


class ModelRefusedError(ScoringError):
    """A model was looked at with suspicion and must not be loaded.

    ``reason`` is the step that refused it: ``artefact``, ``structure``, ``features``, ``plan``,
    ``probe`` or ``canary``.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class DeploymentError(ScoringError):
    """A deployment event cannot be read, or does not follow from the one before it."""
