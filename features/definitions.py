"""What users write: sources, entities, feature views, pipelines.

Objects check what can be known where they are made, and remember that line for all that only the
compiler can know (``features.compiler``). Nothing here reads a file or computes a value.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from headrace.features.aggregations import CATALOGUE
from headrace.features.durations import duration_hint, duration_ms
from headrace.features.errors import DefinitionError, Location, did_you_mean, refuse
from headrace.features.expressions import Expression, Formula, caller, col, node_of

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

PARTITIONERS = ("murmur2", "crc32")
WINDOW_MS_MIN = 1_000

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,200}")


def _checked(function: F, what: str, own: int = 0) -> F:
    """Return the function with wrong arguments refused in our words, with a hint."""
    signature = inspect.signature(function)
    names = [p for p in list(signature.parameters)[own:] if p != "parameters"]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())

    @functools.wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        for name in options:
            if name not in names and not open_ended:
                hint = did_you_mean(name, names, "it takes")
                raise refuse(caller(), "an option", "be known", name, what, hint)
        try:
            signature.bind(*arguments, **options)
        except TypeError as error:
            message = f"{what} must be given what it needs; {error}; it takes {', '.join(names)}"
            raise DefinitionError(message, caller()) from None
        return function(*arguments, **options)

    return checked  # type: ignore[return-value]


def _definition(cls: type[T]) -> type[T]:
    name = cls.__name__
    setattr(cls, "__init__", _checked(cls.__init__, f"hr.{name}", own=1))  # noqa: B010
    return cls


def _verb(function: F) -> F:
    return _checked(function, f"hr.{function.__name__.rstrip('_')}")


def _set(target: object, **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(target, name, value)


# --- Checks that every definition uses ----------------------------------------------------------


def _named(name: object, what: str, location: Location | None) -> None:
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name) or "__" in name:
        rule = "be letters, digits and single underscores, starting with a letter"
        hint = re.sub(r"[^A-Za-z0-9]+", "_", str(name)).strip("_")
        hint = f"did you mean {hint!r}?" if _IDENTIFIER.fullmatch(hint) else ""
        raise refuse(location, f"the name of a {what}", rule, name, what, hint)


def _text(value: object, option: str, what: str, location: Location | None) -> None:
    if not isinstance(value, str) or not value:
        raise refuse(location, option, "be a text", value, what)


def _one_of(
    value: object, known: Sequence[str], option: str, where: str, at: Location | None
) -> None:
    if value not in known:
        rule = f"be one of {', '.join(known)}"
        raise refuse(at, option, rule, value, where, did_you_mean(value, known))


def _instance(value: object, kind: type, option: str, where: str, at: Location | None) -> None:
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AE" else "a"
        rule = f"be {article} hr.{kind.__name__}"
        hint = "pass the object, not its name" if isinstance(value, str) else ""
        raise refuse(at, option, rule, value, where, hint)


def milliseconds(value: object, option: str, where: str, location: Location | None) -> int:
    """Return the length of a duration that a user wrote."""
    result = duration_ms(value)
    if result is None:
        rule = "be a duration like '30s', '5m', '1h' or '90d'"
        raise refuse(location, option, rule, value, where, duration_hint(value))
    return result


# --- Sources and entities ---------------------------------------------------------------------


@_definition
@dataclass(frozen=True, eq=False)
class Source:
    """A topic of events and how to read them.

    Args:
        name: Also the topic, unless ``topic`` is given, and the schema file ``schemas/<name>.avsc``.
        key: The column by which producers key their messages.
        event_time: The column that says when it happened: an Avro timestamp, or a long of epoch ms.
        known_at: The column that says when it could first be used; default: the event time.
        event_id: The column that identifies the event to consumers.
        schema: Path from the project's folder to the ``.avsc`` file, or the schema itself.
        topic: The topic's name, where it is not the source's.
        partitioner: How producers choose partitions by key: ``murmur2`` (Java), ``crc32``
            (librdkafka's default), None for anything else. Checked on every row.
        lateness: How far behind its partition's newest event one may come and still count.
        max_ahead: How far ahead of the broker's clock a time may be; beyond it is bad input.
        not_finite: What NaN and infinity in an aggregated column are: ``dlq`` or ``null``.
        null_key: Rows without a key: ``default`` (scored with defaults) or ``dlq``.

    """

    name: str
    key: str
    event_time: str
    known_at: str | None = None
    event_id: str | None = None
    schema: str | Mapping[str, Any] | None = None
    topic: str | None = None
    partitioner: str | None = None
    lateness: str = "1h"
    max_ahead: str = "5m"
    not_finite: Literal["dlq", "null"] = "dlq"
    null_key: Literal["default", "dlq"] = "default"
    location: Location | None = field(init=False, repr=False)
    lateness_ms: int = field(init=False, repr=False)
    max_ahead_ms: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        at, where = caller(), f"source {self.name}"
        for name in (self.name, self.topic or self.name):
            if not isinstance(name, str) or not _TOPIC.fullmatch(name) or name.strip(".") == "":
                rule = "be letters, digits, dots, dashes and underscores, at most 200"
                raise refuse(at, "the name of a source", rule, name, where)
        for option in ("key", "event_time"):
            _text(getattr(self, option), option, where, at)
        for option in ("known_at", "event_id"):
            if getattr(self, option) is not None:
                _text(getattr(self, option), option, where, at)
        if self.partitioner is not None:
            _one_of(self.partitioner, PARTITIONERS, "partitioner", where, at)
        _one_of(self.not_finite, ("dlq", "null"), "not_finite", where, at)
        _one_of(self.null_key, ("default", "dlq"), "null_key", where, at)
        if self.schema is not None and not isinstance(self.schema, str | Mapping):
            raise refuse(at, "schema", "be a path or an Avro schema", self.schema, where)
        _set(
            self,
            location=at,
            lateness_ms=milliseconds(self.lateness, "lateness", where, at),
            max_ahead_ms=milliseconds(self.max_ahead, "max_ahead", where, at),
        )


@_definition
@dataclass(frozen=True, eq=False)
class Entity:
    """What features are about: a customer, a terminal. ``key`` finds it in every event of it."""

    name: str
    key: str
    location: Location | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        at = caller()
        _named(self.name, "entity", at)
        _text(self.key, "key", f"entity {self.name}", at)
        _set(self, location=at)


# --- Aggregates -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Aggregate:
    """An aggregate over one or more windows, as written; made by ``hr.count``, ``hr.mean``, …"""

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
        _instance(source, Source, "source", where, at)
    if name is not None:
        _named(name, "feature", at)
    if default is not None and rule.of_nothing is not None:
        hint = f"leave it out: a {kind} of nothing is {rule.of_nothing:g}"
        raise refuse(at, "default", "stand where the aggregate can be null", default, where, hint)
    return Aggregate(
        kind=kind,
        value=node,
        over=_windows(over, where, at) if over is not None else (),
        source=source,
        name=name,
        grain_ms=_optional_ms(grain, "grain", where, at),
        delay_ms=_optional_ms(delay, "delay", where, at),
        default=_number(default, where, at),
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


def _optional_ms(value: object, option: str, where: str, at: Location | None) -> int | None:
    return None if value is None else milliseconds(value, option, where, at)


def _number(value: object, where: str, at: Location | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2.0**53:
        raise refuse(at, "default", "be a number", value, where)
    return float(value)


@_verb
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


@_verb
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


@_verb
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


@_verb
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


@_verb
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


@_verb
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


@_verb
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
    _named(name, "feature", at)
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
        grain_ms=_optional_ms(grain, "grain", where, at),
        delay_ms=_optional_ms(delay, "delay", where, at),
        default=_number(default, where, at),
        location=at,
    )


# --- Views and pipelines ------------------------------------------------------------------------


@_definition
@dataclass(frozen=True, eq=False)
class FeatureView:
    """Features of one entity from one source (single features may name another).

    Args:
        name: First part of the features' names: ``<view>__<measure>_<aggregate>_<window>``.
        entity: What the features are about.
        source: Whose events are aggregated.
        features: ``hr.count(over=…)``, ``hr.mean("amount", over=…)``, ``hr.ratio(…)``, …
        delay: Shifts all windows into the past.
        grain: Windows count whole tiles of this length.
        default: Stands in for null in features that have no default of their own.

    """

    name: str
    entity: Entity
    source: Source
    features: Sequence[Aggregate | Ratio]
    delay: str = "0s"
    grain: str | None = None
    default: float | None = None
    location: Location | None = field(init=False, repr=False)
    delay_ms: int = field(init=False, repr=False)
    grain_ms: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        at, where = caller(), f"view {self.name}"
        _named(self.name, "view", at)
        _instance(self.entity, Entity, "entity", where, at)
        _instance(self.source, Source, "source", where, at)
        if not isinstance(self.features, list | tuple) or not self.features:
            raise refuse(at, "features", "be a list of aggregates", self.features, where)
        for item in self.features:
            if not isinstance(item, Aggregate | Ratio):
                hint = "write hr.count(over='1d'), hr.mean('amount', over='1d'), …"
                raise refuse(at, "a feature", "be an aggregate", item, where, hint)
            if not item.over:
                hint = "write over='1d' or over=['1d', '7d']"
                raise refuse(item.location, "a feature", "have a window", item.kind, where, hint)  # type: ignore[union-attr]
        _set(
            self,
            location=at,
            delay_ms=milliseconds(self.delay, "delay", where, at),
            grain_ms=_optional_ms(self.grain, "grain", where, at) or 0,
            default=_number(self.default, where, at),
        )


@_definition
@dataclass(frozen=True, eq=False)
class Label:
    """Where the truth comes from: a column of a source, joined on a column of the scored event.

    Args:
        source: The source of the labels; its column ``on`` names the event.
        column: The label: a number or a boolean.
        on: The column, of both sources, that the two are joined on.
        delay: An event with no label by then counts as 0.

    """

    source: Source
    column: str
    on: str
    delay: str
    location: Location | None = field(init=False, repr=False)
    delay_ms: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        at = caller()
        _instance(self.source, Source, "source", "hr.Label", at)
        where = f"label of {self.source.name}"
        _text(self.column, "column", where, at)
        _text(self.on, "on", where, at)
        _set(self, location=at, delay_ms=milliseconds(self.delay, "delay", where, at))


class LightGBM:
    """A LightGBM model with these training parameters, by the names of its scikit-learn API."""

    kind = "lightgbm"

    def __init__(self, **parameters: bool | float | str) -> None:
        self.location = caller()
        for name, value in parameters.items():
            if not isinstance(value, bool | int | float | str):
                rule = "be a number, a boolean or a text"
                raise refuse(self.location, f"parameter {name}", rule, value, "hr.LightGBM")
        self.parameters = dict(parameters)


@_definition
@dataclass(frozen=True, eq=False)
class Pipeline:
    """Every event of a source, with features, to a score.

    Args:
        name: Also in the names of its topics.
        source: Whose events are scored.
        views: The feature views; their features stand in the model's vector in this order.
        request: Expressions over the event's own columns, before the features in the vector.
        derived: Expressions over event columns and features, after them.
        label: Where the truth comes from; needed for training.
        model: What ``headrace train`` fits.
        alignment: How far in event time one source partition may run ahead in a later stage.

    """

    name: str
    source: Source
    views: Sequence[FeatureView]
    request: Mapping[str, Formula] = field(default_factory=dict)
    derived: Mapping[str, Formula] = field(default_factory=dict)
    label: Label | None = None
    model: LightGBM | None = None
    alignment: str = "10s"
    location: Location | None = field(init=False, repr=False)
    alignment_ms: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        at, where = caller(), f"pipeline {self.name}"
        _named(self.name, "pipeline", at)
        _instance(self.source, Source, "source", where, at)
        if not isinstance(self.views, list | tuple) or not self.views:
            raise refuse(at, "views", "be a list of hr.FeatureView", self.views, where)
        for view in self.views:
            _instance(view, FeatureView, "a view", where, at)
        for option in ("request", "derived"):
            expressions = getattr(self, option)
            if not isinstance(expressions, Mapping):
                hint = f"write {option}={{'amount': hr.col('amount')}}"
                raise refuse(at, option, "name its expressions", expressions, where, hint)
            for name, value in expressions.items():
                _vector_name(name, option, at)
                if not isinstance(value, Formula):
                    hint = f"write hr.col({value!r})" if isinstance(value, str) else ""
                    rule = "be an expression"
                    raise refuse(at, f"{option} column {name}", rule, value, where, hint)
        if self.label is not None:
            _instance(self.label, Label, "label", where, at)
        if self.model is not None:
            _instance(self.model, LightGBM, "model", where, at)
        _set(
            self,
            location=at,
            alignment_ms=milliseconds(self.alignment, "alignment", where, at),
        )


def _vector_name(name: object, option: str, at: Location | None) -> None:
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
        rule = "be letters, digits and underscores, starting with a letter"
        raise refuse(at, f"the name of a {option} column", rule, name, "hr.Pipeline")
