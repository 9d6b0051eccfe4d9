"""``headrace drift``: how a period's features and scores compare with the training set."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.options import AsJson, Folder, epoch_ms

if TYPE_CHECKING:
    from headrace.drift.findings import ColumnDrift
    from headrace.training.watch import DriftReport

#: The exit code of ``--fail-on-alarm`` when there is one.
ALARM_EXIT_CODE = 5
_STYLES = {"alarm": "bold red", "notice": "yellow", "none": "green"}


def drift(
    pipeline: Annotated[str | None, typer.Argument(help="Which one, if there are several.")] = None,
    *,
    start: Annotated[
        str | None, typer.Option("--from", help="First day (UTC); by default a week before --to.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", help="The day after the last; by default the newest row.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Whose training set is the measure: fraud/3; by default what is live."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with pictures to this file.")
    ] = None,
    fail_on_alarm: Annotated[
        bool, typer.Option("--fail-on-alarm", help="Exit with code 5 if there is an alarm.")
    ] = False,
    project: Folder = Path(),
    as_json: AsJson = False,
) -> None:
    """Compare a period's features and scores with what the model was trained on.

    Reads snapshots and predictions from the lake. A finding is more than chance and of a size that
    matters; its cause is named: nulls, a frozen column, another unit, swapped columns, new values,
    a shift, a spread.
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from headrace.training.watch import drift_report

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("reading the project", total=None)

        def show(step: str, done: int, total: int) -> None:
            del total
            bars.update(task, description=f"{step}: {done:,} rows" if done else step)

        report = drift_report(
            project, pipeline, epoch_ms(start), epoch_ms(end), model=model, progress=show
        )
    if html is not None:
        _write_page(report, html)
    if as_json:
        import orjson

        typer.echo(orjson.dumps(as_data(report), option=orjson.OPT_INDENT_2).decode())
    else:
        print_report(report, Console())
        if html is not None:
            typer.echo(f"page: {html}")
    if fail_on_alarm and report.severity == "alarm":
        raise typer.Exit(ALARM_EXIT_CODE)


def _write_page(report: DriftReport, path: Path) -> None:
    from headrace.cli.drift_page import page

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(report), encoding="utf-8")


def as_data(report: DriftReport) -> dict[str, Any]:
    """Return a report as plain data for JSON; what is not a number is null."""
    comparison = report.comparison
    return {
        "pipeline": report.pipeline,
        "model": report.model,
        "version": report.version,
        "period": {"start_ms": report.period.start_ms, "end_ms": report.period.end_ms},
        "rows": comparison.rows,
        "severity": report.severity,
        "notes": list(report.notes),
        "findings": [
            {
                "column": one.column,
                "severity": one.severity,
                "cause": one.cause,
                "text": one.text,
                "look_at": one.look_at,
                "others": list(one.others),
                "factor": one.factor,
                "size": one.size,
            }
            for one in report.findings
        ],
        "columns": [_column(column) for column in comparison.columns],
        "score": None if comparison.score is None else _column(comparison.score),
    }


def _column(column: ColumnDrift) -> dict[str, Any]:
    from dataclasses import asdict

    data = asdict(column)
    del data["findings"], data["picture"]
    # By chance anything: the columns of a weekday from a few days.
    for name in ("psi_by_chance", "ks_by_chance"):
        data[name] = data[name] if math.isfinite(data[name]) else None
    return {**data, "severity": column.severity}


def print_report(report: DriftReport, console: Any) -> None:
    """Print a report as a table, and what to look at first."""
    from rich.markup import escape
    from rich.table import Table

    from headrace.cli.drift_page import LABELS, VARIES
    from headrace.drift.findings import RANK

    comparison = report.comparison
    score = [] if comparison.score is None else [comparison.score]
    console.print(
        f"{report.pipeline}, {report.period}: {comparison.rows:,} events against "
        f"{report.model}/{report.version}",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("column", "", "PSI", "KS", "mean moved", "no value"):
        table.add_column(heading, justify="left" if heading in {"column", ""} else "right")
    table.columns[0].no_wrap = True
    ranked = sorted(
        [*score, *comparison.columns],
        key=lambda one: (-RANK[one.severity], -max((f.size for f in one.findings), default=0.0)),
    )
    for column in ranked:
        style = _STYLES[column.severity]
        state = LABELS[column.severity] if column.compared or column.findings else "too few rows"
        state = VARIES if column.varies else state
        table.add_row(
            escape(column.name),
            f"[{style}]{state}[/{style}]",
            f"{column.psi:.3f}",
            f"{column.ks:.3f}",
            f"{column.shift:+.2f}",
            f"{100 * column.period.null_share:.3g} %",
        )
    console.print(table)
    # Below the table, since they are sentences and a terminal may be narrow.
    for one in report.findings:
        style, what = _STYLES[one.severity], f"{one.cause}: {one.text}"
        console.print(f"[{style}]{escape(one.column)}[/{style}]  {escape(what)}", soft_wrap=True)
    if any(column.varies for column in ranked):
        text = "moved, but no further than the days of the training set among themselves"
        console.print(f"note: {VARIES}: {text}; train on more days to tell", soft_wrap=True)
    for note in report.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    if report.findings:
        worst = report.findings[0]
        console.print(f"look first at {worst.look_at}", soft_wrap=True, markup=False)
