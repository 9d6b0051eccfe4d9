"""``./dev bench redis-faults``: what a failing Redis does to scoring and to readers.

A worker scores steady traffic of the card job while its Redis is restarted, emptied, full, slow and
silent; a consumer counts predictions, a reader looks into Redis all the time. Rows 26 to 30 of the
fault matrix.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.card import ours
from bench.card.job import DAY_MS, HOUR_MS, PARTITION_COUNT, train_model
from bench.card.run import WORK
from bench.measure import BenchError, TreeSampler, stop_process
from bench.project import fresh_stack, make_project
from bench.redis_scene import FaultyRedis, Scene, Sink, Traffic, Watcher, total
from bench.redis_writers import run_two
from bench.report import Bound, exit_code, print_bounds, write_json
from headrace.features.compiler import compile_project
from headrace.features.project import load_project
from headrace.features.store.freshness import FRESH, STALE
from headrace.features.store.reader import OnlineReader
from headrace.features.store.request import request_for
from headrace.schemas.registry import SchemaRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.project import Project
    from bench.redis_judge import Verdict
    from headrace.features.store.request import Request

SEED = 7
STALE_AFTER_MS = 10_000
#: From an event to when its row begins to wait: score, commit; then a beat.
SLACK_S = 2.0
RIGHT_S_MAX, REBUILD_S_MAX = 5.0, 60.0
#: The worker asks Redis again after 5 s at most, and one answer may take 2 s.
BACK_S_MAX = 10.0
CHECKED_KEYS, RECOVERY_S = 50_000, 120.0
SLOW_S = 0.5
CALM, CALM_AGAIN = "no fault", "none again"
RESTARTS, FLUSH, FULL = "26 restarts", "27 flushed", "28 full"
SLOW, SILENT, REBUILD = "29 slow", "29 silent", "27 rebuild"
UNCHANGED = (SLOW, SILENT)
RIGHT_S_MAX_BY_NAME = {REBUILD: REBUILD_S_MAX, SILENT: BACK_S_MAX, FULL: BACK_S_MAX}
P99_RATIO_MAX = 1.5
#: Of the tables in a log.
WIDTH = 110
SCORE_TOLERANCE = 1e-6
ERRORS = "headrace_online_errors_total"


@dataclass(frozen=True, slots=True)
class Stretch:
    """One fault, or none: what it did. Times in s, latency in ms from produce to prediction.

    ``right_s`` is how long after the fault's end the store held, FRESH, all that was sent until
    then; of restarts, after each. Traffic never stops meanwhile.
    """

    name: str
    seconds: float
    events: int
    p50_ms: float
    p99_ms: float
    right_s: list[float | None]
    reads_refused: int
    seen: Verdict
    errors: dict[str, float]


@dataclass(slots=True)
class Play:
    """The faults in their order, over one scene."""

    scene: Scene
    watcher: Watcher
    console: Console
    stretches: list[Stretch] = field(default_factory=list)

    def settle(self) -> None:
        """Wait until the store is right for the first time.

        Raises:
            BenchError: If it does not become so.

        """
        if self._right() is None:
            msg = f"the store must become right before anything fails; see {self.scene.log}"
            raise BenchError(msg)

    def calm(self, seconds: float, name: str = CALM) -> None:
        """Let a while pass without a fault."""
        self._stretch(name, lambda: self._wait(seconds))

    def restarts(self, count: int, every_s: float) -> None:
        """Row 26: kill Redis, or end it, again and again; it is back at once."""

        def act() -> Iterator[float | None]:
            for number in range(count):
                due_s = time.monotonic() + every_s
                self.scene.redis.end(signal.SIGTERM if number % 2 else signal.SIGKILL)
                self.scene.redis.start()
                last = number == count - 1
                yield self._right(RECOVERY_S if last else due_s - time.monotonic())
                if not last:
                    time.sleep(max(0.0, due_s - time.monotonic()))

        self._stretch(RESTARTS, act)

    def flush(self, name: str = FLUSH) -> None:
        """Row 27: take everything away."""

        def act() -> Iterator[float | None]:
            self.scene.redis.run(b"FLUSHALL")
            yield self._right()

        self._stretch(name, act)

    def full(self, seconds: float) -> None:
        """Row 28: no memory is left, then there is."""

        def act() -> Iterator[float | None]:
            redis = self.scene.redis
            redis.run(b"CONFIG", b"SET", b"maxmemory", b"%d" % redis.used_bytes())
            time.sleep(seconds)
            redis.run(b"CONFIG", b"SET", b"maxmemory", b"0")
            yield self._right()

        self._stretch(FULL, act)

    def slow(self, seconds: float) -> None:
        """Row 29: each answer takes half a second more."""

        def act() -> Iterator[float | None]:
            self.scene.redis.proxy.delay_s = SLOW_S / 2
            time.sleep(seconds)
            self.scene.redis.proxy.delay_s = 0.0
            yield self._right()

        self._stretch(SLOW, act)

    def hang(self, seconds: float) -> None:
        """Row 29: the worker's connections stay open, and no answer comes."""

        def act() -> Iterator[float | None]:
            self.scene.redis.proxy.silent = True
            time.sleep(seconds)
            self.scene.redis.proxy.silent = False
            yield self._right()

        self._stretch(SILENT, act)

    def _wait(self, seconds: float) -> Iterator[float | None]:
        time.sleep(seconds)
        yield from ()

    def _right(self, within_s: float = RECOVERY_S) -> float | None:
        now_s = time.monotonic()
        random = np.random.default_rng(len(self.stretches))
        keys = random.permutation(self.scene.traffic.keys)[:CHECKED_KEYS]
        return self.scene.right_since(now_s, now_s + within_s, keys)

    def _stretch(self, name: str, act: Callable[[], Iterator[float | None]]) -> None:
        """Act, and tell what happened from then until the store was right again."""
        before = _errors(self.scene)
        begin_s = time.monotonic()
        right_s = list(act())
        end_s = time.monotonic()
        after = _errors(self.scene)
        events, latency_ms = _latency(self.scene, begin_s, end_s)
        p50, p99 = np.percentile(latency_ms, [50, 99])
        seen, refused = self.watcher.between(begin_s, end_s)
        self.stretches.append(
            Stretch(
                name,
                end_s - begin_s,
                events,
                float(p50),
                float(p99),
                right_s,
                refused,
                self.scene.traffic.judge().verdict(seen),
                {reason: after[reason] - before[reason] for reason in after},
            )
        )
        times = ", ".join("-" if one is None else f"{one:.2f} s" for one in right_s)
        old_s = self.stretches[-1].seen.fresh_old_s_max
        self.console.print(
            f"{name}: p99 {p99:.1f} ms; oldest FRESH value {old_s:.1f} s; "
            f"right again after {times or '-'}"
        )


