"""Rows of the fault matrix whose fault is in the log: its order, its gaps; and workers' clocks."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

import headrace as hr
from bench.chaos.payments import (
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
from bench.chaos.plain import HOUR_MS, Feature, Found, added, expected, found
from bench.chaos.reader import read_at_end
from bench.chaos.rows import Outcome, Row, Size
from bench.chaos.scene import EVENT_STEP_MS, START_MS, Scene, wait
from bench.chaos.verdict import Outputs, Verdict, compare
from bench.live import TWO_ENTITIES
from bench.measure import CLOCK, BenchError, read_topic
from headrace.runtime.clock import OFFSET_FILE_VARIABLE
from headrace.runtime.kafka import admin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pyarrow as pa
    from confluent_kafka import Message
    from confluent_kafka.admin import AdminClient

    from bench.chaos import plain
    from bench.chaos.rows import Lab
    from bench.live import LiveProject, LiveWorker

SHOPS = 20
CUSTOMER = (Feature("customer__count_1h", "count"),)
SHOP = (
    Feature("shop__count_1h", "count", "shop"),
    Feature("shop__amount_sum_1h", "sum", "shop", "amount"),
)
LATENESS_MS = HOUR_MS

# --- Row 38 ---------------------------------------------------------------------------------------

#: How events of a source partition come: in order, late by up to half an hour, mostly by minutes
#: and sometimes by hours, or not at all for an hour.
IN_ORDER, UNIFORM, HEAVY_TAIL, STALLED = range(4)
TAIL, TAIL_MS, TAIL_MS_MAX = 1.2, 180_000, 6 * HOUR_MS


def out_of_order(lab: Lab, size: Size) -> Outcome:
    """Row 38: events come late, each partition's in its own way; a worker is killed meanwhile.

    Each output is what the log before it says at the event's own time; when all have come, what
    the sorted events say; history over the lake says the same of both orders.
    """
    with Scene(lab, "s", definitions=TWO_ENTITIES) as scene:
        sent, rows = _disordered(scene.project, lab.seed, size.events)
        play(scene, sent)
        # All others are through: whatever order these come in, they see all of them.
        last = _last_of_each_shop(size.events)
        sent += [message(scene.project, row) for row in last]
        scene.project.send([one[:2] for one in sent[-len(last) :]])
        wait_predicted(scene, len(counting(sent)))
        scene.stop_workers()
        verdict = judged(scene, sent, CUSTOMER)
        kept, said = kept_verdict(scene.project, sent, [])
        in_order = sorted([*rows, *last], key=_time_ms)
        applied = {row["payment_id"] for row in counting(sent)}
        at_last = _differ_at_last(
            scene.project, [row for row in in_order if row["payment_id"] in applied], len(last)
        )
        offline = _history_differs(scene, in_order)
    wrong = Verdict(0, 0, 0, 0, at_last + offline)
    late = sum(one.fate == "late" for one in sent)
    note = f"{late} too late; at the end {at_last} differ from the sorted events, offline {offline}"
    outcome = Outcome.of(1, [added(added(verdict, kept), wrong)], met=late > 0, note=note + said)
    # Of rows that come out of order, none is promised: a stage emits what it released by time.
    return dataclasses.replace(outcome, reordered=None)


def _time_ms(row: plain.Row) -> int:
    time_ms = row["event_time"]
    assert isinstance(time_ms, int)
    return time_ms


def _disordered(project: LiveProject, seed: int, count: int) -> tuple[list[Sent], list[plain.Row]]:
    """Return what is sent in its order, and the rows in that of event time."""
    draw = np.random.default_rng(seed)
    rows = [{**row, "shop": int(draw.integers(0, SHOPS))} for row in draw_payments(seed, count)]
    stall_ms = START_MS + STEP_MS * count // 3
    coming = []
    for row in rows:
        time_ms = _time_ms(row)
        partition = project.place(str(row["customer_id"]).encode())
        turn_ms = time_ms
        if partition == UNIFORM:
            turn_ms += int(draw.integers(0, HOUR_MS // 2))
        elif partition == HEAVY_TAIL:
            turn_ms += min(TAIL_MS_MAX, int(TAIL_MS * draw.pareto(TAIL)))
        elif partition == STALLED and stall_ms <= time_ms < stall_ms + HOUR_MS:
            turn_ms = stall_ms + HOUR_MS
        coming.append((turn_ms, time_ms, partition, row))
    coming.sort(key=lambda one: one[:2])
    newest_ms: dict[int, int] = {}
    sent = []
    for _, time_ms, partition, row in coming:
        newest_ms[partition] = max(newest_ms.get(partition, 0), time_ms)
        late = time_ms < newest_ms[partition] - LATENESS_MS
        sent.append(message(project, row, "late" if late else "", counts=not late))
    return sent, rows


def _last_of_each_shop(first: int) -> list[plain.Row]:
    end_ms = START_MS + STEP_MS * first
    return [
        {
            "payment_id": first + shop,
            "event_time": end_ms + shop,
            "customer_id": f"c{shop}",
            "amount": 1.0,
            "shop": shop,
        }
        for shop in range(SHOPS)
    ]


def _differ_at_last(project: LiveProject, in_order: Sequence[plain.Row], count: int) -> int:
    """Return how many of each shop's last events differ from what the sorted events say."""
    features = (*CUSTOMER, *SHOP)
    wanted = expected(in_order, features)
    ids = set(wanted.ids[-count:])
    there = found(project, read_at_end(project, "snapshots")).outputs(features)
    return compare(_only(wanted, ids), _only(there, ids)).differ


