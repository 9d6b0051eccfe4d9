"""The handbook's published model figures, from our features.

Source: Fraud Detection Handbook, chapter 3, baseline modeling. Train 2018-07-25 to 07-31, a week of
delay, test 2018-08-08 to 08-14 without the customers that are known by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from bench.choose_lightgbm import day_ms, fresh_rows, handbook_set, judge, week_split
from headrace.features.compiler import compile_project
from headrace.features.project import load_project
from headrace.training.evaluate import evaluate

if TYPE_CHECKING:
    from headrace.training.datasets import TrainingSet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TOLERANCE = 0.005
SPLIT = week_split("2018-07-25")
# A forest draws columns by their place: the book's order.
COLUMNS = [
    "amount",
    "during_weekend",
    "during_night",
    *(f"customer__{what}_{days}d" for days in (1, 7, 30) for what in ("count", "amount_mean")),
    *(f"terminal__{what}_{days}d" for days in (1, 7, 30) for what in ("count", "risk")),
]
# Test AUC, AP and CP@100 as published.
PUBLISHED = {
    "logistic regression": (LogisticRegression(random_state=0), (0.871, 0.606, 0.291)),
    "decision tree of depth 2": (
        DecisionTreeClassifier(max_depth=2, random_state=0),
        (0.763, 0.496, 0.241),
    ),
    "decision tree": (DecisionTreeClassifier(random_state=0), (0.788, 0.309, 0.243)),
    "random forest": (RandomForestClassifier(random_state=0), (0.867, 0.658, 0.287)),
}


@pytest.fixture(scope="module")
def weeks(shared_data) -> TrainingSet:
    return handbook_set(shared_data / "fraud", "2018-07-25", "2018-08-15")


def test_the_rows_are_those_of_the_book(weeks):
    train, test = SPLIT.train.mask(weeks.event_time_ms), fresh_rows(weeks, SPLIT)
    labels = weeks.labels()

    assert SPLIT.label_cutoff_ms == day_ms("2018-08-08")
    assert (len(labels), labels.sum()) == (201_295, 1_792)
    assert (train.sum(), labels[train].sum()) == (67_240, 598)
    assert (test.sum(), labels[test].sum()) == (58_264, 385)


def test_labels_of_the_training_week_are_all_known_when_the_test_begins(weeks):
    train = SPLIT.train.mask(weeks.event_time_ms)

    assert np.array_equal(weeks.labels()[train], weeks.labels(SPLIT.label_cutoff_ms)[train])
    assert weeks.labels(SPLIT.label_cutoff_ms)[~train].sum() == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_baseline_reaches_its_published_figures(weeks, name):
    model, published = PUBLISHED[name]
    train, test = SPLIT.train.mask(weeks.event_time_ms), fresh_rows(weeks, SPLIT)
    vector = weeks.vector[:, [weeks.names.index(column) for column in COLUMNS]]
    assert vector.shape == weeks.vector.shape
    assert not np.isnan(vector).any()
    scaler = StandardScaler().fit(vector[train])
    model.fit(scaler.transform(vector[train]), weeks.labels(SPLIT.label_cutoff_ms)[train])
    figures = evaluate(
        model.predict_proba(scaler.transform(vector[test]))[:, 1],
        weeks.labels()[test],
        weeks.keys[test],
        weeks.event_time_ms[test],
    )

    found = (figures.auc, figures.average_precision, figures.key_precision)
    assert np.abs(np.subtract(published, found)).max() <= TOLERANCE, found


def test_the_examples_model_beats_the_published_ones(weeks, repository):
    plan = compile_project(load_project(repository / "examples" / "fraud")).pipelines[0]
    figures = judge(dict(plan.model), weeks, SPLIT)

    assert figures.auc >= 0.875, figures
    assert figures.average_precision >= 0.640, figures
    assert figures.key_precision >= 0.290, figures
