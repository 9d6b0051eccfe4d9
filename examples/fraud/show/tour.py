"""What there is after the week: current values, the lake, one receipt, and drift."""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

import headrace as hr
from examples.fraud.show.board import clock
from examples.fraud.show.scene import SceneError
from headrace.cli.drift import print_report
from headrace.cli.drift_page import page
from headrace.cli.explain import explain_prediction
from headrace.lake.receipts import choose_ids
from headrace.lake.tables import Lake, predictions_table, snapshots_table
from headrace.runtime import topics
from headrace.runtime.kafka import admin, end_offsets, partition_counts, topic_ids
from headrace.schemas.outputs import PredictionId
from headrace.streams.receipts import replay_receipts
from headrace.training.registry import FileRegistry
from headrace.training.watch import drift_report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    import pyarrow as pa
    from rich.console import Console
    from rich.progress import Progress

    from examples.fraud.show.scene import Scene
    from examples.fraud.show.story import Chapter
    from examples.fraud.show.watcher import Watcher
    from headrace.cli.explain import Explanation
    from headrace.features.store.answer import OnlineAnswer
    from headrace.streams.environment import Environment

PIPELINE = "fraud"
LOOK_S = 0.25
STALL_S = 60.0
ONLINE_TIMEOUT_S = 15.0
REPLAYED = 200
FEATURES_SHOWN = 5
QUERY = """\
select p.prediction_id, p.event_id, p.score, r.is_fraud as reported
from fraud_predictions p
left join reports r on r.transaction_id = p.event_id::bigint
where p.model is not null order by p.score desc, p.event_id limit 5"""


@dataclass(frozen=True, slots=True)
class Stage:
    """What the tour stands on. ``say`` begins a step, ``progress`` draws bars while it lasts."""

    scene: Scene
    environment: Environment
    console: Console
    say: Callable[[str], None]
    progress: Callable[[], AbstractContextManager[Progress]]

    @property
    def lake(self) -> Lake:
        """Return the demo's lake."""
        return Lake(self.environment.project.settings.lake.folder)


def output_tables() -> dict[str, str]:
    """Return the lake's tables of the pipeline's outputs, by topic."""
    return {
        topics.predictions(PIPELINE): predictions_table(PIPELINE),
        topics.snapshots(PIPELINE): snapshots_table(PIPELINE),
    }


def source_tables(environment: Environment) -> dict[str, str]:
    """Return the lake's tables of the pipeline's sources, by topic."""
    return {source.topic: source.name for source in environment.pipeline(PIPELINE).sources}


def wait_for_lake(
    stage: Stage,
    tables: Mapping[str, str],
    stopping: threading.Event,
    on_progress: Callable[[int, int], None],
) -> None:
    """Return once the lake holds all that the topics hold now.

    Args:
        stage: Whose lake.
        tables: Its tables, by topic.
        stopping: Set by another thread to end the wait early.
        on_progress: Told how many records it holds, and how many there are.

    Raises:
        SceneError: If the lake's process has ended, or gets no further for a minute.

    """
    client = stage.environment.client
    broker = admin(client)
    counts = partition_counts(broker, tables)
    ids = topic_ids(broker, counts)
    ends = end_offsets(client, [(t, p) for t, count in counts.items() for p in range(count)])
    total = sum(ends.values())
    most, moved_s = -1, time.monotonic()
    while not stopping.is_set():
        held = _held(stage.lake, tables, ids, ends)
        on_progress(held, total)
        if held >= total:
            return
        stage.scene.check_lake()
        now_s = time.monotonic()
        if held > most:
            most, moved_s = held, now_s
        if now_s - moved_s > STALL_S:
            msg = f"the lake holds {held:,} of {total:,} records and has come no further for "
            raise SceneError(msg + f"{STALL_S:.0f} s:\n{stage.scene.lake_log()}")
        stopping.wait(LOOK_S)


