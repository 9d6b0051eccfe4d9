"""When events were first reported positive: the truth that training sets carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from headrace.features.columns import event_columns

if TYPE_CHECKING:
    from headrace.features.columns import EventColumns
    from headrace.features.plan import LabelPlan, PipelinePlan
    from headrace.lake.events import EventReader

LABEL: Final = "label"
LABEL_KNOWN_AT: Final = "label_known_at"
LABEL_TIME: Final = pa.timestamp("ms", "UTC")


@dataclass(frozen=True, slots=True)
class Labels:
    """The positive reports of a label source: ``first`` holds each ``key`` once, and when."""

    on: str
    first: pa.Table

    def known_at(self, keys: pa.Array) -> pa.Array:
        """Return when each key was first reported positive, null if never."""
        found = pc.index_in(keys, value_set=self.first["key"].combine_chunks(), skip_nulls=True)
        times = self.first["known_at_ms_min"].combine_chunks().take(found)
        return times.cast(LABEL_TIME)


def read_labels(plan: PipelinePlan, reader: EventReader) -> Labels:
    """Return a pipeline's labels, from all reports that there are.

    Raises:
        ColumnError: If a column is missing or of another type.

    """
    label = plan.label
    assert label is not None, "the caller has looked"
    source = plan.source_plan(label.source)
    columns = [column.name for column in source.columns]
    parts = [_positive(event_columns(part.batch, source), label) for part in reader.parts(columns)]
    return Labels(label.on, _first(pa.concat_tables(parts)) if parts else _nothing(plan, label))


def positive_reports(reports: EventColumns, label: LabelPlan) -> Labels:
    """Return the labels of one set of reports."""
    return Labels(label.on, _first(_positive(reports, label)))


def _positive(reports: EventColumns, label: LabelPlan) -> pa.Table:
    values = pc.cast(reports.columns[label.column], pa.float64())
    table = pa.table({"key": reports.columns[label.on], "known_at_ms": reports.known_at_ms})
    return table.filter(pc.fill_null(pc.not_equal(values, 0.0), False))


def _first(positive: pa.Table) -> pa.Table:
    return positive.group_by("key").aggregate([("known_at_ms", "min")])


def _nothing(plan: PipelinePlan, label: LabelPlan) -> pa.Table:
    kind = next(c.kind for c in plan.source_plan(label.source).columns if c.name == label.on)
    key = {"int64": pa.int64(), "bytes": pa.binary()}.get(kind, pa.string())
    return pa.table({"key": pa.array([], key), "known_at_ms_min": pa.array([], pa.int64())})
