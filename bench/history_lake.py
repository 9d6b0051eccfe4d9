"""``./dev bench history``: a training set of 20 windowed features from events in the lake.

Beside it, on the same events and features and each in a process of its own: a DuckDB query with
one window function a feature, and Feast's point-in-time join on DuckDB. Feast computes no windows:
it is given their values, one row an event, and only joins them to the events again. It joins each
event with all rows of its entity first, so it gets fewer events, and ours the same ones beside it.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import headrace as hr
from bench.measure import BenchError
from bench.report import Bound, exit_code, print_bounds, write_json
from headrace.features.project import Project
from headrace.lake.dataset import SetRequest, write_set
from headrace.lake.request import plans_for
from headrace.lake.tables import ARRIVAL_TIME, OFFSET, PARTITION, TOPIC_ID, Lake
from headrace.runtime.settings import LakeSettings, Settings

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

ROOT: Final = Path(__file__).resolve().parent.parent
START_MS: Final = 1_522_540_800_000
DAY_MS: Final = 86_400_000
PARTITIONS: Final = 4
# As dense as the handbook's: its customers, terminals and days grow with the number of events.
ROWS_A_DAY, ROWS_A_CUSTOMER, ROWS_A_TERMINAL = 9_585, 352, 175
CUSTOMER_WINDOWS: Final = {"1h": 3_600_000, "1d": DAY_MS, "7d": 7 * DAY_MS, "30d": 30 * DAY_MS}
TERMINAL_WINDOWS: Final = {"1d": DAY_MS, "7d": 7 * DAY_MS, "14d": 14 * DAY_MS, "30d": 30 * DAY_MS}
TERMINAL_DELAY_MS: Final = 7 * DAY_MS
SECONDS_MAX, GIB_MAX = 60.0, 4.0
SUM_TOLERANCE: Final = 1e-9
_CHUNK: Final = 500_000
CONTENDERS: Final = {
    "headrace": "from the lake, windows and file",
    "duckdb": "one window function a feature",
    "feast": "joins values that are there already",
}

payments = hr.Source(
    "payments",
    key="customer_id",
    event_time="event_time",
    event_id="payment_id",
    partitioner="murmur2",
    schema={
        "type": "record",
        "name": "Payment",
        "fields": [
            {"name": "payment_id", "type": "long"},
            {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "customer_id", "type": "long"},
            {"name": "terminal_id", "type": "long"},
            {"name": "amount", "type": "double"},
        ],
    },
)
pipeline = hr.Pipeline(
    "spend",
    source=payments,
    views=[
        hr.FeatureView(
            "customer",
            entity=hr.Entity("customer", key="customer_id"),
            source=payments,
            features=[
                hr.count(over=list(CUSTOMER_WINDOWS)),
                hr.sum("amount", over=list(CUSTOMER_WINDOWS)),
                hr.mean("amount", over=list(CUSTOMER_WINDOWS)),
            ],
        ),
        hr.FeatureView(
            "terminal",
            entity=hr.Entity("terminal", key="terminal_id"),
            source=payments,
            delay="7d",
            features=[
                hr.count(over=list(TERMINAL_WINDOWS)),
                hr.sum("amount", over=list(TERMINAL_WINDOWS)),
            ],
        ),
    ],
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a contender took; CPU of all its threads."""

    seconds: float
    cpu_s: float
    rss_gib_max: float
    rows: int


def run(options: argparse.Namespace, console: Console) -> int:
    """Run the contenders that are asked for and return 0 if ours keeps to its bounds."""
    rows: int = options.rows
    figures = _beside(options.work, rows, [n for n in options.against if n == "duckdb"], console)
    if "feast" in options.against:
        figures |= _beside(options.work, min(rows, options.feast_rows), ["feast"], console)
    ours = figures[f"headrace at {rows}"]
    wrong = sum(one["numbers_that_differ"] for one in figures.values())
    # The bound is for 5 million events; fewer have as much less time.
    seconds_max = max(5.0, SECONDS_MAX * min(1.0, rows / 5_000_000))
    bounds = [
        Bound("seconds", ours["seconds"], seconds_max, at_least=False),
        Bound("peak RSS, GiB", ours["rss_gib_max"], GIB_MAX, at_least=False),
        Bound("numbers that differ", wrong, 0.0, at_least=False),
    ]
    print_bounds(console, bounds)
    write_json(options.work / "history-lake.json", "history-lake", figures, bounds)
    return exit_code(bounds)


