"""The catalogue of aggregations: what each takes, gives, and is of nothing.

A later aggregation (variance, distinct, quantiles, …) is a row here, a verb in
``features.kernels`` and a function for users in ``features.definitions``; the compiler, plans,
schemas and ``headrace plan`` take it from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from headrace.features.plan import AggregateKind


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One aggregation.

    Attributes:
        name: What users write, and the part of a feature's name.
        kind: The kernel's verb.
        takes: Whether it needs a value: ``optional`` counts rows without one, non-null values with.
        gives: ``int``, ``float``, or ``same`` as the value.
        of_nothing: Its value over an empty window; None is null, which ``default=`` may replace.
        meaning: One sentence for people.

    """

    name: str
    kind: AggregateKind
    takes: Literal["optional", "number"]
    gives: Literal["int", "float", "same"]
    of_nothing: float | None
    meaning: str


CATALOGUE: dict[str, Aggregation] = {
    row.name: row
    for row in (
        Aggregation(
            "count", "count", "optional", "int", 0.0, "how many events, or non-null values"
        ),
        Aggregation("sum", "sum", "number", "float", None, "the exact sum, correctly rounded"),
        Aggregation("mean", "mean", "number", "float", None, "the exact sum over the count"),
        Aggregation("min", "min", "number", "same", None, "the least value"),
        Aggregation("max", "max", "number", "same", None, "the greatest value"),
        Aggregation("last", "last", "number", "same", None, "the value of the newest event"),
    )
}
