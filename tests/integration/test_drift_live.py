"""The measure of drift: the profile that training leaves, and the model that is live on Kafka."""

from __future__ import annotations

import drift_project as made
import numpy as np
import pytest
from confluent_kafka.admin import NewTopic

from examples.fraud.generate import make_world, simulate, write
from headrace.drift.profile import DAY_MS, decode_profile, encode_profile, make_profile
from headrace.lake.history import event_vectors
from headrace.runtime import topics
from headrace.runtime.kafka import admin
from headrace.scoring.artefact import read_artefact
from headrace.scoring.deployments import Deployment
from headrace.scoring.loaders import load_with_suspicion
from headrace.training.datasets import build_training_set
from headrace.training.deploy import publish_deployment
from headrace.training.registry import FileRegistry
from headrace.training.run import open_training
from headrace.training.split import Period
from headrace.training.train import train
from headrace.training.watch import drift_report


@pytest.fixture
def example(tmp_path, repository):
    """Return the example's project with 45 small simulated days."""
    source, folder = repository / "examples" / "fraud", tmp_path / "fraud"
    (folder / "schemas").mkdir(parents=True)
    for name in ("definitions.py", "schemas/transactions.avsc", "schemas/reports.avsc"):
        (folder / name).write_bytes((source / name).read_bytes())
    (folder / "headrace.yaml").write_text("project: fraud\n")
    write(simulate(make_world(200, 300), made.START_MS, 45), folder / "data")
    return folder


def test_training_keeps_the_profile_of_its_rows_and_of_the_scores_on_its_test(example):
    training = open_training(example, "fraud", [str(example / "data")])
    run = train(
        training.plan,
        training.tables,
        training.split,
        event_vectors,
        FileRegistry(training.registry_folder),
        name="fraud",
        at_ms=0,
        progress=lambda *_: None,
    )
    artefact = read_artefact(run.entry.folder)
    scorer = load_with_suspicion(run.entry.folder, training.plan.vector)
    split = training.split
    whole = Period(split.train.start_ms, split.test.end_ms)
    data = build_training_set(training.plan, training.tables, whole, event_vectors)
    learned, tested = (part.mask(data.event_time_ms) for part in (split.train, split.test))

    assert artefact.profile_json == encode_profile(
        make_profile(
            data.names,
            data.vector[learned],
            data.event_time_ms[learned],
            scorer.score(data.vector[tested]),
            data.event_time_ms[tested],
        )
    )
    profile = decode_profile(artefact.profile_json, "test")
    assert profile.rows == run.train.rows == learned.sum() > 1_000
    assert profile.score.rows == tested.sum() > 1_000
    assert [column.name for column in profile.columns] == [
        column.name for column in training.plan.vector
    ]


def test_the_live_model_is_the_measure_also_when_there_is_a_newer_one(tmp_path, stack, unique_name):
    settings = (
        f"project: {unique_name}\n"
        f"kafka:\n  bootstrap_servers: {stack.bootstrap_servers}\n"
        f"redis:\n  url: {stack.redis_url}\n"
        f"registry:\n  url: {stack.registry_url}\n"
    )
    folder = made.make_project(tmp_path / "shop", settings)
    first = made.register(folder)
    made.register(folder)
    made.append(folder, made.ordinary(3_000, 3), made.times(3_000, 14), made.scores(3_000, 4))
    client = {"bootstrap.servers": stack.bootstrap_servers}
    topic = topics.deployments(unique_name)
    period = (made.START_MS, made.START_MS + 14 * DAY_MS)
    administrator = admin(client)
    administrator.create_topics([NewTopic(topic, 1, 1)])[topic].result()

    idle = drift_report(folder, "shop", *period)
    assert idle.version == "2"
    assert "no model is live; compared with the newest, shop/2" in idle.notes

    sha256 = read_artefact(first.folder).sha256
    event = Deployment("shop", "shop", "1", first.uri, sha256, "champion", 1, 0)
    publish_deployment(client, topic, event)
    live = drift_report(folder, "shop", *period)
    assert (live.version, live.notes, live.findings) == ("1", (), ())
    assert np.isclose(live.comparison.score.training.mean, made.scores(20_000, 2).mean())
