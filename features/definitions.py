"""What users write: feature views and pipelines, over sources, entities and aggregates.

Objects check what can be known where they are made, and remember that line for all that only the
compiler can know (``features.compiler``). Nothing here reads a file or computes a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.features.aggregates import (
    Aggregate,
    Ratio,
    count,
    last,
    max_,
    mean,
    min_,
    ratio,
    sum_,
)
from headrace.features.errors import refuse
from headrace.features.formulas import Formula, caller
from headrace.features.rules import (
    IDENTIFIER,
    assign,
    check_instance,
    check_name,
    check_number,
    check_text,
    definition,
    milliseconds,
    optional_milliseconds,
)
from headrace.features.sources import Entity, Source

if TYPE_CHECKING:
    from headrace.features.errors import Location

__all__ = [
    "Aggregate",
    "Entity",
    "FeatureView",
    "Label",
    "LightGBM",
    "Pipeline",
    "Ratio",
    "Source",
    "count",
    "last",
    "max_",
    "mean",
    "min_",
    "ratio",
    "sum_",
]


@definition
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
        check_name(self.name, "view", at)
        check_instance(self.entity, Entity, "entity", where, at)
        check_instance(self.source, Source, "source", where, at)
        if not isinstance(self.features, list | tuple) or not self.features:
            got = "[]" if self.features in ([], ()) else type(self.features).__name__
            raise refuse(at, "features", "be a list of aggregates", got, where)
        for item in self.features:
            if not isinstance(item, Aggregate | Ratio):
                hint = "write hr.count(over='1d'), hr.mean('amount', over='1d'), …"
                got = item if isinstance(item, str) else type(item).__name__
                raise refuse(at, "a feature", "be an aggregate", got, where, hint)
            if not item.over:
                hint = "write over='1d' or over=['1d', '7d']"
                raise refuse(item.location, "a feature", "have a window", item.kind, where, hint)  # type: ignore[union-attr]
        assign(
            self,
            location=at,
            delay_ms=milliseconds(self.delay, "delay", where, at),
            grain_ms=optional_milliseconds(self.grain, "grain", where, at) or 0,
            default=check_number(self.default, where, at),
        )


@definition
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
        check_instance(self.source, Source, "source", "hr.Label", at)
        where = f"label of {self.source.name}"
        check_text(self.column, "column", where, at)
        check_text(self.on, "on", where, at)
        assign(self, location=at, delay_ms=milliseconds(self.delay, "delay", where, at))


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


@definition
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
        check_name(self.name, "pipeline", at)
        check_instance(self.source, Source, "source", where, at)
        if not isinstance(self.views, list | tuple) or not self.views:
            raise refuse(at, "views", "be a list of hr.FeatureView", self.views, where)
        for view in self.views:
            check_instance(view, FeatureView, "a view", where, at)
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
            check_instance(self.label, Label, "label", where, at)
        if self.model is not None:
            check_instance(self.model, LightGBM, "model", where, at)
        assign(
            self,
            location=at,
            alignment_ms=milliseconds(self.alignment, "alignment", where, at),
        )


def _vector_name(name: object, option: str, at: Location | None) -> None:
    if not isinstance(name, str) or not IDENTIFIER.fullmatch(name):
        rule = "be letters, digits and underscores, starting with a letter"
        raise refuse(at, f"the name of a {option} column", rule, name, "hr.Pipeline")
