"""``./dev bench fraud``: the example's two entities and their re-keying in one worker process."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from bench.card.run import ROOT, WORK
from bench.fraud_reference import reference_features
from bench.measure import drain
from bench.outputs import read_columns
from bench.project import Project, fresh_stack, make_project
from bench.report import Bound, exit_code, print_bounds, write_json
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

PIPELINE = "fraud"
TEMPLATE = ROOT / "examples" / "fraud"
PARTITION_COUNT = 4
START_MS = 1_767_225_600_000  # 2026-01-01
RATE_MIN = 50_000.0
TOLERANCE = 1e-6


def main(arguments: Sequence[str]) -> int:
    """Run the bench and return 0 if all outputs are right and the rate is reached."""
    parser = argparse.ArgumentParser(prog="bench fraud", description=__doc__)
    parser.add_argument("--days", type=int, default=60, help="9,700 events each, >= 30")
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args(arguments)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    console = Console()
    simulation = simulate(make_world(seed=7), START_MS, options.days)
    count = simulation.transactions.num_rows
    console.print(f"{count:,} transactions, {simulation.reports.num_rows:,} reports")
    stack = fresh_stack(work / "stack")
    try:
        settings = {
            "project": "fraud_bench",
            "topics": {"partitions": PARTITION_COUNT},
            "history": {name: f"data/{name}.parquet" for name in ("transactions", "reports")},
        }

        project = make_project(work / "fraud", TEMPLATE, stack.up(), settings)
        write(simulation, project.folder / "data")
        project.run("apply")
        console.print("training and deploying a model, filling the topics")
        project.run("train")
        project.run("deploy", PIPELINE)
        project.run("send", "--reports", "first")
        console.print("one worker")
        log = work / "worker-fraud.log"
        outputs = [topics.predictions(PIPELINE), topics.snapshots(PIPELINE)]
        servers = project.endpoints.bootstrap_servers
        target = target_of(load_project(project.folder))
        run = drain(
            "fraud",
            project.command("worker"),
            servers,
            outputs,
            count,
            # A second stage that came only after all of the first would look quick by itself.
            between=[spec.name for spec in target.topics if spec.role == "rekey"],
            folder=project.folder,
            log=log,
        )
        wrong = _wrong(project, simulation.transactions, simulation.reports)
    finally:
        stack.down()
    bounds = [
        # Decides because nothing runs beside it to compare with.
        Bound("events/s, two entities, one process", run.rate, RATE_MIN, at_least=True),
        Bound("wrong values", float(sum(wrong.values())), 0.0, at_least=False),
    ]
    console.print(
        f"{run.rate:,.0f} events/s ({run.middle_rate:,.0f} in the middle), "
        f"{run.cpu_s_per_million:.1f} CPU s per million, {run.rss_mib_max:,.0f} MiB"
    )
    for name, rows in wrong.items():
        if rows:
            console.print(f"[red]{name}: {rows:,} wrong[/]")
    print_bounds(console, bounds)
    write_json(work / "fraud.json", "fraud", {**asdict(run), "wrong": wrong}, bounds)
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