def _held(
    lake: Lake,
    tables: Mapping[str, str],
    ids: Mapping[str, str],
    ends: Mapping[tuple[str, int], int],
) -> int:
    there = {topic: lake.table(name) for topic, name in tables.items() if lake.has(name)}
    return sum(
        min(end, there[topic].next_offset(ids[topic], partition) or 0)
        for (topic, partition), end in ends.items()
        if topic in there
    )


class Tour:
    """Shows what the played days have left behind, each by the means that a user has."""

    def __init__(self, stage: Stage, chapter: Chapter, start_ms: int, end_ms: int) -> None:
        self._stage = stage
        self._console = stage.console
        self._chapter = chapter
        self._start_ms = start_ms
        self._end_ms = end_ms

    def run(self, watcher: Watcher) -> None:
        """Show everything, the drift report last.

        Raises:
            SceneError: If something is not as it is said to be.

        """
        self._current_values(watcher)
        self._wait()
        self._account_for(self._ask())
        self._drift()

    # --- Redis ----------------------------------------------------------------------------------

    def _current_values(self, watcher: Watcher) -> None:
        row = self._chapter.transactions.num_rows - 1
        (last,) = self._chapter.transactions.slice(row).to_pylist()
        keys = {name: last[name] for name in ("customer_id", "terminal_id")}
        self._stage.say(
            "Reading the newest values from Redis: the last payment's customer and terminal, "
            f'hr.online("{PIPELINE}", {keys})'
        )
        plan = self._stage.environment.pipeline(PIPELINE)
        names = [column.name for column in plan.vector]
        seen = dict(zip(names, watcher.vectors[row].tolist(), strict=True))
        with hr.online_reader(PIPELINE, project=self._stage.environment.project) as reader:
            deadline_s = time.monotonic() + ONLINE_TIMEOUT_S
            answer = reader.read(keys)
            # Redis is written behind the commits; a moment later it is there.
            while not _agrees(answer, seen) and time.monotonic() < deadline_s:
                time.sleep(LOOK_S)
                answer = reader.read(keys)
        self._console.print(online_table(answer, seen))
        equal = sum(answer.columns[name][0] == seen[name] for name in answer.types)
        self._console.print(
            f"   {equal} of {len(answer.types)} equal the snapshot of that payment"
            + ("" if equal == len(answer.types) else "; the others have moved on with time")
        )

    # --- The lake -------------------------------------------------------------------------------

    def _wait(self) -> None:
        self._stage.say("Asking the lake, which has followed all topics in its own process")
        with self._stage.progress() as progress:
            task = progress.add_task("records in the lake", total=None)
            wait_for_lake(
                self._stage,
                {**source_tables(self._stage.environment), **output_tables()},
                threading.Event(),
                lambda held, total: progress.update(task, completed=held, total=total),
            )
        lake = self._stage.lake
        held = ", ".join(f"{name} {lake.table(name).count_rows():,}" for name in lake.names())
        self._console.print(f"   rows: {held}", highlight=False)

    def _ask(self) -> PredictionId:
        """Return the id of the prediction with the highest score."""
        found = hr.sql(QUERY, project=self._stage.scene.folder)
        if not found.num_rows:
            msg = "the lake holds no scored prediction"
            raise SceneError(msg)
        text = QUERY.replace("\n", "\n     ")
        self._console.print(Text(f'   hr.sql("""\n     {text}\n   """)', style="dim"))
        self._console.print(sql_table(found))
        return PredictionId.parse(found["prediction_id"][0].as_py())

    # --- Receipts -------------------------------------------------------------------------------

    def _account_for(self, one: PredictionId) -> None:
        environment, lake = self._stage.environment, self._stage.lake
        plan = environment.pipeline(PIPELINE)
        self._stage.say(f"Explaining the highest score: headrace explain {one}")
        explained = explain_prediction(environment.project, plan, lake, one)
        self._console.print(receipt_table(explained))
        ids = {one, *choose_ids(lake, PIPELINE, REPLAYED, 0, self._start_ms, self._end_ms)}
        self._stage.say(
            f"Computing {len(ids)} predictions again from Kafka's log and the recorded model, "
            f"that one too: headrace replay"
        )
        registry = FileRegistry(environment.project.settings.registry_folder)
        with self._stage.progress() as progress:
            tasks = {}

            def show(what: str, done: int, total: int | None) -> None:
                if what not in tasks:
                    tasks[what] = progress.add_task(what, total=total)
                progress.update(tasks[what], advance=done)

            report = replay_receipts(
                environment,
                plan,
                lake,
                lambda model, version: registry.resolve(f"{model}/{version}").folder,
                sorted(ids),
                show,
            )
        same = sum(replayed.equal for replayed in report.replayed)
        if not report.equal:
            wrong = next((str(r.id) for r in report.replayed if not r.equal), "none")
            msg = f"{same} of {len(ids)} came out the same; the first that did not: {wrong}"
            raise SceneError(msg)
        self._console.print(f"   {same} of {len(ids)} the same, scores and vectors, bit for bit")

    # --- Drift ----------------------------------------------------------------------------------

    def _drift(self) -> None:
        self._stage.say("Is it still the world that the model was trained on? headrace drift")
        with self._stage.progress() as progress:
            task = progress.add_task("reading", total=None)
            report = drift_report(
                self._stage.scene.folder,
                PIPELINE,
                self._start_ms,
                self._end_ms,
                progress=lambda step, done, total: progress.update(
                    task, description=step, completed=done, total=total or None
                ),
            )
        print_report(report, self._console)
        # The one thing that stays: it is there to be opened.
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix="headrace-drift-", suffix=".html", delete=False
        ) as file:
            file.write(page(report))
        self._console.print(
            f"   the same with pictures: {Path(file.name).as_uri()}", soft_wrap=True
        )


