"""A prediction's explanation as a page in the terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from headrace.features.durations import duration_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from headrace.cli.explain import Explanation, FeatureLine
    from headrace.scoring.receipts import Receipt

_BAR = 12


def receipt_page(explained: Explanation) -> RenderableType:
    """Return the page."""
    receipt = explained.receipt
    parts: list[RenderableType] = [
        f"[bold]prediction {receipt.id}[/]",
        _facts(explained),
        "",
        "[bold]event[/]",
        _event(receipt),
        "",
        "[bold]features[/], those first that moved the score most",
        _features(explained),
        _sum(explained),
    ]
    parts += [f"[yellow]note[/]: {escape(note)}" for note in explained.notes]
    parts.append(f"[dim]compute it again: headrace replay {receipt.id}[/]")
    return Group(*parts)


def _facts(explained: Explanation) -> Table:
    receipt = explained.receipt
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    score = "none" if receipt.score is None else f"[bold]{receipt.score:.6g}[/]"
    table.add_row("score", f"{score}  [dim]{receipt.status}[/]")
    if receipt.model is None:
        table.add_row("model", "none was live")
    else:
        shown = f"{receipt.model}/{receipt.model_version}, {receipt.role}"
        table.add_row("model", f"{shown}, revision {receipt.revision}")
        table.add_row("", f"[dim]manifest {receipt.model_hash or 'hash not recorded'}[/]")
    table.add_row("plan", receipt.fingerprint)
    table.add_row("engine", receipt.engine or "[dim]not recorded[/]")
    if explained.times_emitted > 1:
        table.add_row("emitted", f"{explained.times_emitted} times; this is the last")
    for one in explained.related:
        table.add_row("same event id", str(one))
    return table


def _event(receipt: Receipt) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("id", escape(str(receipt.event_id)))
    place = f"partition {receipt.id.partition}, offset {receipt.id.offset}"
    table.add_row("source", f"{receipt.source}, {place}")
    for entity, key in receipt.keys.items():
        table.add_row(entity, "[dim]no key[/]" if key is None else escape(key))
    table.add_row("event time", moment_text(receipt.event_time_ms))
    if receipt.arrival_time_ms is not None:
        table.add_row("arrived", moment_text(receipt.arrival_time_ms))
    if receipt.predicted_at_ms is not None:
        after = ""
        if receipt.arrival_time_ms is not None:
            after = f"  [dim]{receipt.predicted_at_ms - receipt.arrival_time_ms:,} ms later[/]"
        table.add_row("predicted", moment_text(receipt.predicted_at_ms) + after)
    for name, value in (receipt.event or {}).items():
        table.add_row(f"[dim]{escape(name)}[/]", escape(str(value)))
    return table


def _features(explained: Explanation) -> Table:
    table = Table("column", box=None, padding=(0, 2, 0, 0))
    for heading in ("value", "newest event", "moved by"):
        table.add_column(heading, justify="right")
    table.add_column("")
    table.add_column("what it is")
    largest = max((abs(line.contribution or 0.0) for line in explained.features), default=0.0)
    for line in explained.features:
        where = f"  [dim]{line.line}[/]" if line.line else ""
        moved = "" if line.contribution is None else f"{line.contribution:+.4f}"
        table.add_row(
            line.name,
            _value(line),
            "" if line.age_ms is None else f"{_age(line.age_ms)} before",
            moved,
            _bar(line.contribution or 0.0, largest),
            escape(line.definition) + where,
        )
    return table


def _value(line: FeatureLine) -> str:
    text = "" if line.value is None else f"{line.value:.6g}"
    return f"{text} [dim]{line.note}[/]".strip() if line.note else text


def _bar(part: float, largest: float) -> Text:
    if not largest:
        return Text("")
    length = round(_BAR * abs(part) / largest)
    return Text("█" * length, style="red" if part > 0 else "blue")


def _sum(explained: Explanation) -> str:
    parts = explained.contributions
    if parts is None:
        return f"[yellow]no contributions[/]: {escape(explained.why_not)}"
    added = sum(parts.by_column.values())
    text = f"model's mean {parts.base:+.4f}, features {added:+.4f}, raw score {parts.raw:+.4f}"
    if parts.adds_up:
        return f"[dim]{text}[/]"
    return f"[red]{text}: they do not add up[/]"


def _age(age_ms: int) -> str:
    """Return an age rounded to what a reader takes in."""
    for unit_ms in (86_400_000, 3_600_000, 60_000, 1_000):
        if age_ms >= 10 * unit_ms:
            return duration_text(age_ms // unit_ms * unit_ms)
    return duration_text(age_ms)


def moment_text(epoch_ms: int) -> str:
    """Return a time of day in UTC."""
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")
