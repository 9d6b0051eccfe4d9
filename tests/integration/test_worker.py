"""`headrace worker` on the real broker: one stage, end to end, killed, stopped, deployed."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import defaultdict

import numpy as np
import pytest
from live import LiveWorker, make_project, payments

from headrace.runtime import topics
from headrace.scoring.artefact import Canary, write_artefact
from headrace.scoring.deployments import Deployment
from headrace.scoring.scorer import FeatureColumn
from headrace.streams.commit import CommitNote
from headrace.training.deploy import publish_deployment
from headrace.training.fit import fit

START_MS = 1_750_000_000_000


@pytest.fixture
def project(project_folder):
    made = make_project(project_folder)
    yield made
    made.close()


def expected_features(rows):
    """Return what each payment's features must be, by the definition and nothing else."""
    history = defaultdict(list)
    expected = {}
    for payment_id, time_ms, customer, amount in rows:
        history[customer].append((time_ms, amount))
        features = {}
        for label, length_ms in (("1h", 3_600_000), ("1d", 86_400_000)):
            inside = [a for t, a in history[customer] if time_ms - length_ms < t <= time_ms]
            features[f"customer__count_{label}"] = len(inside)
            features[f"customer__amount_mean_{label}"] = sum(inside) / len(inside)
        expected[str(payment_id)] = features
    return expected


def assert_features(snapshots, rows):
    expected = expected_features(rows)
    assert {one["event_id"] for one in snapshots} == set(expected)
    for one in snapshots:
        for name, value in expected[one["event_id"]].items():
            assert one[name] == pytest.approx(value, abs=1e-9), (one["event_id"], name)


def test_events_become_predictions_and_snapshots_that_fastavro_reads(project):
    messages, rows = payments(project, 2_000, START_MS, seed=1)
    project.send(messages)
    with LiveWorker(project.folder) as worker:
        snapshots = project.records("snapshots", len(rows))
        predictions = project.records("predictions", len(rows))
        metrics = worker.metrics()

    assert_features(snapshots, rows)
    assert {one["status"] for one in predictions} == {"no_model"}
    assert {one["prediction_id"] for one in predictions} == {
        one["prediction_id"] for one in snapshots
    }
    topic = project.topic("payments")
    assert metrics[f'headrace_events_total{{topic="{topic}"}}'] == len(rows)
    assert metrics["headrace_end_to_end_seconds_count"] == len(rows)
    assert metrics[f'headrace_stage_seconds_sum{{topic="{topic}"}}'] > 0


def test_definitions_whose_outputs_are_not_registered_stop_the_worker_at_its_start(project):
    definitions = project.folder / "definitions.py"
    text = definitions.read_text()
    definitions.write_text(text.replace('hr.count(over=["1h", "1d"])', 'hr.count(over=["1h"])'))

    worker = LiveWorker(project.folder)
    code = worker.process.wait(120)
    worker.close()

    assert code == 1
    assert "have the fields that the definitions give" in worker.output()


def test_a_stopped_worker_exits_with_0_and_the_next_one_repeats_nothing(project):
    messages, rows = payments(project, 1_000, START_MS, seed=2)
    with LiveWorker(project.folder) as worker:
        project.send(messages[:600])
        project.read("predictions", 600)
        assert worker.terminate() == 0, worker.output()
    assert project.committed() == 600
    with LiveWorker(project.folder) as worker:
        project.send(messages[600:])
        snapshots = project.records("snapshots", len(rows))
        assert worker.terminate() == 0, worker.output()

    assert len(project.read("snapshots", len(rows) + 1, timeout_s=1.0)) == len(rows)
    assert_features(snapshots, rows)


