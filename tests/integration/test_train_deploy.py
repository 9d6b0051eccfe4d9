"""`headrace train` and `headrace deploy` on the example's definitions, from files to the topic."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from examples.fraud.generate import DAY_MS, make_world, simulate, write
from headrace.runtime import topics
from headrace.runtime.settings import load_settings
from headrace.scoring.artefact import MODEL_FILE
from headrace.training.deploy import read_deployments
from headrace.training.registry import FileRegistry

START_MS = 1_767_225_600_000
DAYS = 60

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def headrace(folder, *arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "headrace.cli.main", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "160", "NO_COLOR": "1"},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture
def project(project_folder, repository, unique_name):
    """Return the example's project under names of its own, with two small simulated months."""
    example = repository / "examples" / "fraud"
    text = (example / "definitions.py").read_text()
    for name in ("transactions", "reports", "fraud"):
        text = text.replace(f'"{name}",\n', f'"{unique_name}_{name}",\n')
    for name in ("transactions", "reports"):
        schema = (example / "schemas" / f"{name}.avsc").read_text()
        (project_folder / "schemas" / f"{unique_name}_{name}.avsc").write_text(schema)
    (project_folder / "definitions.py").write_text(text)
    write(simulate(make_world(600, 900), START_MS, DAYS), project_folder / "data")
    with (project_folder / "headrace.yaml").open("a") as settings:
        settings.write("history:\n")
        for name in ("transactions", "reports"):
            settings.write(f"  {unique_name}_{name}: data/{name}.parquet\n")
    return project_folder


def test_a_model_goes_from_files_to_the_deployments_topic(project, stack, unique_name):
    model = f"{unique_name}_fraud"
    deployments = topics.deployments(unique_name)
    client = {"bootstrap.servers": stack.bootstrap_servers}
    registry = FileRegistry(load_settings(project).registry_folder)

    trained = json.loads(headrace(project, "train", "--json").stdout)
    again = json.loads(headrace(project, "train", "--json").stdout)

    # The last event is just before midnight: the last whole day whose labels are in ends the day
    # before, a week back. The test week ends there, the training a week before that.
    assert trained["test"] == {
        "start_ms": START_MS + (DAYS - 15) * DAY_MS,
        "end_ms": START_MS + (DAYS - 8) * DAY_MS,
    }
    assert trained["train"]["end_ms"] == START_MS + (DAYS - 22) * DAY_MS
    assert trained["metrics"]["train_auc"] > 0.9
    assert 0.5 < trained["metrics"]["test_auc"] < 1.0
    assert (trained["model"], trained["version"], again["version"]) == (model, 1, 2)
    for same in ("training_set_id", "metrics", "fingerprint"):
        assert trained[same] == again[same]
    folders = [registry.resolve(f"{model}/{number}").folder for number in (1, 2)]
    assert len({(folder / MODEL_FILE).read_bytes() for folder in folders}) == 1

    refused = headrace(project, "deploy", f"{model}/1", code=1)
    assert "run 'headrace apply'" in refused.stderr
    headrace(project, "apply")
    dry = json.loads(headrace(project, "deploy", f"{model}/1", "--dry-run", "--json").stdout)
    assert (dry["published"], dry["revision"]) == (False, 1)
    assert read_deployments(client, deployments) == {}

    first = json.loads(headrace(project, "deploy", f"{model}/1", "--json").stdout)
    second = headrace(project, "deploy", model)
    live = read_deployments(client, deployments)[model]

    assert (first["revision"], first["version"]) == (1, "1")
    assert f"{model}/2 published on {model}, revision 2" in second.stdout
    assert (live.revision, live.version, live.fingerprint) == (2, "2", trained["fingerprint"])
    assert registry.aliases(model) == {"champion": 2}
    assert registry.resolve(f"{model}@champion").folder == live.folder

    # Nobody scores: a deployment that is waited for says so, and stands all the same.
    waited = headrace(project, "deploy", f"{model}/1", "--wait", "0.5", code=1)
    assert "no prediction of revision 3" in waited.stderr
    assert read_deployments(client, deployments)[model].revision == 3


def test_a_model_of_features_that_changed_does_not_go_live(project, stack, unique_name):
    model = f"{unique_name}_fraud"
    headrace(project, "train", "--json", "--test", "5d")
    definitions = project / "definitions.py"
    text = definitions.read_text()

    definitions.write_text(text.replace('delay="7d",\n    features', 'delay="6d",\n    features'))
    headrace(project, "apply")
    changed = headrace(project, "deploy", model, code=1)
    assert "train it again" in changed.stderr
    headrace(project, "deploy", model, "--any-plan", "--dry-run")

    definitions.write_text(text.replace('"during_night"', '"at_night"'))
    headrace(project, "apply")
    missing = headrace(project, "deploy", model, "--any-plan", code=1)
    assert "the plan has no 'during_night'" in missing.stderr
    assert "the model does not know 'at_night'" in missing.stderr
    client = {"bootstrap.servers": stack.bootstrap_servers}
    assert read_deployments(client, topics.deployments(unique_name)) == {}


def test_training_prints_its_figures_and_the_next_command(project, unique_name):
    done = headrace(project, "train", "--from", "2026-01-20", "--to", "2026-02-20", "--test", "3d")

    assert "2026-01-20 to 2026-02-10" in done.stdout
    assert "2026-02-17 to 2026-02-20" in done.stdout
    assert f"put it live: headrace deploy {unique_name}_fraud/1" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "2026-02-10", "--to", "2026-02-20"], "longer than gap and test (14 days)"),
        (["--data", "nowhere"], "hold"),
        (["--test", "week"], "whole number and a unit"),
        (["other"], "one of the project's"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(project, arguments, said):
    done = headrace(project, "train", *arguments, code=1)

    assert said in done.stderr
    assert "Traceback" not in done.stderr
