"""Rows of the fault matrix whose fault is Redis's: ``./dev bench redis-faults`` tries them.

They bring infrastructure of their own. Their streams are at-least-once, and what they compare is
scores, and what readers of the online store were told; the order of outputs is not looked at.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from bench import redis_faults
from bench.chaos.rows import Outcome, Row, Size
from bench.measure import BenchError

if TYPE_CHECKING:
    from bench.chaos.rows import Lab

RATE, EVERY_S = 1_000, 5.0
#: Row 30's writes come from two processes.
WRITERS = 2
FAULTS = {
    26: (redis_faults.RESTARTS,),
    27: (redis_faults.FLUSH, redis_faults.REBUILD),
    28: (redis_faults.FULL,),
    29: (redis_faults.SLOW, redis_faults.SILENT),
}


def redis_fails(number: int, lab: Lab, size: Size) -> Outcome:
    """Rows 26 to 29: ``events`` is the number of keys, ``runs`` that of restarts."""
    figures = _bench(
        lab,
        *("--rows", number, "--keys", size.events, "--rate", RATE, "--seconds", size.seconds),
        *("--restarts", size.runs, "--every", EVERY_S),
        *("--rebuild-keys", 20 * size.events, "--writes", 0),
    )
    found = figures["outcome"]
    faults = [one for one in figures["stretches"] if one["name"] in FAULTS[number]]
    if not faults:
        msg = f"row {number} must have its fault; the bench has {figures['stretches']}"
        raise BenchError(msg)
    read = sum(s["seen"]["wrong_unflagged"] + s["seen"]["wrong_flagged"] for s in faults)
    right_s = [redis_faults.RECOVERY_S if s is None else s for f in faults for s in f["right_s"]]
    missed = _missed(figures)
    oldest_s = max(one["seen"]["fresh_old_s_max"] for one in faults)
    p99_ms = max(one["p99_ms"] for one in faults)
    note = f"prediction p99 {p99_ms:.0f} ms meanwhile, oldest FRESH value {oldest_s:.1f} s"
    return Outcome(
        size.runs,
        found["lost"],
        found["doubled"],
        None,
        found["wrong_scores"] + found["wrong_keys"] + read,
        max(right_s),
        not missed,
        f"{note}; missed: {', '.join(missed)}" if missed else note,
    )


def two_writers(lab: Lab, size: Size) -> Outcome:
    """Row 30: two processes write the same keys at once, ``events`` times together."""
    figures = _bench(lab, "--rows", 30, "--writes", size.events // WRITERS)
    found, missed = figures["writers"], _missed(figures)
    note = f"{found['writes']:,} writes to {found['keys']:,} keys, {found['refused']:,} refused"
    return Outcome(size.runs, None, None, None, found["wrong"], None, not missed, note)


def _bench(lab: Lab, *arguments: object) -> dict[str, Any]:
    """Run the bench and return its figures; what it misses, they say."""
    redis_faults.main([*map(str, arguments), "--work", str(lab.folder)])
    content = (lab.folder / "redis-faults.json").read_text(encoding="utf-8")
    figures: dict[str, Any] = json.loads(content)
    return figures


def _missed(figures: dict[str, Any]) -> list[str]:
    return [one["name"] for one in figures["bounds"] if one["verdict"] == "missed"]


def _row(number: int, name: str, asked: str, full: Size, ci: Size | None = None) -> Row:
    return Row(number, name, asked, functools.partial(redis_fails, number), full, ci)


ROWS = (
    _row(
        26,
        "Redis killed or restarted, again and again",
        "right again in 5 s",
        full=Size(runs=10, events=50_000, seconds=20.0),
        ci=Size(runs=2, events=2_000, seconds=3.0),
    ),
    _row(
        27,
        "Redis emptied",
        "right again in 5 s, a million keys in 60 s",
        full=Size(runs=1, events=50_000, seconds=20.0),
    ),
    _row(
        28,
        "Redis out of memory",
        "right again in 10 s",
        full=Size(runs=1, events=50_000, seconds=20.0),
    ),
    _row(
        29,
        "Redis slow by 500 ms, then silent",
        "p99 of predictions as without; right again in 5 s, after silence in 10 s",
        full=Size(runs=1, events=50_000, seconds=20.0),
    ),
    Row(
        30,
        "two workers write the same keys to Redis",
        "no key older than the newest write, none torn",
        two_writers,
        full=Size(runs=1, events=200_000),
        ci=Size(runs=1, events=10_000),
    ),
)
