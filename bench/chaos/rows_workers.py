"""Rows of the fault matrix whose fault is a worker's end: killed, frozen, doubled, told to go."""

from __future__ import annotations

import functools
import signal
import time
from typing import TYPE_CHECKING

from bench.chaos.rows import Outcome, Row, Size
from bench.chaos.scene import Instant, Scene, ended, wait, wait_said
from bench.live import DEFINITIONS, TWO_ENTITIES
from bench.measure import BenchError
from headrace.runtime import topics
from headrace.runtime.dev.proxy import KafkaFaultProxy, Moment

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.chaos.rows import Lab
    from bench.chaos.verdict import Verdict
    from bench.live import LiveWorker

#: For how long events come in after a worker is ready; it is killed somewhere in it.
FED_S = 0.5
#: Events that wait for a worker before it starts: what it writes first shows when it is at work.
FEW = 20
WAIT_S = 60.0
SESSION_TIMEOUT_S = 6.0
STEADY_S, EVERY_S = 10.0, 5.0
#: Before and after the offsets, before and after the commit, and when it is done but the worker
#: does not know: then Redis does not know either.
INSTANTS: tuple[tuple[int, Moment], ...] = (
    (KafkaFaultProxy.ADD_OFFSETS, "before"),
    (KafkaFaultProxy.COMMIT_OFFSETS, "after"),
    (KafkaFaultProxy.END_TXN, "before"),
    (KafkaFaultProxy.END_TXN, "after"),
    (KafkaFaultProxy.END_TXN, "answered"),
)


