"""300,000 of the handbook's transactions: what Feast reads from Redis is what the state says.

First as of each entity's newest event, then as of a time after the 1-day windows have closed. What
is expected is counted from the rows themselves; the worker's parts run in this process, so that the
clock can be moved.
"""

from __future__ import annotations

import datetime as dt
import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
from online_cases import OnlineDriver

from examples.fraud.handbook import convert
from headrace.features.compiler import compile_project
from headrace.features.project import load_project
from headrace.features.store.connection import RedisConnection
from headrace.features.store.layout import Fence, KeyLayout, fence_field
from headrace.features.store.redis_store import RedisOnlineStore
from headrace.features.store.resp import command
from headrace.runtime.dev.processes import free_ports, stop
from headrace.runtime.dev.redis import RedisServer

ROWS = 300_000
SAMPLE = 1_000
DAY_MS = 86_400_000
DAYS = (1, 7, 30)
DELAY_MS = 7 * DAY_MS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    port = free_ports(1)[0]
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    record = server.start(port)
    server.wait_ready(record, port)
    yield f"redis://127.0.0.1:{port}"
    stop(record, 10.0)


@pytest.fixture(scope="module")
def tables(shared_data):
    folder = shared_data / "fraud"
    raw = pq.read_table(folder / "raw.parquet").slice(0, ROWS)
    return convert(raw, folder / "customer_tie_order.json")


@pytest.fixture(scope="module")
def driver(tables, redis_url, repository):
    project = load_project(repository / "examples" / "fraud")
    (plan,) = compile_project(project, 4).pipelines
    store = RedisOnlineStore(redis_url)
    made = OnlineDriver(plan, store, batch_rows=10_000)
    transactions, reports = tables
    for name, table in (("reports", reports), ("transactions", transactions)):
        made.send(name, table, arrival_time_ms=made.clock.now_ms())
    made.run()
    made.commit()
    while any(kept.served.waiting_rows for kept in made.feed._kept.values()):
        made.writer.turn()
    yield made
    store.close()


