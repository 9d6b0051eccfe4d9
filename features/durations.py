"""Lengths of time as users write them: ``30s``, ``5m``, ``1h``, ``90d``."""

from __future__ import annotations

import re

UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
DURATION_MS_MAX = 36_525 * UNIT_MS["d"]

_PATTERN = re.compile(r"([0-9]{1,15})(ms|s|m|h|d|w)")


def duration_ms(text: object) -> int | None:
    """Return the milliseconds that ``text`` stands for, None if it is no duration.

    Examples:
        >>> duration_ms("30s"), duration_ms("90d"), duration_ms("1 day")
        (30000, 7776000000, None)

    """
    match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    milliseconds = int(match[1]) * UNIT_MS[match[2]]
    return milliseconds if milliseconds <= DURATION_MS_MAX else None


def duration_hint(text: object) -> str:
    """Return what the writer of a wrong duration probably meant."""
    near = re.match(r"\s*([0-9]+)\s*([a-zA-Z]?)", text) if isinstance(text, str) else None
    unit = near[2].lower() if near else ""
    if near and unit in UNIT_MS and duration_ms(near[1] + unit):
        return f"did you mean {near[1] + unit!r}?"
    return "write a number and one of ms, s, m, h, d, w, such as '30s' or '7d', up to 100 years"


def duration_text(milliseconds: int) -> str:
    """Return a length of time for people.

    Examples:
        >>> duration_text(86_400_000), duration_text(5_400_000), duration_text(0)
        ('1d', '1h 30m', '0s')

    """
    parts = []
    for unit in ("d", "h", "m", "s", "ms"):
        count, milliseconds = divmod(milliseconds, UNIT_MS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0s"
