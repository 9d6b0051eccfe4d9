"""One entity's views to a stage: values, rings, windows, aggregates, features, each once.

Part of the compiler. What two features have in common (a window, a ring's value) is kept once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.features.aggregations import CATALOGUE
from headrace.features.definitions import Aggregate, FeatureView, Ratio, Source
from headrace.features.durations import duration_ms, duration_text
from headrace.features.errors import refuse
from headrace.features.expressions import NUMERIC, Column, Expression, features_of
from headrace.features.plan import (
    AgePlan,
    AggregatePlan,
    FeaturePlan,
    InputPlan,
    RingPlan,
    StagePlan,
    ValuePlan,
    WindowPlan,
)
from headrace.features.resolution import present

if TYPE_CHECKING:
    from typing import Literal

    from headrace.features.definitions import Entity
    from headrace.features.expressions import ValueType
    from headrace.features.plan import KeyKind
    from headrace.features.resolution import Resolver

WHOLE: frozenset[str] = frozenset({"bool", "int"})


@dataclass
class _Ring:
    source: Source
    grain_ms: int
    values: list[int] = field(default_factory=list)
    reach_ms: int = 0


@dataclass(frozen=True)
class _Window:
    """One window of one feature as asked for."""

    text: str
    length_ms: int
    delay_ms: int
    grain_ms: int


class StageDraft:
    """A stage while its views are taken in."""

    def __init__(self, entity: Entity, scored: Source, resolver: Resolver) -> None:
        self.entity = entity
        self.scored = scored
        self._resolver = resolver
        self._updates: dict[str, Source] = {}
        self._values: dict[tuple[str, Expression], ValuePlan] = {}
        self._rings: dict[tuple[str, int], _Ring] = {}
        self._windows: dict[WindowPlan, int] = {}
        self._aggregates: dict[AggregatePlan, int] = {}
        self._features: list[FeaturePlan] = []
        self._ages: list[AgePlan] = []

    # --- Taking in ----------------------------------------------------------------------------

    def add(self, view: FeatureView) -> None:
        """Take in a view's features, in order."""
        own: list[_Window] = []
        for item in view.features:
            for window in _windows(view, item):
                if isinstance(item, Ratio):
                    self._add_ratio(view, item, window)
                else:
                    self._add_aggregate(view, item, window)
                own.append(window)
        longest = max(own, key=lambda w: (w.length_ms, -w.delay_ms))
        age = self._aggregate(view.source, longest, "age", None)
        self._ages.append(AgePlan(view.name, age))

    def _add_aggregate(self, view: FeatureView, item: Aggregate, window: _Window) -> None:
        rule = CATALOGUE[item.kind]
        source = item.source or view.source
        kind = self._value_type(view, item, source)
        name = f"{view.name}__{_measure(view, item)}_{window.text}"
        value = item.value
        if value is not None and kind not in NUMERIC:
            assert isinstance(value, Column), value
            value = present(value.name)
        aggregate = self._aggregate(source, window, item.kind, value)
        whole = rule.gives == "int" or (rule.gives == "same" and kind in {*WHOLE, "long"})
        default = rule.of_nothing
        if default is None:
            default = view.default if item.default is None else item.default
        self._feature(name, view, item, "aggregate", (aggregate,), default, whole=whole)

    def _add_ratio(self, view: FeatureView, item: Ratio, window: _Window) -> None:
        parts = []
        for part in (item.numerator, item.denominator):
            source = part.source or view.source
            kind = self._value_type(view, part, source)
            value = part.value
            if value is not None and kind not in NUMERIC:
                assert isinstance(value, Column), value
                value = present(value.name)
            parts.append(self._aggregate(source, window, "count", value))
        default = view.default if item.default is None else item.default
        name = f"{view.name}__{item.name}_{window.text}"
        self._feature(name, view, item, "ratio", tuple(parts), default, whole=False)

    def _value_type(self, view: FeatureView, item: Aggregate, source: Source) -> ValueType | None:
        """Check what an aggregate reads; return its type, None for a bare count."""
        where = f"hr.{item.kind} of view {view.name}"
        self._input(source, view)
        if item.value is None:
            return None
        if item.kind == "count" and isinstance(item.value, Column):
            kind = self._resolver.type_over(item.value, source, item.location, where)
        else:
            kind = self._resolver.number(item.value, source, item.location, where)
        if features := features_of(item.value):
            if source is not self.scored:
                rule = f"read columns of {source.name} only: its events pass this one stage"
                raise refuse(item.location, "an aggregate", rule, features[0], where)
        elif kind in NUMERIC:
            self._resolver.checked(item.value, source)
        return kind

    def _input(self, source: Source, view: FeatureView) -> None:
        self._resolver.add(source)
        where = f"entity {self.entity.name}"
        self._resolver.column(source, self.entity.key, view.location, where)
        if source is not self.scored:
            self._updates[source.name] = source

    def _feature(
        self,
        name: str,
        view: FeatureView,
        item: Aggregate | Ratio,
        kind: Literal["aggregate", "ratio"],
        aggregates: tuple[int, ...],
        default: float | None,
        *,
        whole: bool,
    ) -> None:
        if any(f.name == name for f in self._features):
            hint = "give one of them name="
            where = f"view {view.name}"
            raise refuse(item.location, "a feature's name", "be used once", name, where, hint)
        whole = whole and (default is None or default.is_integer())
        dtype: Literal["int64", "float64"] = "int64" if whole else "float64"
        self._features.append(FeaturePlan(name, view.name, kind, aggregates, default, dtype))
        self._resolver.feature_types[name] = "int" if whole else "float"

    def _aggregate(
        self, source: Source, window: _Window, kind: str, value: Expression | None
    ) -> int:
        key = (source.name, window.grain_ms)
        ring = self._rings.setdefault(key, _Ring(source, window.grain_ms))
        ring.reach_ms = max(ring.reach_ms, window.length_ms + window.delay_ms)
        plan = WindowPlan(list(self._rings).index(key), window.length_ms, window.delay_ms)
        position = -1
        if value is not None:
            position = _index(ring.values, self._value(source, value))
        window_index = self._windows.setdefault(plan, len(self._windows))
        verb = "age" if kind == "age" else CATALOGUE[kind].kind
        aggregate = AggregatePlan(window_index, verb, position)
        return self._aggregates.setdefault(aggregate, len(self._aggregates))

    def _value(self, source: Source, value: Expression) -> int:
        key = (source.name, value)
        if key not in self._values:
            name = value.name if isinstance(value, Column) else str(value)
            self._values[key] = ValuePlan(name, source.name, value)
        return list(self._values).index(key)

    # --- Giving out ---------------------------------------------------------------------------

    def inputs(self) -> tuple[InputPlan, ...]:
        """Return update-only sources in order of use, then the scored one: the source rank."""
        key = self.entity.key
        updates = [InputPlan(name, key, scored=False) for name in self._updates]
        return (*updates, InputPlan(self.scored.name, key, scored=True))

    def key_kind(self) -> KeyKind:
        """Return the kind of the entity's key, the same in all its sources."""
        where = f"the key of entity {self.entity.name}"
        kinds: dict[str, str] = {}
        for source in (*self._updates.values(), self.scored):
            item = self._resolver.key(source, self.entity.key, self.entity.location, where)
            assert item.kind is not None
            kinds[source.name] = item.kind
        first = next(iter(kinds.values()))
        if any(kind != first for kind in kinds.values()):
            got = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
            rule = "be of one kind in all its sources"
            raise refuse(
                self.entity.location,
                f"column {self.entity.key}",
                rule,
                got,
                f"entity {self.entity.name}",
                "1 and '1' are different keys: change one of the schemas",
            )
        assert first in {"int64", "string", "bytes"}
        return first  # type: ignore[return-value]

    def plan(self, topic: str, direct: bool, alignment_ms: int) -> StagePlan:
        """Return the finished stage."""
        kind = self.key_kind()
        # A row may come this much behind the newest one of its key and still ask for, or change,
        # what was then.
        slack = alignment_ms + max(s.lateness_ms for s in (*self._updates.values(), self.scored))
        rings = tuple(
            RingPlan(
                source=ring.source.name,
                grain_ms=ring.grain_ms,
                values=tuple(ring.values),
                known_at=ring.source.known_at is not None,
                retention_ms=ring.reach_ms + ring.grain_ms + slack,
            )
            for ring in self._rings.values()
        )
        return StagePlan(
            entity=self.entity.name,
            key_kind=kind,
            topic=topic,
            direct=direct,
            inputs=self.inputs(),
            values=tuple(self._values.values()),
            rings=rings,
            windows=tuple(self._windows),
            aggregates=tuple(self._aggregates),
            features=tuple(self._features),
            ages=tuple(self._ages),
        )


