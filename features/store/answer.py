"""What a read of the online store gives."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from headrace.features.store.freshness import EXPIRED, FRESH, MISSING, STALE

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

AGE: Final = "age_ms"
STATUS: Final = "status"
_SHOWN_ROWS: Final = 50
_COLOURS: Final = {FRESH: "#1a7f37", STALE: "#b35900", EXPIRED: "#57606a", MISSING: "#57606a"}


@dataclass(frozen=True, slots=True)
class OnlineAnswer:
    """Values by entity, in the order in which the entities were given.

    ``table`` holds the join keys, the features as asked for, and of each view ``<view>__age_ms``
    (since its newest event, by the clock of its stream) and ``<view>__status``.
    """

    table: pa.Table
    views: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of entities."""
        return int(self.table.num_rows)

    def statuses(self, view: str) -> list[str]:
        """Return the status of a view's values, entity by entity."""
        return list(self.table.column(f"{view}__{STATUS}").to_pylist())

    def to_pandas(self) -> pd.DataFrame:
        """Return the table as a pandas frame."""
        return self.table.to_pandas()

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one mapping an entity."""
        return list(self.table.to_pylist())

    def _repr_html_(self) -> str:
        """Return the table for a notebook; a status has its colour."""
        names = self.table.column_names
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        rows = "".join(
            "<tr>" + "".join(_cell(name, row[name]) for name in names) + "</tr>"
            for row in self.table.slice(0, _SHOWN_ROWS).to_pylist()
        )
        more = len(self) - _SHOWN_ROWS
        note = f"<p>and {more:,} more</p>" if more > 0 else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}"


def _cell(name: str, value: object) -> str:
    text = (
        ""
        if value is None
        else html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))
    )
    if name.endswith(f"__{STATUS}"):
        return f'<td style="color:{_COLOURS[str(value)]}">{text}</td>'
    return f"<td>{text}</td>"
