"""The root of all errors that Headrace raises on purpose; each room has its own branch."""

from __future__ import annotations


class HeadraceError(Exception):
    """Something outside the program is not as it must be: input, settings, infrastructure."""


def explain(what: str, rule: str, got: object, where: str, hint: str = "") -> str:
    """Return a message of the house form.

    Examples:
        >>> explain("window", "be at least 1s", "0s", "feature count", "write '30s'")
        "window must be at least 1s; got '0s' for feature count; write '30s'"

    """
    message = f"{what} must {rule}; got {got!r} for {where}"
    return f"{message}; {hint}" if hint else message
