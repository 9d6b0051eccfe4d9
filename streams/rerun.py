"""Vectors computed again from the raw events, in the order in which they were served.

A stage's state is a function of its log's prefix, so the stage's own processor is run over that
log, in silence, up to the rows asked for. One pass a partition answers for any number of rows. The
stages need not wait for each other: what one hands on stands in the next one's log.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import pyarrow as pa

from headrace.features.kernels.keys import hash_keys, partition_of
from headrace.features.vector import assemble
from headrace.streams.batch import Forget
from headrace.streams.erasures import cut
from headrace.streams.processors import build
from headrace.streams.rekey import ARROW_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from headrace.features.plan import PipelinePlan, StagePlan
    from headrace.streams.batch import EventBatch, Forgetter, Outputs
    from headrace.streams.context import ProcessorContext
    from headrace.streams.exits import Onward
    from headrace.streams.rekey import StreamRows

_SILENT = np.iinfo(np.int64).max


class Log(Protocol):
    """Where the topics of a pipeline are read from."""

    def batches(self, topic: str, partition: int) -> Iterator[EventBatch]:
        """Yield all that a partition holds, from offset 0 on, with ``emit_from`` 0."""
        ...

    def forgets(self, stage: StagePlan, partition: int) -> list[Forget]:
        """Return what the stage's partition has forgotten, in the order of positions."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """The rows asked for, each once: where they stand in the source, and their entities' keys.

    ``partition`` int32[n], ``offset`` int64[n]; ``keys`` by entity, as predictions spell them.
    """

    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    keys: Mapping[str, Sequence[str | None]]

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What the stages gave for the rows asked for.

    Attributes:
        vector: float64[n, len(plan.vector)], NaN for null.
        ages_ms: float64[n] by view, NaN for null.
        incomplete: bool[n], whether a window reached beyond what the state held.
        missing: By row number, the first stage in whose log the row does not stand.

    """

    vector: NDArray[np.float64]
    ages_ms: Mapping[str, NDArray[np.float64]]
    incomplete: NDArray[np.bool_]
    missing: Mapping[int, str]


def rerun(
    plan: PipelinePlan,
    context: ProcessorContext,
    log: Log,
    asked: Asked,
    progress: Callable[[str, int], None] = lambda _stage, _rows: None,
) -> Recomputed:
    """Compute vectors again, by the pipeline's own processors over its own logs.

    Args:
        plan: The pipeline; the one that served the rows.
        context: As for a worker of this pipeline.
        log: Its topics.
        asked: The rows.
        progress: Told the entity at work, and how many messages of its log were read.

    Raises:
        StreamError: If a log is not one of this plan's.

    Cost: that of a worker without its outputs, for the partitions of the rows asked for.
    """
    found = _Found(plan, asked)
    for index, stage in enumerate(plan.stages):
        where = asked.partition if stage.direct else _receivers(plan, stage, asked)
        for partition in np.unique(where).tolist():
            rows = np.flatnonzero(where == partition)
            _run_stage(plan, index, partition, context, log, found.collector(index, rows), progress)
    missing: dict[int, str] = {}
    for stage, seen in zip(plan.stages, found.seen, strict=True):
        for row in np.flatnonzero(~seen).tolist():
            missing.setdefault(row, stage.entity)
    return Recomputed(found.vector, found.ages_ms, found.incomplete, missing)


def _run_stage(
    plan: PipelinePlan,
    index: int,
    partition: int,
    context: ProcessorContext,
    log: Log,
    collector: Collector,
    progress: Callable[[str, int], None],
) -> None:
    stage = plan.stages[index]
    own = dataclasses.replace(context, exit=lambda _stage, _partition: collector)
    processor = build(plan, stage.topic, partition, own)
    forgets = log.forgets(stage, partition)
    for batch in log.batches(stage.topic, partition):
        # A row stands in its source's own log where its offset says; in a re-keyed log anywhere.
        if stage.direct and not collector.wants(batch.offsets):
            batch.emit_from = int(_SILENT)
        for part in cut(batch, forgets):
            if isinstance(part, Forget):
                cast("Forgetter", processor).forget(part)
                forgets = forgets[1:]
            else:
                processor.process(part)
        progress(stage.entity, len(batch))
        if collector.done:
            return


