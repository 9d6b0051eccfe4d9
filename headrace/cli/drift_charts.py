"""The drift page's pictures, as SVG: two histograms, quantile bands, shares without a value."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.drift.findings import ColumnDrift, Picture, Side

_WIDTH: Final = 320.0
_HEIGHT: Final = 104.0
_TOP: Final = 14.0
_BOTTOM: Final = 16.0
#: One bar that holds so much hides others that hold so little, unless heights are logarithmic.
_DOMINATED: Final = 0.7
_HIDDEN: Final = 0.1
_LEAST_SHARE: Final = 1e-4


def number(value: float) -> str:
    """Return a number as a person writes it, to four digits."""
    if math.isnan(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    text = f"{value:,.4g}" if abs(value) < 1_000 else f"{value:,.0f}"
    return text.replace("-", "−")


def percent(share: float) -> str:
    """Return a share in percent, to three digits."""
    if share and share < 5e-5:
        return "< 0.01 %"
    return f"{100 * share:.3g} %"


def histogram(column: ColumnDrift) -> str:
    """Return the two histograms over each other, as a figure; nothing where there are no rows."""
    picture = column.picture
    if not picture.training:
        return ""
    highest = max(*picture.training, *picture.period)
    second = max(sorted(shares)[-2] for shares in (picture.training, picture.period))
    logarithmic = highest >= _DOMINATED and 0 < second <= _HIDDEN
    heights = _Heights(highest, logarithmic)
    drawn = _pairs(picture, heights) if picture.labels else _steps(picture, heights)
    say = f"Histogram of {column.name}, training and period. {_in_words(column)}"
    note = [
        *(["heights are logarithmic"] if logarithmic else []),
        *(["widths are logarithmic"] if picture.logarithmic else []),
    ]
    caption = f"<figcaption>{escape('; '.join(note))}</figcaption>" if note else ""
    total = _TOP + _HEIGHT + _BOTTOM
    floor = _TOP + _HEIGHT
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH:g} {total:g}" role="img" aria-label="{escape(say)}">'
        f'<text x="0" y="10">{percent(highest)}</text>'
        f'<line class="rule" x1="0" x2="{_WIDTH:g}" y1="{_TOP:g}" y2="{_TOP:g}"/>'
        f'{drawn}<line class="rule" x1="0" x2="{_WIDTH:g}" y1="{floor:g}" y2="{floor:g}"/>'
        f"</svg>{caption}</figure>"
    )


class _Heights:
    """From shares to places on the page."""

    def __init__(self, highest: float, logarithmic: bool) -> None:
        self._highest, self._logarithmic = highest, logarithmic

    def top(self, share: float) -> float:
        """Return the y of a bar's top."""
        if self._logarithmic:
            depth = math.log(self._highest / _LEAST_SHARE)
            part = max(math.log(max(share, _LEAST_SHARE) / _LEAST_SHARE) / depth, 0)
        else:
            part = share / self._highest
        return _TOP + _HEIGHT * (1 - part)


