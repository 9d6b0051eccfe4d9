"""A stage's plan as integer tables, and where each number of a key lies. Plain data, no kernels.

Per key there is one *header row* of int64 words (so that one copy undoes all of it):

    clock, newest | per ring: block, capacity, count, dropped, arrivals, then of its lag list |
    per window: low, high, then its accumulators' words

``clock`` is the time that the key's windows stand at; ``newest`` the latest they ever stood at.
Cells lie in *blocks* of one pool. A cell of ring r is

    time, [known_at], fields...      sorted by (time, arrival)

Rings of sources with a known_at have a second block, the *lag list*: copies of the cells whose
known_at comes after they could have entered a window, with the first two words swapped, sorted by
(known_at, arrival). Behind the cells a block holds one implicit tree per min, max or last.

To add an aggregate kind: give it fields (what a cell keeps: ``_ring_fields``), accumulators (what a
window keeps: ``ADD_*``) or a tree (what cannot be removed: ``TREE_*``), and a verb in
``windows.read_aggregate``. Sums of powers, products and histograms are accumulators; a distinct
count is an accumulator over a count map; quantiles over log buckets likewise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headrace.features.kernels.compiled import inner, pointer

if TYPE_CHECKING:
    from headrace.features.plan import RingPlan, StagePlan

NEVER = -(1 << 62)
# Known at any clock, also at NEVER floored to a grain.
ALWAYS = NEVER - (1 << 61)
FIRST_CAPACITY = 4
SIZE_CLASSES = 40

# Header row.
CLOCK, NEWEST = 0, 1
BLOCK, CAPACITY, COUNT, DROPPED, ARRIVALS = range(5)
LAG_BLOCK, LAG_CAPACITY, LAG_COUNT, LAG_KNOWN = range(5, 9)
LOW, HIGH = 0, 1

# Columns of the tables.
R_GRAIN, R_RETENTION, R_KNOWN, R_MIN_DELAY, R_STRIDE, R_HEAD = range(6)
R_FIELD, R_FIELD_END, R_TREE, R_TREE_END, R_WINDOW, R_WINDOW_END = range(6, 12)
W_RING, W_LENGTH, W_DELAY, W_HEAD, W_ADD, W_ADD_END = range(6)
F_KIND, F_VALUE, F_AT = range(3)
A_KIND, A_FIELD, A_HEAD = range(3)
T_KIND, T_FIELD = range(2)
G_KIND, G_WINDOW, G_COUNT, G_SUM, G_TREE = range(5)

R_WIDTH, W_WIDTH, F_WIDTH, A_WIDTH, T_WIDTH, G_WIDTH = 12, 6, 3, 3, 2, 5

# What a cell keeps of a value.
FIELD_RAW, FIELD_EVENTS, FIELD_COUNT, FIELD_SUM, FIELD_MIN, FIELD_MAX, FIELD_LAST = range(7)
FIELD_WORDS = (1, 1, 1, 3, 1, 1, 3)

# What a window adds on entry and removes on exit: one, a word, a not-null, a float, limbs.
ADD_ONE, ADD_WORD, ADD_NOT_NULL, ADD_FLOAT, ADD_LIMBS = range(5)
ADD_WORDS = (1, 1, 1, 3, 3)

# What cannot be removed is found by a tree over the cells.
TREE_MIN, TREE_MAX, TREE_LAST, TREE_ANY = range(4)

# How a number is read from a window.
READ_SPAN, READ_COUNT, READ_SUM, READ_MEAN, READ_TREE, READ_LAST, READ_AGE = range(7)


class Layout(NamedTuple):
    """The tables of one stage; all int64, read-only for the kernels. Leaves see them flat."""

    rings: np.ndarray
    windows: np.ndarray
    fields: np.ndarray
    adds: np.ndarray
    trees: np.ndarray
    aggregates: np.ndarray
    input_start: np.ndarray
    input_rings: np.ndarray
    header: np.ndarray


class _Tables:
    """Rows of the tables while they are put together."""

    def __init__(self) -> None:
        self.rings: list[list[int]] = []
        self.windows: list[list[int]] = []
        self.fields: list[list[int]] = []
        self.adds: list[list[int]] = []
        self.trees: list[list[int]] = []
        self.header: list[int] = [NEVER, NEVER]


def _wanted(stage: StagePlan, ring: int) -> set[tuple[str, int]]:
    """Return the (kind, value) pairs that any window of the ring reads."""
    return {
        (aggregate.kind, aggregate.value)
        for aggregate in stage.aggregates
        if stage.windows[aggregate.window].ring == ring
    }


def _ring_fields(plan: RingPlan, wanted: set[tuple[str, int]]) -> list[tuple[int, int]]:
    """Return (field kind, ring value) for each thing that a cell of this ring keeps."""
    if not plan.grain_ms:
        return [(FIELD_RAW, value) for value in range(len(plan.values))]
    fields = [(FIELD_EVENTS, -1)]
    for value in range(len(plan.values)):
        kinds = {kind for kind, of in wanted if of == value}
        fields.append((FIELD_COUNT, value))
        if kinds & {"sum", "mean"}:
            fields.append((FIELD_SUM, value))
        if "min" in kinds:
            fields.append((FIELD_MIN, value))
        if "max" in kinds:
            fields.append((FIELD_MAX, value))
        if "last" in kinds:
            fields.append((FIELD_LAST, value))
    return fields


def _add_ring(stage: StagePlan, ring: int, tables: _Tables) -> dict[tuple[int, int], int]:
    """Append a ring's rows; return where each (field kind, ring value) lies in its cells."""
    plan = stage.rings[ring]
    wanted = _wanted(stage, ring)
    at = 2 if plan.known_at else 1
    place: dict[tuple[int, int], int] = {}
    field_start, tree_start = len(tables.fields), len(tables.trees)
    for kind, value in _ring_fields(plan, wanted):
        tables.fields.append([kind, plan.values[value] if value >= 0 else -1, at])
        place[kind, value] = at
        at += FIELD_WORDS[kind]
    tile = bool(plan.grain_ms)
    for kind_name, value in sorted(wanted):
        if kind_name in ("min", "max"):
            tile_field = FIELD_MIN if kind_name == "min" else FIELD_MAX
            source = place[tile_field if tile else FIELD_RAW, value]
            tables.trees.append([TREE_MIN if kind_name == "min" else TREE_MAX, source])
        elif kind_name == "last":
            tables.trees.append([TREE_LAST, place[FIELD_LAST if tile else FIELD_RAW, value]])
        elif kind_name == "age" and plan.known_at:
            tables.trees.append([TREE_ANY, 0])
    windows = [window for window in stage.windows if window.ring == ring]
    tables.rings.append(
        [
            plan.grain_ms,
            plan.retention_ms,
            int(plan.known_at),
            min((window.delay_ms for window in windows), default=0),
            at,
            len(tables.header),
            field_start,
            len(tables.fields),
            tree_start,
            len(tables.trees),
            0,
            0,
        ]
    )
    tables.header += [0, 0, 0, NEVER, 0, 0, 0, 0, 0]
    return place


