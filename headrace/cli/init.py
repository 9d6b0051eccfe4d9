"""``headrace init``: make a project that runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.options import AsJson
from headrace.runtime.errors import HeadraceError, explain

PLACEHOLDER = "PROJECT_NAME"
# Files that would hide themselves, or be taken for ours, under their own name.
_RENAMED = {"gitignore": ".gitignore"}


class InitError(HeadraceError):
    """A project cannot be made there."""


def init(
    name: Annotated[str, typer.Argument(help="The project's name, and its folder's.")],
    *,
    into: Annotated[Path | None, typer.Option("--into", help="Another folder than ./NAME.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a project that runs: definitions, a schema, settings, test events."""
    import json

    project = project_name(name)
    folder = into or Path(name)
    files = make_project(folder, project)
    if as_json:
        typer.echo(json.dumps({"project": project, "folder": str(folder), "files": files}))
        return
    typer.echo(f"made {folder} with {', '.join(files)}")
    typer.echo("next:")
    for command in (f"cd {folder}", "headrace up", "headrace plan", "headrace apply"):
        typer.echo(f"  {command}")
    typer.echo("README.md there goes on from here")


def project_name(name: str) -> str:
    """Return the name by which a project's topics and groups are called.

    Raises:
        InitError: If the name has nothing that such a name could be made of.

    """
    made = re.sub(r"[^a-z0-9]+", "_", Path(name).name.lower()).strip("_")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", made):
        rule = "begin with a letter, and have at most 63 letters, digits and underscores"
        raise InitError(explain("a project's name", rule, name, "headrace init"))
    return made


def make_project(folder: Path, project: str) -> list[str]:
    """Write the template's files into a new or empty folder and return their names.

    Raises:
        InitError: If the folder holds something, or is a file.

    """
    template = Path(__file__).parent / "template"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        rule, hint = "be new or empty", "choose another name, or --into another folder"
        raise InitError(explain("the project's folder", rule, str(folder), "headrace init", hint))
    written = []
    for source in sorted(template.rglob("*")):
        if not source.is_file() or "__pycache__" in source.parts:
            continue
        inside = source.relative_to(template)
        target = folder / inside.with_name(_RENAMED.get(inside.name, inside.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text(encoding="utf-8").replace(PLACEHOLDER, project)
        target.write_text(text, encoding="utf-8")
        written.append(target.relative_to(folder).as_posix())
    return written
