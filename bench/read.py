"""``./dev bench read``: the online store of a Redis of its own, written and read.

Writing: entities of the card job's shape (one view, six features), as a worker hands them over.
Reading: 20 views of one entity, and of 100 entities at once, up to plain Python values, by our
reader and by the Feast SDK from the same Redis; what the two say must be equal.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow as pa
from rich.console import Console
from rich.progress import Progress

from bench.report import Bound, exit_code, print_bounds, write_json
from headrace.features.store.port import EntityRows
from headrace.features.store.reader import OnlineReader
from headrace.features.store.redis_store import RedisOnlineStore
from headrace.features.store.request import Request, WantedView
from headrace.features.store.views import OnlineEntity, OnlineFeature, OnlineView
from headrace.runtime.clock import SystemClock
from headrace.runtime.dev.processes import free_ports, stop
from headrace.runtime.dev.redis import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".bench"
DAY_MS = 86_400_000
VIEW_COUNT, MANY = 20, 100
WRITTEN_A_ROUND = 5_000
RATE_MIN, ONE_MS_MAX, MANY_MS_MAX = 150_000.0, 2.0, 10.0
#: Ours to Feast's time, within one run: what decides on any machine.
FEAST_RATIO_MAX = 0.5


def main(arguments: Sequence[str]) -> int:
    """Run the bench and return 0 if it keeps to what decides."""
    parser = argparse.ArgumentParser(prog="bench read", description=__doc__)
    parser.add_argument("--entities", type=int, default=1_000_000, help="to write")
    parser.add_argument("--reads", type=int, default=2_000, help="of one entity; of 100: a fifth")
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args(arguments)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        server, port = RedisServer(Path(folder) / "redis"), free_ports(1)[0]
        record = server.start(port)
        try:
            server.wait_ready(record, port)
            url, redis = f"redis://127.0.0.1:{port}", psutil.Process(record.pid)
            with Progress(console=Console(stderr=True), transient=True) as progress:
                written = [
                    _write(url, redis, options.entities, version, progress) for version in (1, 2)
                ]
                read = _read(url, Path(folder), options.reads, progress)
        finally:
            stop(record, 10.0)
    names = ("first write", "written again")
    figures = {"write": dict(zip(names, map(dataclasses.asdict, written), strict=True)), **read}
    for name, one in zip(names, written, strict=True):
        console.print(
            f"{name}: {one.entities:,} entities, {one.rate:,.0f}/s; CPU per entity: "
            f"{one.own_us:.2f} us of the writer, {one.redis_us:.2f} us of Redis"
        )
    for size in ("one", "many"):
        for who in ("headrace", "feast"):
            times = read[size][who]
            console.print(f"{size}, {who}: p50 {times['p50']:.2f} ms, p99 {times['p99']:.2f} ms")
    bounds = _bounds(min(one.rate for one in written), read)
    print_bounds(console, bounds)
    write_json(options.work / "read.json", "read", figures, bounds)
    return exit_code(bounds)


def _bounds(rate: float, read: dict[str, Any]) -> list[Bound]:
    one, many = read["one"], read["many"]
    ratios = {
        f"{name}: p50 to Feast's": found["headrace"]["p50"] / found["feast"]["p50"]
        for name, found in (("one entity", one), ("100 entities", many))
    }
    return [
        Bound("values that differ from Feast's", read["differ"], 0, at_least=False),
        *(Bound(name, ratio, FEAST_RATIO_MAX, at_least=False) for name, ratio in ratios.items()),
        Bound("entities written a second", rate, RATE_MIN, at_least=True, decides=False),
        Bound("one entity, p99 ms", one["headrace"]["p99"], ONE_MS_MAX, False, decides=False),
        Bound("100 entities, p99 ms", many["headrace"]["p99"], MANY_MS_MAX, False, decides=False),
    ]


# --- Writing ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Written:
    """What writing took; CPU in us an entity."""

    entities: int
    rate: float
    own_us: float
    redis_us: float


def _entity(views: tuple[OnlineView, ...]) -> OnlineEntity:
    reach_ms = max(view.reach_ms for view in views)
    return OnlineEntity(
        "bench", "card", "customer", "customer_id", "string", views, 2 * reach_ms, shared=False
    )


def _view(name: str, windows: Sequence[str]) -> OnlineView:
    features: list[OnlineFeature] = []
    for window in windows:
        count, mean = f"count_{window}", f"amount_mean_{window}"
        features.append(OnlineFeature(f"{name}__{count}", name, count, "int64", 0.0))
        features.append(OnlineFeature(f"{name}__{mean}", name, mean, "float64", None))
    return OnlineView(name, tuple(features), 7 * DAY_MS)


def _rows(entity: OnlineEntity, first: int, count: int, version: int, now_ms: int) -> EntityRows:
    random = np.random.default_rng((version, first))
    values = random.random((count, len(entity.features)))
    whole = [feature.dtype == "int64" for feature in entity.features]
    values[:, whole] = np.floor(values[:, whole] * 200)
    times = np.full(count, now_ms - 5_000)
    keys = pa.array([f"C{number:07d}" for number in range(first, first + count)])
    return EntityRows(keys, values, times, times, np.full(count, version))


def _write(
    url: str, redis: psutil.Process, count: int, version: int, progress: Progress
) -> Written:
    """Write all entities once, in rounds as a worker's."""
    entity, now_ms = _entity((_view("spending", ("1d", "7d", "30d")),)), SystemClock().now_ms()
    store = RedisOnlineStore(url)
    marker = store.open(entity, 0, "bench", now_ms)
    task = progress.add_task(f"writing, {version}", total=count)
    # The kernel is compiled and the script loaded before anything is measured.
    store.write(entity, 0, marker.lineage, _rows(entity, 0, 10, version, now_ms), now_ms)
    seconds = own_s = redis_s = 0.0
    for first in range(0, count, WRITTEN_A_ROUND):
        rows = _rows(entity, first, min(WRITTEN_A_ROUND, count - first), version, now_ms)
        started, own = time.perf_counter(), time.process_time()
        theirs = sum(redis.cpu_times()[:2])
        accepted = store.write(entity, 0, marker.lineage, rows, now_ms)
        seconds += time.perf_counter() - started
        own_s += time.process_time() - own
        redis_s += sum(redis.cpu_times()[:2]) - theirs
        assert accepted == len(rows), "nothing here is older than what is there"
        progress.advance(task, len(rows))
    store.close()
    return Written(count, count / seconds, own_s / count * 1e6, redis_s / count * 1e6)