def _errors(scene: Scene) -> dict[str, float]:
    samples = scene.metrics()
    reasons = "full", "unavailable"
    return {one: total(samples, f'{ERRORS}{{reason="{one}"') for one in reasons}


def _latency(scene: Scene, begin_s: float, end_s: float) -> tuple[int, np.ndarray]:
    """Return how many events were sent in a time, and their predictions' latencies in ms."""
    scene.wait_scored_until(end_s)
    ids, read_s, _ = scene.sink.rows()
    _, _, sent_s = scene.traffic.events()
    first_s = np.full(len(sent_s), np.inf)
    np.minimum.at(first_s, ids, read_s)
    mine = (sent_s >= begin_s) & (sent_s < end_s)
    return int(mine.sum()), (first_s[mine] - sent_s[mine]) * 1000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is left at the end: of all events, and of all keys."""

    events: int
    lost: int
    doubled: int
    wrong_scores: int
    keys: int
    wrong_keys: int
    cpu_s_per_million: float


def _outcome(scene: Scene, model: Path, cpu_s: float) -> Outcome:
    """Stop the traffic and compare every prediction and every key with the events."""
    import lightgbm

    scene.traffic.stop()
    scene.wait_scored()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading all keys", total=scene.traffic.keys)
        show = functools.partial(progress.update, task)
        wrong_keys = scene.wrong_keys(lambda done: show(completed=done), BACK_S_MAX)
    ids, _, scores = scene.sink.rows()
    cents, ts_ms, _ = scene.traffic.events()
    count, mean = scene.traffic.judge().features()
    hour = ts_ms // HOUR_MS % (DAY_MS // HOUR_MS)
    vectors = np.column_stack([cents / 100, hour, *[count] * 3, *[mean] * 3])
    expected = np.asarray(lightgbm.Booster(model_file=model).predict(vectors, num_threads=2))
    times = np.bincount(ids, minlength=len(cents))
    again = len(ids) - scene.sink.distinct_ids()
    return Outcome(
        len(cents),
        int((times == 0).sum()),
        max(again, int((times > 1).sum())),
        int((~(np.abs(scores - expected[ids]) <= SCORE_TOLERANCE)).sum()),
        scene.traffic.keys,
        wrong_keys,
        cpu_s * 1e6 / len(cents),
    )


# --- The run --------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Run the bench and return 0 if nothing was lost and the bounds hold."""
    options = _options(arguments)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"keys": options.keys, "rate": options.rate}
    bounds: list[Bound] = []
    folder = work / "redis-faults-redis"
    shutil.rmtree(folder, ignore_errors=True)  # It would be loaded.
    redis = FaultyRedis(folder)
    try:
        if options.writes:
            console.print(f"two writers, {options.writes:,} writes each")
            two = run_two(redis.direct_url, options.writes)
            redis.run(b"FLUSHALL")
            figures["writers"] = dataclasses.asdict(two)
            bounds.append(Bound("30: two writers, wrong keys", two.wrong, 0, at_least=False))
        if set(options.rows) - {30}:
            outcome, stretches = _live(options, redis, console)
            _print(console, outcome, stretches)
            figures["outcome"] = dataclasses.asdict(outcome)
            figures["stretches"] = [dataclasses.asdict(one) for one in stretches]
            bounds += _bounds(outcome, stretches)
    finally:
        redis.close()
    print_bounds(console, bounds)
    write_json(work / "redis-faults.json", "redis-faults", figures, bounds)
    console.print(f"figures in {work / 'redis-faults.json'}")
    return exit_code(bounds)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench redis-faults", description=__doc__)
    parser.add_argument("--rows", help="of the fault matrix: 26,27,28,29,30", default=None)
    parser.add_argument("--keys", type=int, default=50_000)
    parser.add_argument("--rate", type=int, default=2_000, help="events a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a fault, and of none")
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--every", type=float, default=10.0, help="s from restart to restart")
    parser.add_argument("--rebuild-keys", type=int, default=1_000_000, help="0: none")
    parser.add_argument("--writes", type=int, default=100_000, help="of each of the two writers")
    parser.add_argument("--fast", action="store_true", help="a small run of it all, a minute")
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args(arguments)
    rows = options.rows.split(",") if options.rows else ["26", "27", "28", "29", "30"]
    if not set(rows) <= {"26", "27", "28", "29", "30"}:
        parser.error(f"--rows must be among 26,27,28,29,30; got {options.rows}")
    options.rows = [int(row) for row in rows]
    if options.fast:
        options.keys, options.rate, options.seconds = 5_000, 1_000, 3.0
        options.restarts, options.every = 2, 5.0
        options.rebuild_keys, options.writes = 20_000, 5_000
    if 30 not in options.rows:
        options.writes = 0
    if 27 not in options.rows:
        options.rebuild_keys = 0
    return options


