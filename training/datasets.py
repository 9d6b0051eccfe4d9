"""Training sets: scored events with the vector that the stream would have had, and their labels."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.features.columns import check_rows, event_columns
from headrace.lake.dataset import RECEIPT_SUFFIX, write_set
from headrace.lake.events import open_events
from headrace.lake.labels import LABEL_KNOWN_AT, positive_reports
from headrace.runtime.errors import explain
from headrace.training.errors import TrainingError
from headrace.training.evaluate import NEVER_MS
from headrace.training.split import Period

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace.features.columns import EventColumns
    from headrace.features.plan import LabelPlan, PipelinePlan, SourcePlan
    from headrace.lake.dataset import SetRequest
    from headrace.lake.events import Data
    from headrace.lake.request import Request

CANARY_ROWS = 32
#: Below the registry's folder; no model, since it has no numbered versions.
RECEIPTS_FOLDER = "training_sets"


class History(Protocol):
    """Computes the plan's vector for events as the stream would have.

    ``headrace.lake.history.event_vectors`` does.
    """

    def __call__(
        self, plan: PipelinePlan, tables: Mapping[str, pa.Table], rows: np.ndarray
    ) -> np.ndarray:
        """Return the vector of the scored source's ``rows`` (int64 positions in its table).

        Shape: (k,) -> C-contiguous float64 (k, n_features), NaN = null.
        """
        ...


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Scored events in time order, with vectors and what is known of their truth.

    ``positive_known_at_ms`` says when an event was first reported positive, ``NEVER_MS`` if never:
    the label at a cut-off is whether that lies before it. ``receipt`` is JSON that says how to make
    the set again, where it came from the lake.

    Shape: ``vector`` float64 (n, n_features), the others (n,).
    """

    names: tuple[str, ...]
    vector: np.ndarray
    keys: np.ndarray
    event_time_ms: np.ndarray
    positive_known_at_ms: np.ndarray
    training_set_id: str
    receipt: bytes | None = None

    def labels(self, cutoff_ms: int = NEVER_MS - 1) -> np.ndarray:
        """Return 1 for each event whose positive report was known at the cut-off, 0 else.

        Shape: int8 (n,).
        """
        return (self.positive_known_at_ms <= cutoff_ms).astype(np.int8)


def read_source(data: Data, source: SourcePlan) -> pa.Table:
    """Return the columns of a source that the plan reads.

    Args:
        data: A table, a frame, or the path of Parquet or Arrow files.
        source: The source.

    Raises:
        TrainingError: If a column is missing.
        HistoryError: If it cannot be read.
    """
    names = [column.name for column in source.columns]
    table = open_events(source.name, data).read(names)
    missing = [name for name in names if name not in table.schema.names]
    if missing:
        where = f"the history of source {source.name}"
        raise TrainingError(explain("file", f"hold {missing}", table.schema.names, where))
    return table


def source_period(table: pa.Table, source: SourcePlan) -> Period:
    """Return the period that a source's events span.

    Raises:
        TrainingError: If there are none.
    """
    if table.num_rows == 0:
        raise TrainingError(explain("history", "hold events", 0, f"source {source.name}"))
    times = event_columns(table, source).event_time_ms
    return Period(int(times.min()), int(times.max()) + 1)


def build_training_set(
    plan: PipelinePlan,
    tables: Mapping[str, pa.Table],
    period: Period,
    history: History,
    *,
    skip: Period | None = None,
) -> TrainingSet:
    """Return the scored events of a period with vectors and label times.

    Args:
        plan: A pipeline with a label.
        tables: All events of each of the plan's sources; also those before the period, which its
            windows reach back to.
        period: Which events become rows.
        history: Computes the vectors.
        skip: Events whose vector nobody will look at; theirs is NaN.

    Raises:
        TrainingError: If the plan has no label, or a table is missing.
    """
    label = _label_of(plan)
    missing = [source.name for source in plan.sources if source.name not in tables]
    if missing:
        message = explain(
            "history",
            "hold every source of the pipeline",
            f"none of {missing}",
            f"pipeline {plan.name}",
            f"give --data {missing[0]}=FILE, or name it in headrace.yaml under history:",
        )
        raise TrainingError(message)
    source = plan.source_plan(plan.source)
    events = event_columns(tables[plan.source], source)
    # Rows that the stream sends to the DLQ are never scored.
    rows = np.flatnonzero(period.mask(events.event_time_ms) & (check_rows(events, None) == 0))
    rows = rows[np.argsort(events.event_time_ms[rows], kind="stable")]
    if not len(rows):
        message = explain("period", "hold events", str(period), f"source {source.name}")
        raise TrainingError(message)
    times = events.event_time_ms[rows]
    wanted = np.ones(len(rows), bool) if skip is None else ~skip.mask(times)
    vector = np.full((len(rows), len(plan.vector)), np.nan)
    vector[wanted] = history(plan, tables, rows[wanted])
    reports = event_columns(tables[label.source], plan.source_plan(label.source))
    known = label_times(events.columns[label.on].take(pa.array(rows)), reports, label)
    return TrainingSet(
        names=tuple(column.name for column in plan.vector),
        vector=vector,
        keys=_ranks(events.columns[source.key].take(pa.array(rows))),
        event_time_ms=times,
        positive_known_at_ms=known,
        training_set_id=_identify(plan, period, times, known, vector),
    )


