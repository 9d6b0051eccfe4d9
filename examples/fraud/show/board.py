"""The demo's screen: figures, the last alerts with what speaks for them, and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from rich.console import RenderableType

    from examples.fraud.show.findings import Finding
    from examples.fraud.show.watcher import Reading

REASONS = 3


@dataclass(frozen=True, slots=True)
class Alert:
    """A transaction with a high score, and the features that raised it most."""

    event_time_ms: int
    customer: str
    terminal: str
    amount: float
    score: float
    reasons: tuple[str, ...]


def reasons(
    vectors: NDArray[np.float64],
    names: Sequence[str],
    contributions: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> list[tuple[str, ...]]:
    """Name, for each vector, the features that raised its score most, with their values.

    Args:
        vectors: The model's inputs.
        names: Their columns.
        contributions: LightGBM's ``pred_contrib``: per feature what it adds to the log odds, and
            the base value as last column.

    """
    if not len(vectors):
        return []
    added = np.asarray(contributions(vectors))[:, : len(names)]
    found = []
    for vector, parts in zip(vectors, added, strict=True):
        strongest = [index for index in np.argsort(-parts)[:REASONS] if parts[index] > 0]
        found.append(tuple(f"{names[i]} {vector[i]:.4g} ({parts[i]:+.1f})" for i in strongest))
    return found


def clock(time_ms: int) -> str:
    """Return a simulated time for people."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%a %d %b %H:%M")


def screen(
    reading: Reading, sent: int, total: int, now_ms: int, alert_count: int, alerts: Sequence[Alert]
) -> RenderableType:
    """Draw the figures of a moment above the last alerts."""
    figures = Table.grid(padding=(0, 3))
    for _ in range(7):
        figures.add_column(justify="right")
    heads = ("simulated time", "events/s", "scored", "lag", "p50 ms", "p99 ms", "alerts")
    figures.add_row(*(Text(head, style="dim") for head in heads))
    figures.add_row(
        Text(clock(now_ms), style="bold"),
        f"{reading.rate:,.0f}",
        f"{reading.scored:,}",
        f"{sent - reading.scored - reading.unscored:,}",
        _milliseconds(reading.p50_ms),
        _milliseconds(reading.p99_ms),
        f"[red]{alert_count:,}[/]",
    )
    return Group(
        ProgressBar(total=max(1, total), completed=sent, width=72), figures, alert_table(alerts)
    )


def alert_table(alerts: Sequence[Alert]) -> Table:
    """Draw the last alerts, the newest first."""
    table = Table("time", "customer", "terminal", "amount", "score", "what speaks for it", box=None)
    table.columns[3].justify = table.columns[4].justify = "right"
    for alert in alerts:
        table.add_row(
            clock(alert.event_time_ms),
            alert.customer,
            alert.terminal,
            f"{alert.amount:,.2f}",
            f"[red]{alert.score:.2f}[/]",
            ", ".join(alert.reasons),
        )
    return table


def finding_table(findings: Sequence[Finding]) -> Table:
    """Draw what was found against the reports."""
    table = Table(
        "alerts", "number", "reported", "precision", "recall", "amount found", "of all reported"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for finding in findings:
        table.add_row(
            finding.name,
            f"{finding.alerts:,}",
            f"{finding.reported:,}",
            _percent(finding.precision),
            _percent(finding.recall),
            f"{finding.amount:,.2f}",
            _percent(finding.amount_recall),
        )
    return table


def _milliseconds(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1f}"


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.0%}"
