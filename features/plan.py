"""What the compiler makes of the definitions: plain frozen data that every room reads.

A plan holds no behaviour besides look-ups. Indices point into the tuples of the same stage:
feature -> aggregate -> window -> ring -> value. The kernel computes aggregates; ``features.vector``
turns aggregates into features and features into the model's vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from headrace.features.expressions import Expression

ColumnKind = Literal["int64", "float64", "bool", "string", "bytes"]
KeyKind = Literal["int64", "string", "bytes"]
AggregateKind = Literal["count", "sum", "mean", "min", "max", "last", "age"]
NotFinitePolicy = Literal["dlq", "null"]
NullKeyPolicy = Literal["default", "dlq"]


@dataclass(frozen=True, slots=True)
class ColumnPlan:
    """A column of a source that the pipeline reads."""

    name: str
    kind: ColumnKind


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """A source as the pipeline reads it.

    ``schema`` is the reader's Avro schema as JSON. ``columns`` holds every column that anything
    below needs (keys, times, ids, inputs of expressions), in schema order. ``checked`` names the
    columns that an aggregate reads: NaN, infinities and |x| >= 2**40 in them are bad input.
    ``checked_expressions`` are the other values that aggregates read: the columns they are made of
    must be finite, their result in the same range. ``dedupe_ms``: for how long of event time an
    event id counts once; 0: ids are not looked at.
    """

    name: str
    topic: str
    schema: str
    columns: tuple[ColumnPlan, ...]
    checked: tuple[str, ...]
    key: str
    event_time: str
    known_at: str | None
    event_id: str | None
    partitioner: str | None
    lateness_ms: int
    max_ahead_ms: int
    not_finite: NotFinitePolicy
    null_key: NullKeyPolicy
    checked_expressions: tuple[Expression, ...] = ()
    dedupe_ms: int = 0


@dataclass(frozen=True, slots=True)
class ValuePlan:
    """A number that a ring stores of each event: an expression over the event's columns."""

    name: str
    source: str
    expression: Expression


@dataclass(frozen=True, slots=True)
class RingPlan:
    """Per key, the cells (one an event, or one a tile of ``grain_ms``) of one source.

    ``values`` are indices into the stage's values. ``known_at`` says whether a cell must carry it
    (the source has one). ``retention_ms`` is the longest reach back of any window on the ring,
    delay and lateness included.
    """

    source: str
    grain_ms: int
    values: tuple[int, ...]
    known_at: bool
    retention_ms: int


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """At time t: the ring's cells in (t - delay - length, t - delay] with known_at <= t.

    With a grain both the cell's time and t are floored to it first.
    """

    ring: int
    length_ms: int
    delay_ms: int


@dataclass(frozen=True, slots=True)
class AggregatePlan:
    """One number over a window. ``value`` indexes the ring's own ``values``; -1 for count and age.

    ``age`` is t minus the time of the window's newest cell, null for an empty window.
    ``count`` with a value counts its non-null values; with -1 it counts events.
    """

    window: int
    kind: AggregateKind
    value: int


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """A named feature of a view: one aggregate, or the ratio of two counts.

    ``name`` is the full name ``view__feature``. ``default`` stands in for null.
    """

    name: str
    view: str
    kind: Literal["aggregate", "ratio"]
    aggregates: tuple[int, ...]
    default: float | None
    dtype: Literal["int64", "float64"]


@dataclass(frozen=True, slots=True)
class AgePlan:
    """The age of a view's values: the aggregate of kind ``age`` that carries it."""

    view: str
    aggregate: int


@dataclass(frozen=True, slots=True)
class InputPlan:
    """A source's role in a stage. Its index in ``StagePlan.inputs`` is the source rank.

    ``key`` is the column with the entity's key. ``scored`` events ask for features; the others
    only update state. At equal event time update-only inputs come first.
    """

    source: str
    key: str
    scored: bool


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One entity's stage: what it reads, keeps and computes.

    ``direct``: the stage reads the source's own topic. Otherwise ``topic`` is the re-key topic.
    """

    entity: str
    key_kind: KeyKind
    topic: str
    direct: bool
    inputs: tuple[InputPlan, ...]
    values: tuple[ValuePlan, ...]
    rings: tuple[RingPlan, ...]
    windows: tuple[WindowPlan, ...]
    aggregates: tuple[AggregatePlan, ...]
    features: tuple[FeaturePlan, ...]
    ages: tuple[AgePlan, ...]


@dataclass(frozen=True, slots=True)
class VectorColumn:
    """A column of the model's input, in the vector's order.

    ``request`` and ``derived`` columns are expressions (over event columns, and over event columns
    and features); a ``feature`` is taken from its stage by name.
    """

    name: str
    kind: Literal["request", "feature", "derived"]
    dtype: Literal["int64", "float64"]
    expression: Expression | None


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """Where the truth comes from: ``source.column`` joined on the scored event's ``on`` column.

    An event without a label row by ``delay_ms`` after it counts as 0.
    """

    source: str
    column: str
    on: str
    delay_ms: int


@dataclass(frozen=True, slots=True)
class PipelinePlan:
    """One pipeline: its sources, stages in the order an event passes them, and the vector.

    ``partitions`` is frozen at the first apply: the re-key topics' partition count.
    ``fingerprint`` covers everything that can change a value (hex, 16 characters).
    """

    name: str
    project: str
    source: str
    sources: tuple[SourcePlan, ...]
    stages: tuple[StagePlan, ...]
    vector: tuple[VectorColumn, ...]
    label: LabelPlan | None
    model: tuple[tuple[str, object], ...]
    partitions: int
    alignment_ms: int
    fingerprint: str

    def source_plan(self, name: str) -> SourcePlan:
        """Return the source called ``name``; asking for an unknown one is a programmer's error."""
        for source in self.sources:
            if source.name == name:
                return source
        raise AssertionError(name)


@dataclass(frozen=True, slots=True)
class ProjectPlan:
    """All pipelines of a project."""

    project: str
    pipelines: tuple[PipelinePlan, ...]
