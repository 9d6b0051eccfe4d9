"""What a project is in Feast, as objects and as text; Feast itself is not imported here."""

from __future__ import annotations

import dataclasses

import pyarrow.parquet as pq
import pytest

import headrace as hr
from headrace.features.compiler import compile_project
from headrace.features.errors import DefinitionError
from headrace.features.feast_repo.errors import FeastError
from headrace.features.feast_repo.objects import FIELD_TYPES, VALUE_TYPES, RepoService, repo_objects
from headrace.features.feast_repo.repository import FeastRepository
from headrace.features.feast_repo.tables import ensure_table, table_folder
from headrace.features.feast_repo.text import (
    PASSWORD_VARIABLE,
    connection_string,
    definitions_text,
    store_text,
)
from headrace.features.resolution import KEY_TYPES
from headrace.features.store.views import online_entities

DAY_MS = 86_400_000
TIME = {"type": "long", "logicalType": "timestamp-millis"}
REDIS = "redis://127.0.0.1:6379"


@dataclasses.dataclass
class Definitions:
    """What the compiler needs of a project."""

    pipelines: list[hr.Pipeline]
    name: str = "shop"
    schemas: dict[str, str] = dataclasses.field(default_factory=dict)
    max_ahead_ms: int | None = None


def events(name="events", key_type="string", **more):
    fields = {"who": key_type, "where": "long", "at": TIME, "price": "double", **more}
    schema = {
        "type": "record",
        "name": "Event",
        "fields": [{"name": field, "type": kind} for field, kind in fields.items()],
    }
    return hr.Source(name, key="who", event_time="at", schema=schema)


def view(name="who", source=None, features=None, key="who", **more):
    return hr.FeatureView(
        name,
        entity=hr.Entity(name, key=key),
        source=source or events(),
        features=features or [hr.count(over="1d"), hr.mean("price", over="7d")],
        **more,
    )


def objects(*views, name="scores", source=None):
    return repo_objects(
        Definitions([hr.Pipeline(name, source=source or views[0].source, views=views)])
    )


def fingerprint(*views):
    return objects(*views).views[0].fingerprint


def test_the_fraud_example_in_feast(repository):
    found = repo_objects(hr.load(repository / "examples" / "fraud"))

    assert [(e.name, e.join_key, e.key_kind) for e in found.entities] == [
        ("customer", "customer_id", "string"),
        ("terminal", "terminal_id", "string"),
    ]
    assert [(v.name, v.ttl_ms // DAY_MS, v.source) for v in found.views] == [
        ("customer", 30, "transactions"),
        ("terminal", 37, "transactions"),
    ]
    assert [(f.name, f.dtype) for f in found.views[1].fields] == [
        *((f"count_{days}d", "Int64") for days in (1, 7, 30)),
        *((f"risk_{days}d", "Float64") for days in (1, 7, 30)),
    ]
    assert found.services == (RepoService("fraud", ("customer", "terminal")),)


def test_the_ttl_reaches_as_far_back_as_any_window_with_its_delay_and_tile():
    tiled = view(features=[hr.count(over="1d"), hr.count(over="2d")], delay="3d", grain="1h")

    assert objects(tiled).views[0].ttl_ms == 5 * DAY_MS + 3_600_000


@pytest.mark.parametrize("avro", sorted(KEY_TYPES))
def test_every_key_type_of_avro_has_its_value_type(avro):
    given = events(key_type={"int": "int", "long": "long"}.get(avro, avro))
    kind = objects(view(source=given)).entities[0].key_kind

    expected = {"int": "INT64", "long": "INT64", "string": "STRING", "bytes": "BYTES"}
    assert VALUE_TYPES[kind] == expected[avro]


def test_a_view_of_two_pipelines_is_one_view_served_by_the_first():
    source = events()
    shared, own = view(source=source), view("place", source=source, key="where")
    first = hr.Pipeline("first", source=source, views=[shared])
    second = hr.Pipeline("second", source=source, views=[own, shared])

    found = repo_objects(Definitions([first, second]))

    assert [v.name for v in found.views] == ["who", "place"]
    assert found.services == (
        RepoService("first", ("who",)),
        RepoService("second", ("place", "who")),
    )


def test_a_fingerprint_changes_with_what_can_change_a_value_of_the_view_and_with_nothing_else():
    source = events()
    before = fingerprint(view(source=source))

    assert fingerprint(view(source=source), view("place", source=source, key="where")) == before
    assert fingerprint(view(source=events(extra=["null", "string"]))) == before
    assert fingerprint(view(source=source, delay="1d")) != before
    assert fingerprint(view(source=source, grain="1h")) != before
    assert fingerprint(view(source=events(key_type="bytes"))) != before


def test_a_view_that_reads_features_of_another_is_compiled_with_it():
    source = events()
    who = view(source=source)
    place = view(
        "place",
        source=source,
        key="where",
        features=[hr.mean(hr.feature("who__count_1d"), name="busy", over="1d")],
    )

    found = objects(who, place)

    assert [v.name for v in found.views] == ["who", "place"]
    assert [f.name for f in found.views[1].fields] == ["busy_1d"]
    slower = view(source=source, features=[hr.count(over="1d")], delay="1d")
    assert objects(slower, place).views[1].fingerprint != found.views[1].fingerprint


def test_feast_reads_what_the_worker_writes(repository):
    project = hr.load(repository / "examples" / "fraud")
    online = online_entities(compile_project(project))
    written = {
        view.name: (
            entity.entity,
            entity.join_key,
            entity.key_kind,
            [(feature.feature, FIELD_TYPES[feature.dtype]) for feature in view.features],
            view.reach_ms,
        )
        for stages in online.values()
        for entity in stages.values()
        for view in entity.views
    }

    assert written == {
        view.name: (
            view.entity.name,
            view.entity.join_key,
            view.entity.key_kind,
            [(field.name, field.dtype) for field in view.fields],
            view.ttl_ms,
        )
        for view in repo_objects(project).views
    }


def test_a_key_called_like_a_column_of_feast_is_refused():
    schema = {
        "type": "record",
        "name": "Event",
        "fields": [{"name": "event_timestamp", "type": "string"}, {"name": "at", "type": TIME}],
    }
    source = hr.Source("events", key="event_timestamp", event_time="at", schema=schema)
    wrong = view(source=source, key="event_timestamp", features=[hr.count(over="1d")])

    with pytest.raises(FeastError, match="as Feast's own columns are"):
        objects(wrong)


def test_wrong_definitions_are_told_as_the_compiler_tells_them():
    with pytest.raises(DefinitionError, match="must be in the schema"):
        objects(view(features=[hr.mean("prize", over="1d")]))


def test_the_text_is_python_that_names_every_object_once(tmp_path):
    text = definitions_text(objects(view()), tmp_path)

    compile(text, "definitions.py", "exec")
    for line in (
        'name="who",',
        'join_keys=["who"],',
        "value_type=ValueType.STRING,",
        "ttl=timedelta(days=7),",
        'Field(name="count_1d", dtype=Int64, description="count of events, last 1d"),',
        'Field(name="price_mean_7d", dtype=Float64, description="mean of price, last 7d"),',
        "features=[view_who],",
    ):
        assert text.count(line) >= 1, line
    assert text == definitions_text(objects(view()), tmp_path)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1:6379", "127.0.0.1:6379"),
        ("redis://cache", "cache:6379"),
        ("redis://cache:7000/0", "cache:7000"),
        ("redis://cache:7000/3", "cache:7000,db=3"),
        (
            "rediss://app:se%2Ccret@cache:7000/1",
            "cache:7000,db=1,ssl=true,username=app,password=${HEADRACE_REDIS_PASSWORD}",
        ),
        ("redis://:secret@cache:7000", "cache:7000,password=${HEADRACE_REDIS_PASSWORD}"),
    ],
)
def test_a_redis_url_in_the_words_of_feast(url, expected):
    assert connection_string(url) == expected


