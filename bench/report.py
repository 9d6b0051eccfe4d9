"""What a bench says: a table for people, a JSON file for machines, and whether the bounds hold."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console


@dataclass(frozen=True, slots=True)
class Bound:
    """A figure with what it must reach. One that does not decide is reported only.

    A figure that could not be measured is None, and decides nothing.
    """

    name: str
    figure: float | None
    limit: float
    at_least: bool
    decides: bool = True

    @property
    def holds(self) -> bool:
        """Whether the figure keeps to its limit, or is not there."""
        if self.figure is None:
            return True
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    @property
    def verdict(self) -> str:
        """One word for the table."""
        if self.figure is None:
            return "not measured"
        return "ok" if self.holds else ("missed" if self.decides else "missed (reported)")


def print_bounds(console: Console, bounds: Sequence[Bound]) -> None:
    """Show each figure beside its limit."""
    table = Table("what", "figure", "must be", "verdict", title="Bounds")
    for column in table.columns[1:3]:
        column.justify = "right"
    for bound in bounds:
        figure = "-" if bound.figure is None else f"{bound.figure:,.2f}"
        sign = ">=" if bound.at_least else "<="
        colour = "red" if not bound.holds else "green" if bound.figure is not None else "yellow"
        verdict = f"[{colour}]{bound.verdict}[/]"
        table.add_row(bound.name, figure, f"{sign} {bound.limit:,.2f}", verdict)
    console.print(table)


def spread(ratios: Sequence[float]) -> str:
    """Return the smallest of some ratios, their median and the largest, as text."""
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    return f"min {low:.2f}, median {middle:.2f}, max {high:.2f}"


def write_json(path: Path, name: str, figures: dict[str, Any], bounds: Sequence[Bound]) -> None:
    """Write the run with the machine it ran on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "bench": name,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.machine(),
            "python": platform.python_version(),
            "load_1m": round(os.getloadavg()[0], 2),
        },
        **figures,
        "bounds": [
            {
                "name": bound.name,
                "figure": bound.figure,
                "limit": bound.limit,
                "at_least": bound.at_least,
                "verdict": bound.verdict,
            }
            for bound in bounds
        ],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def exit_code(bounds: Sequence[Bound]) -> int:
    """Return 0 when every bound that decides holds."""
    return 0 if all(bound.holds for bound in bounds if bound.decides) else 1
