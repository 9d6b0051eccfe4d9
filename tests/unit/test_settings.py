"""Settings: what is refused, and what wins."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from headrace.runtime.errors import SettingsError
from headrace.runtime.settings import duration_ms, load_settings

if TYPE_CHECKING:
    from pathlib import Path


def written(folder: Path, text: str) -> Path:
    (folder / "headrace.yaml").write_text(text, encoding="utf-8")
    return folder


def test_a_name_is_all_that_a_project_must_give(tmp_path):
    settings = load_settings(written(tmp_path, "project: fraud\n"))

    assert settings.project == "fraud"
    assert settings.kafka.bootstrap_servers is None
    assert settings.state_folder == tmp_path / ".headrace"


def test_paths_are_taken_from_the_projects_folder(tmp_path):
    text = "project: fraud\nhistory: {transactions: data/t.parquet}\nregistry_folder: /models\n"

    settings = load_settings(written(tmp_path, text))

    assert str(settings.history["transactions"]) == f"{tmp_path}/data/t.parquet"
    assert str(settings.registry_folder) == "/models"


REFUSED = {
    "project: fraud\nkafka: {bootstrap_server: a}": "did you mean 'bootstrap_servers'?",
    "projekt: fraud": "did you mean 'project'?",
    "topics: {partitions: 4}": "setting project must be given",
    "project: Fraud": "should match pattern",
    "project: fraud\ntopics: {partitions: 0}": "setting topics.partitions must be valid",
    "project: fraud\nstream: {max_ahead: 5 minutes}": "setting stream.max_ahead must be valid",
    "project: fraud\nstream: {guarantee: hopefully}": "at_least_once",
    "- project": "must hold keys and values",
    "project: [": "headrace.yaml must be YAML",
}


@pytest.mark.parametrize(("text", "said"), REFUSED.items())
def test_a_wrong_setting_is_refused_with_its_cause_in_one_line(tmp_path, text, said):
    with pytest.raises(SettingsError) as refused:
        load_settings(written(tmp_path, text))

    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_folder_without_settings_is_refused_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(SettingsError, match="run 'headrace init'"):
        load_settings(tmp_path)


def loaded_with(folder: Path, **environment: str) -> str:
    """Return what a process with these variables loads, or how it is refused."""
    code = (
        "import pathlib, sys\n"
        "from headrace.runtime.settings import load_settings\n"
        "from headrace.runtime.errors import SettingsError\n"
        "try: print(load_settings(pathlib.Path(sys.argv[1])).model_dump_json())\n"
        "except SettingsError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_environment_wins_over_the_file_and_is_checked_like_it(tmp_path):
    folder = written(tmp_path, "project: fraud\nkafka: {bootstrap_servers: 'file:1'}\n")

    won = loaded_with(folder, HEADRACE__KAFKA__BOOTSTRAP_SERVERS="environment:2")
    nested = loaded_with(folder, HEADRACE__KAFKA__BOOTSTRAP="environment:2")
    misspelled = loaded_with(folder, HEADRACE__KAFAK__BOOTSTRAP_SERVERS="environment:2")

    assert '"bootstrap_servers":"environment:2"' in won
    assert "did you mean 'bootstrap_servers'?" in nested
    assert "did you mean 'kafka'?" in misspelled


@pytest.mark.parametrize(
    ("text", "expected"),
    [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000), ("90d", 7_776_000_000)],
)
def test_durations_are_whole_numbers_with_a_unit(text, expected):
    assert duration_ms(text) == expected


@pytest.mark.parametrize("text", ["", "5", "1.5h", "-1s", "1w", "5 minutes"])
def test_other_durations_are_refused(text):
    with pytest.raises(ValueError, match="duration must be"):
        duration_ms(text)
