"""``python -m bench.chaos.peers``: the kill test of row 1 against Faust, Quix Streams and ours."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from bench.chaos import report
from bench.chaos.peers.contenders import ROOT, faust, quix
from bench.chaos.peers.headrace_count import headrace
from bench.chaos.peers.run import Outcome, Plan, run
from bench.chaos.run import kafka_version
from bench.measure import BenchError
from bench.project import fresh_stack
from bench.report import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.chaos.peers.contenders import Contender
    from headrace.runtime.dev.stack import Endpoints

WORK = ROOT / ".bench"
RESULT = "chaos-peers.json"
CONTENDERS: dict[str, Callable[[Path, Endpoints, str], Contender]] = {
    "faust": faust,
    "faust-memory": lambda work, endpoints, name: faust(work, endpoints, name, "memory://"),
    "quix": quix,
    "headrace": headrace,
}


def main(arguments: Sequence[str]) -> int:
    """Run the test and return 0 if every contender could be tested and ours is exact."""
    options = _options(arguments)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    console = Console()
    outcomes: list[Outcome] = []
    missing: dict[str, str] = {}
    stack = fresh_stack(work / "stack-peers")
    try:
        endpoints = stack.up()
        for number in range(options.runs):
            plan = Plan(
                options.events,
                options.keys,
                options.rate,
                options.kills,
                options.kill_within,
                options.seed + number,
            )
            for name in options.only:
                topic = re.sub(r"\W", "_", f"peers_{name}_{number}")
                console.print(f"{name}, run {number + 1} of {options.runs}, seed {plan.seed}")
                try:
                    contender = CONTENDERS[name](work, endpoints, topic)
                    outcomes.append(
                        run(contender, endpoints.bootstrap_servers, plan, console.print)
                    )
                except BenchError as error:
                    missing[f"{name}, run {number + 1}"] = str(error)
                    console.print(f"[red]{name} gave no result: {error}[/]")
                _save(work, outcomes, missing)
    finally:
        stack.down()
    console.print(_table(outcomes))
    console.print(f"figures in {work / RESULT}")
    if options.publish:
        _publish(outcomes, options.seed)
        console.print(f"written: {report.PEERS}; `./dev chaos --page` brings them into the docs")
    ours = [one for one in outcomes if one.contender.startswith("Headrace")]
    right = all(one.verdict is not None and one.verdict.exact and one.drained for one in ours)
    return 0 if right and not missing else 1


def _publish(outcomes: Sequence[Outcome], seed: int) -> None:
    conditions = report.Conditions.now(kafka_version(), seed)
    content = {"rows": rows(outcomes), "conditions": asdict(conditions)}
    report.PEERS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos --peers", description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--keys", type=int, default=500)
    parser.add_argument("--rate", type=int, default=1_000, help="events a second")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--kill-within", type=float, default=8.0, help="s after the first output")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--publish", action="store_true", help="put the results into the docs")
    parser.add_argument("--work", type=Path, default=WORK)
    return parser.parse_args(arguments)


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return one row a contender, in the columns of the table of faults."""
    found = []
    for name in dict.fromkeys(one.contender for one in outcomes):
        mine = [one for one in outcomes if one.contender == name and one.verdict is not None]
        verdicts = [one.verdict for one in mine if one.verdict is not None]
        waits = [seconds for one in mine for seconds in one.recoveries_s]
        exits = sum(len(one.exits) for one in mine)
        silent = sum(one.silent_starts for one in mine)
        notes = [f"{mine[0].version}; {mine[0].conditions}"]
        if exits:
            notes.append(f"ended by itself {exits} times")
        if silent:
            notes.append(f"no output for 90 s after {silent} starts")
        if not all(one.drained for one in mine):
            notes.append(
                f"{sum(not one.drained for one in mine)} runs never came to the end of the events"
            )
        found.append(
            {
                "contender": name,
                "runs": len(mine),
                "kills": sum(one.kills for one in mine),
                "events": sum(verdict.events for verdict in verdicts),
                "lost": sum(verdict.lost for verdict in verdicts),
                "duplicated": sum(verdict.duplicated for verdict in verdicts),
                "reordered": sum(verdict.reordered for verdict in verdicts),
                "wrong": sum(verdict.wrong for verdict in verdicts),
                "unstable": sum(verdict.unstable for verdict in verdicts),
                "seconds_to_recover": max(waits, default=None),
                "seconds_to_recover_median": statistics.median(waits) if waits else None,
                "longest_wait_s": max(one.longest_wait_s for one in mine),
                "drained": all(one.drained for one in mine),
                "note": "; ".join(notes),
            }
        )
    return found


def _save(work: Path, outcomes: Sequence[Outcome], missing: dict[str, str]) -> None:
    figures = {
        "rows": rows(outcomes),
        "runs": [asdict(one) for one in outcomes],
        "without_result": missing,
    }
    write_json(work / RESULT, "chaos --peers", figures, [])


def _table(outcomes: Sequence[Outcome]) -> Table:
    names = ("kills", "events", "lost", "duplicated", "reordered", "wrong", "unstable")
    table = Table("who", *names, "s to recover, median / max", "drained", "note", title="kill -9")
    for row in rows(outcomes):
        recovered = "-"
        if row["seconds_to_recover"] is not None:
            recovered = f"{row['seconds_to_recover_median']:.1f} / {row['seconds_to_recover']:.1f}"
        cells = [f"{row[name]:,}" for name in names]
        table.add_row(
            row["contender"], *cells, recovered, "yes" if row["drained"] else "no", row["note"]
        )
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
