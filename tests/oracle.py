"""What a feature is, written a second time: brute force over a list of events.

Written from the semantics (plan.py, DESIGN 4.7), not from the kernel. Every aggregate looks at all
events of its key that came before in the log, with Python's integers and fractions. Slow, obvious.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.features.plan import RingPlan, StagePlan, WindowPlan

GRID = 2**64


@dataclass(frozen=True)
class Event:
    """A row of a stage's log. ``values`` has one number or None per value of the stage."""

    key: str | int | bytes | None
    input: int
    event_time_ms: int
    known_at_ms: int
    values: tuple[float | None, ...]
    scored: bool = True
    insert: bool = True


def floor_to(time_ms: int, grain_ms: int) -> int:
    return time_ms // grain_ms * grain_ms if grain_ms else time_ms


def in_window(event: Event, now_ms: int, ring: RingPlan, window: WindowPlan) -> bool:
    """(t - delay - length, t - delay], and known by t; with a grain, in whole grains."""
    time = floor_to(event.event_time_ms, ring.grain_ms)
    now = floor_to(now_ms, ring.grain_ms)
    if ring.known_at and event.known_at_ms > now:
        return False
    return now - window.delay_ms - window.length_ms < time <= now - window.delay_ms


def exact_sum(numbers: Sequence[float]) -> float:
    """Sum on the 2**-64 grid, each number cut towards zero, rounded once."""
    total = sum(math.trunc(Fraction(x) * GRID) for x in numbers)
    return float(Fraction(total, GRID))


def aggregate(kind: str, position: int, now_ms: int, ring: RingPlan, cells: list[Event]) -> float:
    """One aggregate over the events in a window, in log order; NaN is null."""
    if kind == "age":
        now = floor_to(now_ms, ring.grain_ms)
        newest = [floor_to(event.event_time_ms, ring.grain_ms) for event in cells]
        return float(now - max(newest)) if newest else math.nan
    if kind == "count" and position < 0:
        return float(len(cells))
    index = ring.values[position]
    numbered = [event for event in cells if event.values[index] is not None]
    numbers = [event.values[index] for event in numbered]
    if kind == "count":
        return float(len(numbers))
    if not numbers:
        return math.nan
    if kind == "last":
        # max() keeps the first of equals, so look from the newest arrival back.
        return max(reversed(numbered), key=lambda event: event.event_time_ms).values[index]
    if kind == "sum":
        return exact_sum(numbers)
    if kind == "mean":
        return exact_sum(numbers) / len(numbers)
    return {"min": min, "max": max}[kind](numbers)


def run(stage: StagePlan, log: Sequence[Event]) -> list[list[float] | None]:
    """Return the aggregates of each scored row, None for the others."""
    results: list[list[float] | None] = []
    for row, asked in enumerate(log):
        if not asked.scored:
            results.append(None)
            continue
        past = [e for e in log[: row + 1] if e.insert and e.key == asked.key and e.key is not None]
        answers = []
        for plan in stage.aggregates:
            window = stage.windows[plan.window]
            ring = stage.rings[window.ring]
            cells = [
                event
                for event in past
                if stage.inputs[event.input].source == ring.source
                and in_window(event, asked.event_time_ms, ring, window)
            ]
            answers.append(aggregate(plan.kind, plan.value, asked.event_time_ms, ring, cells))
        results.append(answers)
    return results
