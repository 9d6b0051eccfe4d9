"""Random stages and random logs for them, and how to feed a log to an ``EntityState``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from headrace.features.plan import (
    AggregatePlan,
    InputPlan,
    RingPlan,
    StagePlan,
    ValuePlan,
    WindowPlan,
)
from tests.oracle import Event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.features.state import Applied, EntityState

FOREVER_MS = 10**9
KINDS = ("count", "sum", "mean", "min", "max", "last", "age")
# Cancelling magnitudes, values off the cent grid, negative zero and values below the grid.
NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 0.1, -0.1, 1e11, -1e11, 2.0**-40, 1e-25, 3.3, 1 / 3]),
    st.floats(-1e6, 1e6, allow_nan=False),
)


def make_stage(
    rings: Sequence[RingPlan],
    windows: Sequence[WindowPlan],
    aggregates: Sequence[AggregatePlan],
    values: Sequence[str] = ("a.x",),
    scored: Sequence[tuple[str, bool]] = (("a", True),),
) -> StagePlan:
    """Return a stage; ``values`` are "source.name", ``scored`` its inputs (source, scored)."""
    return StagePlan(
        entity="thing",
        key_kind="string",
        topic="things",
        direct=True,
        inputs=tuple(InputPlan(source, "key", is_scored) for source, is_scored in scored),
        values=tuple(ValuePlan(name, name.partition(".")[0], None) for name in values),
        rings=tuple(rings),
        windows=tuple(windows),
        aggregates=tuple(aggregates),
        features=(),
        ages=(),
    )


@st.composite
def stages(draw: st.DrawFn, retention_ms: int = FOREVER_MS) -> StagePlan:
    """Two sources, one of two values and one of one; up to three rings and any aggregates."""
    rings = [
        RingPlan(
            source,
            draw(st.sampled_from([0, 0, 7])),
            {"a": (0, 1), "b": (2,)}[source],
            draw(st.booleans()),
            retention_ms,
        )
        for source in draw(st.sampled_from([["a"], ["a", "b"], ["b", "a", "a"]]))
    ]
    windows, aggregates = [], []
    for ring, plan in enumerate(rings):
        for _ in range(draw(st.integers(1, 3))):
            length = draw(st.integers(1, 60))
            delay = draw(st.sampled_from([0, 0, 5, 20]))
            windows.append(WindowPlan(ring, length, delay))
            for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4)):
                value = draw(st.integers(0, len(plan.values) - 1))
                if kind == "age" or (kind == "count" and draw(st.booleans())):
                    value = -1
                aggregates.append(AggregatePlan(len(windows) - 1, kind, value))
    order = draw(st.permutations(range(len(windows))))
    places = {window: place for place, window in enumerate(order)}
    return make_stage(
        rings,
        [windows[window] for window in order],
        [AggregatePlan(places[a.window], a.kind, a.value) for a in aggregates],
        values=("a.x", "a.y", "b.x"),
        scored=(("b", False), ("a", True)),
    )


@st.composite
def logs(draw: st.DrawFn, max_size: int = 60, span_ms: int = 120) -> list[Event]:
    """Rows with ties, out of order, known late or early, with null keys, values and bare asks."""
    log = []
    for _ in range(draw(st.integers(0, max_size))):
        source = draw(st.integers(0, 1))
        time = 1_000 + draw(st.integers(0, span_ms))
        numbers = [draw(st.none() | NUMBERS) for _ in range(2 if source else 1)]
        values = (*numbers, None) if source else (None, None, *numbers)
        scored = draw(st.sampled_from([True, True, False]))
        log.append(
            Event(
                key=draw(st.sampled_from(["k", "k", "k", "l", "", None])),
                input=source,
                event_time_ms=time,
                known_at_ms=time + draw(st.sampled_from([0, 0, 5, 20, 21, 60, -3])),
                values=values,
                scored=scored,
                insert=not scored or draw(st.sampled_from([True, True, True, False])),
            )
        )
    if draw(st.booleans()):
        log.sort(key=lambda event: event.event_time_ms)
    return log


def feed(state: EntityState, log: Sequence[Event], value_count: int) -> Applied:
    """Apply the log as one batch."""
    values = np.full((len(log), value_count), np.nan)
    for row, event in enumerate(log):
        for column, number in enumerate(event.values):
            if number is not None:
                values[row, column] = number
    return state.apply(
        pa.array([event.key for event in log], pa.string()),
        np.array([event.input for event in log], dtype=np.int8),
        np.array([event.event_time_ms for event in log], dtype=np.int64),
        np.array([event.known_at_ms for event in log], dtype=np.int64),
        values,
        np.array([event.scored for event in log], dtype=bool),
        np.array([event.insert for event in log], dtype=bool),
    )
