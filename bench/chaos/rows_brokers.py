"""Rows of the fault matrix whose fault is a broker's: bounced, killed, too few, or not there."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import time
from typing import TYPE_CHECKING, Self

import httpx
import psutil

from bench.chaos.nodes import cluster_of, cluster_stack
from bench.chaos.reader import OUTPUTS
from bench.chaos.rows import Outcome, Row, Size
from bench.chaos.scene import Instant, Scene, wait, wait_said
from bench.chaos.verdict import judge, without_faults
from bench.measure import MIB, BenchError, read_topic
from headrace.runtime import topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.chaos.rows import Lab
    from bench.chaos.verdict import Verdict
    from bench.live import LiveWorker
    from headrace.runtime.dev.cluster import Cluster

NODES = 3
#: For how long events come in around a fault of one node, and how long the node stays away.
FED_S, AWAY_S = 15.0, 2.0
#: Enough that the worker's memory has the size of work before anything is compared with it.
WARM = 5_000
WIRE_HEADER_BYTES = 5
FEW = 20
SAMPLE_S, TICK_S = 0.1, 0.02
WAIT_S = 120.0
PROBE_TIMEOUT_S = 5.0
RSS_GROWTH_MB_MAX = 50.0
ABORTED = "headrace_transactions_aborted_total"
UNKNOWN = "headrace_transactions_unknown_total"


class Watch:
    """Samples a worker's memory and its ``/ready``, on a thread, until left.

    Attributes:
        grown_mb: How much more memory it had at most than at the beginning, MiB.
        ready: What it said, with the instants (``time.monotonic()``) of the answers.

    """

    def __init__(self, worker: LiveWorker) -> None:
        """Begin."""
        self._process = psutil.Process(worker.process.pid)
        self._url = worker.url.removesuffix("/metrics") + "/ready"
        self._first_b = self._process.memory_info().rss
        self._stopping = threading.Event()
        self.grown_mb = 0.0
        self.ready: list[tuple[float, bool]] = []
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping.set()
        self._thread.join()

    def said(self, *, ready: bool, since_s: float) -> float | None:
        """Return when it first said so at or after an instant; None: it has not."""
        found = (at_s for at_s, said in list(self.ready) if said == ready and at_s >= since_s)
        return next(found, None)

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_S):
            with contextlib.suppress(psutil.NoSuchProcess, httpx.TransportError):
                used_b = self._process.memory_info().rss
                self.grown_mb = max(self.grown_mb, (used_b - self._first_b) / MIB)
                answer = httpx.get(self._url, timeout=PROBE_TIMEOUT_S)
                self.ready.append((time.monotonic(), answer.is_success))


def pause_s(scene: Scene, begin_s: float, end_s: float) -> float:
    """Return the longest time in which a partition of the outputs gave nothing, seconds."""
    longest_s = 0.0
    records = scene.reader.records("predictions")
    for partition in range(scene.project.partitions):
        seen = sorted(
            one.seen_s
            for one in records
            if one.partition == partition and begin_s <= one.seen_s <= end_s
        )
        gaps = itertools.pairwise([begin_s, *seen, end_s])
        longest_s = max(longest_s, *(later - sooner for sooner, later in gaps))
    return longest_s


def verdict_by_log(scene: Scene) -> tuple[Verdict, int]:
    """Judge outputs by what the source's log holds, and return how many events it holds again.

    A producer whose node dies may send again what that node had already passed on, also an
    idempotent one (librdkafka 2.16: seen). What the log holds twice must come out twice.
    """
    project, rows = scene.project, scene.events.rows
    log = [
        (one.partition(), rows[_payment_id(one.value())])
        for one in read_topic(
            project.bootstrap_servers, project.topic("payments"), project.partitions
        )
    ]
    again = len(log) - len({row[0] for _, row in log})
    scene.reader.wait(lambda: scene.reader.count() >= len(log), WAIT_S)
    scene.stop_workers()
    place = {str(row[0]): number for number, row in enumerate(rows)}
    expected = without_faults(project, [(at, project.record(*row)) for at, row in log])
    found = judge(project, expected, place, scene.reader)
    missing = len(rows) - len({row[0] for _, row in log})
    mixed = len(OUTPUTS) * _inversions(log)
    return (
        dataclasses.replace(
            found, lost=found.lost + missing, reordered=max(0, found.reordered - mixed)
        ),
        again,
    )


def _payment_id(value: bytes) -> int:
    """Return the first field of a payment in wire format, a zigzag varint."""
    number = shift = 0
    for byte in value[WIRE_HEADER_BYTES:]:
        number |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
    return number >> 1 ^ -(number & 1)


def _inversions(log: Sequence[tuple[int, tuple[object, ...]]]) -> int:
    """Return how many events stand in the source behind a later one of their key."""
    last: dict[object, int] = {}
    count = 0
    for number, _, key, *_ in (row for _, row in log):
        assert isinstance(number, int)
        count += last.get(key, -1) > number
        last[key] = max(number, last.get(key, -1))
    return count


def _drained(scene: Scene) -> None:
    if not scene.drained(WAIT_S):
        msg = f"all events must come out; see {scene.folder}"
        raise BenchError(msg)


# --- One of three nodes ---------------------------------------------------------------------------


def bounce(lab: Lab, size: Size) -> Outcome:
    """Row 8: the node that leads an output partition is stopped in order and started again."""

    def strike(scene: Scene, cluster: Cluster, number: int) -> int:
        node = _leader(scene, cluster, number)
        cluster.stop(node)
        return node

    return _one_by_one(lab, size, strike, pause_s_max=10.0)


def kill_node(lab: Lab, size: Size) -> Outcome:
    """Row 9: the node that leads an output partition, then the controller's, is killed."""

    def strike(scene: Scene, cluster: Cluster, number: int) -> int:
        node = cluster.controller() if number % 2 else _leader(scene, cluster, number // 2)
        cluster.kill(node)
        return node

    return _one_by_one(lab, size, strike, pause_s_max=30.0)


def kill_coordinator(lab: Lab, size: Size) -> Outcome:
    """Row 12: the node that decides the worker's open transaction, then the group's, is killed."""

    def strike(scene: Scene, cluster: Cluster, number: int) -> int:
        group = topics.group(scene.project.plan.project, scene.project.plan.name)
        if number % 2:
            node = cluster.group_coordinator(group)
        else:
            node = cluster.transaction_coordinator(f"{group}.0")
        with scene.uncommitted_reader() as reader:
            seen = reader.count()
            # What comes next belongs to a transaction that is open or was a moment ago.
            reader.wait(lambda: reader.count() > max(seen, scene.reader.count()), WAIT_S)
            cluster.kill(node)
        return node

    return _one_by_one(lab, size, strike, pause_s_max=30.0)


def _supervised(scene: Scene, worker: LiveWorker) -> tuple[LiveWorker, int]:
    """Wait for all outputs, start a worker that ends again, as whoever runs it would.

    Return who runs now, and how often one has ended.
    """
    ends = 0
    deadline_s = time.monotonic() + WAIT_S
    while scene.reader.distinct() < scene.sent:
        if worker.process.poll() is not None:
            ends += 1
            worker = scene.start(ordinal=0)
        if time.monotonic() > deadline_s:
            msg = f"all events must come out; see {scene.folder}"
            raise BenchError(msg)
        time.sleep(TICK_S)
    return worker, ends


def _leader(scene: Scene, cluster: Cluster, number: int) -> int:
    topic = scene.project.topic("predictions")
    node = cluster.leader(topic, number % scene.project.partitions)
    assert node > 0, "all copies are caught up, so there is a leader"
    return node


def _one_by_one(
    lab: Lab,
    size: Size,
    strike: Callable[[Scene, Cluster, int], int],
    pause_s_max: float,
) -> Outcome:
    """Strike a node, bring it back, and wait until all is well, again and again."""
    cluster = cluster_of(lab.stack_folder, NODES)
    pauses_s: list[float] = []
    ends = 0
    with Scene(lab, "s", replication=NODES) as scene:
        worker = scene.started(ordinal=0)
        for number in range(size.runs):
            scene.feed(size.events // size.runs, FED_S)
            scene.one_more()
            begin_s = time.monotonic()
            node = strike(scene, cluster, number)
            struck_s = time.monotonic() - begin_s
            time.sleep(AWAY_S)
            cluster.start(node, wait=False)
            worker, ended = _supervised(scene, worker)
            ends += ended
            pauses_s.append(pause_s(scene, begin_s, time.monotonic()))
            lab.say(f"node {node}: {struck_s:.1f} s to end, pause {pauses_s[-1]:.1f} s")
            cluster.wait_ready(node)
            cluster.wait_in_sync()
            lab.advance(number + 1)
        worker.wait_ready()
        metrics = worker.metrics()
        verdict, again = verdict_by_log(scene)
    pauses = ", ".join(f"{one:.1f}" for one in pauses_s)
    note = (
        f"longest pauses of a partition: {pauses} s; {metrics[ABORTED]:.0f} transactions undone,"
        f" {metrics[UNKNOWN]:.0f} outcomes looked up; {again} events were sent again;"
        f" {ends} times the worker ended and was started again"
    )
    met = max(pauses_s) <= pause_s_max
    return Outcome.of(size.runs, [verdict], max(pauses_s), met=met, note=note)


# --- Too few nodes --------------------------------------------------------------------------------


def too_few(lab: Lab, size: Size) -> Outcome:
    """Row 16: two of three nodes are stopped in order: outputs are refused, the source goes on.

    The one that stays leads all; it takes what comes to the source, whose topic asks for one copy.
    """
    cluster = cluster_of(lab.stack_folder, NODES)
    recovery_s: list[float] = []
    grown_mb: list[float] = []
    fine = True
    # Only of the sources' topics.
    one_copy = {"partitions": 4, "properties": {"min.insync.replicas": 1}}
    with Scene(lab, "s", replication=NODES, settings={"topics": one_copy}) as scene:
        source = scene.project.topic("payments")
        worker = scene.started()
        scene.send(WARM)
        _drained(scene)
        for number in range(size.runs):
            # While there is a controller, who goes hands over in order what it leads.
            stays = cluster.controller()
            away = [node for node in cluster.nodes if node != stays]
            with Watch(worker) as watch:
                for node in away:
                    cluster.stop(node)
                begin_s = time.monotonic()
                scene.feed(size.events // size.runs, size.seconds / 2)
                time.sleep(max(0.0, begin_s + size.seconds - time.monotonic()))
                metrics = worker.metrics()
                lag = _lag(metrics, source)
                before = metrics[ABORTED]
                alive = worker.process.poll() is None
                unready_s = watch.said(ready=False, since_s=begin_s)
                # With the start of two processes.
                since = Instant.now()
                cluster.start(*away)
                _drained(scene)
                found = scene.recovery_s(since)
                assert found is not None, "what is drained has come out"
                recovery_s.append(found)
                cluster.wait_in_sync()
            grown_mb.append(watch.grown_mb)
            told = lag >= 0.9 * (size.events // size.runs)
            fine = fine and alive and told and unready_s is not None
            lab.say(
                f"lag {lag:,.0f} of {size.events // size.runs:,}, grown {watch.grown_mb:.1f} MB,"
                f" not ready {unready_s is not None}, undone {before:.0f}, alive {alive}"
            )
            lab.advance(number + 1)
        verdict, again = verdict_by_log(scene)
    note = (
        f"memory +{max(grown_mb):.0f} MB at most, "
        f"{'lag told, not ready meanwhile' if fine else 'NOT alive, not ready, and lag told'};"
        f" {again} events were sent again"
    )
    met = fine and max(grown_mb) <= RSS_GROWTH_MB_MAX
    return Outcome.of(size.runs, [verdict], max(recovery_s), met=met, note=note)


def _lag(metrics: dict[str, float], topic: str) -> float:
    return sum(
        value
        for name, value in metrics.items()
        if name.startswith("headrace_lag_records{") and f'topic="{topic}"' in name
    )


# --- No broker ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _own(lab: Lab, name: str) -> Iterator[tuple[Lab, Cluster]]:
    """Run a broker of the row's own, so that no other row misses it."""
    folder = lab.folder / name
    with cluster_stack(folder, 1) as endpoints:
        own = dataclasses.replace(lab, endpoints=endpoints, stack_folder=folder)
        yield own, cluster_of(folder, 1)


def away(lab: Lab, size: Size) -> Outcome:
    """Row 10: there is no broker for ``seconds``; the worker waits, and says that it does."""
    recovery_s: list[float] = []
    grown_mb: list[float] = []
    unready_s: list[float] = []
    ready_s: list[float] = []
    alive = True
    with _own(lab, "stack") as (own, cluster), Scene(own, "s") as scene:
        worker = scene.started()
        scene.send(WARM)
        _drained(scene)
        for number in range(size.runs):
            feed = scene.feed(size.events // size.runs, 4.0)
            scene.one_more()
            with Watch(worker) as watch:
                # In order, or with no chance to say so.
                end = cluster.kill if number % 2 else cluster.stop
                end(1)
                begin_s = time.monotonic()
                while time.monotonic() - begin_s < size.seconds:
                    alive = alive and worker.process.poll() is None
                    time.sleep(SAMPLE_S)
                unready = watch.said(ready=False, since_s=begin_s)
                lied = any(said for at, said in watch.ready if unready and at > unready)
                cluster.start(1)
                since = Instant.now()
                scene.send(FEW)
                found = scene.recovery_s(since, WAIT_S)
                recovery_s.append(WAIT_S if found is None else found)
                wait(
                    lambda: watch.said(ready=True, since_s=since.monotonic_s) is not None,  # noqa: B023
                    f"readiness of {worker.log}",
                )
                again = watch.said(ready=True, since_s=since.monotonic_s)
                assert again is not None
                ready_s.append(again - since.monotonic_s)
                feed.join()
                _drained(scene)
            grown_mb.append(watch.grown_mb)
            unready_s.append(size.seconds if unready is None or lied else unready - begin_s)
            lab.advance(number + 1)
        verdict, again = verdict_by_log(scene)
    note = (
        f"away {size.seconds:.0f} s; not ready after {max(unready_s):.1f} s, ready again"
        f" {max(ready_s):.1f} s after the broker; memory +{max(grown_mb):.0f} MB at most;"
        f" {again} events were sent again"
    )
    met = (
        alive
        and max(recovery_s) <= 15
        and max(ready_s) <= 15
        and max(unready_s) < size.seconds
        and max(grown_mb) <= RSS_GROWTH_MB_MAX
    )
    return Outcome.of(size.runs, [verdict], max(recovery_s), met=met, note=note)


def before(lab: Lab, size: Size) -> Outcome:
    """Row 11: a worker is started while there is no broker, which comes ``seconds`` later."""
    recovery_s: list[float] = []
    waits = 0
    with _own(lab, "stack") as (own, cluster), Scene(own, "s") as scene:
        for number in range(size.runs):
            scene.send(size.events // size.runs)
            cluster.stop(1)
            begin_s = time.monotonic()
            worker = scene.start()
            wait_said(worker, "waiting_for_infrastructure", 2)
            waits += worker.output().count("Kafka must answer")
            time.sleep(max(0.0, begin_s + size.seconds - time.monotonic()))
            cluster.start(1)
            since = Instant.now()
            found = scene.recovery_s(since, WAIT_S)
            recovery_s.append(WAIT_S if found is None else found)
            worker.wait_ready()
            _drained(scene)
            scene.stop_workers()
            lab.advance(number + 1)
        scene.started()
        verdict = scene.verdict()
    note = f"said {waits} times what it waits for"
    met = max(recovery_s) <= 10 and waits >= 2 * size.runs
    return Outcome.of(size.runs, [verdict], max(recovery_s), met=met, note=note)


ROWS = (
    Row(
        8,
        "the node that leads an output stopped in order, and started again",
        "no partition pauses for more than 10 s",
        bounce,
        full=Size(runs=5, events=30_000),
        nodes=NODES,
    ),
    Row(
        9,
        "kill -9 of the node that leads an output, and of the controller",
        "no partition pauses for more than 30 s",
        kill_node,
        full=Size(runs=10, events=60_000),
        nodes=NODES,
    ),
    Row(
        10,
        "no broker for 70 s",
        "alive, not ready, memory flat; goes on within 15 s",
        away,
        full=Size(runs=2, events=20_000, seconds=70.0),
        ci=Size(runs=1, events=1_000, seconds=10.0),
    ),
    Row(
        11,
        "a worker started before the broker",
        "says what it waits for; at work within 10 s",
        before,
        full=Size(runs=3, events=6_000, seconds=30.0),
    ),
    Row(
        12,
        "kill -9 of the node that coordinates the open transaction, and the group's",
        "no partition pauses for more than 30 s",
        kill_coordinator,
        full=Size(runs=10, events=60_000),
        nodes=NODES,
    ),
    Row(
        16,
        "two of three nodes stopped: outputs refused, the source goes on",
        "memory +50 MB at most, lag told",
        too_few,
        full=Size(runs=3, events=150_000, seconds=60.0),
        nodes=NODES,
    ),
)
