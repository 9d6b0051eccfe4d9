"""``./dev bench fraud``: the example's two entities and their re-keying in one worker process."""

from __future__ import annotations

import argparse
import shutil
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from bench.card.ours import QUIET_S
from bench.card.run import ROOT
from bench.card.topics import delete as delete_topics
from bench.fraud_reference import reference_features
from bench.latency import GUARANTEES, WORK
from bench.measure import drain
from bench.outputs import read_columns
from bench.project import Project, fresh_stack, make_project
from bench.report import Bound, exit_code, print_bounds, spread, write_json
from examples.fraud.generate import make_world, simulate, write
from headrace.cli.applied import target_of
from headrace.features.project import load_project
from headrace.runtime import topics
from headrace.scoring.artefact import MODEL_FILE
from headrace.training.registry import FileRegistry

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from bench.measure import Drain
    from examples.fraud.generate import Simulation

PIPELINE = "fraud"
TEMPLATE = ROOT / "examples" / "fraud"
PARTITION_COUNT = 4
START_MS = 1_767_225_600_000  # 2026-01-01
RATE_MIN = 50_000.0
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class FraudRun:
    """What one worker did, and per feature and for the score how many outputs are wrong."""

    run: Drain
    wrong: dict[str, int]


def main(arguments: Sequence[str]) -> int:
    """Run the bench and return 0 if all outputs are right and the rate is reached."""
    parser = argparse.ArgumentParser(prog="bench fraud", description=__doc__)
    parser.add_argument("--days", type=int, default=60, help="9,700 events each, >= 32")
    parser.add_argument("--guarantee", choices=(*GUARANTEES, "both"), default=GUARANTEES[0])
    parser.add_argument("--runs", type=int, default=1, help="of each guarantee, in turn")
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args(arguments)
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    console = Console()
    simulation = simulate(make_world(seed=7), START_MS, options.days)
    console.print(
        f"{simulation.transactions.num_rows:,} transactions, "
        f"{simulation.reports.num_rows:,} reports"
    )
    wanted = GUARANTEES if options.guarantee == "both" else (options.guarantee,)
    runs: dict[str, list[FraudRun]] = {guarantee: [] for guarantee in wanted}
    stack = fresh_stack(work / "stack")
    try:
        endpoints = stack.up()
        settings = _settings("fraud_bench", GUARANTEES[0])
        filled = make_project(work / "fraud-filled", TEMPLATE, endpoints, settings)
        write(simulation, filled.folder / "data")
        filled.run("apply")
        console.print("training a model, filling the topics")
        filled.run("train")
        filled.run("send", "--reports", "first")
        for number in range(1, options.runs + 1):
            for guarantee, measured in runs.items():
                settings = _settings(f"fraud_bench_{guarantee}_{number}", guarantee)
                measured.append(_run(filled, settings, work, simulation))
                console.print(f"{guarantee}: {_told(measured[-1].run)}")
    finally:
        stack.down()
    return _report(runs, console, work)


def _settings(name: str, guarantee: str) -> dict[str, object]:
    return {
        "project": name,
        "topics": {"partitions": PARTITION_COUNT},
        "history": {one: f"data/{one}.parquet" for one in ("transactions", "reports")},
        "stream": {"guarantee": guarantee},
    }


def _run(
    filled: Project, settings: dict[str, object], work: Path, simulation: Simulation
) -> FraudRun:
    """Let a new project's worker do all that lies in the sources' topics."""
    servers = filled.endpoints.bootstrap_servers
    project = make_project(work / "fraud", TEMPLATE, filled.endpoints, settings)
    target = target_of(load_project(project.folder))
    rekeyed = [spec.name for spec in target.topics if spec.role == "rekey"]
    outputs = [topics.predictions(PIPELINE), topics.snapshots(PIPELINE)]
    delete_topics(servers, *outputs, *rekeyed)
    shutil.copytree(filled.folder / "models", project.folder / "models")
    project.run("apply")
    project.run("deploy", PIPELINE)
    run = drain(
        f"fraud, {settings['project']}",
        project.command("worker"),
        servers,
        outputs,
        simulation.transactions.num_rows,
        # A second stage that came only after all of the first would look quick by itself.
        between=rekeyed,
        folder=project.folder,
        log=work / "worker-fraud.log",
        quiet_s=QUIET_S,
    )
    return FraudRun(run, _wrong(project, simulation.transactions, simulation.reports))


def _told(run: Drain) -> str:
    return (
        f"{run.rate:,.0f} events/s ({run.middle_rate:,.0f} in the middle), "
        f"{run.cpu_s_per_million:.1f} CPU s per million, {run.rss_mib_max:,.0f} MiB"
    )


def _report(runs: dict[str, list[FraudRun]], console: Console, work: Path) -> int:
    bounds = [
        # Decides because nothing runs beside it to compare with.
        Bound(
            f"events/s, two entities, one process, {guarantee}",
            statistics.median(one.run.rate for one in measured),
            RATE_MIN,
            at_least=True,
            decides=guarantee == GUARANTEES[0],
        )
        for guarantee, measured in runs.items()
    ]
    every = [one for measured in runs.values() for one in measured]
    wrong = sum(sum(one.wrong.values()) for one in every)
    bounds.append(Bound("wrong values", float(wrong), 0.0, at_least=False))
    if len(runs) == len(GUARANTEES):
        less, more = (runs[guarantee] for guarantee in GUARANTEES)
        ratios = [b.run.rate / a.run.rate for a, b in zip(less, more, strict=True)]
        console.print(f"exactly-once of at-least-once, by turn: {spread(ratios)}")
    for one in every:
        for name, rows in one.wrong.items():
            if rows:
                console.print(f"[red]{one.run.name}, {name}: {rows:,} wrong[/]")
    print_bounds(console, bounds)
    figures = {name: [asdict(one) for one in measured] for name, measured in runs.items()}
    write_json(work / "fraud.json", "fraud", {"runs": figures}, bounds)
    return exit_code(bounds)


def _wrong(project: Project, transactions: pa.Table, reports: pa.Table) -> dict[str, int]:
    """Return, per feature and for the score, how many of all outputs are not what they must be."""
    import lightgbm

    names = [column.name for column in project.plan(PIPELINE).vector]
    where = project.endpoints.bootstrap_servers, project.endpoints.registry_url
    ids, vectors = read_columns(*where, topics.snapshots(PIPELINE), PARTITION_COUNT, names)
    score_ids, scores = read_columns(
        *where, topics.predictions(PIPELINE), PARTITION_COUNT, ["score"]
    )
    count = transactions.num_rows
    wrong = {
        "rows": _not_once(ids, count) + _not_once(score_ids, count),
    }
    expected = reference_features(transactions, reports)
    for index, name in enumerate(names):
        within = np.abs(vectors[:, index] - expected[name][ids]) <= TOLERANCE
        wrong[name] = int((~within).sum())
    entry = FileRegistry(project.folder / "models").resolve(PIPELINE)
    booster = lightgbm.Booster(model_file=entry.folder / MODEL_FILE)
    by_id = np.empty_like(vectors)
    by_id[ids] = vectors
    again = np.asarray(booster.predict(by_id, num_threads=1))
    wrong["score"] = int((~(np.abs(scores[:, 0] - again[score_ids]) <= TOLERANCE)).sum())
    return wrong


def _not_once(ids: NDArray[np.int64], count: int) -> int:
    return int((np.bincount(ids, minlength=count) != 1).sum())
