"""``./dev bench receipts``: 10,000 predictions of a two-entity run replayed, bit for bit."""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bench.card.run import ROOT, WORK
from bench.measure import drain
from bench.project import Project, fresh_stack, make_project
from bench.report import Bound, exit_code, print_bounds, write_json
from examples.fraud.generate import make_world, simulate, write
from headrace.runtime import topics

if TYPE_CHECKING:
    from collections.abc import Sequence

PIPELINE = "fraud"
PARTITION_COUNT = 4
START_MS = 1_767_225_600_000  # 2026-01-01
CUSTOMERS, TERMINALS = 5_000, 10_000


def main(arguments: Sequence[str]) -> int:
    """Run the bench and return 0 if every receipt came out the same."""
    parser = argparse.ArgumentParser(prog="bench receipts", description=__doc__)
    parser.add_argument("--receipts", type=int, default=10_000)
    parser.add_argument("--days", type=int, default=60, help=">= 30")
    parser.add_argument(
        "--customers", type=int, default=CUSTOMERS, help="about 2 events a day each"
    )
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args(arguments)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    console = Console()
    world = make_world(options.customers, TERMINALS * options.customers // CUSTOMERS, seed=7)
    simulation = simulate(world, START_MS, options.days)
    count = simulation.transactions.num_rows
    console.print(f"{count:,} transactions, {simulation.reports.num_rows:,} reports")
    stack = fresh_stack(work / "stack")
    try:
        settings = {
            "project": "receipts_bench",
            "topics": {"partitions": PARTITION_COUNT},
            "history": {name: f"data/{name}.parquet" for name in ("transactions", "reports")},
        }
        template = ROOT / "examples" / "fraud"
        project = make_project(work / "receipts", template, stack.up(), settings)
        write(simulation, project.folder / "data")
        for command in (
            ("apply",),
            ("train",),
            ("deploy", PIPELINE),
            ("send", "--reports", "first"),
        ):
            project.run(*command)
        console.print("one worker, then the lake")
        drain(
            "receipts",
            project.command("worker"),
            project.endpoints.bootstrap_servers,
            [topics.predictions(PIPELINE), topics.snapshots(PIPELINE)],
            count,
            folder=project.folder,
            log=work / "worker-receipts.log",
        )
        project.run("lake", "--once")
        console.print(f"replaying {options.receipts:,} receipts")
        result = _replay(project, options.receipts)
    finally:
        stack.down()
    _print(console, result, count)
    bounds = [
        Bound("receipts replayed", result["replayed"], options.receipts, at_least=True),
        Bound("of them not the same", result["replayed"] - result["same"], 0.0, at_least=False),
        Bound(
            "vectors not from the log",
            result["replayed"] - result["vectors_from"].get("log", 0),
            0.0,
            at_least=False,
        ),
    ]
    print_bounds(console, bounds)
    write_json(work / "receipts.json", "receipts", {**result, "events": count}, bounds)
    return exit_code(bounds)


def _replay(project: Project, receipts: int) -> dict[str, Any]:
    """Return what the command says, with its seconds and CPU seconds."""
    started_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    said = project.run("replay", "--sample", str(receipts), "--seed", "7", "--json")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    result: dict[str, Any] = json.loads(said)
    result["seconds"] = time.monotonic() - started_s
    result["cpu_s"] = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    result["unequal"] = result["unequal"][:20]
    return result


def _print(console: Console, result: dict[str, Any], events: int) -> None:
    console.print(
        f"{result['same']:,} of {result['replayed']:,} the same, over logs of {events:,} events, "
        f"in {result['seconds']:.1f} s ({result['cpu_s']:.1f} CPU s), engine {result['engine']}"
    )
    for one in result["unequal"][:5]:
        console.print(f"[red]{one['prediction_id']}[/]: {one['differences'] or one['faults']}")
