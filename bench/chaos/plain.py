"""What features must be, from the rows alone: lists, sums and comparisons, nothing of Headrace's.

Rows come in the order of the log. A feature at a row is an aggregate over the rows of its key up to
and with it whose time lies in the window that ends at its own.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from bench.chaos.reader import OUTPUTS, read_at_end
from bench.chaos.verdict import CATCH_UP_S, Outputs, Verdict, compare, inversions, unlike
from bench.outputs import OutputDecoder

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from bench.chaos.reader import Reader, Seen
    from bench.live import LiveProject

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature by its full name: ``kind`` of ``column`` over the rows that share ``key``."""

    name: str
    kind: Literal["count", "sum", "mean", "row"]
    key: str = "customer_id"
    column: str = ""
    window_ms: int = HOUR_MS


@dataclass(frozen=True, slots=True)
class _Cell:
    time_ms: int
    row: Row


def features_at(rows: Sequence[Row], features: Sequence[Feature]) -> list[tuple[Hashable, ...]]:
    """Return for each row the features' values, floats as their bits.

    Args:
        rows: In the order of the log; with ``event_time`` in epoch ms.
        features: In the order of the values. One of kind ``row`` is the row's own column.

    """
    past: dict[tuple[str, object], list[_Cell]] = defaultdict(list)
    keys = dict.fromkeys(one.key for one in features if one.kind != "row")
    found = []
    for row in rows:
        time_ms = row["event_time"]
        assert isinstance(time_ms, int)
        for key in keys:
            past[key, row[key]].append(_Cell(time_ms, row))
        values = []
        for one in features:
            cells = past[one.key, row.get(one.key)] if row.get(one.key) is not None else []
            values.append(_bits(_value(one, row, cells, time_ms)))
        found.append(tuple(values))
    return found


def _value(one: Feature, row: Row, cells: Sequence[_Cell], time_ms: int) -> object:
    if one.kind == "row":
        return row[one.column]
    if row.get(one.key) is None:
        return 0 if one.kind == "count" else None
    inside = [cell.row for cell in cells if time_ms - one.window_ms < cell.time_ms <= time_ms]
    if one.kind == "count":
        return len(inside)
    read = [cell[one.column] for cell in inside]
    numbers = [float(x) for x in read if isinstance(x, int | float)]
    if not numbers:
        return None
    # A sum of negative zeros is zero.
    total = math.fsum(numbers) + 0.0
    return total if one.kind == "sum" else total / len(numbers)


def _bits(value: object) -> Hashable:
    if isinstance(value, float):
        return struct.pack("<d", value)
    assert value is None or isinstance(value, int | str), value
    return value


def expected(rows: Sequence[Row], features: Sequence[Feature]) -> Outputs:
    """Return what should stand in the snapshots of these rows, given in the order of their log."""
    ids = [str(row["payment_id"]) for row in rows]
    return Outputs(ids, features_at(rows, features), [row["customer_id"] for row in rows])


@dataclass(frozen=True, slots=True)
class Found:
    """The committed rows of an output topic, as plain values, and where they stand."""

    rows: list[dict[str, object]]
    partitions: list[int]

    def outputs(self, features: Sequence[Feature], key: str = "customer_key") -> Outputs:
        """Return ids and the features' values in the form of ``expected``."""
        return of_rows(self.rows, features, key)


def of_rows(
    rows: Sequence[Mapping[str, object]], features: Sequence[Feature], key: str = "customer_key"
) -> Outputs:
    """Return ids and the features' values of outputs in the form of ``expected``."""
    return Outputs(
        [str(row["event_id"]) for row in rows],
        [
            tuple(_bits(row[one.column if one.kind == "row" else one.name]) for one in features)
            for row in rows
        ],
        [row[key] for row in rows],
    )


def found(project: LiveProject, records: Sequence[Seen]) -> Found:
    """Decode records, whatever versions of the schema they were written with, in their order."""
    registry_url = project.environment.endpoints.registry_url
    places: dict[bytes, list[int]] = defaultdict(list)
    for place, one in enumerate(records):
        places[one.value[:5]].append(place)
    rows: list[dict[str, object]] = [{}] * len(records)
    for mine in places.values():
        batch = OutputDecoder(registry_url).decode([records[place].value for place in mine])
        for place, row in zip(mine, pa.Table.from_batches([batch]).to_pylist(), strict=True):
            rows[place] = row
    return Found(rows, [one.partition for one in records])


def judge_plain(
    project: LiveProject,
    wanted: Outputs,
    features: Sequence[Feature],
    reader: Reader,
    key: str = "customer_key",
) -> Verdict:
    """Compare what is committed with what rows alone say; see ``verdict.judge``.

    Snapshots must hold the features, predictions must be there; both in the order of ``key``, if no
    event id stands twice among ``wanted``.
    """
    order: Mapping[str, int] = {}
    if len(set(wanted.ids)) == len(wanted.ids):
        order = {event_id: place for place, event_id in enumerate(wanted.ids)}
    total = Verdict(len(wanted.ids), 0, 0, 0, 0)
    for name in OUTPUTS:
        there = read_at_end(project, name)
        reader.wait(lambda: len(reader.records(name)) >= len(there), CATCH_UP_S)  # noqa: B023
        rows = found(project, there)
        looked_at = features if name == "snapshots" else ()
        outputs = rows.outputs(looked_at, key)
        asked = Outputs(
            wanted.ids,
            wanted.contents if looked_at else [()] * len(wanted.ids),
            wanted.keys,
        )
        one = compare(asked, outputs)
        mixed = inversions(outputs, rows.partitions, order) if order else 0
        total = added(total, one, mixed, unlike(reader.records(name), there))
    return total


def added(total: Verdict, one: Verdict, reordered: int = 0, wrong: int = 0) -> Verdict:
    """Return two verdicts on the same events as one."""
    return Verdict(
        total.events,
        total.lost + one.lost,
        total.duplicated + one.duplicated,
        total.reordered + one.reordered + reordered,
        total.wrong + one.wrong + wrong,
    )