class _Found:
    """What was collected so far, by row asked for."""

    def __init__(self, plan: PipelinePlan, asked: Asked) -> None:
        self.plan = plan
        self.asked = asked
        count = len(asked)
        self.seen = [np.zeros(count, bool) for _ in plan.stages]
        self.features = {
            feature.name: np.full(count, np.nan)
            for stage in plan.stages
            for feature in stage.features
        }
        self.ages_ms = {
            age.view: np.full(count, np.nan) for stage in plan.stages for age in stage.ages
        }
        self.incomplete = np.zeros(count, bool)
        self.vector = np.full((count, len(plan.vector)), np.nan)

    def collector(self, stage_index: int, rows: NDArray[np.int64]) -> Collector:
        """Return what takes ``rows`` out of a stage's partition."""
        return Collector(self, stage_index, rows)

    def take(self, stage_index: int, rows: NDArray[np.int64], given: StreamRows) -> None:
        """Keep what stage ``stage_index`` gave for ``rows``, and at the last one their vectors."""
        stage = self.plan.stages[stage_index]
        for feature in stage.features:
            self.features[feature.name][rows] = given.features[feature.name]
        for age in stage.ages:
            self.ages_ms[age.view][rows] = given.ages[age.view]
        self.incomplete[rows] |= given.incomplete
        self.seen[stage_index][rows] = True
        if stage_index + 1 == len(self.plan.stages):
            # Of earlier stages what was computed here, not what the log says of them.
            features = {name: values[rows] for name, values in self.features.items()}
            self.vector[rows] = assemble(self.plan, given.events, features)


class Collector:
    """Stands at the end of a stage in place of its exit, and keeps the rows asked for."""

    topic = None

    def __init__(self, found: _Found, stage_index: int, rows: NDArray[np.int64]) -> None:
        self._found = found
        self._stage_index = stage_index
        places = _places(found.asked.partition[rows], found.asked.offset[rows])
        order = np.argsort(places)
        self._places, self._rows = places[order], rows[order]
        self._offsets = np.sort(found.asked.offset[rows])
        self._left = len(rows)

    @property
    def done(self) -> bool:
        """Whether all rows have come."""
        return self._left == 0

    def wants(self, offsets: NDArray[np.int64]) -> bool:
        """Return whether a row asked for can stand between the first and the last of offsets."""
        if not offsets.size:
            return False
        first, last = np.searchsorted(self._offsets, [offsets[0], offsets[-1] + 1])
        return bool(first < last)

    def write(self, onward: Onward, outputs: Outputs) -> None:
        """Keep the rows asked for; nothing goes on from here."""
        del outputs
        rows = onward.rows
        if rows is None or not len(rows):
            return
        places = _places(rows.partition, rows.offset)
        at = np.minimum(np.searchsorted(self._places, places), len(self._places) - 1)
        picked = np.flatnonzero(self._places[at] == places)
        if picked.size:
            self._left -= picked.size
            given = rows if picked.size == len(rows) else rows.take(picked)
            self._found.take(self._stage_index, self._rows[at[picked]], given)

    def begin(self) -> None:
        """Do nothing: a rerun is never undone."""

    def commit(self) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Do nothing."""


def _places(partition: NDArray[np.int32], offset: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one number for each place in the source; offsets stay far below 2**47."""
    places: NDArray[np.int64] = (partition.astype(np.int64) << 47) + offset
    return places


def _receivers(plan: PipelinePlan, stage: StagePlan, asked: Asked) -> NDArray[np.int32]:
    """Return which partition of the stage's re-key topic each row went to."""
    keys = _typed(asked.keys[stage.entity], stage.key_kind)
    receivers: NDArray[np.int32] = partition_of(hash_keys(keys), plan.partitions)
    if keys.null_count:
        # As ``Hop.receiver_of``: a row without a key goes where its offset says.
        spread = partition_of(hash_keys(pa.array(asked.offset)), plan.partitions)
        receivers = np.where(keys.is_null().to_numpy(zero_copy_only=False), spread, receivers)
    return receivers


def _typed(keys: Sequence[str | None], kind: str) -> pa.Array:
    """Return keys as the stage keeps them, from how predictions spell them."""
    texts = pa.array(keys, pa.string())
    if kind == "bytes":
        values = [None if text is None else bytes.fromhex(text) for text in texts.to_pylist()]
        return pa.array(values, pa.binary())
    return texts.cast(ARROW_TYPES[kind])
