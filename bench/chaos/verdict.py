"""What a fault did to the outputs: they are compared with those of a run without faults."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bench.chaos.reader import OUTPUTS, Reader, Seen, read_at_end
from bench.measure import read_topic
from bench.outputs import OutputDecoder
from headrace.streams.testing import ARRIVAL_TIME_MS, Driver, Message

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence

    from bench.live import LiveProject

#: What names the topic or the program that a record came from; all else must be equal, bit by bit.
NOT_COMPARED = frozenset({"prediction_id", "source_topic_id", "engine"})
CATCH_UP_S = 20.0

Rows = dict[str, list[tuple["Hashable", ...]]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How outputs differ from those without faults; see ``Outcome``."""

    events: int
    lost: int
    duplicated: int
    reordered: int
    wrong: int

    @property
    def differ(self) -> int:
        """In how many ways they differ."""
        return self.lost + self.duplicated + self.reordered + self.wrong


@dataclass(frozen=True, slots=True)
class Outputs:
    """The rows of one output topic, in order per partition, as what is compared.

    ``ids`` are the event ids, ``contents`` all other columns with floats as their bits, ``keys``
    the values of the last stage's key, by which the topic is ordered.
    """

    ids: list[str]
    contents: list[tuple[Hashable, ...]]
    keys: list[Hashable]

    @classmethod
    def of(
        cls, batch: pa.RecordBatch | pa.Table, key: str, without: Collection[str] = ()
    ) -> Outputs:
        """Take the columns apart, leaving some out of the comparison."""
        left_out = {*NOT_COMPARED, "event_id", *without}
        names = [name for name in batch.schema.names if name not in left_out]
        columns = [_bits(batch.column(name)) for name in names]
        return cls(
            batch.column("event_id").to_pylist(),
            list(zip(*columns, strict=True)),
            batch.column(key).to_pylist(),
        )

    def by_event(self) -> dict[str, Counter[tuple[Hashable, ...]]]:
        """Return how often an event came out, and with what."""
        found: dict[str, Counter[tuple[Hashable, ...]]] = defaultdict(Counter)
        for event_id, content in zip(self.ids, self.contents, strict=True):
            found[event_id][content] += 1
        return found


def _bits(column: pa.Array | pa.ChunkedArray) -> list[Hashable]:
    if pa.types.is_floating(column.type):
        known: np.ndarray = column.fill_null(0.0).to_numpy(zero_copy_only=False)
        bits = known.astype(np.float64).view(np.int64).tolist()
        nulls = column.is_null().to_pylist()
        return [None if null else bit for null, bit in zip(nulls, bits, strict=True)]
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    values: list[Hashable] = column.to_pylist()
    return values


@dataclass(frozen=True, slots=True)
class Oracle:
    """What should have come out, from runs in memory without broker or faults.

    Attributes:
        outputs: By topic, what the records that were sent come to.
        log_decides: Columns that are not compared with those: what a later stage computes depends
            on the order in which several source partitions reached its log, which only the log
            itself knows.
        from_log: By topic, what the last stage makes of the log that it was given; None where the
            records decide all.

    """

    outputs: Mapping[str, Outputs]
    log_decides: frozenset[str]
    from_log: Mapping[str, Outputs] | None


def without_faults(
    project: LiveProject, sent: Iterable[tuple[int, Mapping[str, object] | None]]
) -> Oracle:
    """Return what should come of records (partition, record), given in the order of sending.

    None is one that must not count: it takes a place in the log, and that is all.
    """
    plan = project.plan
    driver = Driver(plan, partitions=project.partitions, output_partitions=1)
    topic = plan.source_plan(plan.source).topic
    for counts, some in itertools.groupby(sent, lambda one: one[1] is not None):
        records = list(some)
        if counts:
            driver.send(plan.source, [one for _, one in records if one], [p for p, _ in records])
            continue
        for partition, _ in records:
            driver.send_raw(topic, partition, Message(None, None, [], ARRIVAL_TIME_MS))
    driver.run()
    later = [stage for stage in plan.stages if not stage.direct]
    decided = {feature.name for stage in later for feature in stage.features}
    decided |= {f"{age.view}__age_ms" for stage in later for age in stage.ages}
    if later:
        decided |= {column.name for column in plan.vector if column.kind == "derived"}
    log_decides = frozenset(decided)
    from_log = _of_driver(project, _last_stage_over(project, later[-1].topic)) if later else None
    return Oracle(_of_driver(project, driver, log_decides), log_decides, from_log)