def read_training_set(
    asked: SetRequest, request: Request, progress: Callable[[int, int], None] | None = None
) -> TrainingSet:
    """Return a set from the lake: made as ``headrace history`` makes it, with a receipt.

    Args:
        asked: A pipeline with a label, and a period of it; ``label`` is asked for in any case.
        request: Where the events are.
        progress: Told how many rows of how many are done.

    Raises:
        TrainingError: If the period holds no events.
        HistoryError: If the lake does not hold what is needed.
    """
    plan = asked.plan
    source = plan.source_plan(plan.source)
    _label_of(plan)
    # The file is as good as its receipt: it can be made again, so it is not kept.
    with tempfile.TemporaryDirectory(prefix="headrace-training-") as folder:
        out = Path(folder) / "set.parquet"
        receipt = write_set(dataclasses.replace(asked, label=True), request, out, progress)
        table = pq.read_table(out)
    if not table.num_rows:
        message = explain("period", "hold events", str(asked.span), f"source {source.name}")
        raise TrainingError(message)
    vector = np.empty((table.num_rows, len(plan.vector)))
    for index, column in enumerate(plan.vector):
        vector[:, index] = table.column(column.name).to_numpy()
    known = pc.fill_null(table.column(LABEL_KNOWN_AT).cast(pa.int64()), NEVER_MS)
    time = dataclasses.replace(
        source,
        columns=tuple(c for c in source.columns if c.name == source.event_time),
        known_at=None,
        checked=(),
        checked_expressions=(),
    )
    return TrainingSet(
        names=tuple(column.name for column in plan.vector),
        vector=vector,
        keys=_ranks(table.column(source.key).combine_chunks()),
        event_time_ms=event_columns(table, time).event_time_ms,
        positive_known_at_ms=np.asarray(known, np.int64),
        training_set_id=receipt.id,
        receipt=receipt.dump(),
    )


def keep_receipt(registry_folder: Path, training_set: TrainingSet) -> Path | None:
    """Put a set's receipt beside the models, under the id that their manifests name.

    It is there before the model is, so that no manifest names a receipt that is not.
    """
    if training_set.receipt is None:
        return None
    folder = registry_folder / RECEIPTS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{training_set.training_set_id}{RECEIPT_SUFFIX}"
    draft = folder / f".{path.name}.draft"
    draft.write_bytes(training_set.receipt)
    draft.replace(path)
    return path


def label_times(event_keys: pa.Array, reports: EventColumns, label: LabelPlan) -> np.ndarray:
    """Return when each event was first reported positive.

    Args:
        event_keys: The scored events' values of the join column.
        reports: The label source's events.
        label: Which columns to join and to read.

    Shape: int64 (n,), epoch ms; ``NEVER_MS`` where no positive report exists.
    """
    known_at = positive_reports(reports, label).known_at(event_keys)
    return np.asarray(pc.fill_null(known_at.cast(pa.int64()), NEVER_MS), np.int64)


def canary_rows(training_set: TrainingSet, rows: np.ndarray) -> np.ndarray:
    """Return rows that stand for the set in an artefact's canary.

    Evenly spaced ones of each label, then one of nulls and one of zeros.

    Shape: int64 (k,) -> float64 (about 34, n_features).
    """
    labels = training_set.labels()[rows]
    picked = []
    for value in (0, 1):
        of_kind = rows[labels == value]
        count = min(CANARY_ROWS // 2, len(of_kind))
        picked.append(of_kind[np.linspace(0, len(of_kind) - 1, count).astype(np.int64)])
    width = training_set.vector.shape[1]
    extremes = np.stack([np.full(width, np.nan), np.zeros(width)])
    return np.concatenate([training_set.vector[np.concatenate(picked)], extremes])


def _label_of(plan: PipelinePlan) -> LabelPlan:
    if plan.label is None:
        message = explain(
            "pipeline",
            "have a label to be trained",
            None,
            plan.name,
            "give hr.Pipeline a label=hr.Label(source, column, on=…, delay=…)",
        )
        raise TrainingError(message)
    return plan.label


def _ranks(keys: pa.Array) -> np.ndarray:
    """Return keys as numbers of the same order; null keys are one number, above all others."""
    encoded = keys.dictionary_encode(null_encoding="encode")
    rank = np.empty(len(encoded.dictionary), np.int64)
    rank[np.asarray(pc.sort_indices(encoded.dictionary))] = np.arange(len(rank))
    ranks: np.ndarray = rank[np.asarray(encoded.indices)]
    return ranks


def _identify(plan: PipelinePlan, period: Period, *arrays: np.ndarray) -> str:
    digest = hashlib.sha256(repr((plan.name, plan.fingerprint, plan.label, period)).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