def _live(
    options: argparse.Namespace, redis: FaultyRedis, console: Console
) -> tuple[Outcome, list[Stretch]]:
    """Run the worker through all faults."""
    work: Path = options.work
    model = train_model(work / "card-model.txt")
    stack = fresh_stack(work / "stack")
    try:
        endpoints = dataclasses.replace(stack.up(), redis_url=redis.proxied_url)
        settings = {"project": "redis_faults", "topics": {"partitions": PARTITION_COUNT}}
        project = make_project(work / "redis-faults", ours.TEMPLATE, endpoints, settings)
        project.run("apply")
        ours.deploy(project, model, _canary_rows())
        with SchemaRegistry(endpoints.registry_url) as registry:
            latest = registry.latest(f"{ours.SOURCE}-value")
        assert latest is not None, ours.SOURCE
        log = work / "worker-redis-faults.log"
        log.unlink(missing_ok=True)
        traffic = Traffic(endpoints, latest[0], options.rate, SEED)
        reader = OnlineReader(_request(project), redis.direct_url, STALE_AFTER_MS)
        worker = project.start_worker(log)
        sampler = TreeSampler(worker.pid)
        scene = Scene(project, redis, traffic, Sink(endpoints), reader, log)
        try:
            with scene:
                stretches = _play(options, scene, console)
                outcome = _outcome(scene, model, sampler.cpu_s_until_now())
        finally:
            sampler.stop()
            stop_process(worker)
    finally:
        stack.down()
    if worker.returncode:
        msg = f"the worker must end with 0; got {worker.returncode}; see {log}"
        raise BenchError(msg)
    return outcome, stretches


