"""`headrace drift` on a lake: which rows count, which model is the measure, what is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import drift_project as made
import numpy as np
import pytest

from headrace.drift.profile import DAY_MS
from headrace.lake.errors import LakeError
from headrace.scoring.errors import ArtefactError
from headrace.training.errors import ModelRegistryError, TrainingError
from headrace.training.watch import drift_report

ROWS = 9_000
END_MS = made.START_MS + 14 * DAY_MS


@pytest.fixture
def project(tmp_path):
    folder = made.make_project(tmp_path / "shop")
    made.register(folder)
    return folder


@pytest.fixture
def lake(project):
    """Return the project with an ordinary fortnight in its lake."""
    vector, given = made.ordinary(ROWS, 3), made.scores(ROWS, 4)
    made.append(project, vector, made.times(ROWS, 14), given)
    return project


def report(folder, **options):
    return drift_report(folder, "shop", made.START_MS, END_MS, **options)


def test_an_ordinary_fortnight_has_no_findings(lake):
    found = report(lake)

    assert found.findings == ()
    assert (found.model, found.version) == ("shop", "1")
    assert found.comparison.rows == ROWS
    assert found.comparison.score.period.rows == ROWS
    assert [column.name for column in found.comparison.columns] == list(made.NAMES)


def test_rows_of_the_period_count_and_no_others(lake):
    strange = made.ordinary(500, 5) * 1_000
    made.append(lake, strange[:250], np.full(250, made.START_MS - 1), made.scores(250, 1))
    made.append(lake, strange[250:], np.full(250, END_MS), made.scores(250, 1))
    made.append(lake, made.ordinary(2, 6), np.array([made.START_MS, END_MS - 1]))

    found = report(lake)

    assert found.comparison.rows == ROWS + 2
    assert found.comparison.score.period.rows == ROWS
    assert found.findings == ()


def test_what_changed_is_named_though_it_came_in_many_files(project):
    vector, when = made.ordinary(ROWS, 3), made.times(ROWS, 14)
    vector[:, 0] *= 100
    vector[::4, 1] = np.nan
    for rows in np.array_split(np.arange(ROWS), 7):
        made.append(project, vector[rows], when[rows], made.scores(len(rows), 7) ** 0.5)

    causes = {(one.column, one.cause, one.severity) for one in report(project).findings}

    assert causes == {
        ("amount", "unit", "alarm"),
        ("views__count_1d", "nulls", "alarm"),
        ("score", "shift", "alarm"),
    }


def test_without_a_period_it_is_the_week_up_to_the_newest_row(lake):
    found = drift_report(lake)

    newest = int(made.times(ROWS, 14)[-1]) + 1
    assert (found.period.start_ms, found.period.end_ms) == (newest - 7 * DAY_MS, newest)
    assert found.comparison.rows == ROWS // 2


def test_scores_of_another_model_are_left_out_and_that_is_said(lake):
    made.append(lake, made.ordinary(400, 5), made.times(400, 14), np.ones(400), model_version="2")
    made.append(lake, made.ordinary(400, 6), made.times(400, 14), np.ones(400), role="challenger")

    found = report(lake)

    assert found.findings == ()
    assert found.comparison.score.period.rows == ROWS
    assert "800 predictions are not of shop/1: their scores are left out" in found.notes


def test_snapshots_of_other_definitions_are_counted_and_that_is_said(lake):
    made.append(lake, made.ordinary(400, 5), made.times(400, 14), fingerprint="other")

    assert "400 of 9,400 snapshots are of other definitions than the model's" in report(lake).notes


def test_a_lake_without_predictions_compares_the_features(project):
    made.append(project, made.ordinary(ROWS, 3), made.times(ROWS, 14))

    assert report(project).comparison.score is None


def test_without_kafka_the_newest_model_is_the_measure_and_that_is_said(lake):
    made.register(lake)
    found = report(lake)

    assert found.version == "2"
    assert any("compared with the newest, shop/2" in note for note in found.notes)
    assert any("shop/2 scored nothing in the period" in note for note in found.notes)
    assert report(lake, model="shop/1").notes == ()


def test_a_part_of_a_day_says_what_that_may_do(lake):
    found = drift_report(lake, "shop", made.START_MS, made.START_MS + 3_600_000 * 12)

    assert any("shorter than a day" in note for note in found.notes)


def test_what_is_not_there_is_named(project):
    with pytest.raises(LakeError, match="shop_snapshots"):
        report(project)
    made.append(project, made.ordinary(300, 3), made.times(300, 1))
    with pytest.raises(TrainingError, match="--from and --to"):
        drift_report(project, "shop", 0, 1_000)
    with pytest.raises(TrainingError, match="before --to"):
        drift_report(project, "shop", 2_000, 1_000)
    with pytest.raises(ModelRegistryError, match="version 9"):
        report(project, model="shop/9")
    with pytest.raises(TrainingError, match="pipeline"):
        drift_report(project, "shoop")


def test_a_model_of_before_profiles_says_to_train_again(lake):
    made.register(lake, profile=False)

    with pytest.raises(TrainingError, match="train it again"):
        report(lake)


def test_a_changed_profile_is_refused(lake):
    path = lake / "models" / "shop" / "1" / "profile.json"
    path.write_bytes(path.read_bytes().replace(b'"rows": 20000', b'"rows": 20001', 1))

    with pytest.raises(ArtefactError, match=r"profile\.json must have the manifest's sha256"):
        report(lake)


def headrace(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "headrace.cli.main", "drift", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "160", "NO_COLOR": "1"},
    )


def test_the_command_prints_a_table_worst_first_a_page_and_an_exit_code(project):
    vector, when = made.ordinary(ROWS, 3), made.times(ROWS, 14)
    vector[:, 0] *= 100
    vector[::200, 1] = np.nan
    made.append(project, vector, when, made.scores(ROWS, 4))
    period = ("--from", "2026-01-05", "--to", "2026-01-19")

    plain = headrace(project, "shop", *period, "--html", "out/page.html", "--fail-on-alarm")
    assert plain.returncode == 5, plain.stderr
    lines = plain.stdout.splitlines()
    order = [next(i for i, line in enumerate(lines) if name in line) for name in made.NAMES]
    assert order == sorted(order)
    assert "every value is 100 times what it was" in plain.stdout
    assert "0.5 % of the rows have no value" in " ".join(plain.stdout.split())
    assert "look first at a release of the producer" in plain.stdout
    assert "<h1>Drift of shop</h1>" in (project / "out" / "page.html").read_text()

    data = json.loads(headrace(project, *period, "--json").stdout)
    assert (data["severity"], data["rows"]) == ("alarm", ROWS)
    assert [(one["column"], one["cause"], one["factor"]) for one in data["findings"]] == [
        ("amount", "unit", 100.0),
        ("views__count_1d", "nulls", None),
    ]
    assert data["score"]["severity"] == "none"

    quiet = headrace(project, *period, "--fail-on-alarm", "--model", "nobody")
    assert quiet.returncode == 1
    assert "model must exist" in quiet.stderr


def test_no_alarm_is_no_failure(lake):
    done = headrace(lake, "--from", "2026-01-05", "--to", "2026-01-19", "--fail-on-alarm")

    assert done.returncode == 0, done.stderr
    assert "As trained" in done.stdout
