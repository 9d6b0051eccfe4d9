"""Every online store keeps the same promises: the one in memory, and the one in Redis."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import store_cases as cases

from headrace.features.store.connection import RedisConnection
from headrace.features.store.layout import (
    Fence,
    KeyLayout,
    feature_field,
    fence_field,
    key_values,
    read_time_ms,
    read_value,
    time_field,
)
from headrace.features.store.memory import MemoryOnlineStore
from headrace.features.store.port import Rebuild
from headrace.features.store.redis_store import RedisOnlineStore
from headrace.features.store.resp import command

NOW_MS = cases.NOW_MS


class MemoryCase:
    def __init__(self):
        self.store = MemoryOnlineStore()

    def row(self, entity, key):
        """Return (values, event time, fence with its partition), None for no such key."""
        row = self.store.row(entity, key)
        if row is None:
            return None
        values = [None if np.isnan(value) else value for value in row.values.values()]
        return values, row.event_time_ms, (*row.fence, row.partition)

    def expiry_ms(self, entity, key, clock_ms):
        return self.store.row(entity, key).expiry_ms - clock_ms


class RedisCase:
    def __init__(self, url):
        self.store = RedisOnlineStore(url)
        self.redis = RedisConnection(url)

    def one(self, *arguments):
        (reply,) = self.redis.run([command(arguments)], 1)
        return reply

    def key(self, entity, key):
        keys = pa.array([key], cases.TYPES[entity.key_kind])
        return KeyLayout.of(entity).key(key_values(entity.key_kind, keys)[0])

    def row(self, entity, key):
        flat = self.one(b"HGETALL", self.key(entity, key))
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        if fence_field(entity.pipeline) not in fields:
            return None
        times = {read_time_ms(fields[time_field(view.name)]) for view in entity.views}
        assert len(times) == 1
        values = [read_value(fields[feature_field(feature)]) for feature in entity.features]
        fence = Fence.read(fields[fence_field(entity.pipeline)])
        return values, times.pop(), dataclasses.astuple(fence)

    def expiry_ms(self, entity, key, clock_ms):
        del clock_ms
        return self.one(b"PTTL", self.key(entity, key))


@pytest.fixture(params=["memory", "redis"])
def case(request):
    if request.param == "memory":
        yield MemoryCase()
        return
    stack = request.getfixturevalue("stack")
    made = RedisCase(stack.redis_url)
    yield made
    made.store.close()
    made.redis.close()


@pytest.fixture(params=["int64", "string", "bytes"])
def entity_and_keys(request, unique_name):
    keys = {"int64": [7, -8, 9], "string": ["a", "", "ü"], "bytes": [b"\r\n", b"", b"\xff"]}
    return cases.entity(unique_name, kind=request.param), keys[request.param]


def test_what_is_written_is_there(case, entity_and_keys):
    entity, keys = entity_and_keys
    values = [[1, 0.5], [np.nan, np.nan], [2**53, -1e300]]
    times = [NOW_MS, NOW_MS - 1, NOW_MS - 2]

    rows = cases.rows(keys, values, times, NOW_MS, [5, 6, 7], entity.key_kind)
    assert case.store.write(entity, 3, 11, rows, NOW_MS) == 3

    assert case.row(entity, keys[0]) == ([1, 0.5], NOW_MS, (11, 5, NOW_MS, 3))
    assert case.row(entity, keys[1]) == ([None, None], NOW_MS - 1, (11, 6, NOW_MS, 3))
    assert case.row(entity, keys[2]) == ([2**53, -1e300], NOW_MS - 2, (11, 7, NOW_MS, 3))


ORDER = [(1, 1, 1), (1, 1, 2), (1, 2, 0), (1, 10, 0), (2, 0, 0), (10, 0, 0)]


@pytest.mark.parametrize("before", ORDER)
def test_only_what_is_not_older_is_written(case, unique_name, before):
    entity = cases.entity(unique_name)
    for number, fence in enumerate(ORDER):
        lineage, version, as_of_ms = before
        old = cases.rows([number], [[1, 1]], 0, as_of_ms, version)
        case.store.write(entity, 0, lineage, old, 0)
        lineage, version, as_of_ms = fence
        new = cases.rows([number], [[2, 2]], 0, as_of_ms, version)

        written = case.store.write(entity, 0, lineage, new, 0)

        assert written == (fence >= before)
        assert case.row(entity, number)[0] == [1 + written, 1 + written]


def test_a_call_may_hold_more_keys_than_redis_takes_at_once(case, unique_name):
    entity = cases.entity(unique_name)
    keys = list(range(9_001))
    rows = cases.rows(keys, np.column_stack([keys, keys]))

    assert case.store.write(entity, 0, 1, rows, NOW_MS) == 9_001
    assert case.store.write(entity, 0, 1, rows.part(0, 0), NOW_MS) == 0

    for key in (0, 199, 200, 3_999, 4_000, 9_000):
        assert case.row(entity, key)[0] == [key, key]


def test_the_widest_entity_that_is_allowed_is_written_whole(case, unique_name):
    names = [f"f{number}" for number in range(2_000)]
    wide = cases.view("v" * 40, names, ["float64"] * 2_000)
    entity = cases.entity(unique_name, views=(wide,))

    rows = cases.rows([1, 2, 3], np.arange(6_000.0).reshape(3, 2_000))
    assert case.store.write(entity, 0, 1, rows, NOW_MS) == 3

    assert case.row(entity, 3)[0] == [float(number) for number in range(4_000, 6_000)]


def test_a_key_is_freed_twice_its_reach_after_its_newest_event(case, unique_name):
    entity = cases.entity(unique_name)
    times = [NOW_MS, NOW_MS - cases.DAY_MS, NOW_MS - 30 * cases.DAY_MS]

    case.store.write(entity, 0, 1, cases.rows([1, 2, 3], np.ones((3, 2)), times), NOW_MS)

    left = [case.expiry_ms(entity, key, NOW_MS) for key in (1, 2, 3)]
    # Redis counts down while we ask.
    for expected, found in zip([2 * cases.DAY_MS, cases.DAY_MS], left[:2], strict=True):
        assert expected - 60_000 <= found <= expected
    assert left[2] <= 1_000


def test_a_token_that_is_known_gives_the_marker_and_another_a_new_lineage(case, unique_name):
    entity = cases.entity(unique_name)
    first = case.store.open(entity, 0, "plan a", 1_000)
    assert (first.lineage, first.version, first.complete) == (1_000, 0, False)
    said = dataclasses.replace(first, version=50, complete=True, beat_ms=2_000, clock_ahead_ms=-7)
    assert case.store.beat(entity, 0, said) == said

    again = case.store.open(entity, 0, "plan a", 3_000)
    other_partition = case.store.open(entity, 1, "plan a", 3_000)
    other_plan = case.store.open(entity, 0, "plan b", 500)

    assert again == said
    assert other_partition.lineage == 3_000
    assert (other_plan.version, other_plan.complete) == (0, False)
    assert other_plan.lineage > max(first.lineage, other_partition.lineage)


def test_a_beat_of_a_lineage_that_is_over_says_so(case, unique_name):
    entity = cases.entity(unique_name)
    first = case.store.open(entity, 0, "plan a", 1_000)
    second = case.store.open(entity, 0, "plan b", 1_000)

    assert case.store.beat(entity, 0, first) is None
    assert case.store.beat(entity, 1, second) is None
    assert case.store.beat(entity, 0, second) == second
    assert case.store.markers(entity)[0].lineage == second.lineage


def test_a_rebuild_is_seen_at_the_next_beat_and_its_progress_by_who_asked(case, unique_name):
    entity = cases.entity(unique_name)
    marker = case.store.open(entity, 2, "plan", 1_000)
    assert marker.rebuild == 0

    assert case.store.request_rebuild(entity) == 1
    assert case.store.request_rebuild(entity) == 2

    assert case.store.beat(entity, 2, marker).rebuild == 2
    assert case.store.open(entity, 2, "plan", 1_000).rebuild == 2
    assert case.store.rebuilds(entity) == {}
    case.store.report_rebuild(entity, 2, Rebuild(2, 10, 40))
    case.store.report_rebuild(entity, 0, Rebuild(2, 7, 7))
    found = case.store.rebuilds(entity)
    assert found == {2: Rebuild(2, 10, 40), 0: Rebuild(2, 7, 7)}
    assert [found[2].done, found[0].done] == [False, True]


def test_erasure_takes_all_pipelines_and_no_other_project(case, unique_name):
    fraud = cases.entity(unique_name, "fraud", shared=True)
    limits = cases.entity(unique_name, "limits", views=(cases.view("habits"),), shared=True)
    other = cases.entity(f"x_{unique_name}")
    for entity in (fraud, limits, other):
        case.store.write(entity, 0, 1, cases.rows([1, 2], np.ones((2, 2))), NOW_MS)

    assert case.store.delete(fraud, pa.array([1, 5])) == 1

    gone = [case.row(entity, 1) for entity in (fraud, limits)]
    assert gone == [None, None]
    assert all(case.row(entity, 2) for entity in (fraud, limits))
    assert case.row(other, 1) is not None


def test_one_pipeline_does_not_shorten_what_another_wrote_into_the_same_hash(stack, unique_name):
    case = RedisCase(stack.redis_url)
    long = cases.entity(
        unique_name, "fraud", views=(cases.view("spending", reach=30 * cases.DAY_MS),), shared=True
    )
    short = cases.entity(unique_name, "limits", views=(cases.view("habits"),), shared=True)
    for entity in (long, short):
        case.store.write(entity, 0, 1, cases.rows([1], [[1, 1]]), NOW_MS)

    assert case.expiry_ms(short, 1, NOW_MS) > 59 * cases.DAY_MS
