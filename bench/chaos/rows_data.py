"""Rows of the fault matrix whose fault is in the events: sent twice, odd, far off, late."""

from __future__ import annotations

import io
import json
import math
import struct
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import fastavro
import numpy as np

from bench.chaos.payments import (
    CUSTOMERS,
    FEATURES,
    SPENDING,
    STEP_MS,
    WAIT_S,
    Sent,
    counting,
    draw_payments,
    judged,
    kept_verdict,
    key_of_each_partition,
    message,
    play,
    wait_predicted,
)
from bench.chaos.plain import DAY_MS, HOUR_MS, Feature, added
from bench.chaos.rows import Outcome, Row, Size
from bench.chaos.scene import START_MS, Scene
from bench.measure import CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.chaos import plain
    from bench.chaos.rows import Lab
    from bench.live import LiveProject

# --- Row 31 ---------------------------------------------------------------------------------------

DEDUPE = SPENDING.replace('event_id="payment_id",', 'event_id="payment_id",\n    dedupe="1h",')
#: Copies come again after this many events at most: 50 minutes, in the window and not late.
SOON = 600
#: An id is remembered for the window and the lateness after the end of its hour: a row that comes
#: behind the window and before that counts, and is told of. Later nobody knows the id any more.
TOLD_MS = (HOUR_MS, 2 * HOUR_MS - 600_000)
FORGOTTEN_MS = 4 * HOUR_MS
#: After how many of the events one of each kind follows.
COPY, AGAIN, FORGOTTEN, CONFLICT, STALE = 0.05, 0.05, 0.01, 0.01, 0.01


