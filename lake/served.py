"""``as_of="served"``: what the stream gave, read from the snapshots that it wrote.

A row of the source finds its snapshot by its place in Kafka; a key and a time find the key's last
snapshot up to that time. What no snapshot holds is computed in log order where that order is the
source's own, and refused elsewhere: the log of a re-keyed stage is not in the lake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.features.expressions import features_of
from headrace.lake.answers import NOT_ASKED, Answers, Asks
from headrace.lake.errors import HistoryError
from headrace.lake.events import Span
from headrace.lake.log_order import replay_direct
from headrace.lake.stored import LakeEvents, open_stored, positions
from headrace.lake.tables import snapshots_table
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from headrace.features.plan import PipelinePlan
    from headrace.lake.stored import OffsetRange
    from headrace.lake.tables import Lake

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

_SOURCE_PLACE: Final = ("source_topic_id", "source_partition", "source_offset")
_FINGERPRINT: Final = "fingerprint"
_TIME: Final = "event_time"
_UNKNOWN: Final = np.iinfo(np.int64).max
_OTHER_DEFINITIONS: Final = 1 << 61


@dataclass(slots=True)
class Served:
    """What snapshots say about some asks.

    ``values`` float64 (n, len(names)), NaN for null and for asks without a snapshot; ``found``
    bool (n,); ``fingerprint`` int64 (n,), an index into ``fingerprints``, -1 where not found.
    """

    values: Floats
    found: NDArray[np.bool_]
    fingerprint: Integers
    fingerprints: list[str]


@dataclass(frozen=True, slots=True)
class Snapshots:
    """One pipeline's snapshots in the lake, those about one or more topics of its source.

    ``current`` is the fingerprint whose snapshots come first where a row has several.
    """

    pipeline: str
    reader: LakeEvents
    topic_ids: tuple[str, ...]
    current: str

    @property
    def columns(self) -> frozenset[str]:
        """The names of what they hold."""
        return frozenset(self.reader.table.schema.names)

    def of_events(self, position: Integers, times: Integers, names: Sequence[str]) -> Served:
        """Return the snapshots of rows of the source: of several the first one served.

        Those with today's definitions come before those with others.

        Args:
            position: The rows' places.
            times: Their event times: they prune what is read.
            names: Which columns.

        """
        served = _nothing(len(position), len(names))
        if not len(position):
            return served
        reader = self._about(Span(int(times.min()), int(times.max())))
        asks = Asks(times, position, None)
        best = np.full(len(position), _UNKNOWN)
        for part in reader.parts([*names, *_SOURCE_PLACE, _FINGERPRINT]):
            ask = asks.find(positions(part.batch, self.topic_ids, _SOURCE_PLACE))
            rows = np.flatnonzero(ask != NOT_ASKED)
            if not len(rows):
                continue
            codes = self._codes(part.batch, served)[rows]
            score = part.position[rows] + np.where(
                codes == _place(served.fingerprints, self.current), 0, _OTHER_DEFINITIONS
            )
            # From the last to the first: of an ask that comes twice the best is written last.
            order = np.argsort(-score, kind="stable")
            order = order[score[order] < best[ask[rows[order]]]]
            target, chosen = ask[rows[order]], rows[order]
            best[target] = score[order]
            served.found[target] = True
            served.fingerprint[target] = codes[order]
            served.values[target] = _numbers(part.batch, names)[chosen]
        return served

    def last_of_keys(
        self, entity: str, keys: pa.Array, times: Integers, names: Sequence[str]
    ) -> Served:
        """Return each key's last snapshot up to a time: by event time, then by arrival.

        Args:
            entity: Whose keys.
            keys: One for each ask, as snapshots write them.
            times: The asks' times.
            names: Which columns.

        """
        served = _nothing(len(times), len(names))
        known = keys.drop_null().unique()
        if not len(known):
            return served
        key = f"{entity}_key"
        about = self._about(Span(-(1 << 40), int(times.max())))
        reader = about.where(pc.field(key).isin(known), counted=False)
        codes, stamps, arrivals = [], [], []
        for part in reader.parts([key, _TIME]):
            column = part.batch.column(part.batch.schema.names.index(key))
            codes.append(pc.index_in(column, value_set=known).to_numpy())
            stamps.append(_time_ms(part.batch))
            assert part.arrival_time_ms is not None, "rows in the lake have an arrival"
            arrivals.append(np.stack([part.arrival_time_ms, part.position]))
        if not codes:
            return served
        code, stamp, arrival = np.concatenate(codes), np.concatenate(stamps), np.hstack(arrivals)
        order = np.lexsort((arrival[1], arrival[0], stamp, code))
        asked = pc.fill_null(pc.index_in(keys, value_set=known), -1).to_numpy()
        row = _last_up_to(code[order], stamp[order], asked, times)
        served.found = row >= 0
        row = np.where(served.found, order[row], -1)
        self._fill(reader, names, row, served)
        return served

    def _fill(
        self, reader: LakeEvents, names: Sequence[str], row: Integers, served: Served
    ) -> None:
        """Read the chosen rows' columns: ``row`` counts over the reader's pass, -1 for none."""
        start = 0
        for part in reader.parts([*names, _FINGERPRINT]):
            here = np.flatnonzero((row >= start) & (row < start + part.batch.num_rows))
            if len(here):
                local = row[here] - start
                served.values[here] = _numbers(part.batch, names)[local]
                served.fingerprint[here] = self._codes(part.batch, served)[local]
            start += part.batch.num_rows

    def _about(self, span: Span) -> LakeEvents:
        ours = pc.field(_SOURCE_PLACE[0]).isin(list(self.topic_ids))
        return self.reader.narrow(span, counted=False).where(ours, counted=False)

    @staticmethod
    def _codes(batch: pa.RecordBatch, served: Served) -> Integers:
        """Return each row's fingerprint as an index into the list, which grows with new ones."""
        column = _array(batch, _FINGERPRINT)
        for name in column.unique().to_pylist():
            if name not in served.fingerprints:
                served.fingerprints.append(name)
        codes = pc.index_in(column, value_set=pa.array(served.fingerprints, pa.string()))
        numbers: Integers = codes.to_numpy().astype(np.int64)
        return numbers


