"""Feast on the generated repository: its SDK, ``feast serve`` and ``feast ui``, on a real Redis.

Values are written by our own store, from the same definitions: what is tested is that both name
the same projects, keys, types and fields.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pyarrow as pa
import pytest
import redis

import headrace as hr
from headrace.cli.applied import apply_feast
from headrace.features.compiler import compile_project
from headrace.features.feast_repo.errors import FeastError
from headrace.features.feast_repo.objects import repo_objects
from headrace.features.feast_repo.repository import repository_of
from headrace.features.store.layout import typed_keys
from headrace.features.store.port import EntityRows
from headrace.features.store.redis_store import RedisOnlineStore
from headrace.features.store.views import online_entities
from headrace.runtime.dev.processes import free_ports

if TYPE_CHECKING:
    from headrace.features.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EVENT_MS = 1_700_000_000_000
READY_S = 120.0
NO_REDIS = "redis://127.0.0.1:1"
DEFINITIONS = """
import headrace as hr

visits = hr.Source("visits", key="person", event_time="at", schema="schemas/visits.avsc")


def view(name, key):
    return hr.FeatureView(
        name,
        entity=hr.Entity(name, key=key),
        source=visits,
        features=[hr.count(over="1d"), hr.mean("spent", over="7d")],
    )


# One view for each Avro type that a key may have.
views = [view("person", "person"), view("floor", "floor"), view("badge", "badge")]
tag = view("tag", "tag")
scores = hr.Pipeline("scores", source=visits, views=views)
raw = hr.Pipeline("raw", source=visits, views=[tag])
"""
FIELDS = {"person": "string", "floor": "int", "badge": "long", "tag": "bytes", "spent": "double"}
ENTITIES = {"person": "ann", "floor": -3, "badge": 2**40, "tag": b"\x00\xff"}
VALUES = [[7.0, 2.5]]


def define(folder, text=DEFINITIONS):
    fields = [{"name": name, "type": kind} for name, kind in FIELDS.items()]
    fields.append({"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}})
    schema = {"type": "record", "name": "Visit", "fields": fields}
    (folder / "schemas").mkdir(exist_ok=True)
    (folder / "schemas" / "visits.avsc").write_text(json.dumps(schema))
    (folder / "definitions.py").write_text(text)


@dataclasses.dataclass
class Past:
    """How the repository came to be: each apply costs Feast's import, so there is one of each."""

    project: Project
    refused: str
    after_refusal: int
    removed: list[tuple[str, str, str]]
    scans: int


@pytest.fixture(scope="module")
def past(tmp_path_factory, stack):
    """Apply with one view too many, without it on a repository that fails, and again."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "headrace.yaml").write_text(
        "project: feast_online\n"
        f"kafka: {{bootstrap_servers: '{stack.bootstrap_servers}'}}\n"
        f"redis: {{url: '{stack.redis_url}'}}\nregistry: {{url: '{stack.registry_url}'}}\n"
    )
    before = scans(stack)
    define(folder, DEFINITIONS.replace('"badge")]', '"badge"), view("old", "badge")]'))
    apply_feast(folder)
    define(folder)
    project = hr.load(folder)
    repository, objects = repository_of(project.settings), repo_objects(project)
    broken = repository.folder / "extra.py"
    broken.write_text("raise ValueError('not ours')\n")
    with pytest.raises(FeastError) as refused:
        repository.apply(objects, NO_REDIS)
    broken.unlink()
    left = len(repository.changes(objects))
    changes = repository.apply(objects, NO_REDIS)
    # Only the address of Redis differs now: that needs no Feast.
    assert apply_feast(folder) == ()
    return Past(
        project,
        str(refused.value),
        left,
        [(change.verb, change.what, change.name) for change in changes],
        scans(stack) - before,
    )


def scans(stack):
    """Return how often somebody has walked through Redis."""
    with redis.Redis.from_url(stack.redis_url) as client:
        return client.info("commandstats").get("cmdstat_scan", {}).get("calls", 0)


@pytest.fixture(scope="module")
def project(past):
    return past.project


@pytest.fixture(scope="module")
def online(project, stack):
    """Write one entity of every key type to Redis."""
    store = RedisOnlineStore(stack.redis_url)
    at = np.array([EVENT_MS])
    for entities in online_entities(compile_project(project)).values():
        for entity in entities.values():
            keys = typed_keys(entity.key_kind, pa.array([ENTITIES[entity.join_key]]))
            rows = EntityRows(keys, np.array(VALUES), at, at, np.array([1]))
            assert store.write(entity, 0, 1, rows, EVENT_MS) == 1
    store.close()


@pytest.fixture(scope="module")
def repository(project):
    return repository_of(project.settings)


@pytest.fixture(scope="module")
def store(repository):
    """Return Feast's SDK on the repository."""
    from feast import FeatureStore  # 5 s: not where tests are collected

    return FeatureStore(repo_path=str(repository.folder))


