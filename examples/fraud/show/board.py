"""The demo's screen: figures, the last alerts with what speaks for them, and what was found."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from rich.console import Console, RenderableType

    from examples.fraud.show.findings import Finding
    from examples.fraud.show.playback import Playback
    from examples.fraud.show.story import Chapter
    from examples.fraud.show.watcher import Reading, Watcher

    Contributions = Callable[[NDArray[np.float64]], NDArray[np.float64]]

REASONS = 3
ALERTS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Alert:
    """A transaction with a high score, and the features that raised it most."""

    event_time_ms: int
    customer: str
    terminal: str
    amount: float
    score: float
    reasons: tuple[str, ...]


class AlertBook:
    """Keeps the alerts among what comes out, and explains each of the last ones once.

    Args:
        chapter: The transactions that are played.
        names: The vector's columns.
        contributions: LightGBM's ``pred_contrib`` for the model that scores.
        threshold: From which score on it is an alert.

    """

    def __init__(
        self,
        chapter: Chapter,
        names: Sequence[str],
        contributions: Contributions,
        threshold: float,
    ) -> None:
        self._transactions = chapter.transactions
        self._names = names
        self._contributions = contributions
        self._threshold = threshold
        self._rows: list[int] = []
        self._alerts: dict[int, Alert] = {}

    def take(self, watcher: Watcher) -> None:
        """Note the alerts among what has come since the last time."""
        while watcher.order:
            row = watcher.order.popleft()
            if watcher.score[row] >= self._threshold:
                self._rows.append(row)

    def draw(self, watcher: Watcher, playback: Playback, figures: Reading) -> RenderableType:
        """Draw the figures, and the last alerts whose features have come too."""
        last = self._rows[: -ALERTS_SHOWN - 1 : -1]
        come = [row for row in last if not np.isnan(watcher.vectors[row]).all()]
        fresh = [row for row in come if row not in self._alerts]
        found = reasons(watcher.vectors[fresh], self._names, self._contributions)
        for row, why in zip(fresh, found, strict=True):
            self._alerts[row] = self._alert(row, float(watcher.score[row]), why)
        return screen(
            figures,
            playback.sent,
            self._transactions.num_rows,
            playback.now_ms,
            len(self._rows),
            [self._alerts[row] for row in come],
        )

    def _alert(self, row: int, score: float, why: tuple[str, ...]) -> Alert:
        (fields,) = self._transactions.slice(row, 1).to_pylist()
        return Alert(
            int(fields["event_time"].timestamp() * 1000),
            fields["customer_id"],
            fields["terminal_id"],
            fields["amount"],
            score,
            why,
        )


def reasons(
    vectors: NDArray[np.float64],
    names: Sequence[str],
    contributions: Contributions,
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


@contextmanager
def show(console: Console) -> Iterator[Callable[[RenderableType], None]]:
    """Give a function that draws: over what it drew before in a terminal, else below it."""
    if not console.is_terminal:
        yield console.print
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda what: live.update(what, refresh=True)


def line(playback: Playback, figures: Reading) -> str:
    """Say the figures of a moment in one line."""
    return (
        f"   {clock(playback.now_ms)}: {playback.sent:,} sent, {figures.scored:,} scored, "
        f"p50 {_milliseconds(figures.p50_ms)} ms, p99 {_milliseconds(figures.p99_ms)} ms"
    )


def screen(
    reading: Reading, sent: int, total: int, now_ms: int, alert_count: int, alerts: Sequence[Alert]
) -> RenderableType:
    """Draw the figures of a moment above the last alerts."""
    figures = Table.grid(padding=(0, 2))
    for _ in range(7):
        figures.add_column(justify="right", no_wrap=True)
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
    # In a table because a bar alone does not end its line.
    bar = Table.grid()
    bar.add_row(ProgressBar(total=max(1, total), completed=sent, width=72))
    return Group(bar, figures, Text(), alert_table(alerts))


def alert_table(alerts: Sequence[Alert]) -> Table:
    """Draw the last alerts, the newest first."""
    table = Table("time", "customer", "terminal", "amount", "score", "what speaks for it", box=None)
    # Where the terminal is narrow, the reasons are cut and nothing else.
    for column, width in zip(table.columns, (16, 8, 8, 8, 5, None), strict=True):
        column.no_wrap, column.width = True, width
    table.expand, table.columns[5].ratio = True, 1
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
