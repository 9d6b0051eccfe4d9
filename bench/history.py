"""``./dev bench history``: 1.75 million events by id, 12 windowed features, from cold Parquet.

Then 5 million events from the lake, 20 features, beside DuckDB and Feast (``history_lake``).

The first run is a process of its own, so that its peak memory is that of history alone. Kernels are
warm (compiled and loaded by a run over few rows), the files are cold: their pages are dropped from
the cache first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

import headrace as hr
from bench.report import Bound, exit_code, print_bounds, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".bench"
# As many as the handbook's.
EVENT_COUNT = 1_754_155
LAKE_EVENT_COUNT = 5_000_000
CUSTOMER_COUNT, TERMINAL_COUNT, DAY_COUNT, FRAUD_RATE = 4_990, 10_000, 183, 0.0084
DAY_MS = 86_400_000
START_MS = 1_522_540_800_000
SECONDS_MAX, MIB_MAX = 20.0, 2_048.0
SOURCES = ("transactions", "reports")


def main(arguments: Sequence[str]) -> int:
    """Run the bench and return 0 if time and memory keep to their bounds."""
    parser = argparse.ArgumentParser(prog="bench history", description=__doc__)
    parser.add_argument("--rows", type=int, help="default: 1,754,155; of the lake 5,000,000")
    parser.add_argument("--only", choices=["files", "lake"], help="one of the two runs")
    parser.add_argument(
        "--against", nargs="*", default=["duckdb", "feast"], help="of the lake: beside whom"
    )
    parser.add_argument("--feast-rows", type=int, default=50_000, help="at most so many for Feast")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure is not None:
        sys.stdout.write(json.dumps(_measure(options.measure)) + "\n")
        return 0
    console = Console()
    codes = []
    if options.only != "lake":
        codes.append(_from_files(options.work, options.rows or EVENT_COUNT, console))
    if options.only != "files":
        from bench.history_lake import run

        options.rows = options.rows or LAKE_EVENT_COUNT
        codes.append(run(options, console))
    return max(codes)


def _from_files(work: Path, rows: int, console: Console) -> int:
    folder = work / f"history-{rows}"
    if not (folder / "spine.parquet").is_file():
        _make_events(folder, rows)
    command = [sys.executable, "-m", "bench", "history", "--measure", str(folder)]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(output.stdout.splitlines()[-1])
    bounds = [
        Bound("seconds", figures["seconds"], SECONDS_MAX, at_least=False),
        Bound("peak RSS, MiB", figures["rss_mib_max"], MIB_MAX, at_least=False),
    ]
    rate = figures["rows"] / figures["seconds"]
    console.print(
        f"{figures['rows']:,} spine rows × {figures['windowed']} windowed features: "
        f"{figures['seconds']:.1f} s ({rate:,.0f} rows/s), {figures['cpu_s']:.1f} CPU-s, "
        f"{figures['rss_mib_max']:,.0f} MiB"
    )
    print_bounds(console, bounds)
    write_json(work / "history.json", "history", figures, bounds)
    return exit_code(bounds)


def _measure(folder: Path) -> dict[str, float]:
    """Run history once over the files in ``folder``; return what it took."""
    project = hr.load(ROOT / "examples" / "fraud")
    pipeline = project.pipeline("fraud")
    files = {name: folder / f"{name}.parquet" for name in SOURCES}
    few = {name: pq.read_table(file).slice(0, 2_000) for name, file in files.items()}
    hr.history(few["transactions"].select(["transaction_id"]), pipeline, sources=few)
    del few
    for file in (*files.values(), folder / "spine.parquet"):
        _drop_from_cache(file)
    started_s, cpu_started_s = time.perf_counter(), time.process_time()
    table = hr.history(folder / "spine.parquet", pipeline, sources=files)
    seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_started_s
    windowed = [n for n in table.schema.names if n.startswith(("customer__", "terminal__"))]
    counts = table["customer__count_30d"].to_numpy()
    assert counts.min() >= 1, "each event is in its own window"
    assert sum(table[name].null_count for name in windowed) == 0, "nothing here is undefined"
    return {
        "rows": table.num_rows,
        "windowed": len(windowed),
        "seconds": seconds,
        "cpu_s": cpu_s,
        "rss_mib_max": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _drop_from_cache(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _make_events(folder: Path, rows: int) -> None:
    """Write events of the handbook's size and density, and a spine of all their ids, shuffled."""
    random = np.random.default_rng(7)
    seconds = np.sort(random.integers(0, DAY_COUNT * DAY_MS // 1_000 * rows // EVENT_COUNT, rows))
    stamp = pa.timestamp("ms", "UTC")
    at = pa.array(START_MS + 1_000 * seconds).cast(stamp)
    transactions = pa.table(
        {
            "transaction_id": np.arange(rows),
            "event_time": at,
            "customer_id": pa.array(random.integers(0, CUSTOMER_COUNT, rows)).cast(pa.string()),
            "terminal_id": pa.array(random.integers(0, TERMINAL_COUNT, rows)).cast(pa.string()),
            "amount": np.round(random.lognormal(3.5, 1, rows), 2),
        }
    )
    frauds = transactions.filter(pa.array(random.random(rows) < FRAUD_RATE))
    known_at_ms = frauds["event_time"].cast(pa.int64()).to_numpy() + 7 * DAY_MS
    reports = pa.table(
        {
            "report_id": np.arange(frauds.num_rows),
            "transaction_id": frauds["transaction_id"],
            "customer_id": frauds["customer_id"],
            "terminal_id": frauds["terminal_id"],
            "event_time": frauds["event_time"],
            "known_at": pa.array(known_at_ms).cast(stamp),
            "is_fraud": pa.array(np.ones(frauds.num_rows, dtype=bool)),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(transactions, folder / "transactions.parquet", compression="zstd")
    pq.write_table(reports, folder / "reports.parquet", compression="zstd")
    spine = pa.table({"transaction_id": random.permutation(rows)})
    pq.write_table(spine, folder / "spine.parquet", compression="zstd")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
