"""What a reader may ask for: names, definitions, and keys in many shapes."""

from __future__ import annotations

import json

import pandas as pd
import pyarrow as pa
import pytest

from headrace.features.compiler import compile_project
from headrace.features.project import load_project
from headrace.features.store.errors import OnlineError
from headrace.features.store.request import key_columns, request_for

DEFINITIONS = """
import headrace as hr

visits = hr.Source("visits", key="who", event_time="at")
person, page = hr.Entity("person", key="who"), hr.Entity("page", key="page")
habits = hr.FeatureView("habits", person, visits, [hr.count(over=["1d", "7d"])])
traffic = hr.FeatureView("traffic", page, visits, [hr.count(over="1h")])
busy = hr.Pipeline("busy", visits, [traffic, habits], request={"hour": hr.hour("at")})
other = hr.Pipeline("other", visits, [habits])
"""
SCHEMA = {
    "type": "record",
    "name": "Visit",
    "fields": [
        {"name": "who", "type": "string"},
        {"name": "page", "type": "int"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}


@pytest.fixture
def project(tmp_path):
    (tmp_path / "headrace.yaml").write_text("project: visits\n")
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "visits.avsc").write_text(json.dumps(SCHEMA))
    return load_project(tmp_path)


HABITS = ("habits__count_1d", "habits__count_7d")


def test_pipelines_views_and_features_go_by_name_or_as_they_are_defined(project):
    plan = compile_project(project)
    pipeline, view = project.pipeline("busy"), project.views[0]

    asked = {
        "busy": ("traffic__count_1h", *HABITS),
        "other": HABITS,
        "habits": HABITS,
        "habits__count_7d": HABITS[1:],
    }
    for name, names in asked.items():
        assert names == request_for(name, plan).names
    assert request_for(pipeline, plan) == request_for("busy", plan)
    assert request_for([view], plan) == request_for(view.name, plan)
    mixed = request_for([HABITS[1], "traffic", HABITS[1]], plan)
    assert mixed.names == (HABITS[1], "traffic__count_1h")
    assert mixed.join_keys == {"who": "string", "page": "int64"}
    # The view is written by the first pipeline that has it, whoever asks.
    assert request_for("other", plan).views[0].entity.pipeline == "busy"


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("habbits", "did you mean 'habits'"),
        ("habits__count_2d", "did you mean 'habits__count_"),
        ([], "name a pipeline"),
        ([3], "got 'int'"),
    ],
)
def test_what_is_none_of_them_gets_a_hint(project, features, message):
    with pytest.raises(OnlineError, match=message):
        request_for(features, compile_project(project))


SHAPES = {
    "one": {"who": "a", "page": 1},
    "columns": {"who": ["a"], "page": [1]},
    "rows": [{"who": "a", "page": 1, "more": 7}],
    "arrow": pa.table({"page": pa.array([1], pa.int32()), "who": ["a"], "more": [0.5]}),
    "batch": pa.record_batch({"who": ["a"], "page": [1]}),
    "pandas": pd.DataFrame({"who": ["a"], "page": [1]}),
    "categories": pa.table({"who": pa.array(["a"]).dictionary_encode(), "page": [1]}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_keys_come_in_many_shapes(shape):
    found = key_columns(SHAPES[shape], {"who": "string", "page": "int64"})

    assert found == {"who": pa.array(["a"], pa.large_string()), "page": pa.array([1])}


def test_a_key_may_be_null_even_where_pandas_makes_floats_of_it():
    frame = pd.DataFrame({"page": [1.0, None]})

    assert key_columns(frame, {"page": "int64"}) == {"page": pa.array([1, None])}
    assert key_columns({"who": [None]}, {"who": "string"})["who"].null_count == 1


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ({"whom": ["a"]}, "entities must have who; got 'none' for their keys; did you mean 'whom'"),
        ({"who": [1]}, "key who must be string; got 'int64'"),
        ({"who": [1.5]}, "key who must be string"),
        ({"who": ["a", 1]}, "key who must be string"),
        ([{"who": "a"}, 7], "keys by column"),
        (7, "keys by column"),
    ],
)
def test_keys_that_are_none_are_refused(entities, message):
    with pytest.raises(OnlineError, match=message):
        key_columns(entities, {"who": "string"})


def test_numbers_that_are_no_keys_are_refused():
    with pytest.raises(OnlineError, match="key page must be int64"):
        key_columns({"page": [1.5]}, {"page": "int64"})
    with pytest.raises(OnlineError, match="be of one length"):
        key_columns({"page": [1], "who": ["a", "b"]}, {"page": "int64", "who": "string"})
