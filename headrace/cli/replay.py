"""``headrace replay``: predictions computed again, and compared with what was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import AsJson, Folder, epoch_ms

if TYPE_CHECKING:
    from headrace.features.plan import PipelinePlan
    from headrace.lake.tables import Lake
    from headrace.schemas.outputs import PredictionId
    from headrace.streams.receipts import Replayed, ReplayReport

SHOWN_MAX = 20


def replay(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Prediction ids; or --sample, or a period.")
    ] = None,
    *,
    sample: Annotated[
        int | None, typer.Option(min=1, help="So many, drawn at random from the period.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    start: Annotated[
        str | None, typer.Option("--from", help="First event time (UTC, 2018-07-25).")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", help="The event time before which it ends.")
    ] = None,
    pipeline: Annotated[str | None, typer.Option(help="Which one, if there are several.")] = None,
    project: Folder = Path(),
    as_json: AsJson = False,
) -> None:
    """Compute predictions again, bit for bit: the score from its vector, the vector from the logs.

    The exit code is 1 unless everything came out the same.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    from headrace.lake.tables import Lake
    from headrace.streams.environment import open_environment
    from headrace.streams.receipts import replay_receipts
    from headrace.training.registry import FileRegistry

    environment = open_environment(project)
    plan = environment.pipeline(pipeline)
    settings = environment.project.settings
    lake = Lake(settings.lake.folder)
    registry = FileRegistry(settings.registry_folder)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, object] = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], advance=done)  # type: ignore[arg-type]

        chosen = _chosen(lake, plan, ids, sample, seed, start, end)
        report = replay_receipts(
            environment,
            plan,
            lake,
            lambda model, version: registry.resolve(f"{model}/{version}").folder,
            chosen,
            show,
        )
    environment.registry.close()
    if as_json:
        _print_json(report)
    else:
        _print_table(report)
    if not report.equal:
        raise typer.Exit(1)


def _chosen(
    lake: Lake,
    plan: PipelinePlan,
    ids: list[str] | None,
    sample: int | None,
    seed: int,
    start: str | None,
    end: str | None,
) -> list[PredictionId]:
    from headrace.lake.receipts import choose_ids
    from headrace.schemas.outputs import PredictionId

    if ids:
        if sample is not None or start or end:
            message = "give ids, or a sample or period, not both"
            raise typer.BadParameter(message)
        try:
            return [PredictionId.parse(text) for text in ids]
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    if sample is None and start is None and end is None:
        message = "name predictions by id, or draw some with --sample 100"
        raise typer.BadParameter(message)
    return choose_ids(lake, plan.name, sample, seed, epoch_ms(start), epoch_ms(end))


def _print_json(report: ReplayReport) -> None:
    import dataclasses
    from collections import Counter

    import orjson

    methods = Counter(one.vector_from or "none" for one in report.replayed)
    result = {
        "equal": report.equal,
        "replayed": len(report.replayed),
        "same": sum(one.equal for one in report.replayed),
        "vectors_from": dict(methods),
        "engine": report.engine,
        "other_engines": sorted({e for one in report.replayed if (e := one.other_engine)}),
        "unknown": [str(one) for one in report.unknown],
        "unequal": [
            {
                "prediction_id": str(one.id),
                "vector_from": one.vector_from,
                "differences": [dataclasses.asdict(found) for found in one.differences],
                "faults": one.faults,
            }
            for one in report.replayed
            if not one.equal
        ],
    }
    typer.echo(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())


def _print_table(report: ReplayReport) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    same = sum(one.equal for one in report.replayed)
    wrong = [one for one in report.replayed if not one.equal]
    if wrong:
        table = Table("prediction", "what", "recorded", "computed again", box=None)
        for one in wrong[:SHOWN_MAX]:
            for cells in _lines(one):
                table.add_row(*map(escape, cells))
        console.print(table)
    if len(wrong) > SHOWN_MAX:
        console.print(f"and {len(wrong) - SHOWN_MAX:,} more; --json lists all")
    for unknown in report.unknown[:SHOWN_MAX]:
        console.print(f"[yellow]not in the lake[/]: {unknown}")
    how = {
        "log": "vectors from the logs, in served order",
        "lake": "vectors from the lake, in event order, since their logs are gone",
    }
    for method, text in how.items():
        count = sum(one.vector_from == method for one in report.replayed)
        if count:
            console.print(f"{count:,} {text}")
    others = {one.other_engine for one in report.replayed if one.other_engine}
    if others:
        console.print(
            f"served by engine {', '.join(sorted(others))}, computed again by {report.engine}"
        )
    colour = "green" if report.equal else "red"
    console.print(
        f"[{colour}]{same:,} of {len(report.replayed):,} predictions are the same, bit for bit[/]"
    )


def _lines(one: Replayed) -> list[tuple[str, str, str, str]]:
    """Return the cells of what is wrong with one prediction."""
    rows = [(d.what, repr(d.recorded), repr(d.recomputed)) for d in one.differences]
    rows += [(fault, "", "") for fault in one.faults]
    names = [str(one.id), *[""] * (len(rows) - 1)]
    hint = one.vector_from == "lake"
    return [
        (name, what + (" (event order)" if hint else ""), recorded, computed)
        for name, (what, recorded, computed) in zip(names, rows, strict=True)
    ]