def feast_store(entities, url, folder):
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig
    from feast.types import Float64, Int64

    config = RepoConfig(
        project=entities[0].project,
        provider="local",
        registry=str(folder / "registry.db"),
        online_store=RedisOnlineStoreConfig(connection_string=url.removeprefix("redis://")),
        offline_store={"type": "duckdb"},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    types = {"int64": Int64, "float64": Float64}
    for one in entities:
        entity = Entity(name=one.entity, join_keys=[one.join_key], value_type=ValueType.STRING)
        views = [
            FeatureView(
                name=view.name,
                entities=[entity],
                ttl=dt.timedelta(0),
                schema=[Field(name=f.feature, dtype=types[f.dtype]) for f in view.features],
                source=FileSource(name=view.name, path="none.parquet", timestamp_field="at"),
            )
            for view in one.views
        ]
        store.apply([entity, *views])
    return store


@pytest.fixture(scope="module")
def feast(driver, redis_url, tmp_path_factory):
    entities = list(driver.entities.values())
    return feast_store(entities, redis_url, tmp_path_factory.mktemp("feast"))


class Truth:
    """An entity's features at a time, counted from the rows."""

    def __init__(self, entity, transactions, reports):
        self.entity = entity
        self._rows = self._by_key(transactions)
        self._frauds = self._by_key(reports)
        self.keys = list(self._rows)

    def _by_key(self, table):
        keys = table[f"{self.entity.entity}_id"].to_numpy()
        times = table["event_time"].cast("int64").to_numpy()
        known = times if "known_at" not in table.column_names else table["known_at"]
        known = known if known is times else known.cast("int64").to_numpy()
        amounts = table["amount"].to_numpy() if "amount" in table.column_names else times
        order = np.argsort(keys, kind="stable")
        cuts = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
        edges = [0, *cuts.tolist(), len(order)]
        found = {}
        for first, last in itertools.pairwise(edges):
            rows = order[first:last]
            if len(rows):
                found[keys[rows[0]]] = (times[rows], known[rows], amounts[rows])
        return found

    def newest_ms(self, key):
        return int(self._rows[key][0].max())

    def at(self, key, now_ms):
        times, _, amounts = self._rows[key]
        values = {}
        for days in DAYS:
            if self.entity.entity == "customer":
                inside = (times > now_ms - days * DAY_MS) & (times <= now_ms)
                values[f"customer__count_{days}d"] = int(inside.sum())
                mean = amounts[inside].mean() if inside.any() else None
                values[f"customer__amount_mean_{days}d"] = mean
                continue
            until = now_ms - DELAY_MS
            inside = (times > until - days * DAY_MS) & (times <= until)
            frauds, known, _ = self._frauds.get(key, (np.zeros(0),) * 3)
            reported = (frauds > until - days * DAY_MS) & (frauds <= until) & (known <= now_ms)
            count = int(inside.sum())
            values[f"terminal__count_{days}d"] = count
            values[f"terminal__risk_{days}d"] = int(reported.sum()) / count if count else 0.0
        return values


@pytest.fixture(scope="module")
def truths(driver, tables):
    return [Truth(entity, *tables) for entity in driver.entities.values()]


def sampled(truth, seed):
    return np.random.default_rng(seed).choice(sorted(truth.keys), SAMPLE, replace=False).tolist()


def as_of_ms(truth, keys, url):
    """Return what the store itself says of which time each key's values are."""
    layout, field = KeyLayout.of(truth.entity), fence_field(truth.entity.pipeline)
    data = [command((b"HGET", layout.key(key.encode()), field)) for key in keys]
    connection = RedisConnection(url)
    replies = connection.run([b"".join(data)], len(keys))
    connection.close()
    return [Fence.read(reply).as_of_ms for reply in replies]


def differences(truth, keys, times_ms, feast):
    """Return what Feast reads that is not what the rows give at these times."""
    views = truth.entity.views
    answer = feast.get_online_features(
        features=[f"{view.name}:{f.feature}" for view in views for f in view.features],
        entity_rows=[{truth.entity.join_key: key} for key in keys],
        full_feature_names=True,
    ).to_dict()
    wrong = []
    for row, (key, now_ms) in enumerate(zip(keys, times_ms, strict=True)):
        for name, value in truth.at(key, now_ms).items():
            found = answer[name][row]
            same = found == value
            if "mean" in name and None not in (found, value):
                same = found == pytest.approx(value, abs=1e-9)
            if not same:
                wrong.append((key, now_ms, name, found, value))
    return wrong


def overdue(truth, keys, times_ms, clock_ms):
    """Return values that have been others for longer than a thousandth of their window."""
    wrong = []
    for key, as_of in zip(keys, times_ms, strict=True):
        values = truth.at(key, as_of)
        for days in DAYS:
            before_ms = clock_ms - days * DAY_MS // 1_000 - 1
            names = [name for name in values if name.endswith(f"_{days}d")]
            later = truth.at(key, max(as_of, before_ms))
            wrong += [(key, as_of, name) for name in names if later[name] != values[name]]
    return wrong


def test_feast_reads_what_the_rows_say_at_the_newest_event_and_when_a_window_has_closed(
    driver, truths, feast, redis_url
):
    check_at_newest_events(driver, truths, feast)
    driver.clock.advance(DAY_MS + 1)
    driver.look(3)
    check_at_later_times(driver, truths, feast, redis_url)


def check_at_newest_events(driver, truths, feast):
    for truth in truths:
        keys = sampled(truth, 1)
        times_ms = [truth.newest_ms(key) for key in keys]
        assert differences(truth, keys, times_ms, feast) == []
    assert driver.seen.wrote >= sum(len(truth.keys) for truth in truths)


def check_at_later_times(driver, truths, feast, redis_url):
    for truth in truths:
        keys = sampled(truth, 2)
        times_ms = as_of_ms(truth, keys, redis_url)
        assert all(one >= truth.newest_ms(key) for key, one in zip(keys, times_ms, strict=True))
        assert differences(truth, keys, times_ms, feast) == []
        clock_ms = min(driver.clock_of(truth.entity, partition) for partition in range(4))
        assert overdue(truth, keys, times_ms, clock_ms) == []
    customers = truths[0]
    keys = sampled(customers, 3)
    now = [
        customers.at(key, one)
        for key, one in zip(keys, as_of_ms(customers, keys, redis_url), strict=True)
    ]
    assert {one["customer__count_1d"] for one in now} == {0}