def _add_window(
    stage: StagePlan, window: int, place: dict[tuple[int, int], int], tables: _Tables
) -> dict[tuple[str, int], int]:
    """Append a window's row; return the header word of its ("events"|"count"|"sum", value)."""
    plan = stage.windows[window]
    ring = stage.rings[plan.ring]
    tile = bool(ring.grain_ms)
    head, start = len(tables.header), len(tables.adds)
    tables.header += [0, 0]
    words: dict[tuple[str, int], int] = {}

    def add(name: str, value: int, kind: int, field: int) -> None:
        if (name, value) not in words:
            words[name, value] = len(tables.header)
            tables.adds.append([kind, field, len(tables.header)])
            tables.header += [0] * ADD_WORDS[kind]

    for aggregate in stage.aggregates:
        if aggregate.window != window:
            continue
        value = aggregate.value
        if aggregate.kind == "count" and value < 0:
            if tile:
                add("events", -1, ADD_WORD, place[FIELD_EVENTS, -1])
            elif ring.known_at:
                add("events", -1, ADD_ONE, 0)
        elif aggregate.kind in ("count", "sum", "mean"):
            counts = place[FIELD_COUNT if tile else FIELD_RAW, value]
            add("count", value, ADD_WORD if tile else ADD_NOT_NULL, counts)
            if aggregate.kind != "count":
                sums = place[FIELD_SUM if tile else FIELD_RAW, value]
                add("sum", value, ADD_LIMBS if tile else ADD_FLOAT, sums)
    tables.windows.append([plan.ring, plan.length_ms, plan.delay_ms, head, start, len(tables.adds)])
    return words