def _agrees(answer: OnlineAnswer, seen: Mapping[str, float]) -> bool:
    """Say whether the answer is the snapshot's, and the writer's clock has come as far as it."""
    fresh = all(
        answer.statuses(view) == ["FRESH"] and answer.columns[f"{view}__age_ms"][0] >= 0
        for view in answer.views
    )
    return fresh and all(answer.columns[name][0] == seen[name] for name in answer.types)


# --- Tables --------------------------------------------------------------------------------------


def online_table(answer: OnlineAnswer, seen: Mapping[str, float]) -> Table:
    """Draw one entity row's values beside those of a snapshot, with each view's age and status."""
    table = _table("feature", "in Redis", "in the snapshot", "newest event", "")
    (row,) = answer.to_dicts()
    for name in answer.types:
        view = name.partition("__")[0]
        age_ms = row[f"{view}__age_ms"]
        table.add_row(
            name,
            _number(row[name]),
            _number(seen[name]),
            "-" if age_ms is None else f"{age_ms / 1000:,.1f} s before",
            row[f"{view}__status"],
        )
    return table


def sql_table(found: pa.Table) -> Table:
    """Draw a small result."""
    table = _table(*found.column_names)
    for row in found.to_pylist():
        table.add_row(*(_number(value) for value in row.values()))
    return table


def receipt_table(explained: Explanation) -> Table:
    """Draw a receipt in short: who scored, and the features that moved the score most."""
    receipt = explained.receipt
    score = "none" if receipt.score is None else f"{receipt.score:.4f}"
    title = (
        f"   payment {receipt.event_id} of {clock(receipt.event_time_ms)}: score {score} by "
        f"{receipt.model}/{receipt.model_version}"
    )
    table = _table("feature", "value", "moved by", "what it is", title=title)
    for line in explained.features[:FEATURES_SHOWN]:
        moved = "" if line.contribution is None else f"{line.contribution:+.2f}"
        table.add_row(line.name, _number(line.value), moved, line.definition)
    return table


def _table(*heads: str, title: str | None = None) -> Table:
    table = Table(box=None, title=title, title_justify="left", title_style="", padding=(0, 0, 0, 3))
    for head in heads:
        right = head in {"value", "in Redis", "in the snapshot", "newest event", "moved by"}
        # Where the terminal is narrow, only words in sentences are broken.
        table.add_column(head, justify="right" if right else "left", no_wrap=head != "what it is")
    return table


def _number(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
