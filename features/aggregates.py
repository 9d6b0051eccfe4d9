"""What users write in a view: ``hr.count``, ``hr.sum``, ``hr.mean``, …, ``hr.ratio``.

What each means stands in ``features.aggregations``; here is how it is written and checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.features.aggregations import CATALOGUE
from headrace.features.errors import refuse
from headrace.features.formulas import Formula, caller, col, node_of
from headrace.features.rules import (
    check_instance,
    check_name,
    check_number,
    milliseconds,
    optional_milliseconds,
    verb,
)
from headrace.features.sources import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.features.errors import Location
    from headrace.features.expressions import Expression

WINDOW_MS_MIN = 1_000


@dataclass(frozen=True, eq=False)
class Aggregate:
    """An aggregate over one or more windows, as written: what ``hr.count`` and the like return."""

    kind: str
    value: Expression | None
    over: tuple[str, ...]
    source: Source | None
    name: str | None
    grain_ms: int | None
    delay_ms: int | None
    default: float | None
    location: Location | None


@dataclass(frozen=True, eq=False)
class Ratio:
    """One count over another, of the same windows; null where the second is 0."""

    numerator: Aggregate
    denominator: Aggregate
    over: tuple[str, ...]
    name: str
    grain_ms: int | None
    delay_ms: int | None
    default: float | None
    location: Location | None


def _aggregate(
    kind: str,
    value: str | Formula | None,
    over: str | Sequence[str] | None,
    source: Source | None,
    name: str | None,
    grain: str | None,
    delay: str | None,
    default: float | None,
) -> Aggregate:
    at, where = caller(), f"hr.{kind}"
    rule = CATALOGUE[kind]
    node = _value(value, rule.takes == "number", where, at)
    if source is not None:
        check_instance(source, Source, "source", where, at)
    if name is not None:
        check_name(name, "feature", at)
    if default is not None and rule.of_nothing is not None:
        hint = f"leave it out: a {kind} of nothing is {rule.of_nothing:g}"
        raise refuse(at, "default", "stand where the aggregate can be null", default, where, hint)
    return Aggregate(
        kind=kind,
        value=node,
        over=_windows(over, where, at) if over is not None else (),
        source=source,
        name=name,
        grain_ms=optional_milliseconds(grain, "grain", where, at),
        delay_ms=optional_milliseconds(delay, "delay", where, at),
        default=check_number(default, where, at),
        location=at,
    )


def _value(value: object, needed: bool, where: str, at: Location | None) -> Expression | None:
    if value is None:
        if needed:
            hint = "write its name, or an expression such as hr.col('amount') / 100"
            raise refuse(at, "an aggregate", "say which column it reads", value, where, hint)
        return None
    return node_of(col(value) if isinstance(value, str) else value, at)


def _windows(over: object, where: str, at: Location | None) -> tuple[str, ...]:
    windows = (over,) if isinstance(over, str) else over
    if not isinstance(windows, list | tuple) or not windows:
        hint = "write over=['1d', '7d']"
        raise refuse(at, "over", "be one window or a list of them", over, where, hint)
    seen: set[int] = set()
    for window in windows:
        length = milliseconds(window, "a window", where, at)
        if length < WINDOW_MS_MIN:
            raise refuse(at, "a window", "be at least 1s", window, where)
        if length in seen:
            raise refuse(at, "a window", "be named once", window, where)
        seen.add(length)
    return tuple(windows)


@verb
def count(
    value: str | Formula | None = None,
    *,
    over: str | Sequence[str] | None = None,
    source: Source | None = None,
    name: str | None = None,
    grain: str | None = None,
    delay: str | None = None,
    default: float | None = None,
) -> Aggregate:
    """Count the events of each window; with a column, those where it is not null."""
    return _aggregate("count", value, over, source, name, grain, delay, default)


@verb
def sum_(
    value: str | Formula | None = None,
    *,
    over: str | Sequence[str] | None = None,
    source: Source | None = None,
    name: str | None = None,
    grain: str | None = None,
    delay: str | None = None,
    default: float | None = None,
) -> Aggregate:
    """Sum a column exactly, whatever the order of events; null over an empty window."""
    return _aggregate("sum", value, over, source, name, grain, delay, default)


@verb
def mean(
    value: str | Formula | None = None,
    *,
    over: str | Sequence[str] | None = None,
    source: Source | None = None,
    name: str | None = None,
    grain: str | None = None,
    delay: str | None = None,
    default: float | None = None,
) -> Aggregate:
    """Average a column; null over an empty window."""
    return _aggregate("mean", value, over, source, name, grain, delay, default)


@verb
def min_(
    value: str | Formula | None = None,
    *,
    over: str | Sequence[str] | None = None,
    source: Source | None = None,
    name: str | None = None,
    grain: str | None = None,
    delay: str | None = None,
    default: float | None = None,
) -> Aggregate:
    """Take the least value of a column; null over an empty window."""
    return _aggregate("min", value, over, source, name, grain, delay, default)


@verb
def max_(
    value: str | Formula | None = None,
    *,
    over: str | Sequence[str] | None = None,
    source: Source | None = None,
    name: str | None = None,
    grain: str | None = None,
    delay: str | None = None,
    default: float | None = None,
) -> Aggregate:
    """Take the greatest value of a column; null over an empty window."""
    return _aggregate("max", value, over, source, name, grain, delay, default)


@verb
def last(
    value: str | Formula | None = None,
    *,
    over: str | Sequence[str] | None = None,
    source: Source | None = None,
    name: str | None = None,
    grain: str | None = None,
    delay: str | None = None,
    default: float | None = None,
) -> Aggregate:
    """Take the newest non-null value of a column; null over an empty window."""
    return _aggregate("last", value, over, source, name, grain, delay, default)


@verb
def ratio(
    numerator: Aggregate,
    denominator: Aggregate,
    *,
    name: str,
    over: str | Sequence[str] | None = None,
    grain: str | None = None,
    delay: str | None = None,
    default: float | None = None,
) -> Ratio:
    """Divide one count by another over the same windows; null where the second is 0."""
    at, where = caller(), "hr.ratio"
    check_name(name, "feature", at)
    for part, side in ((numerator, "the numerator"), (denominator, "the denominator")):
        if not isinstance(part, Aggregate) or part.kind != "count":
            got = part.kind if isinstance(part, Aggregate) else part
            hint = "write hr.count() or hr.count(source=reports)"
            raise refuse(at, side, "be an hr.count", got, where, hint)
        if part.over or part.grain_ms is not None or part.delay_ms is not None:
            hint = "write over=, grain= and delay= on hr.ratio"
            raise refuse(at, side, "have no window of its own", part.over, where, hint)
    return Ratio(
        numerator=numerator,
        denominator=denominator,
        over=_windows(over, where, at),
        name=name,
        grain_ms=optional_milliseconds(grain, "grain", where, at),
        delay_ms=optional_milliseconds(delay, "delay", where, at),
        default=check_number(default, where, at),
        location=at,
    )
