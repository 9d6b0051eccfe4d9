"""Which topics go to which tables."""

from __future__ import annotations

import dataclasses

import pytest

from headrace.features.compiler import compile_project
from headrace.features.project import load_project
from headrace.lake.errors import LakeError
from headrace.lake.targets import targets_of


@pytest.fixture(scope="module")
def plan(repository):
    project = load_project(repository / "examples" / "fraud")
    return compile_project(project, 4)


def test_sources_labels_predictions_and_snapshots_have_a_table_each(plan):
    found = {target.table: target for target in targets_of(plan, 1_000)}

    assert {name: target.topic for name, target in found.items()} == {
        "transactions": "transactions",
        "reports": "reports",
        "fraud_predictions": "fraud.predictions",
        "fraud_snapshots": "fraud.snapshots",
    }
    # What we write ourselves has no bound; what others do has the workers'.
    assert found["reports"].max_record_bytes == 1_000
    assert found["fraud_snapshots"].max_record_bytes is None
    assert found["reports"].subject == "reports-value"


@pytest.mark.parametrize("name", ["fraud_predictions", "transactions_rejected"])
def test_two_topics_of_one_table_are_refused_by_name(plan, name):
    pipeline = plan.pipelines[0]
    sources = [dataclasses.replace(pipeline.sources[1], name=name, topic="other")]
    sources = (pipeline.sources[0], *sources)
    wrong = dataclasses.replace(plan, pipelines=(dataclasses.replace(pipeline, sources=sources),))

    with pytest.raises(LakeError, match=name):
        targets_of(wrong, 1_000)