def _read_row(
    kind: str, value: int, row: int, known: bool, words: dict[tuple[str, int], int], tree: int
) -> list[int]:
    if kind == "count":
        at = words.get(("count" if value >= 0 else "events", value))
        return [READ_SPAN, row, 0, 0, -1] if at is None else [READ_COUNT, row, at, 0, -1]
    if kind in ("sum", "mean"):
        read = READ_SUM if kind == "sum" else READ_MEAN
        return [read, row, words["count", value], words["sum", value], -1]
    if kind == "age":
        return [READ_AGE, row, 0, 0, tree if known else -1]
    return [READ_LAST if kind == "last" else READ_TREE, row, 0, 0, tree]


def _table(rows: list[list[int]], width: int) -> np.ndarray:
    return np.array(rows, dtype=np.int64).reshape(len(rows), width)


def build_layout(stage: StagePlan) -> Layout:
    """Return the tables of ``stage``."""
    tables = _Tables()
    places = [_add_ring(stage, ring, tables) for ring in range(len(stage.rings))]
    words: dict[int, dict[tuple[str, int], int]] = {}
    row_of: dict[int, int] = {}
    for ring, row in enumerate(tables.rings):
        row[R_WINDOW] = len(tables.windows)
        for window, plan in enumerate(stage.windows):
            if plan.ring == ring:
                row_of[window] = len(tables.windows)
                words[window] = _add_window(stage, window, places[ring], tables)
        row[R_WINDOW_END] = len(tables.windows)
    aggregates = []
    for aggregate in stage.aggregates:
        ring = stage.windows[aggregate.window].ring
        tree = _find_tree(stage, ring, aggregate.kind, aggregate.value, places[ring], tables)
        known = stage.rings[ring].known_at
        window = aggregate.window
        aggregates.append(
            _read_row(aggregate.kind, aggregate.value, row_of[window], known, words[window], tree)
        )
    rings_of = [
        [ring for ring, plan in enumerate(stage.rings) if plan.source == entry.source]
        for entry in stage.inputs
    ]
    return Layout(
        rings=_table(tables.rings, R_WIDTH),
        windows=_table(tables.windows, W_WIDTH),
        fields=_table(tables.fields, F_WIDTH),
        adds=_table(tables.adds, A_WIDTH),
        trees=_table(tables.trees, T_WIDTH),
        aggregates=_table(aggregates, G_WIDTH),
        input_start=np.cumsum([0, *map(len, rings_of)], dtype=np.int64),
        input_rings=np.array([ring for rings in rings_of for ring in rings], dtype=np.int64),
        header=np.array(tables.header, dtype=np.int64),
    )


@inner
def view_layout(layout: Layout) -> Layout:
    """Return the tables as pointers."""
    return Layout(
        pointer(layout.rings),
        pointer(layout.windows),
        pointer(layout.fields),
        pointer(layout.adds),
        pointer(layout.trees),
        pointer(layout.aggregates),
        pointer(layout.input_start),
        pointer(layout.input_rings),
        pointer(layout.header),
    )


def _find_tree(
    stage: StagePlan,
    ring: int,
    kind: str,
    value: int,
    place: dict[tuple[int, int], int],
    tables: _Tables,
) -> int:
    """Return the row of the tree that answers (kind, value) on ``ring``; -1 if none does."""
    tile = bool(stage.rings[ring].grain_ms)
    wanted = {
        "min": (TREE_MIN, FIELD_MIN),
        "max": (TREE_MAX, FIELD_MAX),
        "last": (TREE_LAST, FIELD_LAST),
        "age": (TREE_ANY, FIELD_RAW),
    }.get(kind)
    if wanted is None:
        return -1
    tree_kind, tile_field = wanted
    field = 0 if kind == "age" else place[tile_field if tile else FIELD_RAW, value]
    row = tables.rings[ring]
    for tree in range(row[R_TREE], row[R_TREE_END]):
        if tables.trees[tree] == [tree_kind, field]:
            return tree
    return -1
