"""What ``./dev chaos`` says: a table, a JSON file for machines, and docs/guarantees.md."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.box import SIMPLE
from rich.table import Table

from bench.chaos.rows import Outcome, Size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from bench.chaos.rows import Row

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guarantees.md"
#: The last full result of each row; the page is made from it.
RESULTS = Path(__file__).parent / "results.json"
#: What ``python -m bench.chaos.peers --publish`` found of others, if it was run.
PEERS = Path(__file__).parent / "peers" / "results.json"


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under what a result was found."""

    date: str
    commit: str
    cores: int
    kafka: str
    load_1m: float
    seed: int

    @classmethod
    def now(cls, kafka: str, seed: int) -> Self:
        """Return what holds now."""
        asked = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
        found = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
        return cls(
            time.strftime("%Y-%m-%d", time.gmtime()),
            found.stdout.strip() or "unknown",
            os.cpu_count() or 1,
            kafka,
            round(os.getloadavg()[0], 1),
            seed,
        )


@dataclass(frozen=True, slots=True)
class Result:
    """What a row found, how large it was tried, how long it took, and under what conditions."""

    number: int
    name: str
    asked: str
    outcome: Outcome
    size: Size
    took_s: float
    conditions: Conditions
    known: str | None = None

    @property
    def verdict(self) -> str:
        """One word or few for the last column."""
        if not self.outcome.exact:
            return "NOT EXACT"
        if self.outcome.met:
            return "met"
        return "missed" if self.known is None else f"missed: {self.known}"

    def dump(self) -> dict[str, Any]:
        """Return the result as JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, content: Mapping[str, Any]) -> Self:
        """Return what ``dump`` gave."""
        return cls(
            **{
                **content,
                "outcome": Outcome(**content["outcome"]),
                "size": Size(**content["size"]),
                "conditions": Conditions(**content["conditions"]),
            }
        )


def print_table(console: Console, results: Sequence[Result]) -> None:
    """Show the results."""
    table = Table("row", "fault", box=SIMPLE)
    for name in ("runs", "lost", "dupl.", "reord.", "wrong", "recover s"):
        table.add_column(name, justify="right")
    for name in ("asked", "verdict", "note"):
        table.add_column(name)
    for one in results:
        outcome = one.outcome
        bad = not outcome.exact or (not outcome.met and one.known is None)
        table.add_row(
            str(one.number),
            one.name,
            *map(_cell, _figures(outcome)),
            one.asked,
            f"[{'red' if bad else 'green' if outcome.met else 'yellow'}]{one.verdict}[/]",
            outcome.note,
        )
    console.print(table)


def _figures(outcome: Outcome) -> tuple[float | None, ...]:
    return (
        outcome.runs,
        outcome.lost,
        outcome.duplicated,
        outcome.reordered,
        outcome.wrong,
        outcome.seconds_to_recover,
    )


def _cell(figure: float | None) -> str:
    if figure is None:
        return "–"
    return f"{figure:.1f}" if isinstance(figure, float) else f"{figure:,}"


def load(path: Path) -> dict[int, Result]:
    """Return the results in a file by row; none where there is no file."""
    if not path.exists():
        return {}
    found = [Result.load(one) for one in json.loads(path.read_text(encoding="utf-8"))]
    return {one.number: one for one in found}


def save(path: Path, results: Mapping[int, Result]) -> None:
    """Write results in the order of their rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = [results[number].dump() for number in sorted(results)]
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# --- The page -------------------------------------------------------------------------------------

_HEAD = """\
# Guarantees

With `stream.guarantee: exactly_once`, every event comes out once, in the order of its key, with
the values of a run without faults. This page says what was done to workers, brokers, networks and
Redis to disprove it, and what came of it. `./dev chaos` writes it from what it measured; nothing in
the tables is typed in by hand.

Each row sends events with known ids to a real Kafka, does harm to real processes, and compares what
is committed with a run in memory without broker or faults.

- **Lost**: events without an output. **Duplicated**: outputs more often than without faults.
- **Reordered**: outputs that stand behind a later one of their key.
- **Wrong**: outputs with any other bit, and records that a `read_committed` reader who looked on
  all the time saw otherwise than one who looked at the end.
- **Recover**: the longest time, in seconds, from the fault's end to the first output committed
  after it.

## Ours

"""