def _only(outputs: Outputs, ids: set[str]) -> Outputs:
    places = [place for place, event_id in enumerate(outputs.ids) if event_id in ids]
    return Outputs(
        [outputs.ids[place] for place in places],
        [outputs.contents[place] for place in places],
        [outputs.keys[place] for place in places],
    )


def _history_differs(scene: Scene, in_order: Sequence[plain.Row]) -> int:
    """Return how many answers of history differ: as served, and in the order of event time."""
    project, features = scene.project, (*CUSTOMER, *SHOP)
    command = [sys.executable, "-m", "headrace.cli.main", "lake", "--once"]
    subprocess.run([*command, "--project", str(scene.folder)], check=True, capture_output=True)
    served = hr.history(None, project.plan, project=scene.folder, as_of="served")
    there = found(project, read_at_end(project, "snapshots")).outputs(features)
    differ = compare(there, _answered(served, features)).differ
    event = hr.history(None, project.plan, project=scene.folder, sources="lake")
    # The late ones, too, are known by now, and count for those behind them.
    return differ + compare(expected(in_order, features), _answered(event, features)).differ


def _answered(table: pa.Table, features: Sequence[Feature]) -> Outputs:
    """Return history's answers in the form of ``expected``."""
    rows = [{**row, "event_id": row["payment_id"]} for row in table.to_pylist()]
    return Found(rows, []).outputs(features, "customer_id")


# --- Row 22 ---------------------------------------------------------------------------------------

COMPACTED = {
    "cleanup.policy": "compact",
    "segment.ms": 500,
    "min.cleanable.dirty.ratio": 0.01,
    "max.compaction.lag.ms": 1_000,
}
#: Rows of one transaction; every fourth is aborted.
TRANSACTION, ABORTED = 50, 4
#: What comes after the restores, and would show if a state came back other than it was.
AFTER = 300
COMPACT_LOOK_S = 0.6