def open_snapshots(
    lake: Lake,
    pipeline: str,
    topic_ids: tuple[str, ...],
    fingerprint: str,
    ranges: Sequence[OffsetRange] | None = None,
) -> Snapshots | None:
    """Return a pipeline's snapshots about the given topics of its source; None: there are none.

    Raises:
        HistoryError: If ``ranges`` are given and the lake no longer holds them.

    """
    name = snapshots_table(pipeline)
    if not lake.has(name):
        return None
    reader = open_stored(lake.table(name), name, _TIME, ranges=ranges)
    return Snapshots(pipeline, reader, topic_ids, fingerprint)


def answer_served(
    plan: PipelinePlan,
    scored: LakeEvents,
    snapshots: Iterable[Snapshots],
    answers: Answers,
    asks: Asks,
    wanted: Sequence[str],
    slice_rows: int,
) -> dict[str, int]:
    """Put what was served into ``answers``, and take out the asks that nothing was served for.

    Args:
        plan: What is asked.
        scored: The scored source.
        snapshots: Where to look, best first.
        answers: The answers; they hold the events' columns already.
        asks: The asks.
        wanted: Columns of the vector, and ages.
        slice_rows: So many asks are looked up at a time.

    Returns:
        By fingerprint, how many asks were answered by snapshots of other definitions.

    Raises:
        HistoryError: If no snapshot holds a feature and it cannot be computed in log order.

    """
    open_ = list(wanted_names(plan, wanted))
    others: dict[str, int] = {}
    for one in snapshots:
        names = [name for name in open_ if name in one.columns]
        if not names:
            continue
        open_ = [name for name in open_ if name not in names]
        for start in range(0, len(asks), slice_rows):
            part = slice(start, start + slice_rows)
            found = _look_up(plan, one, asks, part, names, answers, start)
            for place, fingerprint in enumerate(found.fingerprints):
                count = int(((found.fingerprint == place) & found.found).sum())
                if count and fingerprint != one.current:
                    others[fingerprint] = others.get(fingerprint, 0) + count
    _compute_missing(plan, scored, answers, asks, open_)
    return others


def _look_up(
    plan: PipelinePlan,
    one: Snapshots,
    asks: Asks,
    part: slice,
    names: list[str],
    answers: Answers,
    start: int,
) -> Served:
    times = asks.event_time_ms[part]
    numbers = np.arange(start, start + len(times))
    if asks.position is not None:
        served = one.of_events(asks.position[part], times, names)
        answers.add_numbers(f"{one.pipeline}-served", names, numbers, served.values)
        answers.answered[part] &= served.found
        return served
    bare = asks.bare
    assert bare is not None, "asks are events or bare"
    served = _nothing(len(times), 0)
    for stage in plan.stages:
        of_stage = {f.name for f in stage.features} | {f"{a.view}__age_ms" for a in stage.ages}
        mine = [name for name in names if name in of_stage]
        if not mine:
            continue
        key = bare.columns[next(i.key for i in stage.inputs if i.scored)]
        keys = snapshot_keys(key.slice(start, len(times)))
        served = one.last_of_keys(stage.entity, keys, times, mine)
        answers.add_numbers(f"{one.pipeline}-{stage.entity}", mine, numbers, served.values)
    return served


