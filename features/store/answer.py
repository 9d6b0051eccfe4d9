"""What a read of the online store gives."""

from __future__ import annotations

import functools
import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from headrace.features.store.freshness import EXPIRED, FRESH, MISSING, STALE

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

AGE: Final = "age_ms"
STATUS: Final = "status"
_SHOWN_ROWS: Final = 50
_COLOURS: Final = {FRESH: "#1a7f37", STALE: "#b35900", EXPIRED: "#57606a", MISSING: "#57606a"}


_STATUS_TYPE: Final = pa.dictionary(pa.int8(), pa.string())


@dataclass(frozen=True)
class OnlineAnswer:
    """Values by entity, in the order in which the entities were given.

    Args:
        keys: The join keys.
        columns: By name: the features as asked for, then of each view ``<view>__age_ms`` (since its
            newest event, by the clock of its stream) and ``<view>__status``.
        types: Of the features.
        views: Their names.

    """

    keys: Mapping[str, pa.Array]
    columns: Mapping[str, list[Any]]
    types: Mapping[str, pa.DataType]
    views: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of entities."""
        return len(next(iter(self.keys.values())))

    def statuses(self, view: str) -> list[str]:
        """Return the status of a view's values, entity by entity."""
        return self.columns[f"{view}__{STATUS}"]

    @functools.cached_property
    def table(self) -> pa.Table:
        """Return all columns, the join keys first."""
        types = {f"{view}__{STATUS}": _STATUS_TYPE for view in self.views} | {**self.types}
        arrays = [pa.array(c, types.get(name, pa.int64())) for name, c in self.columns.items()]
        return pa.Table.from_arrays(
            [*self.keys.values(), *arrays], names=[*self.keys, *self.columns]
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return the table as a pandas frame."""
        return self.table.to_pandas()

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one mapping an entity. Cheaper than by way of the table."""
        names = (*self.keys, *self.columns)
        columns = (*(key.to_pylist() for key in self.keys.values()), *self.columns.values())
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def _repr_html_(self) -> str:
        """Return the table for a notebook; a status has its colour."""
        names = (*self.keys, *self.columns)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        rows = "".join(
            "<tr>" + "".join(_cell(name, row[name]) for name in names) + "</tr>"
            for row in self.to_dicts()[:_SHOWN_ROWS]
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
