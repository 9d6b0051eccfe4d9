"""What a parity run sends, and when: before the workers, or beside them with an outage."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.measure import BenchError

if TYPE_CHECKING:
    from pathlib import Path

    from bench.project import Project

OUTAGE_MS = 3_600_000


class Feed:
    """Sends through ``headrace send``; what runs beside the workers has a thread."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._failure: BenchError | None = None
        self._threads: list[threading.Thread] = []

    def before_workers(self) -> None:
        """Send what lies there when the workers start."""

    def with_workers(self) -> None:
        """Begin to send what comes while they run."""

    def check(self) -> None:
        """Raise what sending has failed with."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Wait until nothing is being sent."""
        for thread in self._threads:
            thread.join()

    def _start(self, *what: str) -> None:
        def send() -> None:
            try:
                self._project.run("send", *what)
            except BenchError as error:
                self._failure = error

        thread = threading.Thread(target=send, name="sender", daemon=True)
        self._threads.append(thread)
        thread.start()


class ReportsFirst(Feed):
    """All reports lie there when the workers start, and then all transactions."""

    def before_workers(self) -> None:
        """Send them."""
        self._project.run("send", "--reports", "first")


class _Part(NamedTuple):
    """What is sent in one stretch of event time, and the files that hold it."""

    transactions: pa.Table
    reports: pa.Table
    folder: Path


class SideBySide(Feed):
    """Sends three stretches beside the workers: before an outage, its hour, and after it.

    Each report is sent when it became known, between the transactions of that time. In the outage
    no worker runs: an hour of event time passes, and its reports come after its transactions, in a
    burst.
    """

    def __init__(self, project: Project, transactions: pa.Table, reports: pa.Table) -> None:
        """Cut the tables, in order of event time and of being known, in the middle."""
        super().__init__(project)
        times = transactions["event_time"].cast(pa.int64())
        begin_ms = times[transactions.num_rows // 2].as_py()
        known = reports["known_at"].cast(pa.int64())
        bounds = [-(1 << 62), begin_ms, begin_ms + OUTAGE_MS, 1 << 62]
        self._parts = []
        for number, (low, high) in enumerate(itertools.pairwise(bounds)):
            folder = project.folder / "data" / f"part-{number}"
            folder.mkdir()
            part = _Part(
                _between(transactions, times, low, high),
                _between(reports, known, low, high),
                folder,
            )
            for name in ("transactions", "reports"):
                pq.write_table(getattr(part, name), folder / f"{name}.parquet")
            self._parts.append(part)

    @property
    def rows_before(self) -> int:
        """How many transactions are sent before the outage."""
        return int(self._parts[0].transactions.num_rows)

    @property
    def rows_within(self) -> int:
        """How many transactions are sent in the outage."""
        return int(self._parts[1].transactions.num_rows)

    @property
    def reports_within(self) -> int:
        """How many reports come in a burst when it ends."""
        return int(self._parts[1].reports.num_rows)

    def with_workers(self) -> None:
        """Begin to send what comes before the outage."""
        self._start(str(self._parts[0].folder))

    def send_outage(self) -> None:
        """Send the hour that nobody reads, its reports last."""
        self.check()
        folder = self._parts[1].folder
        for name in ("transactions", "reports"):
            self._project.run("send", f"{name}={folder / name}.parquet")

    def send_after(self) -> None:
        """Begin to send the rest."""
        self._start(str(self._parts[2].folder))


def _between(table: pa.Table, time_ms: pa.ChunkedArray, low: int, high: int) -> pa.Table:
    return table.filter(pc.and_(pc.greater_equal(time_ms, low), pc.less(time_ms, high)))