def sent_twice(lab: Lab, size: Size) -> Outcome:
    """Row 31: of ten events one comes twice: soon, or with its id used again long after.

    A worker is killed among copies of the first part; what the second part has is counted in the
    metrics of the one that goes on.
    """
    draw = np.random.default_rng(lab.seed)
    with Scene(lab, "s", definitions=DEDUPE) as scene:
        rows, used = draw_payments(lab.seed, size.events), set[int]()
        first = _with_copies(scene.project, rows, 0, size.events // 2, draw, used)
        second = _with_copies(scene.project, rows, size.events // 2, size.events, draw, used)
        worker = play(scene, first)
        before = worker.metrics()
        lab.advance(1)
        sent = [*first, *second]
        scene.project.send([one[:2] for one in second])
        wait_predicted(scene, len(counting(sent)))
        counted = {name: value - before.get(name, 0.0) for name, value in worker.metrics().items()}
        scene.stop_workers()
        verdict = judged(scene, sent)
        kept, said = kept_verdict(scene.project, sent, ["id_conflict"])
    kinds = Counter(one.fate for one in second)
    told = int(_sum(counted, "headrace_duplicates_total"))
    told_again = int(_sum(counted, "headrace_duplicates_out_of_window_total"))
    # What nobody remembers at the end of a batch may still be known within it.
    most = kinds["again"] + kinds["forgotten"]
    met = told == kinds["copy"] and kinds["again"] <= told_again <= most
    kinds = Counter(one.fate for one in sent)
    note = (
        f"{kinds['copy']} copies left out, {kinds['again'] + kinds['forgotten']} ids used again"
        f" behind the window counted,"
        f" {kinds['id_conflict']} conflicts, {kinds['late']} copies too late"
    )
    if not met:
        note += f"; metrics say {told} and {told_again} of the second half's"
    return Outcome.of(1, [added(verdict, kept)], met=met, note=note + said)


def _sum(metrics: dict[str, float], name: str) -> float:
    return sum(value for sample, value in metrics.items() if sample.split("{")[0] == name)


def _with_copies(
    project: LiveProject,
    rows: Sequence[plain.Row],
    begin: int,
    end: int,
    draw: np.random.Generator,
    used: set[int],
) -> list[Sent]:
    """Send a part of the events; ``used`` holds the ids that came again: each does so once."""
    sent: list[Sent] = []
    kinds = ("copy", "again", "forgotten", "id_conflict", "late", "")
    odds = (COPY, AGAIN, FORGOTTEN, CONFLICT, STALE)
    for place in range(begin, end):
        row = rows[place]
        sent.append(message(project, row))
        kind = str(draw.choice(kinds, p=[*odds, 1 - sum(odds)]))
        soon = rows[int(draw.integers(max(0, place - SOON), place + 1))]
        old = _old(kind, place, draw)
        if kind == "copy":
            sent.append(message(project, soon, kind, counts=False))
        elif kind == "id_conflict":
            sent.append(message(project, {**soon, "amount": 9_999.0}, kind, counts=False))
        elif kind and old is not None and old not in used:
            used.add(old)
            again = {**rows[old], "event_time": row["event_time"], "amount": 1.25}
            if kind == "late":
                sent.append(message(project, rows[old], kind, counts=False))
            else:
                sent.append(message(project, again, kind))
    return sent


def _old(kind: str, place: int, draw: np.random.Generator) -> int | None:
    """Return the place of an event whose id is no longer in the window at that of ``place``.

    ``again``: it is still remembered then; else it is not. None: there is none.
    """
    now_ms = START_MS + STEP_MS * place
    end_ms = (now_ms - TOLD_MS[0]) // HOUR_MS * HOUR_MS
    first, last = end_ms - HOUR_MS, end_ms
    if kind != "again":
        first, last = START_MS, now_ms - FORGOTTEN_MS
    elif now_ms - end_ms >= TOLD_MS[1]:
        return None
    low, high = max(0, -(-(first - START_MS) // STEP_MS)), -(-(last - START_MS) // STEP_MS)
    return int(draw.integers(low, high)) if high > low else None


# --- Row 36 ---------------------------------------------------------------------------------------

MORE_FIELDS: tuple[dict[str, object], ...] = tuple(
    {"name": name, "type": ["null", kind], "default": None}
    for name, kind in (
        ("points", "long"),
        ("ratio", "float"),
        ("weight", "double"),
        ("note", "string"),
    )
)
#: ``weight`` and ``note`` are read by no aggregate; the vector has ``weight``.
ODD = SPENDING.replace(
    'hr.sum("amount", over="1h")',
    'hr.sum("amount", over="1h"), hr.sum("points", over="1h"), hr.mean("ratio", over="1h")',
).replace(
    '{"amount": hr.col("amount")}', '{"amount": hr.col("amount"), "weight": hr.col("weight")}'
)
ODD_FEATURES = (
    *FEATURES,
    Feature("customer__points_sum_1h", "sum", column="points"),
    Feature("customer__ratio_mean_1h", "mean", column="ratio"),
    Feature("weight", "row", column="weight"),
)
LENIENT = ODD.replace(
    'event_id="payment_id",', 'event_id="payment_id",\n    not_finite="null",\n    null_key="dlq",'
)
NAN, INFINITY, LIMIT = math.nan, math.inf, 2.0**40
LONG_TEXT, LONG_KEY = 10_000_000, 500_000
MESSAGE_BYTES = 20 << 20


class Odd(NamedTuple):
    """An odd value in a field, and what becomes of the record by each policy.

    Reasons of the DLQ; ``""``: it counts as it is; ``null``: it counts and the value is ignored.
    """

    field: str
    value: object
    strict: str
    lenient: str


#: Strict is what a source does that says nothing; lenient has ``not_finite="null"`` and
#: ``null_key="dlq"``, and takes records of 16 MiB.
ODDITIES = (
    *(Odd("amount", x, "not_finite", "null") for x in (NAN, INFINITY, -INFINITY)),
    *(Odd("ratio", x, "not_finite", "null") for x in (NAN, INFINITY, -INFINITY)),
    *(Odd("amount", x, "out_of_range", "out_of_range") for x in (1e308, -1e308, LIMIT, -LIMIT)),
    *(Odd("points", x, "out_of_range", "out_of_range") for x in (2**63 - 1, -(2**63), 2**40)),
    Odd("ratio", 3e38, "out_of_range", "out_of_range"),
    *(Odd("amount", x, "", "") for x in (LIMIT - 1, 1 - LIMIT, -0.0, 0.0, -12.5)),
    *(Odd(field, None, "", "") for field in ("points", "ratio", "weight", "note")),
    *(Odd("points", x, "", "") for x in (2**40 - 1, 0)),
    *(Odd("weight", x, "", "") for x in (NAN, INFINITY, -INFINITY, 1e308, -0.0, 5e-324)),
    Odd("customer_id", None, "", "null_key"),
    Odd("customer_id", "", "", ""),
    Odd("customer_id", "k" * LONG_KEY, "", ""),
    Odd("note", "x" * LONG_TEXT, "too_large", ""),
    Odd("note", "", "", ""),
)


def odd_values(lab: Lab, size: Size) -> Outcome:
    """Row 36: every odd value in every field, ``runs`` times each, among good events.

    Under both policies; each time a worker is killed among them.
    """
    verdicts, said = [], []
    for name, definitions in (("strict", ODD), ("lenient", LENIENT)):
        lenient = name == "lenient"
        stream: dict[str, object] = {"max_record_bytes": 16 << 20} if lenient else {}
        settings = {"topics": {"partitions": 4, "properties": {"max.message.bytes": MESSAGE_BYTES}}}
        with Scene(
            lab, name, definitions=definitions, fields=MORE_FIELDS, stream=stream, settings=settings
        ) as scene:
            sent = _with_odd(scene.project, lab.seed, size, lenient=lenient)
            play(scene, sent)
            scene.stop_workers()
            fates = {one.fate for one in sent if one.fate}
            verdict = judged(scene, sent, ODD_FEATURES, _as_read)
            kept, differs = kept_verdict(scene.project, sent, sorted(fates))
            verdicts.append(added(verdict, kept))
            said.append(f"{name}: {sum(bool(one.fate) for one in sent)} refused{differs}")
        lab.advance(len(verdicts))
    cases = len(ODDITIES) + len(WRONG_TYPES)
    return Outcome.of(2, verdicts, note=f"{cases} odd values, two policies; {', '.join(said)}")


def _as_read(row: plain.Row) -> plain.Row:
    """Return a row as it is read where what is not finite is null; NaN always is."""
    odd = [name for name in ("amount", "ratio") if not _is_finite(row[name])]
    odd += ["weight"] if row["weight"] != row["weight"] else []
    return {**row, **dict.fromkeys(odd)}


def _is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _with_odd(project: LiveProject, seed: int, size: Size, *, lenient: bool) -> list[Sent]:
    draw = np.random.default_rng(seed)
    odd: list[Odd | str] = [*ODDITIES, *WRONG_TYPES] * size.runs
    places = sorted(draw.integers(1, size.events, len(odd)).tolist())
    draw.shuffle(odd)
    rows = draw_payments(seed, size.events + len(odd))
    wrong = {kind: _writer(project, kind) for kind in WRONG_TYPES}
    sent: list[Sent] = []
    for place, row in enumerate(rows):
        usual: plain.Row = {
            **row,
            "points": int(draw.integers(0, 100)),
            "ratio": float(np.float32(draw.random())),
            "weight": float(draw.random()),
            "note": "as usual",
        }
        if not places or place < places[0]:
            sent.append(message(project, usual))
            continue
        places.pop(0)
        one = odd.pop()
        if isinstance(one, str):
            key = str(usual["customer_id"]).encode()
            sent.append(Sent(key, wrong[one](usual), None, "wrong_type"))
            continue
        fate = one.lenient if lenient else one.strict
        strange = {**usual, one.field: one.value}
        made = message(
            project, strange, "" if fate == "null" else fate, counts=fate in {"", "null"}
        )
        if made.row and one.field == "note":
            # Nobody reads it, and the run in memory takes no records of that size.
            made = made._replace(row={**made.row, "note": None})
        sent.append(made)
    return sent


#: Written with a schema of another type: for all records, or for one branch of a union.
WRONG_TYPES = ("text", "union")


def _writer(project: LiveProject, kind: str) -> Callable[[plain.Row], bytes]:
    """Return how a producer writes an ``amount`` that is no number, by a schema of its own."""
    schema = json.loads(project.plan.source_plan(project.plan.source).schema)
    for field in schema["fields"]:
        if field["name"] == "amount":
            field["type"] = "string" if kind == "text" else ["double", "string"]
    subject = f"{project.topic('payments')}-{kind}-value"
    schema_id = project.environment.registry.register(subject, json.dumps(schema))
    parsed = fastavro.parse_schema(schema)

    def write(row: plain.Row) -> bytes:
        body = io.BytesIO()
        body.write(struct.pack(">bI", 0, schema_id))
        fastavro.schemaless_writer(body, parsed, {**row, "amount": "much"})
        return body.getvalue()

    return write


# --- Row 37 ---------------------------------------------------------------------------------------

YEAR_MS = 365 * DAY_MS


def wrong_times(lab: Lab, size: Size) -> Outcome:
    """Row 37: clocks that are wrong, of each kind ``runs`` events in every partition.

    Had one of them moved a watermark, all that comes after it would be late.
    """
    with Scene(lab, "s", definitions=SPENDING) as scene:
        now_ms = CLOCK.now_ms()
        kinds: tuple[tuple[str, int], ...] = (
            ("future_time", now_ms + YEAR_MS),
            ("future_time", now_ms + 100 * YEAR_MS),
            ("future_time", now_ms + 600_000 + int(WAIT_S * 1_000)),
            ("future_time", 2**63 - 1),
            ("negative_time", -1),
            ("negative_time", -(2**63)),
            # Behind everything: nothing of before 1970 is known of them.
            ("late", 0),
        )
        units = (("late", 1e-3), ("future_time", 1e3), ("future_time", 1e6))
        rows = draw_payments(lab.seed, size.events)
        keys = key_of_each_partition(scene.project)
        odd = [
            {
                "payment_id": 0,
                "event_time": time_ms,
                "customer_id": key,
                "amount": 1.0,
                "fate": fate,
            }
            for _ in range(size.runs)
            for fate, time_ms in (*kinds, *((fate, int(START_MS * by)) for fate, by in units))
            for key in keys
        ]
        draw = np.random.default_rng(lab.seed)
        places = Counter(draw.integers(CUSTOMERS * 4, size.events, len(odd)).tolist())
        draw.shuffle(odd)
        sent: list[Sent] = []
        for place, row in enumerate(rows):
            sent.append(message(scene.project, row))
            for _ in range(places[place]):
                strange = odd.pop()
                fate = str(strange.pop("fate"))
                strange["payment_id"] = size.events + len(odd)
                sent.append(message(scene.project, strange, fate, counts=False))
        play(scene, sent)
        scene.stop_workers()
        verdict = judged(scene, sent)
        kept, said = kept_verdict(scene.project, sent, ["future_time", "negative_time"])
    fates = Counter(one.fate for one in sent if one.fate)
    note = f"{dict(sorted(fates.items()))}{said}"
    return Outcome.of(size.runs, [added(verdict, kept)], note=note)


ROWS = (
    Row(
        31,
        "one event of ten sent twice, within the dedupe window and behind it",
        "within: counted once; behind: counted, and the metric says how many",
        sent_twice,
        full=Size(runs=1, events=40_000),
        ci=Size(runs=1, events=6_000),
    ),
    Row(
        36,
        "odd values: no key, null, NaN, infinite, huge, -0.0, of a wrong type, 10 MB of text",
        "as the table of values in the docs says; no sum is poisoned",
        odd_values,
        full=Size(runs=20, events=20_000),
    ),
    Row(
        37,
        "wrong clocks at producers: before 1970, 1970, years ahead, other units",
        "ahead by 5 min of the broker: DLQ; no watermark moves",
        wrong_times,
        full=Size(runs=20, events=40_000),
        ci=Size(runs=1, events=4_000),
    ),
)
