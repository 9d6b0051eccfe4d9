"""Reading: many views of many entities at once, with what can be believed of each."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
import store_cases as cases

import headrace as hr
from headrace.features.compiler import compile_project
from headrace.features.project import load_project
from headrace.features.store.errors import StoreUnavailableError
from headrace.features.store.freshness import EXPIRED, FRESH, MISSING, STALE
from headrace.features.store.reader import OnlineReader
from headrace.features.store.redis_store import RedisOnlineStore
from headrace.features.store.request import Request, WantedView, request_for
from headrace.features.store.views import online_entities
from headrace.runtime.clock import ManualClock, SystemClock

DEFINITIONS = """
import headrace as hr

visits = hr.Source("visits", key="who", event_time="at")
person, page = hr.Entity("person", key="who"), hr.Entity("page", key="page")
spent = [hr.count(over="7d"), hr.mean("spent", over="7d")]
habits = hr.FeatureView("habits", person, visits, spent)
today = hr.FeatureView("today", person, visits, [hr.count(over="1d")])
traffic = hr.FeatureView("traffic", page, visits, [hr.count(over="1h")])
busy = hr.Pipeline("busy", visits, [habits, today, traffic])
"""
SCHEMA = {
    "type": "record",
    "name": "Visit",
    "fields": [
        {"name": "who", "type": "string"},
        {"name": "page", "type": "int"},
        {"name": "spent", "type": "double"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
NOW_MS, DAY_MS = cases.NOW_MS, cases.DAY_MS


class Case:
    """A project whose store holds: ann, active; bob, a while ago; page 7."""

    def __init__(self, folder, url, now_ms):
        self.url, self.now_ms = url, now_ms
        self.project = load_project(folder)
        self.plan = compile_project(self.project)
        stages = online_entities(self.plan)["busy"]
        self.person = next(e for e in stages.values() if e.entity == "person")
        self.page = next(e for e in stages.values() if e.entity == "page")
        self.store = RedisOnlineStore(url)
        self.markers = {}
        for entity, partition in ((self.person, 0), (self.person, 1), (self.page, 0)):
            opened = self.store.open(entity, partition, "plan", now_ms)
            self.markers[entity.entity, partition] = opened
            self.beat(entity, partition, complete=True, beat_ms=now_ms)
        # Features in the plan's order: habits count and mean, today's count.
        self.write(self.person, 0, ["ann"], [[3, 1.5, 1]], now_ms - 5_000, "string")
        self.write(self.person, 1, ["bob"], [[2, 9.0, 1]], now_ms - 2 * DAY_MS, "string")
        self.write(self.page, 0, [7], [[4]], now_ms - 1_000, "int64")

    def write(self, entity, partition, keys, values, time_ms, kind):
        lineage = self.markers[entity.entity, partition].lineage
        rows = cases.rows(keys, values, time_ms, kind=kind)
        assert self.store.write(entity, partition, lineage, rows, self.now_ms) == len(keys)

    def beat(self, entity, partition, **changes):
        marker = dataclasses.replace(self.markers[entity.entity, partition], **changes)
        self.markers[entity.entity, partition] = self.store.beat(entity, partition, marker)

    def read(self, features, entities, later_ms=0):
        request = request_for(features, self.plan)
        clock = ManualClock(self.now_ms + later_ms)
        with OnlineReader(request, self.url, 10_000, clock) as reader:
            return reader.read(entities)


@pytest.fixture
def folder(project_folder):
    with (project_folder / "headrace.yaml").open("a") as settings:
        settings.write("online:\n  stale_after: 1h\n")
    (project_folder / "definitions.py").write_text(DEFINITIONS)
    (project_folder / "schemas" / "visits.avsc").write_text(json.dumps(SCHEMA))
    return project_folder


@pytest.fixture
def case(folder, stack):
    made = Case(folder, stack.redis_url, NOW_MS)
    yield made
    made.store.close()


def test_all_views_of_all_entities_come_in_the_order_asked_for(case):
    answer = case.read("busy", {"who": ["bob", "ann", "bob"], "page": [7, 7, 8]})

    assert answer.table.column_names == [
        *("who", "page"),
        *("habits__count_7d", "habits__spent_mean_7d", "today__count_1d", "traffic__count_1h"),
        *("habits__age_ms", "habits__status", "today__age_ms", "today__status"),
        *("traffic__age_ms", "traffic__status"),
    ]
    rows = answer.to_dicts()
    assert [row["habits__count_7d"] for row in rows] == [2, 3, 2]
    assert [row["habits__spent_mean_7d"] for row in rows] == [9.0, 1.5, 9.0]
    assert [row["habits__age_ms"] for row in rows] == [2 * DAY_MS, 5_000, 2 * DAY_MS]
    assert answer.statuses("habits") == [FRESH, FRESH, FRESH]
    assert [row["traffic__count_1h"] for row in rows] == [4, 4, 0]
    assert answer.statuses("traffic") == [FRESH, FRESH, MISSING]


def test_a_view_that_nothing_can_be_left_in_gives_what_it_decays_to(case):
    answer = case.read("busy", {"who": "bob", "page": 7})

    (row,) = answer.to_dicts()
    assert (row["today__count_1d"], row["today__status"]) == (0, EXPIRED)
    assert (row["habits__count_7d"], row["habits__status"]) == (2, FRESH)


def test_what_is_missing_gives_defaults_and_so_does_a_null_key(case):
    answer = case.read("habits", {"who": ["nobody", None]})

    for row in answer.to_dicts():
        assert (row["habits__count_7d"], row["habits__spent_mean_7d"]) == (0, None)
        assert (row["habits__age_ms"], row["habits__status"]) == (None, MISSING)


def test_when_writers_are_silent_values_are_stale_and_what_is_missing_is_null(case):
    answer = case.read("habits", {"who": ["ann", "nobody"]}, later_ms=10_001)

    ann, nobody = answer.to_dicts()
    assert (ann["habits__count_7d"], ann["habits__status"]) == (3, STALE)
    assert (nobody["habits__count_7d"], nobody["habits__status"]) == (None, STALE)


def test_a_rebuild_makes_its_partition_stale_and_no_zero_is_served(case):
    case.beat(case.person, 1, complete=False)

    answer = case.read("busy", {"who": ["ann", "bob", "nobody"], "page": [7, 7, 7]})

    assert answer.statuses("habits") == [FRESH, STALE, STALE]
    assert [row["habits__count_7d"] for row in answer.to_dicts()] == [3, 2, None]
    assert answer.statuses("traffic") == [FRESH, FRESH, FRESH]


def test_a_replay_ages_by_its_own_clock(case):
    for partition in (0, 1):
        case.beat(case.person, partition, clock_ahead_ms=-DAY_MS)
    case.write(case.person, 0, ["old"], [[1, 1.0, 1]], NOW_MS - DAY_MS - 3_000, "string")

    (row,) = case.read("today", {"who": "old"}).to_dicts()

    assert (row["today__count_1d"], row["today__age_ms"], row["today__status"]) == (1, 3_000, FRESH)


def test_few_of_many_features_are_read_one_by_one_and_say_the_same(stack, unique_name):
    views = tuple(cases.view(f"view{number}") for number in range(6))
    entity = cases.entity(unique_name, views=views)
    store = RedisOnlineStore(stack.redis_url)
    marker = store.open(entity, 0, "plan", NOW_MS)
    store.beat(entity, 0, dataclasses.replace(marker, complete=True))
    values = [[float(number) for number in range(12)], [math.nan] * 12]
    store.write(entity, 0, marker.lineage, cases.rows([1, 2], values), NOW_MS)
    store.close()

    def read(*wanted):
        names = tuple(feature.name for one in wanted for feature in one.features)
        clock = ManualClock(NOW_MS)
        with OnlineReader(Request(wanted, names), stack.redis_url, 10_000, clock) as reader:
            assert reader._hashes["customer_id"].takes_all == (len(wanted) > 1)
            return reader.read({"customer_id": [2, 3, 1]}).to_dicts()

    everything = read(*(WantedView(entity, view, view.features) for view in views))
    few = read(WantedView(entity, views[4], views[4].features[1:]))

    names = ("customer_id", "view4__amount_mean_1d", "view4__age_ms", "view4__status")
    assert few == [{name: row[name] for name in names} for row in everything]
    assert [row["view4__amount_mean_1d"] for row in few] == [None, None, 9.0]
    assert [row["view4__status"] for row in few] == [FRESH, MISSING, FRESH]


def test_threads_may_share_a_reader(case):
    request = request_for("busy", case.plan)
    keys = [{"who": name, "page": 7} for name in ("ann", "bob", "nobody")] * 20
    with OnlineReader(request, case.url, 10_000, ManualClock(NOW_MS)) as reader:
        alone = [reader.read(key).to_dicts() for key in keys]
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda key: reader.read(key).to_dicts(), keys))

    assert alone == together


def test_the_code_in_the_docs_reads_the_same(case, repository):
    page = (repository / "docs" / "online-store.md").read_text()
    (code,) = [block for block in page.split("```python\n") if block.startswith("import struct")]
    scope = {}
    exec(code.split("```")[0], scope)  # noqa: S102 - it is ours
    client = redis.Redis.from_url(case.url)

    def read(view, feature, key="ann"):
        return scope["read_feature"](client, case.project.name, "who", key, view, feature)

    assert read("habits", "count_7d") == 3
    assert read("habits", "spent_mean_7d") == 1.5
    assert read("habits", "count_7d", "nobody") is None
    client.close()


def test_no_entities_give_no_rows(case):
    answer = case.read("busy", {"who": [], "page": []})

    assert len(answer) == 0
    assert answer.table.schema.field("habits__count_7d").type == "int64"


def test_an_answer_shows_itself_in_a_notebook_and_as_pandas(case):
    answer = case.read("habits", {"who": ["ann", "<b>"]})

    shown = answer._repr_html_()
    assert "<th>habits__count_7d</th>" in shown
    assert "&lt;b&gt;" in shown
    assert "FRESH" in shown
    assert list(answer.to_pandas()["habits__count_7d"]) == [3, 0]


def test_the_public_function_finds_project_settings_and_redis(folder, stack):
    case = Case(folder, stack.redis_url, SystemClock().now_ms())

    answer = hr.online("habits", {"who": ["ann"]}, project=folder)
    by_view = hr.online(case.project.views[0], [{"who": "ann"}])

    assert answer.statuses("habits") == [FRESH]
    assert by_view.to_dicts()[0]["habits__count_7d"] == 3


def headrace(*arguments, folder):
    command = [sys.executable, "-m", "headrace.cli.main", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_command_prints_json_and_a_table(folder, stack):
    Case(folder, stack.redis_url, SystemClock().now_ms())

    done = headrace("online", "today,traffic", "who=ann", "page=7", "--json", folder=folder)
    shown = headrace("online", "busy", "who=ann", "page=7", folder=folder)
    wrong = headrace("online", "busy", "who=ann", "pag=7", folder=folder)

    assert (done.returncode, done.stderr) == (0, "")
    row = json.loads(done.stdout)
    assert (row["today__count_1d"], row["traffic__count_1h"]) == (1, 4)
    assert (row["today__status"], row["traffic__status"]) == (FRESH, FRESH)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "habits__spent_mean_7d" in shown.stdout
    assert "FRESH" in shown.stdout
    assert wrong.returncode == 1
    assert "did you mean 'page'" in wrong.stderr


def test_a_redis_that_is_not_there_is_said_in_one_line(folder):
    settings = (folder / "headrace.yaml").read_text()
    lines = [line for line in settings.splitlines() if "redis://" not in line]
    lines.insert(lines.index("redis:") + 1, "  url: redis://127.0.0.1:1")
    (folder / "headrace.yaml").write_text("\n".join(lines))

    with pytest.raises(StoreUnavailableError, match="Redis must answer"):
        hr.online("habits", {"who": "ann"}, project=folder)

    done = headrace("online", "habits", "who=ann", folder=folder)
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1
