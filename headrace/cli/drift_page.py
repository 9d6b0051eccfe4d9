"""The drift page: one HTML file with its pictures in it, for a browser that is offline."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Final

from headrace.cli.drift_charts import bands, histogram, nulls, number, percent
from headrace.cli.drift_style import STYLE
from headrace.drift.findings import RANK

if TYPE_CHECKING:
    from headrace.drift.findings import ColumnDrift, Finding, Severity
    from headrace.training.watch import DriftReport

VARIES: Final = "Varies by day"
LABELS: Final[dict[Severity, str]] = {"alarm": "Alarm", "notice": "Notice", "none": "As trained"}
_ICONS: Final[dict[Severity, str]] = {
    "alarm": '<path d="M12 2 1 21h22L12 2zm0 6v7m0 3v.5"/>',
    "notice": '<path d="M12 2a10 10 0 1 0 0 20 10 10 0 0 0 0-20zm0 5v6m0 3.5v.5"/>',
    "none": '<path d="M12 2a10 10 0 1 0 0 20 10 10 0 0 0 0-20zM7 12.5l3.5 3.5L17 9"/>',
}
# Nothing may be loaded from anywhere: the page's styles and pictures are in it.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(report: DriftReport) -> str:
    """Return the report as a page."""
    title = f"Drift of {report.pipeline}"
    columns = sorted(report.comparison.columns, key=_worst_first)
    score = report.comparison.score
    findings = "".join(_finding(finding) for finding in report.findings)
    nothing = '<p class="soft">Every column is within what chance and habit explain.</p>'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}: {escape(_verdict(report))}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#findings">To the findings</a>
<main>
<header>
<h1>{escape(title)}</h1>
<p class="soft">{escape(str(report.period))} · {report.comparison.rows:,} scored events, against the
{_training_rows(report):,} that {escape(report.model)}/{escape(report.version)} learned from</p>
{_banner(report)}
{_notes(report)}
</header>
<h2 id="findings">Findings</h2>
{f'<ol class="findings">{findings}</ol>' if findings else nothing}
{"" if score is None else f'<h2>The score</h2>{_KEY}<div class="cards">{_card(score)}</div>'}
<h2>The features</h2>
{_KEY}
<label class="only"><input type="checkbox" id="only"> Only those with findings</label>
<div class="cards">{"".join(_card(column) for column in columns)}</div>
<h2>All figures</h2>
{_table([*([score] if score is not None else []), *columns])}
<footer><p>A finding is larger than chance gives once in a million, and of a size that matters:
PSI from 0.1 (alarm 0.25), KS from 0.05 (0.1), shares by Cohen's h from 0.1 (0.2). Quantiles of the
period are within 1 %.</p></footer>
</main>
</body>
</html>
"""


_KEY: Final = (
    '<p class="key"><span><i class="t"></i>training</span>'
    '<span><i class="p"></i>this period</span>'
    "<span>Bands below: 1 to 99 %, 5 to 95 %, the middle half, the median</span></p>"
)


def _worst_first(column: ColumnDrift) -> tuple[int, float]:
    size = max((finding.size for finding in column.findings), default=0.0)
    return -RANK[column.severity], -size


def _verdict(report: DriftReport) -> str:
    """Return what came out, in a few words."""
    counts = [
        (sum(one.severity == severity for one in report.findings), word)
        for severity, word in (("alarm", "alarm"), ("notice", "notice"))
    ]
    said = [f"{count} {word}{'s' if count > 1 else ''}" for count, word in counts if count]
    return ", ".join(said) or "no findings"


def _banner(report: DriftReport) -> str:
    severity = report.severity
    first = report.findings[0] if report.findings else None
    more = (
        "The period looks as the training set did."
        if first is None
        else f"Worst: {first.column} – {first.text}"
    )
    verdict = _verdict(report)
    return (
        f'<div class="verdict {severity}" role="status"><svg viewBox="0 0 24 24" fill="none" '
        f'stroke="currentColor" stroke-width="2" stroke-linejoin="round" stroke-linecap="round" '
        f'aria-hidden="true">{_ICONS[severity]}</svg>'
        f"<div><strong>{verdict[0].upper() + verdict[1:]}</strong>"
        f"<span>{escape(more)}</span></div></div>"
    )


def _notes(report: DriftReport) -> str:
    if not report.notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return f'<ul class="notes">{items}</ul>'


def _anchor(name: str) -> str:
    return "column-" + re.sub(r"[^A-Za-z0-9_]", "-", name)


def _name(name: str) -> str:
    """Return a column's name that may be broken where its words end."""
    return escape(name).replace("_", "_<wbr>")


def _chip(severity: Severity, text: str = "") -> str:
    return f'<span class="chip {severity}">{escape(text or LABELS[severity])}</span>'


def _finding(finding: Finding) -> str:
    return (
        f'<li class="is-{finding.severity}"><div class="line">{_chip(finding.severity)}'
        f'<a href="#{_anchor(finding.column)}">{_name(finding.column)}</a>'
        f'<span class="soft">{finding.cause}</span></div>'
        f"<p>{escape(finding.text)}</p>"
        f'<p class="soft">Look at {escape(finding.look_at)}.</p></li>'
    )


def _card(column: ColumnDrift) -> str:
    name = _anchor(column.name)
    state = VARIES if column.varies else "" if column.compared else "too few rows"
    said = "".join(f'<p class="say">{escape(one.text)}</p>' for one in column.findings)
    figures = [
        ("PSI", f"{column.psi:.3f}"),
        ("KS", f"{column.ks:.3f}"),
        ("mean moved", f"{column.shift:+.2f} dev.".replace("-", "−")),
        ("mean", f"{number(column.training.mean)} → {number(column.period.mean)}"),
        ("deviation", f"{number(column.training.deviation)} → {number(column.period.deviation)}"),
        ("out of range", percent(column.outside_share)),
    ]
    listed = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in figures)
    quiet = " quiet" if column.severity == "none" else ""
    return (
        f'<section class="card{quiet}" id="{name}" aria-labelledby="{name}-name">'
        f'<div class="head"><h3 id="{name}-name">{_name(column.name)}</h3>'
        f"{_chip(column.severity, state)}</div>{said}"
        f"{histogram(column)}{bands(column)}{nulls(column)}<dl>{listed}</dl></section>"
    )


def _table(columns: list[ColumnDrift]) -> str:
    headings = (
        *("column", "finding", "PSI", "PSI by chance", "KS", "KS by chance"),
        *("mean moved", "no value", "out of range", "new values"),
    )
    rows = "".join(
        "<tr>"
        f'<th scope="row">{escape(one.name)}</th>'
        f"<td>{escape(_state(one))}</td>"
        f"<td>{one.psi:.4f}</td><td>{_chance(one.psi_by_chance)}</td>"
        f"<td>{one.ks:.4f}</td><td>{_chance(one.ks_by_chance)}</td>"
        f"<td>{one.shift:+.3f}</td>"
        f"<td>{percent(one.training.null_share)} → {percent(one.period.null_share)}</td>"
        f"<td>{percent(one.outside_share)}</td><td>{percent(one.novel_share)}</td></tr>"
        for one in columns
    )
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    return (
        '<div class="table" role="region" aria-label="All figures" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _state(column: ColumnDrift) -> str:
    causes = ", ".join(f"{one.severity}: {one.cause}" for one in column.findings)
    return causes or ("none" if column.compared else "too few rows")


def _chance(value: float) -> str:
    return "any" if value > 1e3 else f"{value:.4f}"


def _training_rows(report: DriftReport) -> int:
    return max((column.training.rows for column in report.comparison.columns), default=0)
