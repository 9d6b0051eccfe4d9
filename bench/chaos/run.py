"""``./dev chaos``: try the rows of the fault matrix on real processes and say what came of it.

Exit code 0 when nothing was lost, duplicated, reordered or wrong, and every figure asked for was
reached or is known not to be.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import secrets
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.chaos import report
from bench.chaos.nodes import cluster_stack
from bench.chaos.rows import Lab, Size, all_rows
from bench.measure import BenchError
from bench.project import fresh_stack
from headrace.runtime.dev import jars
from headrace.runtime.errors import HeadraceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bench.chaos.rows import Row
    from headrace.runtime.dev.stack import Endpoints

WORK = report.ROOT / ".bench"
WIDTH = 180


@contextlib.contextmanager
def infrastructure(folder: Path, nodes: int) -> Iterator[Endpoints]:
    """Start Kafka of so many nodes, Redis and registry over an empty folder; stop them after."""
    if nodes > 1:
        with cluster_stack(folder, nodes) as endpoints:
            yield endpoints
        return
    stack = fresh_stack(folder)
    try:
        yield stack.up()
    finally:
        stack.down()


def main(arguments: Sequence[str]) -> int:
    """Run the rows that are asked for and return 0 if all pass."""
    rows = all_rows()
    options = _options(arguments, rows)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    if options.list:
        for row in rows.values():
            marks = ["ci"] if row.ci else []
            marks += [f"{row.nodes} nodes"] if row.nodes > 1 else []
            console.print(
                f"{row.number:>3}  {row.name} [{row.asked}] {', '.join(marks)}", markup=False
            )
        return 0
    if options.page:
        report.write_page(list(rows.values()), report.load(report.RESULTS))
        console.print(f"written: {report.PAGE}")
        return 0
    seed: int = options.seed if options.seed is not None else secrets.randbits(31)
    console.print(f"seed {seed}")
    path = options.work / ("chaos-ci.json" if options.ci else "chaos.json")
    results, failed = run_rows(options, [rows[n] for n in options.rows], seed, path, console)
    report.print_table(console, results)
    console.print(f"figures in {path}")
    if options.publish:
        kept = {**report.load(report.RESULTS), **{one.number: one for one in results}}
        report.save(report.RESULTS, kept)
        report.write_page(list(rows.values()), kept)
        console.print(f"written: {report.PAGE}")
    for number, error in failed.items():
        console.print(f"row {number} has no result: {error}", markup=False, style="red")
    code = exit_code(rows, results, failed)
    console.print(f"NOT all rows passed; seed {seed}" if code else "all rows passed")
    return code


def exit_code(
    rows: Mapping[int, Row], results: Sequence[report.Result], failed: Mapping[int, str]
) -> int:
    """Return 0 if every row has a result that passes."""
    return 0 if not failed and all(rows[one.number].passes(one.outcome) for one in results) else 1


def _options(arguments: Sequence[str], rows: dict[int, Row]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev chaos", description=__doc__)
    parser.add_argument("--ci", action="store_true", help="the small run that CI has")
    parser.add_argument("--rows", help="some rows only, as 1,5,7")
    parser.add_argument("--runs", type=int, help="how often a fault strikes")
    parser.add_argument("--events", type=int, help="how many events are sent")
    parser.add_argument("--seconds", type=float, help="how long a fault lasts")
    parser.add_argument("--seed", type=int, help="repeat a run")
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument("--publish", action="store_true", help="put the results into the docs")
    parser.add_argument("--page", action="store_true", help="write the docs' page; run nothing")
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args(arguments)
    try:
        asked = [int(one) for one in options.rows.split(",")] if options.rows else None
    except ValueError:
        parser.error(f"--rows must be numbers; got {options.rows}")
    if asked is not None and not set(asked) <= rows.keys():
        parser.error(f"--rows must be among {','.join(map(str, rows))}; got {options.rows}")
    options.work = options.work.absolute()
    options.rows = asked or [n for n, row in rows.items() if row.ci or not options.ci]
    resized = any(one is not None for one in (options.runs, options.events, options.seconds))
    # What stands in the docs was measured at full size, unless it is asked for; it says its size.
    options.publish |= not options.ci and not resized
    return options


def size_of(row: Row, options: argparse.Namespace) -> Size:
    """Return how large a row is to be tried."""
    size = row.ci if options.ci and row.ci else row.full
    return Size(
        size.runs if options.runs is None else options.runs,
        size.events if options.events is None else options.events,
        size.seconds if options.seconds is None else options.seconds,
    )


def run_rows(
    options: argparse.Namespace, rows: Sequence[Row], seed: int, path: Path, console: Console
) -> tuple[list[report.Result], dict[int, str]]:
    """Run rows, those of as many brokers together; return results, and errors by row without.

    The file at ``path`` holds the results so far: a run of hours that is stopped loses none.
    """
    folder: Path = options.work / "chaos"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    report.save(path, {})
    results: list[report.Result] = []
    failed: dict[int, str] = {}
    for nodes in sorted({row.nodes for row in rows}):
        stack_folder = folder / f"stack-{nodes}"
        with infrastructure(stack_folder, nodes) as endpoints:
            for row in (one for one in rows if one.nodes == nodes):
                lab = Lab(
                    endpoints,
                    stack_folder,
                    folder / f"row{row.number}",
                    # Each row draws the same whatever other rows there are.
                    random.Random(f"{seed}/{row.number}").getrandbits(31),
                    console.print,
                )
                lab.folder.mkdir()
                try:
                    results.append(_run(row, size_of(row, options), lab, seed, console))
                    report.save(path, {one.number: one for one in results})
                except (BenchError, HeadraceError, AssertionError) as error:
                    traceback.print_exc(file=sys.stderr)
                    failed[row.number] = str(error) or type(error).__name__
    return sorted(results, key=lambda one: one.number), failed


def _run(row: Row, size: Size, lab: Lab, seed: int, console: Console) -> report.Result:
    conditions = report.Conditions.now(kafka_version(), seed)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    begin_s = time.monotonic()
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task(f"{row.number} {row.name}", total=size.runs)
        lab.advance = lambda done: progress.update(task, completed=done)
        outcome = row.run(lab, size)
    took_s = time.monotonic() - begin_s
    result = report.Result(
        row.number, row.name, row.asked, outcome, size, took_s, conditions, row.known
    )
    console.print(f"row {row.number}: {result.verdict} in {took_s:.0f} s; {outcome}", markup=False)
    return result


def kafka_version() -> str:
    """Return the version of the broker that is embedded."""
    names = [path.name for path in jars.fetch(None, lambda _done, _all: None)]
    found = [re.fullmatch(r"kafka-clients-([\d.]+)\.jar", name) for name in names]
    return next((one[1] for one in found if one), "unknown")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