def _beside(
    work: Path, rows: int, others: list[str], console: Console
) -> dict[str, dict[str, float]]:
    """Measure ours and the others over so many events; return figures by contender and size."""
    folder = work / f"history-lake-{rows}"
    if not (folder / "done").exists():
        make_lake(folder, rows)
    figures = {}
    for name in ("headrace", *others):
        figure = _measured(name, folder)
        wrong = 0 if name == "headrace" else differences(folder, name)
        figures[f"{name} at {rows}"] = {**_plain(figure), "numbers_that_differ": float(wrong)}
        console.print(
            f"{name} ({CONTENDERS[name]}): {figure.rows:,} rows, {figure.seconds:.1f} s, "
            f"{figure.cpu_s:.1f} CPU-s, {figure.rss_gib_max:.2f} GiB, {wrong} numbers differ",
            soft_wrap=True,
        )
    return figures


def _plain(figures: Figures) -> dict[str, float]:
    return {
        "seconds": figures.seconds,
        "cpu_s": figures.cpu_s,
        "rss_gib_max": figures.rss_gib_max,
        "rows": figures.rows,
    }


def _measured(name: str, folder: Path) -> Figures:
    command = [sys.executable, "-m", "bench.history_lake", name, str(folder)]
    done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        message = f"{name} ended with {done.returncode}"
        raise BenchError(message)
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def main(arguments: list[str]) -> int:
    """Measure one contender in this process and print its figures."""
    name, folder = arguments[0], Path(arguments[1])
    contender = {"headrace": _headrace, "duckdb": _duckdb, "feast": _feast}[name]
    rows, seconds, cpu_s = contender(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures = Figures(seconds, cpu_s, peak, rows)
    sys.stdout.write(json.dumps(_plain(figures)) + "\n")
    return 0


# --- The contenders ---------------------------------------------------------------------------


def _headrace(folder: Path) -> tuple[int, float, float]:
    few = folder / "few"
    if not few.exists():
        make_lake(few, 2_000)
    _write_ours(few)  # Compiles and loads the kernels.
    started_s, cpu_started_s = time.perf_counter(), time.process_time()
    rows = _write_ours(folder)
    return rows, time.perf_counter() - started_s, time.process_time() - cpu_started_s


def _write_ours(folder: Path) -> int:
    settings = Settings(project="bench", lake=LakeSettings(folder=folder / "lake"))
    project = Project("bench", folder, settings, (), (), (), (pipeline,), {})
    request = plans_for(pipeline, project, "lake")
    asked = SetRequest(request.plans[0])
    return write_set(asked, request, output(folder, "headrace")).rows


def _duckdb(folder: Path) -> tuple[int, float, float]:
    import duckdb

    files = Lake(folder / "lake").table("payments").files()
    out = output(folder, "duckdb")
    started_s, cpu_started_s = time.perf_counter(), time.process_time()
    with duckdb.connect() as connection:
        query = f"copy ({window_query()}) to '{out}' (format parquet, compression zstd)"
        connection.execute(query, {"files": files})
    seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_started_s
    return pq.read_metadata(out).num_rows, seconds, cpu_s


def window_query() -> str:
    """Return the query: a frame of (t - window - delay, t - delay] in whole milliseconds."""
    columns, frames = [], []
    for entity, windows, delay_ms in (
        ("customer", CUSTOMER_WINDOWS, 0),
        ("terminal", TERMINAL_WINDOWS, TERMINAL_DELAY_MS),
    ):
        for text, length_ms in windows.items():
            frame = f"{entity}_{text}"
            end = f"{delay_ms} preceding" if delay_ms else "current row"
            frames.append(
                f"{frame} as (partition by {entity}_id order by t range between "
                f"{delay_ms + length_ms - 1} preceding and {end})"
            )
            columns += [
                f"count(*) over {frame} as {entity}__count_{text}",
                f"sum(amount) over {frame} as {entity}__amount_sum_{text}",
            ]
            if entity == "customer":
                columns.append(f"avg(amount) over {frame} as {entity}__amount_mean_{text}")
    events = "select *, epoch_ms(event_time) as t from read_parquet($files)"
    # All of it is ours.
    return f"select payment_id, {', '.join(columns)} from ({events}) window {', '.join(frames)}"  # noqa: S608


def _feast(folder: Path) -> tuple[int, float, float]:
    store, spine, features = _feast_store(folder)
    started_s, cpu_started_s = time.perf_counter(), time.process_time()
    table = store.get_historical_features(spine, features).to_arrow()
    pq.write_table(table, output(folder, "feast"), compression="zstd")
    seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_started_s
    return int(table.num_rows), seconds, cpu_s


def _feast_store(folder: Path) -> tuple[Any, Any, list[str]]:
    """Return a store over our own values, the events as its spine, and the features' names."""
    import warnings
    from datetime import timedelta

    warnings.simplefilter("ignore")
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource
    from feast.repo_config import RepoConfig
    from feast.types import Float64, Int64
    from feast.value_type import ValueType

    made = pq.read_table(output(folder, "headrace"))
    repository = folder / "feast"
    shutil.rmtree(repository, ignore_errors=True)
    repository.mkdir()
    objects: list[Any] = []
    names = []
    for name in ("customer", "terminal"):
        columns = [c for c in made.schema.names if c.startswith(f"{name}__")]
        path = repository / f"{name}.parquet"
        pq.write_table(made.select([f"{name}_id", "event_time", *columns]), path)
        entity = Entity(name=name, join_keys=[f"{name}_id"], value_type=ValueType.INT64)
        kinds = {
            c: Int64 if pa.types.is_integer(made.schema.field(c).type) else Float64 for c in columns
        }
        view = FeatureView(
            name=name,
            entities=[entity],
            ttl=timedelta(0),
            schema=[Field(name=c, dtype=kind) for c, kind in kinds.items()],
            source=FileSource(path=str(path), timestamp_field="event_time"),
        )
        objects += [entity, view]
        names += [f"{name}:{column}" for column in columns]
    config = RepoConfig(
        project="bench",
        provider="local",
        registry=str(repository / "registry.db"),
        offline_store={"type": "duckdb"},
        online_store={"type": "sqlite", "path": str(repository / "online.db")},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    store.apply(objects)
    spine = made.select(["payment_id", "customer_id", "terminal_id", "event_time"]).to_pandas()
    return store, spine.rename(columns={"event_time": "event_timestamp"}), names


# --- The events, and whether all say the same -------------------------------------------------


def output(folder: Path, name: str) -> Path:
    """Return where a contender writes its set."""
    return folder / f"{name}.parquet"


def differences(folder: Path, name: str) -> int:
    """Return how many numbers of a contender are not ours: counts exactly, sums to 1e-9."""
    ours = pq.read_table(output(folder, "headrace")).sort_by("payment_id")
    theirs = pq.read_table(output(folder, name)).sort_by("payment_id")
    if not ours["payment_id"].equals(theirs["payment_id"]):
        return int(max(ours.num_rows, theirs.num_rows))
    wrong = 0
    for column in (c for c in ours.schema.names if "__" in c):
        left = ours[column].to_numpy().astype(np.float64)
        right = theirs[column].to_numpy().astype(np.float64)
        if "count" in column:
            wrong += int((left != right).sum())
            continue
        # An empty window's sum is null in both.
        close = np.isclose(left, right, rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE, equal_nan=True)
        wrong += int((~close).sum())
    return wrong


def make_lake(folder: Path, rows: int) -> None:
    """Write events with distinct times into a table as the lake's process does, in chunks."""
    from deltalake import write_deltalake

    random = np.random.default_rng(7)
    shutil.rmtree(folder, ignore_errors=True)
    span_ms = rows * DAY_MS // ROWS_A_DAY
    # Distinct times: with ties the contenders would mean different things.
    times = START_MS + np.cumsum(random.integers(1, 2 * span_ms // rows, rows))
    customers = random.integers(0, max(1, rows // ROWS_A_CUSTOMER), rows)
    partition = customers % PARTITIONS
    offset = np.zeros(rows, np.int64)
    for number in range(PARTITIONS):
        of_partition = np.flatnonzero(partition == number)
        offset[of_partition] = np.arange(len(of_partition))
    stamp = pa.timestamp("us", "UTC")
    for start in range(0, rows, _CHUNK):
        part = slice(start, min(start + _CHUNK, rows))
        count = part.stop - part.start
        order = np.lexsort((offset[part], partition[part]))
        table = pa.table(
            {
                "payment_id": np.arange(part.start, part.stop),
                "event_time": pa.array(times[part] * 1_000).cast(stamp),
                "customer_id": customers[part],
                "terminal_id": random.integers(0, max(1, rows // ROWS_A_TERMINAL), count),
                "amount": np.round(random.lognormal(3.5, 1, count), 2),
                TOPIC_ID: pa.array(["bench"] * count),
                PARTITION: pa.array(partition[part], pa.int32()),
                OFFSET: offset[part],
                ARRIVAL_TIME: pa.array(times[part] * 1_000 + 20_000).cast(stamp),
            }
        )
        write_deltalake(
            str(folder / "lake" / "payments"), table.take(pa.array(order)), mode="append"
        )
    (folder / "done").touch()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
