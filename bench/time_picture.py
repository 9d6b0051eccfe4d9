"""``python -m bench.time_picture``: the pictures of docs/time-and-parity.md, into docs/pictures.

Numbers in them are computed: windows by ``hr.history``, Feast's side by its rule, which
tests/parity/test_feast_handbook.py holds against Feast itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

import headrace as hr

PICTURES: Final = Path(__file__).resolve().parent.parent / "docs" / "pictures"
HOUR_MS: Final = 3_600_000
#: One customer's payments, hours after midnight of the first day.
EVENT_HOURS: Final = (8.0, 11.0, 17.5, 29.0, 32.0)
TTL_HOURS: Final = 72.0
LAST_HOUR: Final = 120.0

_WIDTH, _HEIGHT = 760, 300
_LEFT, _RIGHT, _TOP, _BASE = 48, 740, 56, 236
_BLUE, _ORANGE, _INK, _FAINT = "#1f5fa8", "#c65a11", "#333333", "#d8d8d8"

_SCHEMA: Final = {
    "type": "record",
    "name": "Payment",
    "fields": [
        {"name": "card", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}

Steps = list[tuple[float, float | None]]


def windows(hours: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[int]:
    """Return the count of the last day at each time, as ``hr.history`` gives it."""
    payments = hr.Source("payments", key="card", event_time="at", schema=_SCHEMA)
    view = hr.FeatureView(
        "card",
        entity=hr.Entity("card", key="card"),
        source=payments,
        features=[hr.count(over=["1d", "3d"])],
    )
    events = _rows(np.array(EVENT_HOURS))
    found = hr.history(_rows(hours), view, sources={"payments": events}, event_id=False)
    return [int(value) for value in found["card__count_1d"].to_pylist()]


def history_steps() -> Steps:
    """Return where the count of the last day changes, and to what."""
    hours = np.arange(0.0, LAST_HOUR, 0.25)
    steps: Steps = []
    for hour, value in zip(hours.tolist(), windows(hours), strict=True):
        if not steps or steps[-1][1] != value:
            steps.append((hour, value))
    return steps


def feast_steps() -> Steps:
    """Return the same as Feast's historical read gives it: the last row, until its ttl is over."""
    steps: Steps = [(0.0, None)]
    at_events = windows(np.array(EVENT_HOURS))
    for hour, value in zip(EVENT_HOURS, at_events, strict=True):
        if steps[-1][1] is not None and steps[-1][0] + TTL_HOURS < hour:
            steps.append((steps[-1][0] + TTL_HOURS, None))
        steps.append((hour, value))
    steps.append((steps[-1][0] + TTL_HOURS, None))
    return steps


def between_events() -> str:
    """Return the picture of a window between events, by history and by Feast."""
    top = max(value for _, value in history_steps() if value is not None)
    parts = [_text(_LEFT, 24, "payments of the last day (count_1d) of one card", size=15)]
    for value in range(int(top) + 1):
        y = _y(value, top)
        parts += [_line(_LEFT, y, _RIGHT, y, _FAINT), _text(_LEFT - 18, y + 4, str(value))]
    for day in range(6):
        x = _x(24.0 * day)
        parts += [_line(x, _TOP, x, _BASE, _FAINT), _text(x - 14, _BASE + 34, f"day {day}")]
    for hour in EVENT_HOURS:
        parts.append(_line(_x(hour), _BASE + 4, _x(hour), _BASE + 16, _INK, 2.5))
    parts += [
        _steps(feast_steps(), top, _ORANGE, dash="7 4"),
        _steps(history_steps(), top, _BLUE),
        _text(
            _x(34.5),
            _y(4, top) - 8,
            "Feast's historical read: the last row, until its ttl",
            _ORANGE,
        ),
        _text(_x(58.0), _y(1, top) - 8, "hr.history, and Redis with its ticks", _BLUE),
        _text(
            _LEFT,
            _BASE + 56,
            "Marks below the line are events: there the two are equal, bit for bit.",
        ),
    ]
    return _svg(parts, "A window between events: hr.history decays, Feast repeats the last row")


def two_orders() -> str:
    """Return the picture of a late row in event order and in the order of the log."""
    names = ("a", "b", "c", "d")
    event_x, log_x = (140, 290, 430, 640), (140, 540, 430, 680)
    parts = [
        _text(16, 74, "event time", size=14),
        _text(16, 194, "log, arrival", size=14),
        _line(120, 70, _RIGHT, 70, _FAINT, 2),
        _line(120, 190, _RIGHT, 190, _FAINT, 2),
    ]
    for name, above, below in zip(names, event_x, log_x, strict=True):
        color = _ORANGE if name == "b" else _BLUE
        parts += [
            _line(above, 82, below, 178, color),
            _dot(above, 70, name, color),
            _dot(below, 190, name, color),
        ]
    parts += [
        _text(16, 24, "b comes late: after c, which happened later", size=15),
        _text(370, 226, "c, as served: a, c"),
        _text(370, 246, "c, in event order: a, b, c"),
        _text(590, 226, "d, either way: a, b, c, d"),
        _text(
            16,
            280,
            "Only rows of the same key that stand between b's time and b's place differ.",
            _INK,
        ),
    ]
    return _svg(parts, "A late row: what the stream had seen, and what is known by now")


PICTURES_BY_NAME: Final = {"between-events.svg": between_events, "two-orders.svg": two_orders}


# --- Shapes ---------------------------------------------------------------------------------------


def _rows(hours: np.ndarray[tuple[int], np.dtype[np.float64]]) -> pa.Table:
    times = (hours * HOUR_MS).astype(np.int64)
    return pa.table({"card": ["x"] * len(times), "at": pa.array(times, pa.timestamp("ms", "UTC"))})


def _x(hour: float) -> float:
    return round(_LEFT + (_RIGHT - _LEFT) * hour / LAST_HOUR, 1)


def _y(value: float, top: float) -> float:
    return round(_BASE - (_BASE - _TOP) * value / top, 1)


def _steps(steps: Steps, top: float, color: str, dash: str = "") -> str:
    """Return a line that goes level between changes and has gaps where there is no value."""
    path, drawn = "", False
    ends = [hour for hour, _ in steps[1:]] + [LAST_HOUR]
    for (hour, value), end in zip(steps, ends, strict=True):
        if value is not None:
            verb = "L" if drawn else "M"
            path += f"{verb}{_x(hour)} {_y(value, top)}H{_x(min(end, LAST_HOUR))}"
        drawn = value is not None
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2.5"{dashes}/>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1) -> str:
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}" stroke-width="{width}"/>'
    )


def _text(x: float, y: float, text: str, color: str = _INK, size: int = 13) -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}">{text}</text>'


def _dot(x: float, y: float, name: str, color: str) -> str:
    circle = f'<circle cx="{x}" cy="{y}" r="12" fill="{color}"/>'
    return circle + _text(x - 4, y + 4, name, "#ffffff")


def _svg(parts: list[str], title: str) -> str:
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" role="img">\n'
        f"<title>{title}</title>\n"
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def main() -> None:
    """Write the pictures."""
    argparse.ArgumentParser(
        description="Draw the pictures of docs/time-and-parity.md."
    ).parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES_BY_NAME.items():
        (PICTURES / name).write_text(draw(), encoding="utf-8")
        print(PICTURES / name)


if __name__ == "__main__":
    main()