def gaps(lab: Lab, size: Size) -> Outcome:
    """Row 22: a log with gaps: compacted, with tombstones, aborted transactions, and their marks.

    Events come in transactions, several of each payment's key. Once the broker has compacted them,
    what is left is read; a worker is killed, another one starts without any checkpoint, and more
    transactions come. Nothing may wait for an offset that is not there.
    """
    settings = {"topics": {"partitions": 4, "properties": COMPACTED}}
    with Scene(lab, "s", definitions=SPENDING, settings=settings) as scene:
        project = scene.project
        rows = draw_payments(lab.seed, size.events)
        third = size.events // 3
        _in_transactions(project, rows[:third])
        cleaned, used = _compact(project, rows[third:])
        rest = rows[third + used :]
        # Not once it is ready: by then, all that there is may be out.
        worker = scene.start(ordinal=0, own_state=True)
        scene.one_more()
        worker.kill()
        worker = scene.started(ordinal=1, own_state=True)
        _in_transactions(project, rest[:-AFTER])
        wait_predicted(scene, len(counting(_log(project, rows))))
        ends = sum(_ends(project).values())
        at_end = scene.reader.wait(lambda: project.committed() == ends, WAIT_S)
        lag = _lag(worker)
        scene.stop_workers()
        # Whatever it restores from: a checkpoint first, then nothing but the log.
        again_s: list[float] = []
        log: list[Sent] = []
        for ordinal in (1, 2):
            begin_s = time.monotonic()
            worker = scene.started(ordinal=ordinal, own_state=True)
            wait(functools.partial(_is_restored, worker, project), "an end of the restore")
            again_s.append(time.monotonic() - begin_s)
            first = -AFTER if ordinal == 1 else -AFTER // 2
            _in_transactions(project, rest[first:][: AFTER // 2])
            log = _log(project, rows)
            wait_predicted(scene, len(counting(log)))
            scene.stop_workers()
        sent = [one for one in log if one.fate != "gap"]
        verdict = judged(scene, log)
        kept, said = kept_verdict(project, sent, ["empty"])
    tombstones = sum(one.fate == "empty" for one in sent)
    met = at_end and lag == 0 and cleaned > 0 and tombstones > 0 and len(sent) < len(log)
    note = (
        f"{len(sent):,} records on {ends:,} offsets, {cleaned:,} compacted away, {tombstones}"
        f" tombstones; committed to the end: {at_end}, lag {lag:.0f}; restored in"
        f" {again_s[0]:.1f} s, without a checkpoint in {again_s[1]:.1f} s, process start included"
    )
    return Outcome.of(2, [added(verdict, kept)], met=met, note=note + said)


def _in_transactions(project: LiveProject, rows: Sequence[plain.Row]) -> None:
    """Send rows in transactions of some; every few are aborted, and each ends with a tombstone."""
    producer = Producer(
        {
            "bootstrap.servers": project.bootstrap_servers,
            "transactional.id": f"{project.topic('payments')}.producer",
            "linger.ms": 0,
        }
    )
    producer.init_transactions(30.0)
    topic = project.topic("payments")
    for number, first in enumerate(range(0, len(rows), TRANSACTION)):
        producer.begin_transaction()
        some = [message(project, row) for row in rows[first : first + TRANSACTION]]
        for key, value in [*(one[:2] for one in some), (some[0].key, None)]:
            producer.produce(topic, value, key, project.place(key))
        if number % ABORTED == ABORTED - 1:
            producer.flush(30.0)
            producer.abort_transaction(30.0)
        else:
            producer.commit_transaction(30.0)


def _compact(project: LiveProject, more: Sequence[plain.Row]) -> tuple[int, int]:
    """Wait until the broker has compacted something, and let it compact no more.

    Returns how many records are gone, and how many of ``more`` were sent: a segment is only
    compacted once another one has begun.
    """
    topic, client = project.topic("payments"), admin(project.environment.client)
    for broker in client.list_topics(timeout=10).brokers:
        resource = ConfigResource(ResourceType.BROKER, str(broker))
        _configure(client, resource, "log.cleaner.backoff.ms", "200")
    most, used = 0, 0
    deadline_s = time.monotonic() + WAIT_S
    while True:
        there = len(_records(project))
        most = max(most, there)
        if most - there >= SHOPS:
            break
        if time.monotonic() > deadline_s or used >= len(more):
            msg = f"the broker must compact {topic}; there are {there} of {most} records"
            raise BenchError(msg)
        _in_transactions(project, more[used : used + TRANSACTION])
        used += TRANSACTION
        time.sleep(COMPACT_LOOK_S)
    _configure(client, ConfigResource(ResourceType.TOPIC, topic), "cleanup.policy", "delete")
    before = -1
    while before != there:
        before, there = there, len(_records(project))
        time.sleep(COMPACT_LOOK_S)
    return most - there, used


def _configure(client: AdminClient, what: ConfigResource, name: str, value: str) -> None:
    what.add_incremental_config(
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    )
    for future in client.incremental_alter_configs([what]).values():
        future.result(30.0)


def _records(project: LiveProject) -> list[Message]:
    return list(
        read_topic(project.bootstrap_servers, project.topic("payments"), project.partitions)
    )


def _log(project: LiveProject, rows: Sequence[plain.Row]) -> list[Sent]:
    """Return what a reader finds, in the order of each partition, with what stands for the gaps."""
    ends, keys = _ends(project), key_of_each_partition(project)
    by_place = {(one.partition(), one.offset()): one for one in _records(project)}
    log = []
    for partition, end in ends.items():
        for offset in range(end):
            one = by_place.get((partition, offset))
            value = None if one is None else one.value()
            if one is None:
                log.append(Sent(keys[partition].encode(), b"", None, "gap"))
            elif value is None:
                log.append(Sent(one.key(), b"", None, "empty"))
            else:
                row = rows[project.decode(value)["payment_id"]]
                log.append(Sent(one.key(), value, row))
    return log


def _ends(project: LiveProject) -> dict[int, int]:
    """Return by partition of the source the offset behind its last record or mark."""
    consumer = Consumer({"bootstrap.servers": project.bootstrap_servers, "group.id": "chaos.ends"})
    topic = project.topic("payments")
    found = {
        partition: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1]
        for partition in range(project.partitions)
    }
    consumer.close()
    return found


def _lag(worker: LiveWorker) -> float:
    """Return how many offsets the worker says are left, once it has looked again."""
    with contextlib.suppress(BenchError):
        wait(lambda: _told(worker, "headrace_lag_records") == 0, "no lag", 10.0)
    return _told(worker, "headrace_lag_records")


def _told(worker: LiveWorker, name: str) -> float:
    """Return the sum of a metric's samples."""
    return sum((v for one, v in worker.metrics().items() if one.split("{")[0] == name), 0.0)


def _is_restored(worker: LiveWorker, project: LiveProject) -> bool:
    owned = _told(worker, "headrace_partitions") == project.partitions
    return owned and not _told(worker, "headrace_replay_records")


# --- Row 39 ---------------------------------------------------------------------------------------

SKEW_MS = 600_000
AHEAD_MS = 240_000


def wrong_clocks(lab: Lab, size: Size) -> Outcome:
    """Row 39: workers' clocks are ten minutes ahead and behind, and are set back while they run.

    One of two workers is ahead, the other one behind; they change places, again and again, while
    events come; then one is killed, and the next has yet another time. The last events are minutes
    ahead of the broker, as far as they may: to who asked a clock that is behind, they were too far.
    """
    with Scene(lab, "s", definitions=TWO_ENTITIES) as scene:
        scene.events.start_ms = CLOCK.now_ms() + AHEAD_MS - EVENT_STEP_MS * size.events
        offsets = [_Offset(scene.folder / f"offset-{number}") for number in range(3)]
        for offset, skew_ms in zip(offsets, (SKEW_MS, -SKEW_MS, -2 * SKEW_MS), strict=True):
            offset.set(skew_ms)
        ahead = scene.started(environment=offsets[0].environment)
        scene.send(size.events // 10)
        ahead.wait_for("headrace_end_to_end_seconds_count", 1)
        wrong_s = _mean_age_s(ahead)
        behind = scene.started(environment=offsets[1].environment)
        scene.feed(size.events - scene.sent, size.seconds)
        for number in range(size.runs):
            time.sleep(size.seconds / (size.runs + 2))
            offsets[number % 2].set(-SKEW_MS)
            offsets[1 - number % 2].set(SKEW_MS)
            lab.advance(number + 1)
        behind.kill()
        scene.started(environment=offsets[2].environment)
        verdict = scene.verdict()
        stamped = _stamped_by_broker(scene.project)
    # Were the clock not wrong, this would be some seconds at most.
    met = wrong_s > 0.9 * SKEW_MS / 1_000 and stamped
    note = f"a worker took its events to be {wrong_s:.0f} s old; set back {size.runs} times"
    return Outcome.of(size.runs, [verdict], met=met, note=note)


def _mean_age_s(worker: LiveWorker) -> float:
    """Return how old a worker took its events to be when it had scored them."""
    metrics = worker.metrics()
    name = "headrace_end_to_end_seconds"
    totals = [
        sum(value for one, value in metrics.items() if one.split("{")[0] == f"{name}_{part}")
        for part in ("sum", "count")
    ]
    return float(totals[0] / totals[1])


class _Offset:
    """By how much a worker's clock is wrong, in a file that is replaced as a whole."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.environment = {OFFSET_FILE_VARIABLE: str(file)}

    def set(self, offset_ms: int) -> None:
        """Make the clock wrong by so many ms from now on."""
        written = self._file.with_suffix(".new")
        written.write_text(str(offset_ms), encoding="ascii")
        written.replace(self._file)


def _stamped_by_broker(project: LiveProject) -> bool:
    """Return whether every time in a log that a stage reads is the broker's."""
    topics = {project.topic("payments"), *(stage.topic for stage in project.plan.stages)}
    return all(
        one.timestamp()[0] == TIMESTAMP_LOG_APPEND_TIME
        for topic in topics
        for one in read_topic(project.bootstrap_servers, topic, project.partitions)
    )


ROWS = (
    Row(
        22,
        "a compacted source with tombstones and aborted transactions",
        "committed to the end, restores end",
        gaps,
        full=Size(runs=1, events=20_000),
    ),
    Row(
        38,
        "events out of order: uniform, heavy tail, a partition an hour behind",
        "each as the log before it says; at the end as sorted; too late: late topic; offline equal",
        out_of_order,
        full=Size(runs=1, events=40_000),
        ci=Size(runs=1, events=5_000),
    ),
    Row(
        39,
        "workers' clocks 10 min ahead and behind, set back while events come",
        "no output changes",
        wrong_clocks,
        full=Size(runs=10, events=60_000, seconds=30.0),
        ci=Size(runs=2, events=3_000, seconds=4.0),
    ),
)