_FOOT = """
## What to know

- A worker that ends, even when it is told to, keeps its place in the group until the session
  timeout (6 s): its members are static, so that one that starts again within it goes on at once,
  and the client has no call to leave. Its partitions wait so long if nobody takes its ordinal.
- "Recover" contains the start of a Python process where the row starts one: 3 to 4 s of it.
- Commits and checkpoints come every 20 ms and every second here, far more often than by default,
  so that more faults fall into them.

## Try it

Run it yourself: `./dev chaos` (all rows, long), `./dev chaos --rows 1,7` (some),
`./dev chaos --ci` (a small run of those that CI has), `./dev chaos --list`. A run prints its seed;
`--seed` repeats it.
"""

_PEERS_HEAD = """
## Others, killed the same way

A count of events by key, exactly-once as each offers it, one process, killed at random instants
and started again: `python -m bench.chaos.peers`. **Unstable** are records that only one of two
`read_committed` readers saw, of whom one looked on and one looked at the end.
"""

_COLUMNS = (
    *("row", "fault", "runs", "lost", "duplicated", "reordered", "wrong", "recover s"),
    *("asked", "found"),
)


def page(
    rows: Sequence[Row], results: Mapping[int, Result], peers: Mapping[str, Any] | None = None
) -> str:
    """Return the text of docs/guarantees.md; a row without a result says that it was not run."""
    head = [f"| {' | '.join(_COLUMNS)} |", "|--:|---|--:|--:|--:|--:|--:|--:|---|---|"]
    lines = list(head)
    for row in rows:
        found = results.get(row.number)
        lines.append(_unrun(row) if found is None else _line(found, smaller=found.size != row.full))
    text = _HEAD + "\n".join(lines) + "\n\n" + _notes([results[n] for n in sorted(results)])
    return text + ("" if peers is None else _peers(peers)) + _FOOT


def _peers(content: Mapping[str, Any]) -> str:
    """Return the section on others; its rows are made by ``bench.chaos.peers``."""
    numbers = ("kills", "events", "lost", "duplicated", "reordered", "wrong", "unstable")
    columns = ("who", *numbers, "recover s, median / longest", "came to the end")
    lines = [_PEERS_HEAD, f"| {' | '.join(columns)} |", "|---|" + "--:|" * 8 + "---|"]
    for one in content["rows"]:
        waits = one["seconds_to_recover_median"], one["seconds_to_recover"]
        cells = [one["contender"], *(f"{one[name]:,}" for name in numbers)]
        cells += [" / ".join(map(_cell, waits)), "yes" if one["drained"] else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- **{one['contender']}** {one['note']}" for one in content["rows"])]
    conditions = Conditions(**content["conditions"])
    lines.append(
        f"\n{conditions.date}, {conditions.cores} cores (load {conditions.load_1m:g}), Kafka"
        f" {conditions.kafka}, commit `{conditions.commit}`, seed {conditions.seed}."
    )
    return "\n".join(lines) + "\n"


def load_peers(path: Path) -> dict[str, Any] | None:
    """Return what a file says of others; None where there is no file."""
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _line(one: Result, *, smaller: bool = False) -> str:
    found = f"{one.verdict} (smaller run)" if smaller else one.verdict
    cells = [str(one.number), one.name, *map(_cell, _figures(one.outcome)), one.asked, found]
    return f"| {' | '.join(cells)} |"


def _unrun(row: Row) -> str:
    cells = [str(row.number), row.name, *["–"] * 6, row.asked, "not run yet"]
    return f"| {' | '.join(cells)} |"


def _notes(results: Sequence[Result]) -> str:
    lines = [
        f"- **{one.number}** {one.outcome.note + '; ' if one.outcome.note else ''}"
        f"{one.size.events:,} events, {one.took_s:.0f} s; {one.conditions.date},"
        f" {one.conditions.cores} cores (load {one.conditions.load_1m:g}),"
        f" Kafka {one.conditions.kafka}, commit `{one.conditions.commit}`,"
        f" seed {one.conditions.seed}"
        for one in results
    ]
    return "\n".join(lines) + "\n" if lines else "Nothing was run yet.\n"


def write_page(rows: Sequence[Row], results: Mapping[int, Result]) -> None:
    """Write docs/guarantees.md."""
    PAGE.write_text(page(rows, results, load_peers(PEERS)), encoding="utf-8")
