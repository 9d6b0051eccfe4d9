"""``./dev parity``: the handbook's transactions through Kafka and two workers, one of them killed.

For every row the stream's features are compared with the handbook's own, and with history's bit for
bit. A row may come twice, never in two ways.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer, TopicPartition
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.measure import BenchError, end_offset_sums, stop_process
from bench.outputs import OutputDecoder, event_ids, matrix
from bench.parity_check import Collected, Comparison, ParityReport, compare_bits, compare_handbook
from bench.parity_feed import Feed, ReportsFirst, SideBySide
from bench.project import Project, fresh_stack, make_project
from examples.fraud.handbook import convert
from headrace.lake.history import history
from headrace.runtime import topics
from headrace.runtime.errors import HeadraceError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from headrace.runtime.dev.stack import Endpoints

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "fraud"
WORK = ROOT / ".parity"
PIPELINE = "fraud"
PARTITION_COUNT = 4
WORKER_COUNT = 2
STALL_S = 120.0
POLL_S = 0.2
KILL_POLL_S = 0.05
#: Of the rows, so much is out when a worker is killed: the rest takes seconds, and the kill may
#: come late on a machine that is at work.
KILL_SHARE = 0.1


class Collector:
    """Reads the snapshots while they are written, on a thread of its own, once started."""

    def __init__(self, endpoints: Endpoints, collected: Collected) -> None:
        self._collected = collected
        self._bootstrap_servers = endpoints.bootstrap_servers
        self._decoder = OutputDecoder(endpoints.registry_url)
        self._consumer = Consumer(
            {
                "bootstrap.servers": endpoints.bootstrap_servers,
                "group.id": "parity.collector",
                "enable.auto.commit": False,
                "queued.max.messages.kbytes": 100_000,
            }
        )
        topic = topics.snapshots(PIPELINE)
        self._consumer.assign([TopicPartition(topic, n, 0) for n in range(PARTITION_COUNT)])
        self._stopping = threading.Event()
        self._failure: BenchError | None = None
        self._taken = 0
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Read no more."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._consumer.close()

    def read_to_end(self) -> None:
        """Wait until all that the topic holds now is read.

        Raises:
            BenchError: If that does not come about, or something cannot be read.

        """
        # A client of its own: asked from here, the one that the thread consumes with never answers.
        probe = Consumer({"bootstrap.servers": self._bootstrap_servers, "group.id": "parity.probe"})
        try:
            (end,) = end_offset_sums(probe, [topics.snapshots(PIPELINE)], PARTITION_COUNT)
        finally:
            probe.close()
        deadline_s = time.monotonic() + STALL_S
        while self._taken < end:
            self.check()
            if time.monotonic() > deadline_s:
                msg = f"only {self._taken:,} of {end:,} snapshots could be read"
                raise BenchError(msg)
            time.sleep(POLL_S)

    def check(self) -> None:
        """Raise what the thread failed with."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                messages = self._consumer.consume(20_000, 0.2)
                if messages:
                    self._take([message.value() or b"" for message in messages])
        except BenchError as error:
            self._failure = error

    def _take(self, values: list[bytes]) -> None:
        batch = self._decoder.decode(values)
        self._collected.add(event_ids(batch), values, matrix(batch, self._collected.names))
        self._taken += len(values)


def run(
    rows: int | None, data: Path, work: Path, console: Console, *, concurrent: bool = False
) -> ParityReport:
    """Take the first ``rows`` transactions (None: all) through the stream and compare.

    All lies there when the workers start, or is sent beside them: ``concurrent``.

    Raises:
        BenchError: If the stream stalls or a command fails.

    """
    transformed = pq.read_table(data / "transformed.parquet")
    raw = pq.read_table(data / "raw.parquet")
    count = raw.num_rows if rows is None else min(rows, raw.num_rows)
    raw, transformed = raw.slice(0, count), transformed.slice(0, count)
    transactions, reports = convert(raw, data / "customer_tie_order.json")
    report = ParityReport()
    stack = fresh_stack(work / "stack")
    try:
        project = _prepare(work, stack.up(), transactions, reports)
        console.print(f"{reports.num_rows:,} reports and {count:,} transactions to publish")
        feed: Feed = ReportsFirst(project)
        if concurrent:
            feed = SideBySide(project, transactions, reports)
        feed.before_workers()
        names = [column.name for column in project.plan(PIPELINE).vector]
        collected = Collected(count, names)
        _stream(project, collected, work, console, report, feed)
    finally:
        stack.down()
    report.missing = count - collected.rows_seen
    report.duplicates = collected.duplicates
    report.differing = len(collected.differing)
    report.handbook = compare_handbook(collected, transformed)
    console.print("the same through history")
    report.history = compare_bits(collected, _history(project, transactions, names))
    return report


def _prepare(
    work: Path, endpoints: Endpoints, transactions: pa.Table, reports: pa.Table
) -> Project:
    settings = {
        "project": "parity",
        "topics": {"partitions": PARTITION_COUNT},
        "history": {name: f"data/{name}.parquet" for name in ("transactions", "reports")},
    }
    project = make_project(work / "project", ROOT / "examples" / "fraud", endpoints, settings)
    data = project.folder / "data"
    data.mkdir()
    pq.write_table(transactions, data / "transactions.parquet")
    pq.write_table(reports, data / "reports.parquet")
    project.run("apply")
    return project