def _index(items: list[int], item: int) -> int:
    if item not in items:
        items.append(item)
    return items.index(item)


def _measure(view: FeatureView, item: Aggregate) -> str:
    """Return ``<measure>_<aggregate>`` of a feature's name, or what the user calls it."""
    if item.name is not None:
        return item.name
    parts = []
    if item.source is not None and item.source is not view.source:
        parts.append("".join(c if c.isalnum() else "_" for c in item.source.name))
    if item.value is not None:
        if not isinstance(item.value, Column):
            where = f"hr.{item.kind} of view {view.name}"
            rule = "have a name= when it reads an expression"
            raise refuse(item.location, "an aggregate", rule, str(item.value), where)
        parts.append(item.value.name)
    return "_".join([*parts, item.kind])


def _windows(view: FeatureView, item: Aggregate | Ratio) -> list[_Window]:
    grain_ms = view.grain_ms if item.grain_ms is None else item.grain_ms
    delay_ms = view.delay_ms if item.delay_ms is None else item.delay_ms
    windows = []
    for text in item.over:
        length_ms = duration_ms(text)
        assert length_ms is not None
        for what, span_ms in (("a window", length_ms), ("a delay", delay_ms)):
            if grain_ms and span_ms % grain_ms:
                rule = f"be a multiple of the grain {duration_text(grain_ms)}"
                got = duration_text(span_ms)
                hint = "leave out the grain for exact windows"
                raise refuse(item.location, what, rule, got, f"view {view.name}", hint)
        windows.append(_Window(text, length_ms, delay_ms, grain_ms))
    return windows