def read(store, service, **entities):
    found = store.get_online_features(
        features=store.get_feature_service(service),
        entity_rows=[entities],
        full_feature_names=True,
    ).to_dict()
    return {name: values[0] for name, values in found.items()}


@pytest.mark.usefixtures("online")
def test_the_sdk_reads_every_type_of_key(store):
    three = {name: ENTITIES[name] for name in ("person", "floor", "badge")}

    assert read(store, "scores", **three) == {
        **three,
        **{f"{name}__count_1d": 7 for name in three},
        **{f"{name}__spent_mean_7d": 2.5 for name in three},
    }
    assert read(store, "raw", tag=ENTITIES["tag"]) == {
        "tag": b"\x00\xff",
        "tag__count_1d": 7,
        "tag__spent_mean_7d": 2.5,
    }
    nobody = read(store, "scores", person="bob", floor=0, badge=0)
    assert [value for name, value in nobody.items() if "__" in name] == [None] * 6


def test_the_registry_says_what_the_definitions_say(store):
    person = store.get_feature_view("person")
    assert person.ttl.days == 7
    assert {field.name: str(field.dtype) for field in person.features} == {
        "count_1d": "Int64",
        "spent_mean_7d": "Float64",
    }
    assert person.features[0].description == "count of visits, last 1d"
    assert {entity.name: entity.value_type.name for entity in store.list_entities()} == {
        "person": "STRING",
        "floor": "INT64",
        "badge": "INT64",
        "tag": "BYTES",
    }
    assert {service.name for service in store.list_feature_services()} == {"scores", "raw"}


@contextlib.contextmanager
def running(folder, log, *arguments):
    """Run a command of Feast on the repository; it and its children end with the block."""
    program = [sys.executable, "-c", "from feast.cli.cli import cli; cli()"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*program, "--chdir", str(folder), *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            # One that has ended by itself has no group any more.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


@pytest.mark.usefixtures("online")
def test_feast_serve_and_feast_ui_answer(repository, tmp_path, wait_until):
    serve_port, ui_port = free_ports(2)
    served, shown = f"http://127.0.0.1:{serve_port}", f"http://127.0.0.1:{ui_port}"

    def answers(process, address):
        assert process.poll() is None, "it has ended"
        try:
            return httpx.get(f"{address}/health", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    # Both start at the same time: each takes seconds to import Feast.
    with (
        running(
            repository.folder, tmp_path / "serve.log", "serve", "--port", str(serve_port)
        ) as serve,
        running(
            repository.folder,
            tmp_path / "ui.log",
            *("ui", "--host", "127.0.0.1", "--port", str(ui_port)),
        ) as ui,
    ):
        wait_until(lambda: answers(serve, served), READY_S)
        wait_until(lambda: answers(ui, shown), READY_S)
        answer = httpx.post(
            f"{served}/get-online-features",
            json={
                "feature_service": "scores",
                "entities": {"person": ["ann", "bob"], "floor": [-3, 0], "badge": [2**40, 0]},
                "full_feature_names": True,
            },
        ).json()
        page = httpx.get(f"{shown}/")
        listed = httpx.get(f"{shown}/api/v1/feature_views", params={"project": "feast_online"})

    names = answer["metadata"]["feature_names"]
    values = dict(zip(names, (result["values"] for result in answer["results"]), strict=True))
    assert values["person__count_1d"] == [7, None]
    assert values["badge__spent_mean_7d"] == [2.5, None]
    assert page.status_code == 200
    assert "<html" in page.text
    assert listed.status_code == 200
    assert '"person"' in listed.text


def test_a_view_goes_without_a_look_at_redis(past):
    assert past.removed == [
        ("removed", "feast entity", "old"),
        ("removed", "feast view", "old"),
        ("changed", "feast service", "scores"),
    ]
    assert past.scans == 0


def test_what_feast_refuses_is_told_in_one_line_and_done_again_the_next_time(past):
    assert re.fullmatch(
        r"feast apply must succeed; ValueError: not ours; see .*apply\.log", past.refused
    )
    assert past.after_refusal == len(past.removed)
