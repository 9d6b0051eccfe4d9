"""``headrace dlq``: look at records that were refused, and send them to their source again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import AsJson, Folder

if TYPE_CHECKING:
    from headrace.streams.dlq import Refused

app = typer.Typer(no_args_is_help=True, add_completion=False)

Reason = Annotated[str | None, typer.Option(help="Only records refused for this reason.")]


@app.command("list")
def list_refused(
    source: Annotated[str | None, typer.Argument(help="A source; without: all.")] = None,
    reason: Reason = None,
    count_max: Annotated[int, typer.Option("--max", min=0, help="Records to show in full.")] = 20,
    as_json: AsJson = False,
    project: Folder = Path(),
) -> None:
    """Count the refused records by source and reason, and show the first of them."""
    from collections import Counter

    import orjson
    from rich.console import Console
    from rich.table import Table

    from headrace.runtime import topics
    from headrace.streams.dlq import read_dlq
    from headrace.streams.environment import open_environment

    environment = open_environment(project)
    counts: Counter[tuple[str, str]] = Counter()
    shown: list[Refused] = []
    for plan in environment.sources() if source is None else [environment.source(source)]:
        name = topics.dlq(plan.topic)
        for record in read_dlq(
            environment.client, plan.topic, environment.partitions([name])[name]
        ):
            if reason is not None and record.reason != reason:
                continue
            counts[plan.name, record.reason] += 1
            if as_json:
                typer.echo(orjson.dumps({"source": plan.name, **record.summary()}).decode())
            elif len(shown) < count_max:
                shown.append(record)
    if as_json:
        return
    console = Console()
    if not counts:
        console.print("nothing was refused")
        return
    totals = Table("source", "reason", "records", box=None)
    for (name, why), count in sorted(counts.items()):
        totals.add_row(name, why, f"{count:,}")
    console.print(totals)
    console.print(_details(shown))


@app.command("replay")
def replay_refused(
    source: Annotated[str, typer.Argument(help="The source whose records to send again.")],
    reason: Reason = None,
    count_max: Annotated[int | None, typer.Option("--max", min=1, help="At most so many.")] = None,
    attempts_max: Annotated[
        int, typer.Option("--attempts", min=1, help="Leave records refused so often.")
    ] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only.")] = False,
    project: Folder = Path(),
) -> None:
    """Send refused records to their source again, as they came."""
    from headrace.runtime import topics
    from headrace.streams.commit import CheckedProducer, producer_properties
    from headrace.streams.dlq import read_dlq, replay
    from headrace.streams.environment import open_environment

    environment = open_environment(project)
    plan = environment.source(source)
    name = topics.dlq(plan.topic)
    records = read_dlq(environment.client, plan.topic, environment.partitions([name])[name])
    producer = CheckedProducer(producer_properties(environment.client, 5.0, 120_000))
    report = replay(
        producer,
        plan.topic,
        records,
        reason=reason,
        count_max=count_max,
        attempts_max=attempts_max,
        dry_run=dry_run,
    )
    verb = "would be sent" if dry_run else "sent"
    for why, count in sorted(report.sent.items()):
        typer.echo(f"{count:,} {why} {verb} to {plan.topic}")
    typer.echo(f"{report.sent.total():,} {verb}, {report.exhausted:,} left after too many attempts")


def _details(records: list[Refused]) -> object:
    from rich.table import Table

    table = Table("where", "attempt", "bytes", "reason", "message", box=None)
    for one in records:
        where = f"{one.source_topic}[{one.source_partition}]@{one.source_offset}"
        size = "none" if one.value is None else f"{len(one.value):,}"
        table.add_row(where, str(one.attempt), size, one.reason, one.message)
    return table