def _steps(picture: Picture, heights: _Heights) -> str:
    """Return two areas with steps, and the axis' ends and middle."""
    shapes = (
        f'<path class="t" d="{_area(picture.training, heights)}"/>'
        f'<path class="p-area" d="{_area(picture.period, heights)}"/>'
    )
    bounds, last = picture.bounds, len(picture.bounds) - 1
    marks = [(0, "start"), (last // 2, "middle"), (last, "end")]
    return shapes + "".join(
        _mark(index / last * _WIDTH, number(bounds[index]), anchor) for index, anchor in marks
    )


def _area(shares: Sequence[float], heights: _Heights) -> str:
    wide = _WIDTH / len(shares)
    floor = _TOP + _HEIGHT
    corners = "".join(
        f"V{heights.top(share):.1f}H{(index + 1) * wide:.1f}" for index, share in enumerate(shares)
    )
    return f"M0,{floor:g}{corners}V{floor:g}Z"


def _pairs(picture: Picture, heights: _Heights) -> str:
    """Return two bars for each value, with its label where there is room."""
    wide = _WIDTH / len(picture.labels)
    floor = _TOP + _HEIGHT
    each = max(len(picture.labels) // 8, 1)
    parts = []
    for index, label in enumerate(picture.labels):
        left = index * wide
        bar = min(wide * 0.4, 40)
        middle = left + wide / 2
        for kind, share, x in (
            ("t", picture.training[index], middle - bar),
            ("p", picture.period[index], middle),
        ):
            top = heights.top(share)
            parts.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{top:.1f}" width="{bar:.1f}" '
                f'height="{floor - top:.1f}"/>'
            )
        if index % each == 0:
            parts.append(_mark(middle, number(label), "middle"))
    return "".join(parts)


def _mark(x: float, text: str, anchor: str) -> str:
    y = _TOP + _HEIGHT + 12
    return f'<text x="{x:.1f}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def bands(column: ColumnDrift) -> str:
    """Return where the middle 98, 90 and 50 % of the rows lie, training above the period."""
    sides = (("t", column.training), ("p", column.period))
    ends = [side.quantiles[index] for _, side in sides for index in (0, -1)]
    if any(math.isnan(end) for end in ends):
        return ""
    low, high = min(ends), max(ends)
    if not low < high or column.picture.labels:
        return ""
    scale = math.log if column.picture.logarithmic and low > 0 else float
    rows = "".join(
        _band(kind, side, (low, high), scale, 4 + 15 * row)
        for row, (kind, side) in enumerate(sides)
    )
    words = " ".join(
        f"{name}: median {number(side.quantiles[4])}, half of the rows from "
        f"{number(side.quantiles[3])} to {number(side.quantiles[5])}."
        for name, (_, side) in zip(("Training", "Period"), sides, strict=True)
    )
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH:g} 34" role="img" aria-label="{escape(words)}">{rows}'
        f"</svg></figure>"
    )


def _band(
    kind: str,
    side: Side,
    ends: tuple[float, float],
    scale: Callable[[float], float],
    y: float,
) -> str:
    low, high = (scale(end) for end in ends)

    def at(value: float) -> float:
        return (scale(value) - low) / (high - low) * (_WIDTH - 4) + 2

    first, fifth, _, quarter, middle, three, _, most, last = (at(q) for q in side.quantiles)
    return (
        f'<line class="{kind}-line" x1="{first:.1f}" x2="{last:.1f}" y1="{y + 5}" y2="{y + 5}"/>'
        f'<rect class="{kind}" opacity=".45" x="{fifth:.1f}" y="{y + 2}" height="6" '
        f'width="{max(most - fifth, 3):.1f}"/>'
        f'<rect class="{kind}" x="{quarter:.1f}" y="{y}" height="10" '
        f'width="{max(three - quarter, 3):.1f}"/>'
        f'<line stroke="var(--card)" stroke-width="2" x1="{middle:.1f}" x2="{middle:.1f}" '
        f'y1="{y}" y2="{y + 10}"/>'
    )


def nulls(column: ColumnDrift) -> str:
    """Return the shares of rows without a value as two bars; nothing where there are none."""
    before, now = column.training.null_share, column.period.null_share
    if before == now == 0:
        return ""
    words = f"without a value: {percent(before)} in training, {percent(now)} in the period"
    bars = "".join(
        f'<rect class="{kind}" x="0" y="{2 + 9 * row}" height="7" width="{share * _WIDTH:.1f}"/>'
        for row, (kind, share) in enumerate((("t", before), ("p", now)))
    )
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH:g} 20" role="img" aria-label="{escape(words)}">{bars}'
        f'<line class="rule" x1="{_WIDTH:g}" x2="{_WIDTH:g}" y1="0" y2="20"/>'
        f"</svg><figcaption>{escape(words)}</figcaption></figure>"
    )


def _in_words(column: ColumnDrift) -> str:
    return (
        f"Mean {number(column.training.mean)} in training, {number(column.period.mean)} in the "
        f"period."
    )