# --- Reading ------------------------------------------------------------------------------------


def _read(url: str, folder: Path, reads: int, progress: Progress) -> dict[str, Any]:
    entity = _entity(tuple(_view(f"view{number}", ("1d",)) for number in range(VIEW_COUNT)))
    entity = dataclasses.replace(entity, pipeline="wide", project="bench_wide")
    _fill(url, entity)
    wanted = tuple(WantedView(entity, view, view.features) for view in entity.views)
    names = tuple(feature.name for feature in entity.features)
    reader = OnlineReader(Request(wanted, names), url, stale_after_ms=DAY_MS)
    feast = _feast_store(folder, entity, url)
    features = [f"{feature.view}:{feature.feature}" for feature in entity.features]

    def ours(keys: list[str]) -> list[dict[str, Any]]:
        return reader.read({"customer_id": keys}).to_dicts()

    def theirs(keys: list[str]) -> dict[str, list[Any]]:
        rows = [{"customer_id": key} for key in keys]
        answer = feast.get_online_features(features, rows, full_feature_names=True)
        found: dict[str, list[Any]] = answer.to_dict()
        return found

    random = np.random.default_rng(5)
    figures: dict[str, Any] = {"differ": 0, "views": VIEW_COUNT, "features": len(names)}
    for size, width, count in (("one", 1, reads), ("many", MANY, max(20, reads // 5))):
        draws = [
            [f"C{number:07d}" for number in random.choice(WRITTEN_A_ROUND, width, replace=False)]
            for _ in range(count)
        ]
        figures["differ"] += _differing(ours(draws[0]), theirs(draws[0]), names)
        figures[size] = {
            "headrace": _timed(ours, draws, progress, f"headrace, {size}"),
            "feast": _timed(theirs, draws, progress, f"feast, {size}"),
        }
    reader.close()
    return figures


def _fill(url: str, entity: OnlineEntity) -> None:
    store, now_ms = RedisOnlineStore(url), SystemClock().now_ms()
    marker = store.open(entity, 0, "bench", now_ms)
    rows = _rows(entity, 0, WRITTEN_A_ROUND, 1, now_ms)
    store.write(entity, 0, marker.lineage, rows, now_ms)
    store.beat(entity, 0, dataclasses.replace(marker, complete=True))
    store.close()


def _differing(
    ours: list[dict[str, Any]], theirs: dict[str, list[Any]], names: Sequence[str]
) -> int:
    assert all(
        row[f"{name.partition('__')[0]}__status"] == "FRESH" for row in ours for name in names
    )
    return sum(
        row[name] != value for name in names for row, value in zip(ours, theirs[name], strict=True)
    )


def _timed(
    read: Callable[[list[str]], object], draws: Sequence[list[str]], progress: Progress, name: str
) -> dict[str, float]:
    """Return percentiles in ms of wall time, and CPU ms a read."""
    for keys in draws[:10]:
        read(keys)
    times_ms, cpu = [], time.process_time()
    for keys in progress.track(draws, description=name):
        started = time.perf_counter()
        read(keys)
        times_ms.append((time.perf_counter() - started) * 1e3)
    cpu_ms = (time.process_time() - cpu) * 1e3 / len(draws)
    p50, p99 = np.percentile(times_ms, (50, 99))
    return {"p50": float(p50), "p99": float(p99), "cpu": cpu_ms}


def _feast_store(folder: Path, entity: OnlineEntity, url: str) -> Any:
    """Return a Feast store that knows the entity's views."""
    import datetime as dt
    import warnings

    warnings.simplefilter("ignore")
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig
    from feast.types import Float64, Int64

    config = RepoConfig(
        project=entity.project,
        provider="local",
        registry=str(folder / "registry.db"),
        online_store=RedisOnlineStoreConfig(connection_string=url.removeprefix("redis://")),
        offline_store={"type": "duckdb"},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    key = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)
    types = {"int64": Int64, "float64": Float64}
    source = str(folder / "events.parquet")
    views = [
        FeatureView(
            name=view.name,
            entities=[key],
            ttl=dt.timedelta(0),
            schema=[Field(name=f.feature, dtype=types[f.dtype]) for f in view.features],
            source=FileSource(name=view.name, path=source, timestamp_field="event_time"),
        )
        for view in entity.views
    ]
    store.apply([key, *views])
    return store