def test_no_password_stands_in_a_file():
    text = store_text(objects(view()), "redis://app:se$cret@cache:7000")

    assert "cret" not in text
    assert f"password=${{{PASSWORD_VARIABLE}}}" in text
    assert "full_scan_for_deletion: false" in text


@pytest.mark.parametrize(
    "url", ["unix:///tmp/redis", "redis://[::1]:6379", "redis://a/b", "redis://a?x=1"]
)
def test_a_redis_that_feast_cannot_be_told_of_is_refused(url):
    with pytest.raises(FeastError, match="be one that Feast can use"):
        connection_string(url)


def test_a_refused_url_is_told_without_its_password():
    with pytest.raises(FeastError) as refused:
        connection_string("http://app:secret@cache:7000")

    assert "secret" not in str(refused.value)


# --- What would change ----------------------------------------------------------------------------


@pytest.fixture
def taken(tmp_path):
    """Return a repository that Feast has taken with the view ``who``."""
    made = FeastRepository(tmp_path / "feast", tmp_path / "feast" / "offline")
    made.remember(objects(view()))
    (made.folder / "registry.db").touch()
    return made


def told(changes):
    return [(change.verb, change.what, change.name) for change in changes]


def test_at_first_everything_is_added(tmp_path):
    fresh = FeastRepository(tmp_path, tmp_path / "offline")

    assert told(fresh.changes(objects(view()))) == [
        ("added", "feast entity", "who"),
        ("added", "feast view", "who"),
        ("added", "feast service", "scores"),
    ]


def test_what_was_taken_is_no_change(taken):
    assert taken.changes(objects(view())) == ()
    # Then an apply starts no process: it returns without Feast's 5 s.
    assert taken.apply(objects(view()), REDIS) == ()
    assert not (taken.folder / "apply.log").exists()


def test_a_changed_view_and_a_removed_one_are_told(taken):
    source = events()
    other = view("place", source=source, key="where")

    assert told(taken.changes(objects(view(delay="1d")))) == [("changed", "feast view", "who")]
    assert told(taken.changes(objects(other))) == [
        ("added", "feast entity", "place"),
        ("removed", "feast entity", "who"),
        ("added", "feast view", "place"),
        ("removed", "feast view", "who"),
        ("changed", "feast service", "scores"),
    ]


def test_another_place_of_the_tables_is_a_change(taken, tmp_path):
    moved = FeastRepository(taken.folder, tmp_path / "elsewhere")

    assert told(moved.changes(objects(view()))) == [("added", "feast repository", "shop")]


@pytest.mark.parametrize("damage", ["registry gone", "no JSON", "other JSON"])
def test_what_is_lost_is_done_again(taken, damage):
    if damage == "registry gone":
        (taken.folder / "registry.db").unlink()
    else:
        (taken.folder / "applied.json").write_text("{" if damage == "no JSON" else "[]")

    assert len(taken.changes(objects(view()))) == 3


def test_a_table_has_its_columns_before_it_has_rows(tmp_path):
    who = objects(view()).views[0]

    folder = ensure_table(tmp_path, who)

    assert folder == table_folder(tmp_path, who)
    table = pq.read_table(folder)
    assert table.num_rows == 0
    assert table.schema.names == [
        "who",
        "event_timestamp",
        "created_timestamp",
        "count_1d",
        "price_mean_7d",
    ]
    assert ensure_table(tmp_path, who) == folder
