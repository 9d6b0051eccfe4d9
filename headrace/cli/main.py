"""The command line. Each command's module is imported only when it is called, so help is quick."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from headrace.runtime.errors import HeadraceError


@dataclass(frozen=True, slots=True)
class Entry:
    """A command: where it is (``module:name``, a function or a ``Typer``), and its line of help."""

    target: str
    help: str


#: In the order of a project's life, which is the order of ``--help``.
COMMANDS: dict[str, Entry] = {
    "init": Entry("headrace.cli.init:init", "Make a project that runs."),
    "up": Entry("headrace.cli.up:up", "Start Kafka, Redis, the schema registry, and the lake."),
    "status": Entry("headrace.cli.status:status", "Show what runs, and where."),
    "plan": Entry(
        "headrace.cli.plan:plan", "Show what the definitions compile to, and what changed."
    ),
    "apply": Entry("headrace.cli.apply:apply", "Make the topics, schemas and Feast objects."),
    "send": Entry("headrace.cli.send:send", "Publish events from files to a source's topic."),
    "worker": Entry("headrace.cli.worker:worker", "Compute features and scores from the stream."),
    "tail": Entry("headrace.cli.tail:tail", "Print what stands in a topic, decoded."),
    "online": Entry(
        "headrace.cli.online:online", "Print the newest values of entities, with age and status."
    ),
    "lake": Entry("headrace.cli.lake:lake", "Keep the lake's tables up with the topics."),
    "sql": Entry("headrace.cli.sql:sql", "Query the lake's tables."),
    "history": Entry(
        "headrace.cli.history:history", "Write features of the past to a file; audit them."
    ),
    "backfill": Entry("headrace.cli.backfill:backfill", "Write Feast's offline tables."),
    "train": Entry("headrace.cli.train:train", "Train a model on the pipeline's history."),
    "deploy": Entry("headrace.cli.deploy:deploy", "Put a model live on the running workers."),
    "explain": Entry("headrace.cli.explain:explain", "Show how a prediction came about."),
    "replay": Entry(
        "headrace.cli.replay:replay", "Compute predictions again, and compare bit for bit."
    ),
    "erase": Entry("headrace.cli.erase:erase", "Forget a key: in states, Redis and the lake."),
    "checkpoints": Entry(
        "headrace.cli.checkpoints:app", "List what workers have kept of their state; verify it."
    ),
    "rebuild-online": Entry(
        "headrace.cli.rebuild_online:rebuild_online", "Write every entity to Redis again."
    ),
    "drift": Entry(
        "headrace.cli.drift:drift", "Compare a period with what the model was trained on."
    ),
    "dlq": Entry("headrace.cli.dlq:app", "Look at records that were refused, and replay them."),
    "fetch": Entry("headrace.cli.fetch:fetch", "Download the embedded Kafka ahead of time."),
    "down": Entry("headrace.cli.down:down", "Stop what 'up' started; the data stays."),
}


class _LazyGroup(TyperGroup):
    """Lists commands from the table and imports a command's module only to run it."""

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        del ctx
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else TyperCommand(cmd_name, help=entry.help)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is None or command is None:
            return name, command, rest
        return name, _load(name, COMMANDS[name]), rest


def _load(name: str, entry: Entry) -> Any:
    module, _, attribute = entry.target.partition(":")
    target = getattr(importlib.import_module(module), attribute)
    if isinstance(target, typer.Typer):
        group = typer.main.get_group(target)
        group.name, group.help = name, entry.help
        return group
    alone = typer.Typer(add_completion=False)
    alone.command(name=name, help=entry.help)(target)
    return typer.main.get_command(alone)


app = typer.Typer(
    name="headrace",
    cls=_LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Define a feature once, train on its exact history, serve it live.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong use or settings, 3 no Kafka, 4 no services, "
    "5 drift alarm.",
)


def _print_version(*, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"headrace {version('headrace')}")
        raise typer.Exit


@app.callback()
def _main(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def run() -> None:
    """Run the command line: what is wrong outside the program is said in one line, no traceback."""
    try:
        app()
    except HeadraceError as error:
        typer.echo(f"headrace: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    run()