def kill_one_after_the_other(lab: Lab, size: Size) -> Outcome:
    """Row 1: one worker after the other is killed while it works.

    Half of the kills hit a pipeline of one entity, half one of two; every second one strikes at
    one of ``INSTANTS``, the others at random.
    """
    draw = lab.random
    verdicts: list[Verdict] = []
    recovery_s: list[float] = []
    done = 0
    kills_of = {DEFINITIONS: size.runs - size.runs // 2, TWO_ENTITIES: size.runs // 2}
    for definitions, kills in kills_of.items():
        if not kills:
            continue
        events = size.events * kills // size.runs
        with Scene(lab, f"s{len(verdicts)}", definitions=definitions, proxied=True) as scene:
            killed: Instant | None = None
            for number in range(kills):
                worker = scene.start()
                scene.send(FEW)
                worker.wait_ready()
                _recovered(scene, killed, recovery_s)
                feed = scene.feed(events // (kills + 1) - FEW, FED_S)
                if number % 2:
                    killed = _kill_at(scene, worker, INSTANTS[number // 2 % len(INSTANTS)])
                else:
                    killed = _kill_after(scene, worker, draw.uniform(0, FED_S))
                feed.join()
                done += 1
                lab.advance(done)
            scene.send(events - scene.sent)
            scene.start()
            _recovered(scene, killed, recovery_s)
            verdicts.append(scene.verdict())
    note = (
        f"half at random, half at one of {len(INSTANTS)} requests; recovery has a process's start"
    )
    return Outcome.of(size.runs, verdicts, max(recovery_s), note=note)


def _kill_after(scene: Scene, worker: LiveWorker, after_s: float) -> Instant:
    """Kill a worker so long after its next output was seen."""
    scene.one_more()
    time.sleep(after_s)
    worker.kill()
    return Instant.now()


def _kill_at(scene: Scene, worker: LiveWorker, instant: tuple[int, Moment]) -> Instant:
    """Kill a worker at its next request of a kind."""
    return _strike(scene, worker, instant, worker.kill)


def _strike(
    scene: Scene, worker: LiveWorker, instant: tuple[int, Moment], act: Callable[[], None]
) -> Instant:
    proxy = scene.proxy
    assert proxy is not None
    proxy.strike(*instant, act)
    wait(lambda: proxy.struck, f"request {instant[0]} of {worker.log}")
    return Instant.now()


def _recovered(scene: Scene, killed: Instant | None, recovery_s: list[float]) -> None:
    """Note how long after a kill the next output came."""
    if killed is None:
        return
    found = scene.recovery_s(killed)
    if found is None:
        msg = f"something must come out after a kill; see {scene.folder}"
        raise BenchError(msg)
    recovery_s.append(found)


def kill_all(lab: Lab, size: Size) -> Outcome:
    """Row 2: all workers are killed at once and started again, every two seconds."""
    with Scene(lab, "s") as scene:
        workers = [scene.started() for _ in range(2)]
        scene.feed(size.events, 2.0 * size.runs)
        for number in range(size.runs):
            time.sleep(2.0)
            for worker in workers:
                worker.kill()
            workers = [scene.start() for _ in range(2)]
            lab.advance(number + 1)
        last = Instant.now()
        scene.drained()
        drained_s = time.monotonic() - last.monotonic_s
        recovery_s = scene.recovery_s(last)
        for worker in workers:
            worker.wait_ready()
        verdict = scene.verdict()
    note = f"2 workers; all was out {drained_s:.1f} s after the last kill"
    return Outcome.of(size.runs, [verdict], recovery_s, met=drained_s <= 120, note=note)


def time_to_recover(lab: Lab, size: Size) -> Outcome:
    """Row 3: how long nothing comes out, of a worker that starts again and of one replaced."""
    again_s: list[float] = []
    with Scene(lab, "again") as scene:
        worker = scene.started(ordinal=0)
        for number in range(size.runs):
            scene.send(size.events // (size.runs + 1))
            wait(lambda: scene.reader.distinct() >= scene.sent, "all outputs")
            worker.kill()
            killed = Instant.now()
            worker = scene.start(ordinal=0)
            scene.send(FEW)
            _recovered(scene, killed, again_s)
            worker.wait_ready()
            lab.advance(number + 1)
        verdicts = [scene.verdict()]
    other_s, blocked_s = _replaced(lab, size, verdicts)
    met = max(again_s) <= 5 and other_s <= SESSION_TIMEOUT_S + 5 and blocked_s <= 3
    note = (
        f"same ordinal {max(again_s):.1f} s; another worker {other_s:.1f} s,"
        f" {blocked_s:.1f} s of it after it was given the partitions"
    )
    return Outcome.of(size.runs + 1, verdicts, max(again_s), met=met, note=note)


def _replaced(lab: Lab, size: Size, verdicts: list[Verdict]) -> tuple[float, float]:
    """Kill one of two workers; return how long its partitions gave nothing, in all and once taken.

    It is killed at the commit, with its transaction open.
    """
    with Scene(lab, "replaced", proxied=True) as scene:
        stays = scene.started(ordinal=0, proxied=False)
        goes = scene.start(ordinal=1)
        goes.wait_ready()
        stays.wait_for("headrace_partitions", 2)
        goes.wait_for("headrace_partitions", 2)
        wait(lambda: stays.metrics()["headrace_partitions"] == 2, "two partitions each")
        # Enough for the wait until the group misses the one, and for what comes then.
        scene.feed(size.events, SESSION_TIMEOUT_S + 8)
        time.sleep(1.0)
        before = stays.output().count("partitions_assigned")
        killed = _kill_at(scene, goes, (KafkaFaultProxy.END_TXN, "before"))
        wait_said(stays, "partitions_assigned", before + 1)
        taken_s = time.monotonic()
        quiet = _quiet_partitions(scene, killed)
        first_s = [_first_s(scene, partition, killed) for partition in quiet]
        verdicts.append(scene.verdict())
    assert len(quiet) == 2, quiet
    return max(first_s) - killed.monotonic_s, max(0.0, max(first_s) - taken_s)


def _quiet_partitions(scene: Scene, killed: Instant) -> list[int]:
    """Return the partitions that gave nothing for a while after the kill: the dead worker's."""
    until_ms = killed.epoch_ms + 3_000
    records = scene.reader.records("predictions")
    heard = {r.partition for r in records if killed.epoch_ms + 500 < r.appended_ms < until_ms}
    return [p for p in range(scene.project.partitions) if p not in heard]


def _first_s(scene: Scene, partition: int, since: Instant) -> float:
    def found() -> list[float]:
        return [
            one.seen_s
            for one in scene.reader.records("predictions")
            if one.partition == partition and one.appended_ms > since.epoch_ms + 500
        ]

    if not scene.reader.wait(lambda: bool(found()), WAIT_S):
        msg = f"partition {partition} must go on; see {scene.folder}"
        raise BenchError(msg)
    return min(found())


def told_to_go(lab: Lab, size: Size) -> Outcome:
    """Row 4: SIGTERM while there is more to do than a worker can; then the next one goes on."""
    took_s: list[float] = []
    codes: list[int] = []
    with Scene(lab, "s", stream={"commit_interval_ms": 1_000}) as scene:
        step = size.events // (size.runs + 1)
        for number in range(size.runs):
            worker = scene.started()
            seen = scene.reader.count()
            scene.send(step)
            scene.one_more(seen)
            begin_s = time.monotonic()
            codes.append(worker.terminate(WAIT_S))
            took_s.append(time.monotonic() - begin_s)
            lab.advance(number + 1)
        scene.send(size.events - scene.sent)
        scene.start()
        verdict = scene.verdict()
        again = _aborted(scene)
    met = set(codes) == {0} and max(took_s) <= 5 and again == 0
    note = f"exit {sorted(set(codes))} after {max(took_s):.1f} s at most; {again} outputs aborted"
    return Outcome.of(size.runs, [verdict], None, met=met, note=note)


def _aborted(scene: Scene) -> int:
    """Return how many predictions stand in the topic beside those that were committed."""
    with scene.uncommitted_reader() as reader:
        committed = scene.reader.count()
        reader.wait(lambda: reader.count() > committed, 2.0)
        return reader.count() - committed


def frozen(lab: Lab, size: Size) -> Outcome:
    """Row 5: a worker stands still for two session timeouts, in the middle of a transaction."""
    ended_s: list[float] = []
    recovery_s: list[float] = []
    named = True
    with Scene(lab, "s", proxied=True) as scene:
        for number in range(size.runs):
            asleep = scene.started(ordinal=2 * number)
            feed = scene.feed(size.events // size.runs, 2 * SESSION_TIMEOUT_S)
            proxy = scene.proxy
            assert proxy is not None
            stop = functools.partial(asleep.process.send_signal, signal.SIGSTOP)
            since = _strike(scene, asleep, (proxy.END_TXN, "before"), stop)
            other = scene.start(ordinal=2 * number + 1, proxied=False)
            time.sleep(2 * SESSION_TIMEOUT_S)
            _recovered(scene, since, recovery_s)
            begin_s = time.monotonic()
            asleep.process.send_signal(signal.SIGCONT)
            code = ended(asleep)
            ended_s.append(time.monotonic() - begin_s)
            named &= code == 1 and _says_who(asleep, f".{2 * number} ")
            other.wait_ready()
            feed.join()
            scene.drained()
            scene.stop_workers()
            lab.advance(number + 1)
        scene.started()
        verdict = scene.verdict()
    met = named and max(ended_s) <= 5
    note = f"ends with 1 and the reason, {max(ended_s):.1f} s after it wakes at most"
    return Outcome.of(size.runs, [verdict], max(recovery_s), met=met, note=note)


def _says_who(worker: LiveWorker, name: str) -> bool:
    """Return whether a worker has said which one it is that another took the place of."""
    said = worker.output().splitlines()
    return any(name in line and "must belong to one worker" in line for line in said)


def doubled(lab: Lab, size: Size) -> Outcome:
    """Row 6: a second worker of the same name, as from another machine with the same ordinal."""
    ended_s: list[float] = []
    recovery_s: list[float] = []
    named = True
    with Scene(lab, "s") as scene:
        group = topics.group(scene.project.plan.project, scene.project.plan.name)
        worker = scene.started(ordinal=0)
        for number in range(size.runs):
            feed = scene.feed(size.events // size.runs - FEW, 4.0)
            clone = scene.start(
                ordinal=0, environment={"HEADRACE__STATE_FOLDER": str(scene.folder / f"m{number}")}
            )
            begin = Instant.now()
            code = ended(worker)
            ended_s.append(time.monotonic() - begin.monotonic_s)
            named &= code == 1 and _says_who(worker, f"{group}.0")
            since = Instant.now()
            feed.join()
            scene.send(FEW)
            _recovered(scene, since, recovery_s)
            clone.wait_ready()
            worker = clone
            lab.advance(number + 1)
        verdict = scene.verdict()
    note = f"the older one ended {max(ended_s):.1f} s after the other was started at most"
    return Outcome.of(size.runs, [verdict], max(recovery_s), met=named, note=note)


def coming_and_going(lab: Lab, size: Size) -> Outcome:
    """Row 13: a worker more or less every five seconds, from one to three and back.

    The first and the last stretch have one worker each and no change: what comes out there a
    second is what is steady. Events come in evenly all the time.
    """
    with Scene(lab, "s", partitions=12) as scene:
        workers = [scene.started()]
        rate = size.events / (size.seconds + 2 * STEADY_S)
        scene.feed(size.events, size.events / rate)
        time.sleep(STEADY_S)
        begin_s = time.monotonic()
        changes, more = 0, True
        while time.monotonic() - begin_s < size.seconds:
            if more:
                workers.append(scene.start())
            else:
                _go(workers.pop())
            changes += 1
            more = len(workers) == 1 or (more and len(workers) < 3)
            lab.advance(changes)
            time.sleep(max(0.0, begin_s + changes * EVERY_S - time.monotonic()))
        end_s = time.monotonic()
        gap_s = scene.reader.longest_gap_s(begin_s, end_s)
        steady = scene.reader.rate(begin_s - STEADY_S / 2, begin_s)
        changing = scene.reader.rate(begin_s, end_s)
        for worker in workers:
            worker.wait_ready()
        verdict = scene.verdict()
    ratio = changing / steady
    note = (
        f"{changes} changes; {changing:,.0f} events/s of {steady:,.0f} steady ({ratio:.0%});"
        f" longest stop {gap_s:.1f} s"
    )
    met = ratio >= 0.7 and gap_s <= 3
    return Outcome.of(changes, [verdict], None, met=met, note=note)


def _go(worker: LiveWorker) -> None:
    """Tell a worker to end; it may still be starting, and is not waited for."""
    worker.process.send_signal(signal.SIGTERM)


ROWS = (
    Row(
        1,
        "kill -9 of a worker, at random and at each step of a commit",
        "100 kills, 100,000 events",
        kill_one_after_the_other,
        full=Size(runs=100, events=100_000),
        ci=Size(runs=10, events=10_000),
    ),
    Row(
        2,
        "kill -9 of all workers at once, every 2 s",
        "all out within 120 s",
        kill_all,
        full=Size(runs=5, events=50_000),
    ),
    Row(
        3,
        "kill -9 of a worker: until the next output",
        "same ordinal 5 s; another worker 6 + 5 s; no reader blocked for more than 3 s then",
        time_to_recover,
        full=Size(runs=10, events=20_000),
        ci=Size(runs=1, events=6_000),
    ),
    Row(
        4,
        "SIGTERM at full load",
        "exit 0 in 5 s, nothing again at the next start",
        told_to_go,
        full=Size(runs=5, events=300_000),
        ci=Size(runs=1, events=60_000),
    ),
    Row(
        5,
        "SIGSTOP for 12 s in a transaction, then SIGCONT",
        "fenced, ends within 5 s",
        frozen,
        full=Size(runs=5, events=50_000),
        ci=Size(runs=1, events=10_000),
    ),
    Row(
        6,
        "a second worker of the same name",
        "the older one ends and says the name",
        doubled,
        full=Size(runs=5, events=20_000),
        ci=Size(runs=1, events=4_000),
    ),
    Row(
        13,
        "a worker more or less every 5 s, 1 to 3 to 1, 12 partitions",
        "at least 70 % of steady, no stop over 3 s",
        coming_and_going,
        full=Size(runs=24, events=400_000, seconds=120.0),
    ),
)
