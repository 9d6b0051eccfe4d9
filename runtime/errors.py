"""The root of all errors that Headrace raises on purpose; each room has its own branch."""

from __future__ import annotations


class HeadraceError(Exception):
    """Something outside the program is not as it must be: input, settings, infrastructure."""

    exit_code = 1


class SettingsError(HeadraceError):
    """The settings of a project cannot be used as they are written."""

    exit_code = 2


class KafkaUnavailableError(HeadraceError):
    """The broker cannot be reached, or refuses what was asked."""

    exit_code = 3


class TopicError(HeadraceError):
    """A topic is missing, or is not as the plan needs it."""


class EmbeddedError(HeadraceError):
    """The embedded infrastructure cannot be started, found or stopped."""

    exit_code = 4


class DownloadError(EmbeddedError):
    """A file of the embedded infrastructure cannot be downloaded, or is not what was pinned."""


def explain(what: str, rule: str, got: object, where: str, hint: str = "") -> str:
    """Return a message of the house form.

    Examples:
        >>> explain("window", "be at least 1s", "0s", "feature count", "write '30s'")
        "window must be at least 1s; got '0s' for feature count; write '30s'"

    """
    message = f"{what} must {rule}; got {got!r} for {where}"
    return f"{message}; {hint}" if hint else message
