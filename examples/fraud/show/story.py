"""The simulation as it unfolds: what has happened and what has become known since the last look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from examples.fraud.generate import (
    DAY_MS,
    REPORT_SCHEMA,
    TIME,
    TRANSACTION_SCHEMA,
    World,
    simulate,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Chapter:
    """A stretch of simulated time.

    It holds the transactions that took place in it, in order, and the reports that became known in
    it, also those on transactions of before.
    """

    transactions: pa.Table
    reports: pa.Table

    @property
    def first_id(self) -> int:
        """Id of the first transaction; they are numbered without a gap."""
        return int(self.transactions["transaction_id"][0].as_py())

    def reported(self) -> NDArray[np.bool_]:
        """Say of each transaction whether a report on it is among the chapter's."""
        return np.isin(
            self.transactions["transaction_id"].to_numpy(),
            self.reports["transaction_id"].to_numpy(),
        )


class Story:
    """A world's events from ``start_ms`` (midnight) on, told chapter by chapter, without end."""

    def __init__(self, world: World, start_ms: int) -> None:
        self._world = world
        self._start_ms = start_ms
        self._next_day = 0
        self._next_id = 0
        self._transactions = TRANSACTION_SCHEMA.empty_table()
        self._reports = REPORT_SCHEMA.empty_table()

    def until(self, end_ms: int) -> Chapter:
        """Return what came between the last call's end and ``end_ms``."""
        missing_days = -(-(end_ms - self._start_ms) // DAY_MS) - self._next_day
        if missing_days > 0:
            more = simulate(
                self._world, self._start_ms, missing_days, self._next_day, self._next_id
            )
            self._next_day += missing_days
            self._next_id += more.transactions.num_rows
            self._transactions = pa.concat_tables([self._transactions, more.transactions])
            self._reports = pa.concat_tables([self._reports, more.reports])
        transactions, self._transactions = _split(self._transactions, "event_time", end_ms)
        reports, self._reports = _split(self._reports, "known_at", end_ms)
        return Chapter(transactions, reports.sort_by("known_at"))


def _split(table: pa.Table, column: str, end_ms: int) -> tuple[pa.Table, pa.Table]:
    early = pc.less(table[column], pa.scalar(end_ms, pa.int64()).cast(TIME))
    return table.filter(early), table.filter(pc.invert(early))
