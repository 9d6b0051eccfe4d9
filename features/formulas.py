"""What users write in expressions: ``hr.col("amount") / 100``, ``hr.hour("event_time") <= 6``.

Operators and functions on a ``Formula`` build the tree of ``headrace.features.expressions`` and
remember the line; nothing is computed here.
"""

from __future__ import annotations

import math
import sys
from typing import cast

from headrace.features.errors import Location, refuse
from headrace.features.expressions import Column, Constant, Expression, Feature, Operation


class Formula:
    """What ``hr.col`` returns: operators on it build an expression instead of computing."""

    __slots__ = ("location", "node")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, node: Expression, location: Location | None) -> None:
        self.node = node
        self.location = location

    def __repr__(self) -> str:
        return str(self.node)

    def __bool__(self) -> bool:
        raise refuse(
            self.location,
            "an expression",
            "not be asked whether it is true while it is defined",
            str(self.node),
            "and, or, not, if, or a chain such as 1 < x < 5",
            "write & for and, | for or, ~ for not, hr.where for if",
        )

    def __add__(self, other: object) -> Formula:
        return _operation("+", self, other)

    def __radd__(self, other: object) -> Formula:
        return _operation("+", other, self)

    def __sub__(self, other: object) -> Formula:
        return _operation("-", self, other)

    def __rsub__(self, other: object) -> Formula:
        return _operation("-", other, self)

    def __mul__(self, other: object) -> Formula:
        return _operation("*", self, other)

    def __rmul__(self, other: object) -> Formula:
        return _operation("*", other, self)

    def __truediv__(self, other: object) -> Formula:
        return _operation("/", self, other)

    def __rtruediv__(self, other: object) -> Formula:
        return _operation("/", other, self)

    def __neg__(self) -> Formula:
        return _operation("negate", self)

    def __lt__(self, other: object) -> Formula:
        return _operation("<", self, other)

    def __le__(self, other: object) -> Formula:
        return _operation("<=", self, other)

    def __gt__(self, other: object) -> Formula:
        return _operation(">", self, other)

    def __ge__(self, other: object) -> Formula:
        return _operation(">=", self, other)

    def __eq__(self, other: object) -> Formula:  # type: ignore[override]
        return _operation("==", self, other)

    def __ne__(self, other: object) -> Formula:  # type: ignore[override]
        return _operation("!=", self, other)

    def __and__(self, other: object) -> Formula:
        return _operation("&", self, other)

    def __rand__(self, other: object) -> Formula:
        return _operation("&", other, self)

    def __or__(self, other: object) -> Formula:
        return _operation("|", self, other)

    def __ror__(self, other: object) -> Formula:
        return _operation("|", other, self)

    def __invert__(self) -> Formula:
        return _operation("~", self)


def col(name: str) -> Formula:
    """Return the event's column ``name`` for use in an expression."""
    return Formula(Column(_name(name, "column")), caller())


def feature(name: str) -> Formula:
    """Return the feature ``view__feature``; null as long as the feature is."""
    return Formula(Feature(_name(name, "feature")), caller())


def hour(column: str | Formula) -> Formula:
    """Return the hour of the day, 0 to 23 UTC, of a column that holds a time."""
    return _operation("hour", _column(column))


def weekday(column: str | Formula) -> Formula:
    """Return the day of the week, Monday 0 to Sunday 6 UTC, of a column that holds a time."""
    return _operation("weekday", _column(column))


def floor(value: object) -> Formula:
    """Return the greatest whole number that is not above ``value``."""
    return _operation("floor", value)


def absolute(value: object) -> Formula:
    """Return the distance of ``value`` from zero."""
    return _operation("abs", value)


def minimum(left: object, right: object) -> Formula:
    """Return the lesser of two values; null if one is null."""
    return _operation("minimum", left, right)


def maximum(left: object, right: object) -> Formula:
    """Return the greater of two values; null if one is null."""
    return _operation("maximum", left, right)


def where(condition: object, value: object, otherwise: object) -> Formula:
    """Return ``value`` where the condition holds, else ``otherwise``; null if it is null."""
    return _operation("where", condition, value, otherwise)


def is_null(value: str | Formula) -> Formula:
    """Return whether a column or expression is missing; itself never null."""
    return _operation("is_null", _column(value))


def caller() -> Location | None:
    """Return where the nearest frame outside ``headrace`` stands: the user's line."""
    frame = sys._getframe(1)  # noqa: SLF001 - the only way to a caller's line
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if not module.startswith("headrace."):
            return Location(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _name(name: object, what: str) -> str:
    if not isinstance(name, str) or not name:
        raise refuse(caller(), f"a {what}", "be named by a text", name, f"hr.{what[:3]}")
    return name


def _column(column: object) -> Formula:
    return column if isinstance(column, Formula) else col(cast("str", column))


def node_of(value: object, location: Location | None = None) -> Expression:
    """Return the tree of a formula or constant; anything else is a definition error."""
    if isinstance(value, Formula):
        return value.node
    if isinstance(value, bool | str):
        return Constant(value)
    if isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2.0**1023:
        return Constant(value)
    raise refuse(
        location or caller(),
        "an operand",
        "be a column, a feature, a finite number, a boolean or a text",
        value,
        "an expression",
        "write hr.col('name') for a column",
    )


def _operation(name: str, *arguments: object) -> Formula:
    location = next((a.location for a in arguments if isinstance(a, Formula)), None) or caller()
    return Formula(Operation(name, tuple(node_of(a, location) for a in arguments)), location)
