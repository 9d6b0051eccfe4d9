"""``headrace train``: a model from the pipeline's history, into the registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import AsJson, AsOf, Folder, FromLake, epoch_ms

if TYPE_CHECKING:
    from headrace.training.split import Period
    from headrace.training.train import TrainingRun


def train(
    pipeline: Annotated[str | None, typer.Argument(help="Which one, if there are several.")] = None,
    *,
    start: Annotated[
        str | None, typer.Option("--from", help="First day to train on (UTC, 2018-07-25).")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", help="The day after the last one to test on.")
    ] = None,
    test: Annotated[str, typer.Option(help="How much of the end to test on.")] = "7d",
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="A folder with <source>.parquet files, or name=path for single files; over the "
            "files under `history` in headrace.yaml. Without either: the lake."
        ),
    ] = None,
    from_lake: FromLake = False,
    as_of: AsOf = "event",
    name: Annotated[
        str | None, typer.Option(help="The model's name: by default the pipeline's.")
    ] = None,
    project: Folder = Path(),
    as_json: AsJson = False,
) -> None:
    """Train a model on the pipeline's history.

    Training comes first in the period, then a gap as long as the label's delay, then the test.
    Without dates: the last weeks whose labels are in.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from headrace.lake.history import event_vectors
    from headrace.runtime.clock import SystemClock
    from headrace.training.registry import FileRegistry
    from headrace.training.run import open_training
    from headrace.training.train import train as run_training

    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    # On stderr: what the command prints is the result.
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("reading the history", total=None)

        def show(step: str, done: int, total: int) -> None:
            bars.update(task, description=step, completed=done, total=total or None)

        training = open_training(
            project,
            pipeline,
            data or [],
            start=epoch_ms(start),
            end=epoch_ms(end),
            test=test,
            as_of=as_of,
            from_lake=from_lake,
        )
        run = run_training(
            training.plan,
            training.tables,
            training.split,
            event_vectors,
            FileRegistry(training.registry_folder),
            name=name or training.plan.name,
            at_ms=SystemClock().now_ms(),
            progress=show,
            read_set=None if training.request is None else training.read_lake,
        )
    if as_json:
        _print_json(run)
    else:
        _print_table(run, Console())


def _print_json(run: TrainingRun) -> None:
    import orjson

    def bounds(period: Period) -> dict[str, int]:
        return {"start_ms": period.start_ms, "end_ms": period.end_ms}

    result = {
        "model": run.entry.model,
        "version": run.entry.version,
        "folder": str(run.entry.folder),
        "pipeline": run.manifest.pipeline,
        "fingerprint": run.manifest.fingerprint,
        "training_set_id": run.manifest.training_set_id,
        "receipt": None if run.receipt is None else str(run.receipt),
        "train": bounds(run.split.train),
        "test": bounds(run.split.test),
        "metrics": run.manifest.metrics,
    }
    typer.echo(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())


def _print_table(run: TrainingRun, console: object) -> None:
    from rich.console import Console
    from rich.table import Table

    assert isinstance(console, Console)
    checked = run.test.checked_a_day
    table = Table(title=f"{run.entry.model} version {run.entry.version}", title_justify="left")
    for heading in ("", "period", "rows", "positive", "AUC", "AP", f"precision@{checked} a day"):
        table.add_column(heading, justify="left" if heading in {"", "period"} else "right")
    for what, period, figures in (
        ("train", run.split.train, run.train),
        ("test", run.split.test, run.test),
    ):
        table.add_row(
            what,
            str(period),
            f"{figures.rows:,}",
            f"{figures.positives:,}",
            f"{figures.auc:.3f}",
            f"{figures.average_precision:.3f}",
            f"{figures.key_precision:.3f}",
        )
    console.print(table)
    console.print(f"registered at {run.entry.folder}", soft_wrap=True)
    if run.receipt is not None:
        console.print(f"its training set's receipt: {run.receipt}", soft_wrap=True)
    console.print(f"put it live: headrace deploy {run.entry.model}/{run.entry.version}")