def _last_stage_over(project: LiveProject, topic: str) -> Driver:
    """Run the last stage over what its committed log holds."""
    driver = Driver(project.plan, partitions=project.partitions, output_partitions=1)
    for place, owned in driver.owned.items():
        owned.paused = place[0] != topic
    counts = len([place for place in driver.owned if place[0] == topic])
    for one in read_topic(project.bootstrap_servers, topic, counts):
        message = Message(one.key(), one.value(), one.headers() or [], one.timestamp()[1])
        driver.send_raw(topic, one.partition(), message)
    driver.run()
    return driver


def _of_driver(
    project: LiveProject, driver: Driver, without: Collection[str] = ()
) -> Mapping[str, Outputs]:
    key = _key(project)
    return {
        "predictions": Outputs.of(driver.predictions(), key, without),
        "snapshots": Outputs.of(driver.snapshots(), key, without),
    }


def judge(
    project: LiveProject, oracle: Oracle, order: Mapping[str, int], reader: Reader
) -> Verdict:
    """Compare what is committed with what is expected.

    Args:
        project: Whose outputs.
        oracle: What is expected.
        order: By event id, its place among the events of its key.
        reader: Who looked on; what it saw must be what there is.

    """
    decoder = {name: OutputDecoder(project.environment.endpoints.registry_url) for name in OUTPUTS}
    key = _key(project)
    lost = duplicated = reordered = wrong = 0
    for name in OUTPUTS:
        expected = oracle.outputs[name]
        there = read_at_end(project, name)
        reader.wait(lambda: len(reader.records(name)) >= len(there), CATCH_UP_S)  # noqa: B023
        wrong += unlike(reader.records(name), there)
        if not there:
            lost += len(expected.ids)
            continue
        batch = decoder[name].decode([one.value for one in there])
        found = Outputs.of(batch, key, oracle.log_decides)
        one = compare(expected, found)
        lost, duplicated, wrong = lost + one.lost, duplicated + one.duplicated, wrong + one.wrong
        if oracle.from_log is not None:
            wrong += compare(oracle.from_log[name], Outputs.of(batch, key)).differ
        reordered += inversions(found, [one.partition for one in there], order)
    events = len(oracle.outputs["predictions"].ids)
    return Verdict(events, lost, duplicated, reordered, wrong)


def compare(expected: Outputs, found: Outputs) -> Verdict:
    """Compare rows as multisets, by event."""
    wanted, there = expected.by_event(), found.by_event()
    lost = duplicated = wrong = 0
    for event_id in wanted.keys() | there.keys():
        asked = wanted.get(event_id, Counter())
        came = there.get(event_id, Counter())
        lost += max(0, asked.total() - came.total())
        duplicated += max(0, came.total() - asked.total())
        # Of as many as should be there, those that nobody expects.
        wrong += min((came - asked).total(), (asked - came).total())
    return Verdict(len(expected.ids), lost, duplicated, 0, wrong)


def inversions(found: Outputs, partitions: Sequence[int], order: Mapping[str, int]) -> int:
    """Return how many rows stand after a later one of their key, in a partition.

    A partition of the outputs holds what a source partition led to; of several, no order is asked,
    nor of an event without a place.
    """
    last: dict[tuple[int, Hashable], int] = {}
    count = 0
    for event_id, key, partition in zip(found.ids, found.keys, partitions, strict=True):
        place, before = order.get(event_id), last.get((partition, key), -1)
        if place is None:
            continue
        count += before > place
        last[partition, key] = max(place, before)
    return count


def unlike(seen: Iterable[Seen], there: Iterable[Seen]) -> int:
    """Return how many records a reader saw that are not there, not once, or not in order."""

    def by_partition(records: Iterable[Seen]) -> dict[int, list[tuple[int, bytes]]]:
        found: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        for one in records:
            found[one.partition].append((one.offset, one.value))
        return found

    looked_on, final = by_partition(seen), by_partition(there)
    count = 0
    for partition in looked_on.keys() | final.keys():
        mine, theirs = looked_on.get(partition, []), final.get(partition, [])
        if mine != theirs:
            difference = Counter(mine) - Counter(theirs) + (Counter(theirs) - Counter(mine))
            count += max(1, difference.total())
    return count


def _key(project: LiveProject) -> str:
    return f"{project.plan.stages[-1].entity}_key"