def _play(options: argparse.Namespace, scene: Scene, console: Console) -> list[Stretch]:
    rows, seconds = options.rows, options.seconds
    _fill(scene, options.keys)
    scene.traffic.start()
    watcher = Watcher(scene.reader, scene.traffic, SEED)
    play = Play(scene, watcher, console)
    try:
        play.settle()
        play.calm(seconds)
        if 26 in rows:
            play.restarts(options.restarts, options.every)
        if 27 in rows:
            play.flush()
        if 28 in rows:
            play.full(seconds)
        if 29 in rows:
            play.slow(seconds)
            play.hang(seconds)
        play.calm(seconds, CALM_AGAIN)
        if options.rebuild_keys > options.keys:
            scene.traffic.stop()
            _fill(scene, options.rebuild_keys)
            scene.traffic.start()
            play.settle()
            play.flush(REBUILD)
    finally:
        watcher.stop()
    return play.stretches


def _fill(scene: Scene, keys: int) -> None:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("one event of each key", total=None)
        scene.fill(keys, lambda done: progress.update(task, completed=done))


def _request(project: Project) -> Request:
    loaded = load_project(project.folder)
    return request_for(ours.PIPELINE, compile_project(loaded, PARTITION_COUNT))


def _canary_rows() -> np.ndarray:
    """Return a few vectors of the job."""
    random = np.random.default_rng(SEED)
    count, amounts = random.integers(1, 50, (16, 3)), random.lognormal(3.5, 1, (16, 4))
    return np.column_stack([amounts[:, 0], random.integers(0, 24, 16), count, amounts[:, 1:]])


# --- The report -----------------------------------------------------------------------------------


def _print(console: Console, outcome: Outcome, stretches: Sequence[Stretch]) -> None:
    names = "p50 ms", "p99 ms", "right s", "worst", "FRESH", "STALE", "no Redis", "wrong"
    table = Table("fault", *names, "oldest s", title="redis-faults", box=SIMPLE, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for one in stretches:
        seen = one.seen
        wrong = seen.wrong_unflagged + seen.wrong_flagged
        times = [RECOVERY_S if right_s is None else right_s for right_s in one.right_s]
        right = [f"{np.median(times):.2f}", f"{max(times):.2f}"] if times else ["-", "-"]
        table.add_row(
            *(one.name, f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}", *right),
            *(f"{seen.statuses[FRESH]:,}", f"{seen.statuses[STALE]:,}", f"{one.reads_refused:,}"),
            *(f"{wrong:,}", f"{seen.fresh_old_s_max:.2f}"),
        )
    console.print(table)
    console.print(
        f"{outcome.events:,} events: {outcome.lost} predictions lost, {outcome.doubled} doubled, "
        f"{outcome.wrong_scores} wrong; {outcome.wrong_keys} of {outcome.keys:,} keys wrong at the "
        f"end; the worker used {outcome.cpu_s_per_million:.1f} CPU s per million events"
    )


def _bounds(outcome: Outcome, stretches: Sequence[Stretch]) -> list[Bound]:
    calm_ms = [one.p99_ms for one in stretches if one.name in {CALM, CALM_AGAIN}]
    bounds = [
        Bound("predictions lost", outcome.lost, 0, at_least=False),
        Bound("predictions doubled", outcome.doubled, 0, at_least=False),
        Bound("scores that are wrong", outcome.wrong_scores, 0, at_least=False),
        Bound("keys that are wrong at the end", outcome.wrong_keys, 0, at_least=False),
    ]
    for one in stretches:
        seen = one.seen
        wrong = seen.wrong_unflagged + seen.wrong_flagged
        bounds.append(Bound(f"{one.name}: wrong values read", wrong, 0, at_least=False))
        old_s, limit_s = seen.fresh_old_s_max, STALE_AFTER_MS / 1000 + SLACK_S
        bounds.append(Bound(f"{one.name}: oldest FRESH value, s", old_s, limit_s, at_least=False))
        if one.name == CALM:
            continue
        # Where Redis only waits nothing may change; what it has to load or be told costs CPU.
        decides = one.name in UNCHANGED
        ratio = one.p99_ms / (calm_ms[0] if one.name == CALM_AGAIN else float(np.mean(calm_ms)))
        name = f"{one.name}: p99 to that of no fault"
        bounds.append(Bound(name, ratio, P99_RATIO_MAX, at_least=False, decides=decides))
        if one.right_s:
            limit_s = RIGHT_S_MAX_BY_NAME.get(one.name, RIGHT_S_MAX)
            worst = max(RECOVERY_S if right is None else right for right in one.right_s)
            bounds.append(Bound(f"{one.name}: right again, s", worst, limit_s, at_least=False))
    return bounds
