"""``headrace checkpoints``: what the workers have kept of their state, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import AsJson, Folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.runtime.settings import Settings
    from headrace.streams.checkpoint_files import CheckpointFolder

app = typer.Typer(no_args_is_help=True, add_completion=False)

Pipeline = Annotated[str | None, typer.Option(help="Only this one's.")]
Copies = Annotated[bool, typer.Option("--copies", help="Those in the object store, not here.")]


@app.command("list")
def list_kept(
    pipeline: Pipeline = None,
    copies: Copies = False,
    as_json: AsJson = False,
    project: Folder = Path(),
) -> None:
    """Show each checkpoint: whose, at which offset, how large, how old."""
    import orjson
    from rich.console import Console
    from rich.table import Table

    from headrace.streams.errors import CheckpointError

    table = Table("plan", "topic", "partition", "offset", "keys", "bytes", "files", "written")
    count = 0
    for path, folder in _found(project, pipeline, copies=copies):
        for name in folder.names():
            count += 1
            try:
                one = folder.load(name)
            except CheckpointError as error:
                typer.echo(f"{path}/{name}: {error}", err=True)
                continue
            files = [file.kind for file in one.files]
            if as_json:
                content = {
                    "plan": one.plan,
                    "topic": one.topic,
                    "partition": one.partition,
                    "offset": one.offset,
                    "keys": one.key_count,
                    "bytes": one.nbytes,
                    "files": files,
                    "created": one.created,
                    "prepared": one.follows is not None,
                }
                typer.echo(orjson.dumps(content).decode())
                continue
            kinds = ", ".join(f"{files.count(kind)} {kind}" for kind in dict.fromkeys(files))
            numbers = (f"{n:,}" for n in (one.partition, one.offset, one.key_count, one.nbytes))
            table.add_row(one.plan, one.topic, *numbers, kinds, one.created)
    if not as_json:
        Console().print(table if count else "no checkpoints")


@app.command("verify")
def verify(pipeline: Pipeline = None, copies: Copies = False, project: Folder = Path()) -> None:
    """Hash every file of every checkpoint; exit code 1 if one is not as it was written."""
    from rich.progress import track

    from headrace.streams.errors import CheckpointError

    whole = broken = 0
    found = list(_found(project, pipeline, copies=copies))
    for path, folder in track(found, "hashing", transient=True):
        for name in folder.names():
            try:
                folder.verify(folder.load(name))
                whole += 1
            except CheckpointError as error:
                broken += 1
                typer.echo(f"{path}/{name}: {error}", err=True)
    typer.echo(f"{whole} checkpoints are whole, {broken} are not")
    raise typer.Exit(1 if broken else 0)


def _found(
    folder: Path, pipeline: str | None, *, copies: bool
) -> Iterator[tuple[str, CheckpointFolder]]:
    """Yield the checkpoints of each topic partition, and where they lie."""
    from headrace.features.project import load_project
    from headrace.runtime import topics
    from headrace.runtime.errors import explain
    from headrace.streams.checkpoint_files import checkpoint_root, kept_folders, stored_folders
    from headrace.streams.checkpoint_storage import object_store
    from headrace.streams.errors import CheckpointError

    project = load_project(folder)
    settings: Settings = project.settings
    url = settings.stream.checkpoints.url
    if copies and url is None:
        rule, hint = "be set where there are copies", "see docs/checkpoints.md"
        raise CheckpointError(explain("stream.checkpoints.url", rule, None, str(folder), hint))
    for one in project.pipelines:
        if pipeline is not None and one.name != pipeline:
            continue
        group = topics.group(settings.project, one.name)
        if copies and url is not None:
            yield from stored_folders(object_store(url), group)
        else:
            yield from kept_folders(checkpoint_root(settings), group)
