"""The demo from its first to its last step."""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from confluent_kafka import Consumer, TopicPartition
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.fraud.generate import DAY_MS, make_world
from examples.fraud.show.board import AlertBook, finding_table, line, show
from examples.fraud.show.findings import find
from examples.fraud.show.playback import Channel, DeliveryError, Playback, Timeline, make_producer
from examples.fraud.show.scene import Scene, SceneError
from examples.fraud.show.story import Chapter, Story
from examples.fraud.show.tour import PIPELINE, Stage, Tour, source_tables, wait_for_lake
from examples.fraud.show.watcher import Watcher, WatchError
from headrace.runtime import topics
from headrace.runtime.clock import SystemClock
from headrace.runtime.errors import HeadraceError
from headrace.schemas.codec import RecordEncoder, SchemaDecoder
from headrace.scoring.artefact import MODEL_FILE
from headrace.streams.environment import Environment, open_environment
from headrace.streams.publisher import publish
from headrace.streams.publishing import open_publication
from headrace.training.registry import FileRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.progress import TaskID

PARTITIONS = 4
THRESHOLD = 0.5
TOPS = (100, 300)
REFRESH_S = 0.25
# Without a terminal to draw in: a line every five seconds.
LINE_EVERY = 20
MODEL_TIMEOUT_S = 60.0
DRAIN_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much is simulated, and in how many seconds the live part is played."""

    customers: int
    terminals: int
    history_days: int
    live_days: int
    live_s: float


FULL = Size(customers=5_000, terminals=10_000, history_days=60, live_days=7, live_s=45.0)
FAST = Size(customers=500, terminals=1_000, history_days=45, live_days=2, live_s=6.0)


class Director:
    """Takes the demo through its steps."""

    def __init__(self, scene: Scene, size: Size, seed: int, console: Console) -> None:
        self._scene = scene
        self._size = size
        self._console = console
        self._step = 0
        now_ms = SystemClock().now_ms()
        # Whole days, so that noon is noon; the last of them goes up to now.
        start_ms = (now_ms // DAY_MS - size.history_days) * DAY_MS
        self._now_ms = now_ms
        self._story = Story(make_world(size.customers, size.terminals, seed), start_ms)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="demo")
        self._stopping = threading.Event()

    def run(self, *, forever: bool) -> None:
        """Run all steps; with ``forever`` one week after the other is played, and no tour."""
        self._start_infrastructure()
        history = self._make_history()
        self._say("Applying the project: topics, schemas, Feast repository, as in production")
        self._scene.run("apply")
        self._say("Starting a worker, which also keeps Redis")
        self._scene.start_worker()
        environment = open_environment(self._scene.folder)
        self._learn_from_history(environment, history)
        self._deploy()
        for number in itertools.count(1):
            start_ms = self._now_ms
            chapter, watcher = self._play(environment, number)
            if not forever:
                stage = self._stage(environment)
                Tour(stage, chapter, start_ms, self._now_ms).run(watcher)
                return

    def _stage(self, environment: Environment) -> Stage:
        return Stage(self._scene, environment, self._console, self._say, self._progress)

    def close(self) -> None:
        """Let threads end that still wait for something."""
        self._stopping.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _say(self, text: str) -> None:
        self._step += 1
        self._console.print(f"[bold cyan]{self._step}.[/] {text}")

    def _start_infrastructure(self) -> None:
        self._say("Starting Kafka, Redis, a schema registry and the lake, all of this demo's own")
        with self._progress() as progress:
            task = progress.add_task("starting", total=None)

            def show(what: str, done: int, count: int) -> None:
                progress.update(task, description=what, completed=done, total=count or None)

            self._scene.up(show)

    def _make_history(self) -> Chapter:
        size = self._size
        self._say(
            f"Simulating {size.history_days} days of card payments that end now: "
            f"{size.customers:,} customers, {size.terminals:,} terminals, three kinds of fraud"
        )
        history = self._story.until(self._now_ms)
        folder = self._scene.folder / "data"
        folder.mkdir()
        pq.write_table(history.transactions, folder / "transactions.parquet")
        pq.write_table(history.reports, folder / "reports.parquet")
        self._console.print(
            f"   {history.transactions.num_rows:,} transactions, "
            f"{history.reports.num_rows:,} frauds reported by now"
        )
        return history

    def _learn_from_history(self, environment: Environment, history: Chapter) -> None:
        """Play the past into Kafka and train on it, both at once."""
        self._say("Playing the past into Kafka; training a model on it once the lake holds it")
        rows = history.transactions.num_rows
        with self._progress() as progress, _offsets(environment) as predictions_written:
            sent = progress.add_task("events sent", total=rows + history.reports.num_rows)
            scored = progress.add_task("events through the worker", total=rows)
            kept = progress.add_task("events in the lake", total=rows + history.reports.num_rows)
            trained = progress.add_task("training", total=None)
            sending = self._threads.submit(self._send_history, progress, sent)

            def train() -> str:
                sending.result()
                wait_for_lake(
                    self._stage(environment),
                    source_tables(environment),
                    self._stopping,
                    lambda held, _total: progress.update(kept, completed=held),
                )
                return self._scene.run("train", "--lake", "--json")

            training = self._threads.submit(train)
            while not (sending.done() and training.done() and progress.tasks[scored].finished):
                self._scene.check_worker()
                _raise_failure(sending, training)
                progress.update(scored, completed=predictions_written())
                if training.done():
                    progress.update(trained, total=1, completed=1)
                time.sleep(REFRESH_S)
        _raise_failure(sending, training)
        result = json.loads(training.result())
        metrics = result["metrics"]
        self._console.print(
            f"   tested on its last week: AUC {metrics['test_auc']:.3f}, "
            f"average precision {metrics['test_average_precision']:.3f}; "
            f"training set {result['training_set_id']}"
        )

    def _send_history(self, progress: Progress, task: TaskID) -> None:
        publication = open_publication(self._scene.folder, [])
        publish(
            publication.producer,
            publication.feeds,
            # A report counts from when it was known on, so it may be sent early.
            updates="first",
            on_progress=lambda count: progress.advance(task, count),
        )

    def _deploy(self) -> None:
        self._say("Deploying the model to the running worker")
        self._scene.run("deploy", PIPELINE)
        deadline_s = time.monotonic() + MODEL_TIMEOUT_S
        while not self._scene.live_model():
            self._scene.check_worker()
            if time.monotonic() > deadline_s:
                msg = f"the worker did not take the model within {MODEL_TIMEOUT_S:.0f} s"
                raise SceneError(msg)
            time.sleep(REFRESH_S)

    def _play(self, environment: Environment, number: int) -> tuple[Chapter, Watcher]:
        """Play the next simulated days, show what comes out while it does, and return both."""
        size = self._size
        start_ms, end_ms = self._now_ms, self._now_ms + size.live_days * DAY_MS
        self._now_ms = end_ms
        chapter = self._story.until(end_ms)
        count = chapter.transactions.num_rows
        speed = size.live_days * DAY_MS / 1000 / size.live_s
        which = "next" if number == 1 else f"{number}."
        self._say(
            f"Playing the {which} {size.live_days} simulated days: {count:,} transactions, "
            f"{speed:,.0f} times as fast as life"
        )
        timeline = Timeline.merge(
            (_channel(environment, "transactions", "event_time"), chapter.transactions),
            (_channel(environment, "reports", "known_at"), chapter.reports),
        )
        producer = make_producer(environment.endpoints.bootstrap_servers, linger_ms=0)
        playback = Playback(producer, timeline, start_ms, speed, count)
        watcher = _watcher(environment, chapter, count)
        self._watch(environment, chapter, playback, watcher)
        self._sum_up(chapter, watcher)
        return chapter, watcher

    def _watch(
        self, environment: Environment, chapter: Chapter, playback: Playback, watcher: Watcher
    ) -> None:
        names = [column.name for column in environment.pipeline(PIPELINE).vector]
        book = AlertBook(chapter, names, _contributions(self._scene), THRESHOLD)
        reading = self._threads.submit(watcher.run)
        playing = self._threads.submit(playback.run)
        try:
            with show(self._console) as draw:
                for tick in itertools.count():
                    self._scene.check_worker()
                    _raise_failure(reading, playing)
                    figures = watcher.reading(playback.sent_s)
                    book.take(watcher)
                    done = figures.scored + figures.unscored >= chapter.transactions.num_rows
                    if done or self._console.is_terminal:
                        draw(book.draw(watcher, playback, figures))
                    elif tick % LINE_EVERY == LINE_EVERY - 1:
                        draw(line(playback, figures))
                    if done:
                        break
                    playback.check_drained(DRAIN_TIMEOUT_S)
                    time.sleep(REFRESH_S)
        finally:
            playback.stop()
            watcher.stop()
        playing.result()
        reading.result()
        latency_ms = (watcher.received_s - playback.sent_s) * 1000
        p50, p99 = np.nanpercentile(latency_ms, [50, 99])
        self._console.print(
            f"   {playback.sent:,} events; from event in to prediction out: "
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        )

    def _sum_up(self, chapter: Chapter, watcher: Watcher) -> None:
        self._say("What it found, against the fraud reports that have arrived by now")
        reported = chapter.reported()
        amount = chapter.transactions["amount"].to_numpy()
        self._console.print(
            f"   {reported.sum():,} of these transactions are reported as frauds so far, "
            f"{amount[reported].sum():,.2f} in all; a report takes up to a week"
        )
        self._console.print(finding_table(find(watcher.score, amount, reported, THRESHOLD, TOPS)))

    @contextmanager
    def _progress(self) -> Iterator[Progress]:
        columns = (
            TextColumn("   {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            yield progress


def _channel(environment: Environment, source: str, time_column: str) -> Channel:
    plan = environment.source(source)
    schema_id, schema = environment.registered(plan.topic)
    return Channel(plan.topic, plan.key, time_column, RecordEncoder(schema, schema_id))


def _watcher(environment: Environment, chapter: Chapter, count: int) -> Watcher:
    outputs = topics.predictions(PIPELINE), topics.snapshots(PIPELINE)
    properties = {
        **environment.client,
        "group.id": "demo",
        "enable.auto.commit": False,
        "fetch.wait.max.ms": 5,
    }
    decoders = {topic: SchemaDecoder(environment.registered(topic)[1]) for topic in outputs}
    names = [column.name for column in environment.pipeline(PIPELINE).vector]
    return Watcher(properties, outputs, decoders, names, chapter.first_id, count)


def _contributions(scene: Scene) -> Callable[[Any], Any]:
    """Return LightGBM's own explanation of the deployed model's scores."""
    import lightgbm

    entry = FileRegistry(scene.folder / "models").resolve(PIPELINE)
    booster = lightgbm.Booster(model_file=entry.folder / MODEL_FILE)
    return lambda vectors: booster.predict(vectors, pred_contrib=True, num_threads=1)


@contextmanager
def _offsets(environment: Environment) -> Iterator[Callable[[], int]]:
    """Give a function that says how many predictions there are."""
    topic = topics.predictions(PIPELINE)
    consumer = Consumer({**environment.client, "group.id": "demo.offsets"})
    places = [
        TopicPartition(topic, number) for number in range(environment.partitions([topic])[topic])
    ]
    try:
        yield lambda: sum(consumer.get_watermark_offsets(place, timeout=15)[1] for place in places)
    finally:
        consumer.close()


def _raise_failure(*futures: Future[Any]) -> None:
    for future in futures:
        if future.done():
            future.result()


def main(arguments: Sequence[str]) -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(prog="demo", description="Headrace on simulated card fraud.")
    parser.add_argument("--forever", action="store_true", help="play on until Ctrl-C")
    parser.add_argument("--fast", action="store_true", help="a tenth of the size, for tests")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    console = Console()
    # A polite kill goes the way of Ctrl-C, so that nothing stays behind.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    started_s = time.monotonic()
    try:
        with Scene(PARTITIONS) as scene:
            director = Director(scene, FAST if options.fast else FULL, options.seed, console)
            try:
                director.run(forever=options.forever)
            finally:
                director.close()
                console.print("[dim]Stopping everything and removing its files[/]")
    except KeyboardInterrupt:
        console.print("Stopped; nothing stays behind")
        return 130
    except (SceneError, DeliveryError, WatchError, HeadraceError) as error:
        console.print(f"[red]The demo failed:[/] {error}", highlight=False, markup=True)
        return 1
    took_s = time.monotonic() - started_s
    console.print(f"Done in {took_s:.0f} s; nothing stays behind but that page")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
