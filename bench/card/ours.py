"""Headrace on the card job: one worker process, as a user would start it, all outputs checked."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.card.job import FEATURES, PARTITION_COUNT
from bench.card.reference import wrong_rows
from bench.measure import (
    BenchError,
    Beside,
    RedisMeter,
    TreeSampler,
    drain,
    stop_process,
)
from bench.outputs import read_columns
from bench.project import Project, environment, make_project
from headrace.lake.tables import Lake, predictions_table, snapshots_table
from headrace.runtime import topics
from headrace.runtime.clock import SystemClock
from headrace.runtime.settings import load_settings
from headrace.scoring.artefact import Canary, write_artefact
from headrace.scoring.scorer import FeatureColumn
from headrace.training.registry import FileRegistry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bench.measure import Drain
    from headrace.runtime.dev.stack import Endpoints

# No commit, and so no output, comes later than this after the one before.
QUIET_S = 3.0
PIPELINE = "card"
SOURCE = "card_events"
TEMPLATE = Path(__file__).parent / "project"
PREDICTIONS = topics.predictions(PIPELINE)
SNAPSHOTS = topics.snapshots(PIPELINE)
LAKE_TABLES = (SOURCE, predictions_table(PIPELINE), snapshots_table(PIPELINE))
LAKE_TIMEOUT_S = 300.0
LAKE_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Check:
    """What the comparison of all outputs with the reference found."""

    events: int
    missing: int
    repeated: int
    wrong_features: int
    wrong_scores: int

    @property
    def holds(self) -> bool:
        """Whether each event came out, once in an undisturbed run, with the right values."""
        return not (self.missing or self.repeated or self.wrong_features or self.wrong_scores)


def prepare(
    folder: Path, name: str, endpoints: Endpoints, guarantee: str = "at_least_once"
) -> Project:
    """Make the project and apply it: the source's topic and all outputs are there and empty.

    Args:
        folder: Where to make it.
        name: The project's name; a new one has a consumer group that has read nothing.
        endpoints: The running stack.
        guarantee: The worker's.

    """
    settings = {
        "project": name,
        "topics": {"partitions": PARTITION_COUNT},
        "stream": {"guarantee": guarantee},
    }
    project = make_project(folder, TEMPLATE, endpoints, settings)
    project.run("apply")
    return project


def deploy(project: Project, model: Path, canary_rows: NDArray[np.float64]) -> None:
    """Put the job's model into the project's registry and make it the champion.

    Args:
        project: The applied project.
        model: LightGBM's text file.
        canary_rows: A few vectors of the job.

    """
    import lightgbm

    plan = project.plan(PIPELINE)
    if len(plan.vector) != len(FEATURES):
        msg = f"the vector must have {len(FEATURES)} columns; got {len(plan.vector)}"
        raise BenchError(msg)
    scores = np.asarray(lightgbm.Booster(model_file=model).predict(canary_rows, num_threads=1))
    artefact = project.folder / "artefact"
    write_artefact(
        artefact,
        _with_names(model.read_text(), [column.name for column in plan.vector]),
        model=PIPELINE,
        pipeline=PIPELINE,
        framework_version=lightgbm.__version__,
        columns=[FeatureColumn(column.name, column.dtype) for column in plan.vector],
        fingerprint=plan.fingerprint,
        training_set_id="0" * 64,
        created_at_ms=SystemClock().now_ms(),
        canary=Canary(canary_rows, scores),
        metrics={},
        parameters={},
    )
    entry = FileRegistry(project.folder / "models").add(artefact)
    project.run("deploy", f"{entry.model}/{entry.version}")


def _with_names(model_text: str, names: list[str]) -> bytes:
    """Return the model with its inputs called as in our plan; the peers' has no names."""
    (line,) = [line for line in model_text.splitlines() if line.startswith("feature_names=")]
    return model_text.replace(line, f"feature_names={' '.join(names)}", 1).encode()


def measure(
    project: Project, name: str, expected: int, log: Path, *, with_lake: bool = False
) -> tuple[Drain, list[Beside]]:
    """Run one worker until every event has its prediction and its snapshot.

    Returns what the worker did, and what Redis and, ``with_lake``, the lake's process did for it
    from its start until it had done all.

    Raises:
        BenchError: If an output or, with the lake, a row does not come.

    """
    meter = RedisMeter(project.endpoints.redis_url)
    beside = []
    with lake_beside(project, log.with_suffix(".lake.log"), wanted=with_lake) as lake:
        run = _drain(project, name, expected, log)
        if lake is not None:
            behind_s = _wait_for_lake(project, expected)
            cpu_s = lake.cpu_s_until_now() * 1e6 / expected
            told = f"{len(LAKE_TABLES)} x {expected:,} rows, {behind_s:.0f} s after the last output"
            beside.append(Beside("lake", cpu_s, told))
    return run, [meter.since(expected), *beside]


def _wait_for_lake(project: Project, expected: int) -> float:
    """Wait until the lake holds all rows and return how long that took, seconds."""
    lake = Lake(load_settings(project.folder).lake.folder)
    started_s = time.monotonic()
    while True:
        held = [lake.table(name).count_rows() if lake.has(name) else 0 for name in LAKE_TABLES]
        if held == [expected] * len(LAKE_TABLES):
            return time.monotonic() - started_s
        if time.monotonic() - started_s > LAKE_TIMEOUT_S:
            msg = f"the lake holds {dict(zip(LAKE_TABLES, held, strict=True))}, not {expected} each"
            raise BenchError(msg)
        time.sleep(LAKE_POLL_S)


@contextmanager
def lake_beside(project: Project, log: Path, *, wanted: bool) -> Iterator[TreeSampler | None]:
    """Run ``headrace lake`` on the project meanwhile, if it is wanted."""
    if not wanted:
        yield None
        return
    with log.open("wb") as output:
        process = subprocess.Popen(
            project.command("lake"),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=project.folder,
            env=environment(),
        )
    sampler = TreeSampler(process.pid)
    try:
        yield sampler
        if process.poll() is not None:
            msg = f"the lake's process ended with {process.returncode}; see {log}"
            raise BenchError(msg)
    finally:
        sampler.stop()
        stop_process(process)


def _drain(project: Project, name: str, expected: int, log: Path) -> Drain:
    return drain(
        name,
        project.command("worker"),
        project.endpoints.bootstrap_servers,
        [PREDICTIONS, SNAPSHOTS],
        expected,
        folder=project.folder,
        log=log,
        quiet_s=QUIET_S,
    )


def check(project: Project, reference: NDArray[np.float64]) -> Check:
    """Decode every output and compare it with the reference to 1e-6.

    Args:
        project: Whose outputs.
        reference: [score, features…] of each event, by event id.

    """
    plan = project.plan(PIPELINE)
    where = project.endpoints.bootstrap_servers, project.endpoints.registry_url
    score_ids, scores = read_columns(*where, PREDICTIONS, PARTITION_COUNT, ["score"])
    names = [column.name for column in plan.vector]
    vector_ids, vectors = read_columns(*where, SNAPSHOTS, PARTITION_COUNT, names)
    events = len(reference)
    seen = np.bincount(score_ids, minlength=events), np.bincount(vector_ids, minlength=events)
    return Check(
        events=events,
        missing=sum(int((times == 0).sum()) for times in seen),
        repeated=sum(int((times > 1).sum()) for times in seen),
        wrong_features=len(wrong_rows(vector_ids, vectors, reference[:, 1:])),
        wrong_scores=len(wrong_rows(score_ids, scores, reference[:, :1])),
    )