def test_a_killed_worker_repeats_rows_but_never_with_other_values(project):
    messages, rows = payments(project, 6_000, START_MS, seed=3)
    by_id = defaultdict(set)
    with LiveWorker(project.folder) as worker:
        project.send(messages[:3_000])
        project.read("snapshots", 1_000)
        worker.kill()
    with LiveWorker(project.folder) as worker:
        project.send(messages[3_000:])
        deadline_s = time.monotonic() + 60
        while len(by_id) < len(rows) and time.monotonic() < deadline_s:
            for message in project.read("snapshots", len(rows), timeout_s=1.0):
                by_id[project.decode(message.value())["event_id"]].add(message.value())
        assert worker.terminate() == 0, worker.output()

    assert len(by_id) == len(rows)
    assert max(map(len, by_id.values())) == 1
    assert_features([project.decode(next(iter(values))) for values in by_id.values()], rows)


def test_a_deployment_takes_effect_without_a_restart_and_a_broken_one_does_not(project, tmp_path):
    messages, _ = payments(project, 300, START_MS, seed=4)
    with LiveWorker(project.folder) as worker:
        project.send(messages[:100])
        project.read("predictions", 100)

        artefact = write_model(project, tmp_path / "model" / "1")
        deploy(project, artefact, revision=1)
        worker.wait_for("headrace_model_info{", 1.0)
        project.send(messages[100:200])
        project.read("predictions", 200)

        (artefact / "model.txt").write_bytes(b"tree\nnot a model")
        deploy(project, artefact, revision=2)
        worker.wait_for("headrace_models_refused_total{", 1.0)
        project.send(messages[200:])
        predictions = project.records("predictions", 300)

    by_id = {int(one["event_id"]): one for one in predictions}
    assert {by_id[i]["status"] for i in range(100)} == {"no_model"}
    assert {(by_id[i]["status"], by_id[i]["revision"]) for i in range(100, 300)} == {("ok", 1)}
    assert all(0.0 <= by_id[i]["score"] <= 1.0 for i in range(100, 300))
    assert "model_refused" in worker.output()


def write_model(project, folder):
    """Fit a small model on made-up vectors of the plan's shape and write its artefact."""
    random = np.random.default_rng(5)
    names = [column.name for column in project.plan.vector]
    vector = random.normal(10.0, 5.0, (400, len(names)))
    labels = (vector[:, 0] > 10.0).astype(np.float64)
    model = fit({"num_leaves": 4, "n_estimators": 5}, vector, labels, names)
    write_artefact(
        folder,
        model.text,
        model="spend",
        pipeline=project.plan.name,
        framework_version=model.framework_version,
        columns=[FeatureColumn(column.name, column.dtype) for column in project.plan.vector],
        fingerprint=project.plan.fingerprint,
        training_set_id="made-up",
        created_at_ms=START_MS,
        canary=Canary(vector[:8], model.predict(vector[:8])),
        metrics={},
        parameters={},
    )
    return folder


def deploy(project, folder, revision):
    sha256 = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    event = Deployment(
        project.plan.name, "spend", "1", folder.as_uri(), sha256, "champion", revision, START_MS
    )
    topic = topics.deployments(project.plan.project)
    publish_deployment(project.environment.client, topic, event)


@pytest.mark.parametrize(
    ("offset", "topic_id"), [(10_000, None), (5, "another")], ids=["beyond the end", "other topic"]
)
def test_offsets_that_do_not_fit_the_topic_stop_the_worker_with_the_ways_on(
    project, offset, topic_id
):
    messages, rows = payments(project, 200, START_MS, seed=13)
    project.send(messages)
    project.commit(offset, "" if topic_id is None else CommitNote(topic_id).dump())

    stopped = LiveWorker(project.folder)
    with contextlib.closing(stopped):
        assert stopped.process.wait(120) == 1
        assert "--on-mismatch replay" in stopped.output()
        assert "Traceback" not in stopped.output()
    with LiveWorker(project.folder, "--on-mismatch", "skip") as worker:
        assert worker.terminate() == 0, worker.output()
    project.commit(offset, "" if topic_id is None else CommitNote(topic_id).dump())
    with LiveWorker(project.folder, "--on-mismatch", "replay") as worker:
        snapshots = project.records("snapshots", 200)
        assert worker.terminate() == 0, worker.output()

    assert_features(snapshots, rows)
    assert project.committed() == 200