def _stream(
    project: Project,
    collected: Collected,
    work: Path,
    console: Console,
    report: ParityReport,
    feed: Feed,
) -> None:
    """Run two workers until every row has come; kill one in the middle and start it again."""
    rows = len(collected.times_seen)
    logs = [work / f"worker-{number}.log" for number in range(WORKER_COUNT)]
    for log in logs:
        log.unlink(missing_ok=True)
    console.print(f"{WORKER_COUNT} workers; one is killed when {KILL_SHARE:.0%} are out")
    workers = [project.start_worker(log) for log in logs]
    collector = Collector(project.endpoints, collected)
    # Not the collector's consumer: asked from another thread, that one never answers.
    probe = Consumer(
        {"bootstrap.servers": project.endpoints.bootstrap_servers, "group.id": "parity.made"}
    )

    def made() -> int:
        return end_offset_sums(probe, [topics.snapshots(PIPELINE)], PARTITION_COUNT)[0]

    feed.with_workers()
    columns = TextColumn("   rows through"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=rows)
            seen, changed_s = 0, time.monotonic()
            while seen < rows:
                # Until the kill often, and with nothing else to do: the workers go on meanwhile.
                time.sleep(POLL_S if report.restarts else KILL_POLL_S)
                collector.check()
                _check_workers(workers, logs)
                now = collected.rows_seen
                progress.update(task, completed=now)
                if now != seen:
                    seen, changed_s = now, time.monotonic()
                elif time.monotonic() - changed_s > STALL_S:
                    msg = f"no new row for {STALL_S:.0f} s at {seen:,} of {rows:,}; see {logs[0]}"
                    raise BenchError(msg)
                if not report.restarts and made() >= rows * KILL_SHARE:
                    workers[0].kill()
                    workers[0].wait()
                    report.made_at_kill = made()
                    report.restarts += 1
                    workers[0] = project.start_worker(logs[0])
                    collector.start()
                feed.check()
                if isinstance(feed, SideBySide) and not report.outages and seen >= feed.rows_before:
                    workers = _outage(project, workers, logs, feed, console)
                    report.outages += 1
                    changed_s = time.monotonic()
        # What was sent again after the last new row must be no other either.
        for worker in workers:
            stop_process(worker)
        collector.read_to_end()
    finally:
        for worker in workers:
            stop_process(worker)
        feed.stop()
        collector.stop()
        probe.close()
    collector.check()


def _outage(
    project: Project,
    workers: Sequence[subprocess.Popen[bytes]],
    logs: Sequence[Path],
    feed: SideBySide,
    console: Console,
) -> list[subprocess.Popen[bytes]]:
    """Let an hour of event time pass without a worker; return the workers that come after it."""
    for worker in workers:
        stop_process(worker)
    console.print(
        f"no worker for an hour of event time: {feed.rows_within:,} transactions, "
        f"then its {feed.reports_within:,} reports"
    )
    feed.send_outage()
    started = [project.start_worker(log) for log in logs]
    feed.send_after()
    return started


def _check_workers(workers: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path]) -> None:
    for worker, log in zip(workers, logs, strict=True):
        if worker.poll() is not None:
            msg = f"a worker ended with {worker.returncode}; see {log}"
            raise BenchError(msg)


def _history(
    project: Project, transactions: pa.Table, names: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Return every feature of every transaction from history, by transaction id."""
    data = project.folder / "data"
    table = history(
        transactions.select(["transaction_id"]),
        project.plan(PIPELINE),
        sources={name: data / f"{name}.parquet" for name in ("transactions", "reports")},
    )
    # Row n is the transaction with id n: the tied pairs stand in another order in the file.
    order = np.argsort(table["transaction_id"].to_numpy())
    columns = {name: table[name].cast(pa.float64()).to_numpy() for name in names}
    return {name: column[order] for name, column in columns.items()}


def _print(report: ParityReport, console: Console) -> None:
    rows = report.handbook[0].rows
    for title, comparisons in (
        ("Stream and handbook", report.handbook),
        ("Stream and history, bit for bit", report.history),
    ):
        table = Table("feature", "rows", "mismatches", "largest", "first row", title=title)
        for column in table.columns[1:]:
            column.justify = "right"
        for comparison in comparisons:
            table.add_row(*_cells(comparison))
        console.print(table)
    console.print(
        f"{rows:,} rows, {report.missing:,} missing, {report.duplicates:,} came twice, "
        f"{report.differing:,} in two ways; {report.restarts} worker killed and restarted, "
        f"when {report.made_at_kill:,} were out; {report.outages} outage"
    )
    verdict = "[green]parity holds[/]" if report.holds else "[red]parity does not hold[/]"
    console.print(verdict)


def _cells(comparison: Comparison) -> tuple[str, ...]:
    colour = "red" if comparison.mismatches else "green"
    first = "-" if comparison.first_row is None else f"{comparison.first_row:,}"
    return (
        comparison.feature,
        f"{comparison.rows:,}",
        f"[{colour}]{comparison.mismatches:,}[/]",
        f"{comparison.largest:.3g}",
        first,
    )


def main(arguments: Sequence[str]) -> int:
    """Run the comparison and return 0 if parity holds."""
    parser = argparse.ArgumentParser(prog="parity", description=__doc__)
    parser.add_argument("--rows", type=int, help="only the first so many (default: all)")
    parser.add_argument(
        "--concurrent",
        action="store_true",
        help="reports and transactions sent side by side, with an outage in the middle",
    )
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args(arguments)
    console = Console()
    if not DATA.is_dir():
        console.print(f"[red]no handbook data in {DATA}[/]")
        return 2
    options.work.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    try:
        work = options.work.resolve()
        report = run(options.rows, DATA, work, console, concurrent=options.concurrent)
    except (BenchError, HeadraceError) as error:
        console.print(f"[red]parity:[/] {error}")
        return 1
    _print(report, console)
    console.print(f"{time.monotonic() - started_s:.0f} s")
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
