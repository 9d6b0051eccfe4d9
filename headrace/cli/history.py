"""``headrace history``: sets of features from the lake, their rebuild, and the audit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from headrace.cli.options import AsJson, AsOf, Folder, FromLake

if TYPE_CHECKING:
    from headrace.features.plan import PipelinePlan
    from headrace.features.project import Project
    from headrace.lake.audit import Audit
    from headrace.lake.dataset import Receipt, SetRequest
    from headrace.lake.request import Request


def history(
    pipeline: Annotated[str | None, typer.Argument(help="Which one, if there are several.")] = None,
    *,
    features: Annotated[
        str | None, typer.Option(help="Views and features, with commas, in place of a pipeline.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Events from this time on (UTC, 2018-07-25).")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="Events before this time.")] = None,
    spine: Annotated[
        Path | None, typer.Option(help="A Parquet or Arrow file of rows: event ids, or keys.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="The spine's column with the time.")] = None,
    as_of: AsOf = "event",
    replayed: Annotated[
        bool, typer.Option("--replayed", help="Allow a lag on replayed rows.")
    ] = False,
    label: Annotated[bool, typer.Option("--label", help="Add the pipeline's label.")] = False,
    ages: Annotated[bool, typer.Option("--ages", help="Add how old each view's values are.")] = (
        False
    ),
    from_lake: FromLake = False,
    all_topics: Annotated[
        bool, typer.Option("--all-topics", help="Of a recreated topic the older ones too.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The Parquet file to write.")
    ] = None,
    rebuild: Annotated[
        Path | None, typer.Option(help="A receipt: make its set again, byte for byte.")
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Compare event order with what was served.")
    ] = False,
    project: Folder = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a pipeline's features for the events of a period, or for the rows of a file.

    Beside set.parquet lies set.receipt.json: what it was made of, and its id.
    """
    from headrace.features.project import load_project
    from headrace.lake.dataset import SetRequest
    from headrace.lake.history import period_span
    from headrace.lake.request import as_of_from, plans_for

    loaded = load_project(project)
    if audit:
        _audit(loaded, pipeline, start, end, as_json=as_json)
        return
    if out is None:
        message = "say where to: --out set.parquet"
        raise typer.BadParameter(message)
    if rebuild is not None:
        _rebuild(loaded, rebuild, out, spine, as_json=as_json)
        return
    asked = _asked(loaded, pipeline, features)
    request = plans_for(asked, loaded, "lake" if from_lake else None, as_of_from(as_of))
    wanted = SetRequest(
        _only(request),
        request.names,
        as_of,
        period_span(start, end),
        spine,
        time=time,
        label=label,
        ages=ages,
        replayed=replayed,
        topics="all" if all_topics else "current",
    )
    _write(wanted, request, out, as_json=as_json)


def _only(request: Request) -> PipelinePlan:
    if len(request.plans) != 1:
        message = "a set is about the events of one source: ask for each source alone"
        raise typer.BadParameter(message)
    return request.plans[0]


def _write(wanted: SetRequest, request: Request, out: Path, *, as_json: bool) -> None:
    from headrace.lake.dataset import receipt_path, write_set

    with _Bar("history") as show:
        receipt = write_set(wanted, request, out, show)
    if as_json:
        _print({**_told(receipt, out), "receipt": str(receipt_path(out))})
        return
    typer.echo(f"{receipt.rows:,} rows in {out}")
    typer.echo(f"training set {receipt.id}, receipt {receipt_path(out)}")


def _asked(loaded: Project, pipeline: str | None, features: str | None) -> Any:
    """Return what ``hr.history`` takes as features."""
    if features is not None:
        if pipeline is not None:
            message = "name a pipeline or --features, not both"
            raise typer.BadParameter(message)
        names = [name.strip() for name in features.split(",") if name.strip()]
        return [_view(loaded, name) for name in names]
    if pipeline is not None:
        return loaded.pipeline(pipeline)
    if len(loaded.pipelines) != 1:
        known = ", ".join(one.name for one in loaded.pipelines)
        message = f"name one of the project's pipelines: {known}"
        raise typer.BadParameter(message)
    return loaded.pipelines[0]


def _view(loaded: Project, name: str) -> Any:
    return next((view for view in loaded.views if view.name == name), name)


def _rebuild(loaded: Project, path: Path, out: Path, spine: Path | None, *, as_json: bool) -> None:
    from headrace.features.compiler import compile_project
    from headrace.lake.dataset import differences, read_receipt, rebuild_set
    from headrace.lake.tables import Lake

    receipt = read_receipt(path)
    plans = compile_project(loaded, loaded.settings.topics.partitions).pipelines
    notes = differences(receipt, plans)
    lake = Lake(loaded.settings.lake.folder)
    with _Bar("rebuild") as show:
        again = rebuild_set(receipt, loaded, lake, out, spine=spine, progress=show)
    equal = again.sha256 == receipt.sha256
    if as_json:
        _print({**_told(again, out), "equal": equal, "notes": notes})
    else:
        for note in notes:
            typer.echo(f"note: {note}", err=True)
        verdict = "the same bytes" if equal else "OTHER bytes than the receipt's"
        typer.echo(f"{again.rows:,} rows in {out}: {verdict} (sha256 {again.sha256})")
    if not equal:
        raise typer.Exit(1)


def _audit(
    loaded: Project, pipeline: str | None, start: str | None, end: str | None, *, as_json: bool
) -> None:
    from headrace.lake.audit import audit

    chosen = _asked(loaded, pipeline, None)
    with _Bar("audit") as show:
        found = audit(chosen, project=loaded, start=start, end=end, progress=show)
    if as_json:
        _print(found.data())
    else:
        _print_audit(found)


def _print_audit(found: Audit) -> None:
    from rich.console import Console
    from rich.table import Table

    from headrace.lake.audit import CAUSES

    console = Console()
    table = Table(title=f"{found.pipeline}: event order against served", title_justify="left")
    for heading in ("feature", "equal", "differing", "share"):
        table.add_column(heading, justify="left" if heading == "feature" else "right")
    for name, differing in found.features.items():
        share = differing / found.compared if found.compared else 0.0
        table.add_row(name, f"{found.compared - differing:,}", f"{differing:,}", f"{share:.3%}")
    console.print(table)
    console.print(
        f"{found.rows:,} events, {found.compared:,} with a snapshot, {found.equal:,} equal in all "
        f"features, {found.differing:,} differing"
    )
    for cause, rows in found.causes.items():
        if rows:
            console.print(f"{rows:>10,}  {cause}: {CAUSES[cause]}")


def _told(receipt: Receipt, out: Path) -> dict[str, Any]:
    return {
        "training_set_id": receipt.id,
        "rows": receipt.rows,
        "sha256": receipt.sha256,
        "out": str(out),
        "sources": receipt.content["sources"],
    }


def _print(content: Any) -> None:
    import orjson

    typer.echo(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())


class _Bar:
    """A progress bar on stderr: what the command prints is the result."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn()
        console = Console(stderr=True)
        self._bars = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._task = self._bars.add_task(what, total=None)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show that so many rows of so many are done."""
        self._bars.update(self._task, completed=done, total=max(done, total))
