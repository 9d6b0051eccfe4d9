"""Rows of the fault matrix whose fault lies between processes: lost, late, slow, silent."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from bench.chaos.rows import Outcome, Row, Size
from bench.chaos.scene import Instant, Scene, wait_said
from bench.live import DEFINITIONS, TWO_ENTITIES
from bench.measure import BenchError
from headrace.runtime.dev.proxy import FaultProxy

if TYPE_CHECKING:
    from bench.chaos.rows import Lab
    from bench.chaos.verdict import Verdict
    from bench.live import LiveWorker

ALL = 1_000_000
#: Of an answer to a request that came late: an epoch that is over, or a producer that was fenced.
FENCED = frozenset({47, 90})
WAIT_S = 60.0
#: How often the bar moves while a fault lasts.
PROGRESS_S = 0.5
UNKNOWN = "headrace_transactions_unknown_total"
#: What happens to the end of a transaction, and how many of its requests it happens to: the client
#: sends one again by itself after 3 s, and after 5 s a new producer finds out.
ENDS = (
    ("lose_answers", 1),
    ("hold_requests", 1),
    ("lose_answers", ALL),
    ("hold_requests", ALL),
    ("lose_requests", ALL),
)


def commits_in_doubt(lab: Lab, size: Size) -> Outcome:
    """Row 7: the end of a transaction, or its answer, is lost, or comes when the next one is open.

    Half of it hits a pipeline of one entity, half one of two.
    """
    verdicts: list[Verdict] = []
    recovery_s: list[float] = []
    late: list[int] = []
    wanted = done = 0
    runs_of = {DEFINITIONS: size.runs - size.runs // 2, TWO_ENTITIES: size.runs // 2}
    for definitions, runs in runs_of.items():
        if not runs:
            continue
        with Scene(lab, f"s{len(verdicts)}", definitions=definitions, proxied=True) as scene:
            worker = scene.started()
            for number in range(runs):
                kind, count = ENDS[number % len(ENDS)]
                recovery_s.append(_doubt(scene, worker, kind, count, size.events // size.runs))
                wanted += kind == "hold_requests"
                done += 1
                lab.advance(done)
            metrics = worker.metrics()
            verdicts.append(scene.verdict())
            assert scene.proxy is not None
            late += scene.proxy.late_answers
            unknown = metrics[UNKNOWN]
            lab.say(f"{unknown:.0f} outcomes looked up; late requests were told {late}")
    fenced = sum(code in FENCED for code in late)
    met = fenced == len(late) >= wanted
    note = f"{len(late)} requests delivered into the next transaction, {fenced} of them refused"
    return Outcome.of(size.runs, verdicts, max(recovery_s), met=met, note=note)


def _doubt(scene: Scene, worker: LiveWorker, kind: str, count: int, events: int) -> float:
    """Do it to the next commit; return how long nothing came out."""
    proxy = scene.proxy
    assert proxy is not None
    lost, late, looked_up = proxy.lost, len(proxy.late_answers), scene.reader.distinct
    unknown = worker.metrics()[UNKNOWN]
    begin = Instant.now()
    setattr(proxy, kind, count)
    # The next transaction opens while what was kept back is still on its way.
    feed = scene.feed(events, 8.0)
    reader = scene.reader
    if kind == "hold_requests":
        reached = reader.wait(lambda: len(proxy.late_answers) > late, WAIT_S)
    else:
        reached = reader.wait(lambda: proxy.lost > lost, WAIT_S)
        # A new producer's first request comes only after the worker has given up on the commit.
        if count == ALL:
            worker.wait_for(UNKNOWN, unknown + 1, WAIT_S)
            setattr(proxy, kind, 0)
    if not reached:
        msg = f"{kind} must hit a commit; see {scene.folder}"
        raise BenchError(msg)
    feed.join()
    reader.wait(lambda: looked_up() >= scene.sent, WAIT_S)
    return reader.longest_gap_s(begin.monotonic_s, time.monotonic())


def slow(lab: Lab, size: Size) -> Outcome:
    """Row 17: 200 ms more or less 100 each way, and one piece in a hundred is sent again."""
    with Scene(lab, "s", proxied=True) as scene:
        proxy = scene.proxy
        assert proxy is not None
        workers = [scene.started() for _ in range(2)]
        proxy.delay_s, proxy.jitter_s, proxy.stall_odds = 0.2, 0.1, 0.01
        scene.feed(size.events, size.seconds)
        begin_s = time.monotonic()
        while (passed_s := time.monotonic() - begin_s) < size.seconds:
            lab.advance(int(size.runs * passed_s / size.seconds))
            time.sleep(PROGRESS_S)
        alive = all(worker.process.poll() is None for worker in workers)
        lost = sum(worker.output().count("partitions_lost") for worker in workers)
        proxy.delay_s = proxy.jitter_s = proxy.stall_odds = 0.0
        since = Instant.now()
        scene.send(100)
        recovery_s = scene.recovery_s(since)
        unknown = sum(w.metrics()[UNKNOWN] for w in workers if alive)
        verdict = scene.verdict()
    note = (
        f"{size.seconds / 60:.1f} min; nobody was fenced"
        if alive and not lost
        else f"workers alive: {alive}, partitions lost {lost} times"
    )
    note += f"; {unknown:.0f} commits had to be looked up"
    return Outcome.of(size.runs, [verdict], recovery_s, met=alive and not lost, note=note)


def half_open(lab: Lab, size: Size) -> Outcome:
    """Row 18: all connections of the workers stay open and carry nothing any more; new ones do."""
    recovery_s: list[float] = []
    with Scene(lab, "s", proxied=True) as scene:
        proxy = scene.proxy
        assert proxy is not None
        scene.started()
        for number in range(size.runs):
            feed = scene.feed(size.events // size.runs, 5.0)
            scene.one_more()
            proxy.dead_before_s = time.monotonic()
            since = Instant.now()
            found = scene.recovery_s(since, WAIT_S * 2)
            recovery_s.append(WAIT_S * 2 if found is None else found)
            feed.join()
            scene.drained()
            lab.advance(number + 1)
        verdict = scene.verdict()
    return Outcome.of(size.runs, [verdict], max(recovery_s), met=max(recovery_s) <= 30)


def slow_revoke(lab: Lab, size: Size) -> Outcome:
    """Row 15: Redis says nothing more while a second worker takes half of the partitions."""
    port = int(lab.endpoints.redis_url.rpartition(":")[2])
    moved_s: list[float] = []
    evicted = 0
    verdicts: list[Verdict] = []
    for number in range(size.runs):
        with contextlib.closing(FaultProxy(port)) as redis, Scene(lab, f"s{number}") as scene:
            through = {"HEADRACE__REDIS__URL": f"redis://127.0.0.1:{redis.port}"}
            first = scene.started(ordinal=0, environment=through)
            feed = scene.feed(size.events // size.runs, 15.0)
            scene.one_more()
            redis.silent = True
            begin_s = time.monotonic()
            second = scene.start(ordinal=1, environment=through)
            wait_said(first, "partitions_released")
            wait_said(second, "partitions_assigned")
            moved_s.append(time.monotonic() - begin_s)
            feed.join()
            scene.drained()
            evicted += sum(one.output().count("partitions_lost") for one in (first, second))
            redis.silent = False
            second.wait_ready()
            verdicts.append(scene.verdict())
            lab.advance(number + 1)
    met = max(moved_s) <= 60 and not evicted
    note = f"partitions moved within {max(moved_s):.1f} s of the second process's start"
    return Outcome.of(size.runs, verdicts, None, met=met, note=note)


ROWS = (
    Row(
        7,
        "the end of a transaction lost, unanswered, or late in the next one",
        "50 times, none torn",
        commits_in_doubt,
        full=Size(runs=50, events=25_000),
        ci=Size(runs=4, events=2_000),
    ),
    Row(
        15,
        "Redis silent while partitions are revoked",
        "revoked in 20 % of max.poll.interval.ms (60 s), nobody evicted",
        slow_revoke,
        full=Size(runs=3, events=9_000),
    ),
    Row(
        17,
        "network of 200 ms ± 100, 1 % sent again",
        "nobody fenced in 10 min",
        slow,
        full=Size(runs=60, events=60_000, seconds=600.0),
        ci=Size(runs=1, events=2_000, seconds=20.0),
    ),
    Row(
        18,
        "half-open connections",
        "found out within 30 s",
        half_open,
        full=Size(runs=5, events=5_000),
        ci=Size(runs=1, events=500),
    ),
)
