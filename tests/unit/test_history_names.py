"""Pipelines, views and features are asked for by name, as a notebook does."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

import headrace as hr
from headrace.lake.errors import HistoryError

DEFINITIONS = """
import headrace as hr

visits = hr.Source("visits", key="who", event_time="at", event_id="visit_id")
person = hr.Entity("person", key="who")
habits = hr.FeatureView("habits", entity=person, source=visits, features=[hr.count(over=["1d"])])
busy = hr.Pipeline("busy", source=visits, views=[habits], request={"hour": hr.hour("at")})
"""
SCHEMA = {
    "type": "record",
    "name": "Visit",
    "fields": [
        {"name": "visit_id", "type": "long"},
        {"name": "who", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
VISITS = pa.table(
    {
        "visit_id": [1, 2, 3],
        "who": ["a", "b", "a"],
        "at": pa.array([0, 1_000, 7_200_000], pa.timestamp("ms", "UTC")),
    }
)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "headrace.yaml").write_text("project: visits\n")
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "visits.avsc").write_text(json.dumps(SCHEMA))
    return tmp_path


def ask(name, project):
    table = hr.history(VISITS, name, project=project, sources={"visits": VISITS})
    return {column: table[column].to_pylist() for column in table.column_names[3:]}


def test_a_pipeline_a_view_and_a_feature_go_by_their_names(project):
    assert ask("busy", project) == {"hour": [0, 0, 2], "habits__count_1d": [1, 1, 2]}
    assert ask("habits", project) == {"habits__count_1d": [1, 1, 2]}
    assert ask("habits__count_1d", project) == {"habits__count_1d": [1, 1, 2]}


def test_a_name_that_is_none_gets_a_hint(project):
    with pytest.raises(HistoryError, match="did you mean 'habits'"):
        ask("habit", project)