def _compute_missing(
    plan: PipelinePlan,
    scored: LakeEvents,
    answers: Answers,
    asks: Asks,
    names: Sequence[str],
) -> None:
    """Compute features in log order that no snapshot holds."""
    for stage in plan.stages:
        of_stage = {f.name for f in stage.features} | {f"{a.view}__age_ms" for a in stage.ages}
        mine = [name for name in names if name in of_stage]
        if not mine:
            continue
        if not stage.direct or asks.position is None:
            rule = "ask for what snapshots hold"
            why = "is asked by key and time" if stage.direct else "does not read its source itself"
            hint = "take as_of='event'; snapshots hold it once a worker has run with it"
            where = f"entity {stage.entity}, which {why}"
            raise HistoryError(explain("as_of='served'", rule, mine[0], where, hint))
        emitted = np.zeros(len(asks), bool)
        for position, numbers in replay_direct(plan, stage, scored):
            ask = asks.find(position)
            rows = np.flatnonzero(ask != NOT_ASKED)
            if len(rows):
                values = np.stack([numbers[name][rows] for name in mine], axis=1)
                answers.add_numbers(f"{stage.entity}-log", mine, ask[rows], values)
                emitted[ask[rows]] = True
        answers.declare(f"{stage.entity}-log", mine)
        answers.answered &= emitted


def wanted_names(plan: PipelinePlan, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the names to look for: the wanted ones and the features that they are made of."""
    expressions: Mapping[str, object] = {c.name: c.expression for c in plan.vector}
    names: dict[str, None] = {}
    for name in wanted:
        names[name] = None
        expression = expressions.get(name)
        if expression is not None:
            names |= dict.fromkeys(features_of(expression))  # type: ignore[arg-type]
    return tuple(names)


def snapshot_keys(keys: pa.Array) -> pa.Array:
    """Return keys as snapshots write them: numbers in decimal, bytes in hex."""
    if pa.types.is_binary(keys.type):
        texts = [None if value is None else value.hex() for value in keys.to_pylist()]
        return pa.array(texts, pa.string())
    return keys.cast(pa.string())


def _last_up_to(code: Integers, stamp: Integers, asked: Integers, times: Integers) -> Integers:
    """Return for each ask the last index of its key with a time up to its own, -1 for none.

    ``code`` and ``stamp`` are sorted by both.
    """
    ends = np.full(len(asked), -1)
    order = np.lexsort((times, asked))
    starts = np.searchsorted(code, np.arange(code.max() + 2))
    for key in np.unique(asked[asked >= 0]).tolist():
        first, last = int(starts[key]), int(starts[key + 1])
        low, high = np.searchsorted(asked[order], [key, key + 1])
        mine = order[low:high]
        place = first + np.searchsorted(stamp[first:last], times[mine], side="right") - 1
        ends[mine] = np.where(place >= first, place, -1)
    return ends


def _nothing(count: int, width: int) -> Served:
    values = np.full((count, width), np.nan)
    return Served(values, np.zeros(count, bool), np.full(count, -1, dtype=np.int64), [])


def _place(names: list[str], name: str) -> int:
    return names.index(name) if name in names else -1


def _array(batch: pa.RecordBatch | pa.Table, name: str) -> pa.Array:
    column = batch.column(batch.schema.names.index(name))
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _time_ms(batch: pa.RecordBatch) -> Integers:
    ticks = _array(batch, _TIME).cast(pa.timestamp("ms", "UTC"), safe=False)
    times: Integers = ticks.view(pa.int64()).to_numpy(zero_copy_only=False)
    return times


def _numbers(batch: pa.RecordBatch, names: Sequence[str]) -> Floats:
    """Return columns as float64, NaN for null. Shape: (rows, len(names))."""
    numbers = np.empty((batch.num_rows, len(names)))
    for place, name in enumerate(names):
        column = pc.cast(_array(batch, name), pa.float64(), safe=False)
        numbers[:, place] = column.to_numpy(zero_copy_only=False)
    return numbers
