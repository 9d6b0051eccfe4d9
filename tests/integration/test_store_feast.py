"""Feast's own SDK reads what we write: every kind of key and value, on a real Redis."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
import store_cases as cases

from headrace.features.store.redis_store import RedisOnlineStore

KEYS = {"int64": [7, -8, 2**62], "string": ["a", "", "ü☂"], "bytes": [b"\r\n", b"", b"\xff\x00"]}


@pytest.fixture
def feast_store(stack, unique_name, tmp_path):
    """Return (project, a function from our entity to a Feast store that knows its views)."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig
    from feast.types import Float64, Int64

    config = RepoConfig(
        project=unique_name,
        provider="local",
        registry=str(tmp_path / "registry.db"),
        online_store=RedisOnlineStoreConfig(
            connection_string=stack.redis_url.removeprefix("redis://")
        ),
        offline_store={"type": "duckdb"},
        entity_key_serialization_version=3,
    )
    types = {"int64": Int64, "float64": Float64}
    kinds = {"int64": ValueType.INT64, "string": ValueType.STRING, "bytes": ValueType.BYTES}

    def make(served):
        store = FeatureStore(config=config)
        entity = Entity(
            name=served.entity, join_keys=[served.join_key], value_type=kinds[served.key_kind]
        )
        path = str(tmp_path / "events.parquet")
        views = [
            FeatureView(
                name=view.name,
                entities=[entity],
                ttl=dt.timedelta(0),
                schema=[Field(name=f.feature, dtype=types[f.dtype]) for f in view.features],
                source=FileSource(name=view.name, path=path, timestamp_field="at"),
            )
            for view in served.views
        ]
        store.apply([entity, *views])
        return store

    return make


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_feast_reads_back_what_we_write(kind, stack, unique_name, feast_store):
    views = (cases.view("spending"), cases.view("habits", ["last_7d"], ["float64"]))
    entity = cases.entity(unique_name, kind=kind, views=views)
    ours = RedisOnlineStore(stack.redis_url)
    values = [[1, 0.1, -1e300], [np.nan, np.nan, np.nan], [2**53, 5e-324, np.inf]]
    ours.write(entity, 0, 1, cases.rows(KEYS[kind], values, kind=kind), cases.NOW_MS)
    ours.close()
    names = [f"{view.name}:{feature.feature}" for view in views for feature in view.features]

    answer = feast_store(entity).get_online_features(
        features=names,
        entity_rows=[{"customer_id": key} for key in KEYS[kind]],
        full_feature_names=True,
    )

    found = answer.to_dict(include_event_timestamps=True)
    for column, feature in enumerate(entity.features):
        expected = [None if np.isnan(row[column]) else row[column] for row in values]
        assert expected == found[feature.name]
    stamps = found["spending__count_1d__ts"]
    assert stamps == [cases.NOW_MS // 1000] * 3


def test_the_projects_of_one_redis_do_not_meet(stack, unique_name):
    ours = RedisOnlineStore(stack.redis_url)
    one, two = cases.entity(unique_name), cases.entity(f"{unique_name}_b")

    ours.write(one, 0, 5, cases.rows([1], [[1, 1]]), cases.NOW_MS)

    assert ours.write(two, 0, 1, cases.rows([1], [[2, 2]]), cases.NOW_MS) == 1
    ours.close()
