"""Our kernel gives LightGBM's scores to the last bit, for any batch, or does not take the model."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pytest

from headrace.scoring.forest import LEAVES_MAX, Forest, compile_forest
from headrace.scoring.lightgbm_text import check_model_text
from headrace.scoring.probe import edge_rows

WIDTH = 5
SEED = 11
# Around the walk's and the vectors' widths, the block's, and several blocks.
BATCHES = (1, 2, 5, 6, 7, 8, 63, 64, 65, 200)


def make_rows(count: int, seed: int = SEED) -> np.ndarray:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, WIDTH))
    # Few levels, many zeros, nulls: thresholds are met exactly and every default is taken.
    rows[:, 1] = random.integers(-3, 4, count)
    rows[:, 2] = np.where(random.random(count) < 0.6, 0.0, random.gamma(2.0, size=count))
    rows[random.random(rows.shape) < 0.1] = np.nan
    rows[:, 4] = np.nan_to_num(rows[:, 4])
    return rows


def train(trees: int = 20, **parameters: Any) -> lightgbm.Booster:
    rows = make_rows(3000)
    signal = np.nan_to_num(rows).sum(axis=1) + np.isnan(rows[:, 0]) * 2
    labels = (signal > np.median(signal)).astype(int)
    chosen = {"objective": "binary", "num_leaves": 31, "verbosity": -1, **parameters}
    return lightgbm.train(chosen, lightgbm.Dataset(rows, labels), trees)


def compiled(booster: lightgbm.Booster) -> Forest | None:
    return compile_forest(check_model_text(booster.model_to_string().encode()))


SUPPORTED: list[dict[str, Any]] = [
    {},
    {"num_leaves": 2},
    {"num_leaves": LEAVES_MAX, "min_data_in_leaf": 1},
    {"num_leaves": 40, "min_data_in_leaf": 1, "max_depth": 6},
    {"zero_as_missing": True},
    {"use_missing": False},
    {"boosting": "dart", "drop_rate": 0.5},
    {"objective": "regression"},
    {"objective": "regression_l1"},
    {"objective": "huber"},
    {"objective": "quantile"},
    {"sigmoid": 0.3},
    {"min_data_in_leaf": 2999},
    {"monotone_constraints": [1, 0, 0, 0, -1]},
    {"extra_trees": True, "seed": 3},
]


@pytest.mark.parametrize("parameters", SUPPORTED, ids=str)
def test_scores_are_lightgbms_bit_for_bit_in_batches_of_any_size(
    parameters: dict[str, Any],
) -> None:
    booster = train(**parameters)
    forest = compiled(booster)
    assert forest is not None
    model = check_model_text(booster.model_to_string().encode())
    rows = np.concatenate([make_rows(300, seed=SEED + 1), edge_rows(model, make_rows(50))])
    expected = booster.predict(rows, num_threads=1)
    for batch in BATCHES:
        starts = range(0, len(rows), batch)
        scores = np.concatenate([forest.predict(rows[start : start + batch]) for start in starts])
        assert expected.tobytes() == scores.tobytes(), batch


@pytest.mark.parametrize(
    "parameters",
    [
        {"num_leaves": LEAVES_MAX + 1, "min_data_in_leaf": 1},
        {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
        {"objective": "poisson"},
        {"objective": "cross_entropy"},
        {"objective": "regression", "reg_sqrt": True},
    ],
    ids=str,
)
def test_a_model_that_needs_more_is_left_to_lightgbm(parameters: dict[str, Any]) -> None:
    assert compiled(train(**parameters)) is None


def test_categories_are_left_to_lightgbm() -> None:
    rows = make_rows(3000)
    rows[:, 1] = np.abs(np.nan_to_num(rows[:, 1]))
    labels = (rows[:, 1] % 2).astype(int)
    data = lightgbm.Dataset(rows, labels, categorical_feature=[1])
    chosen = {"objective": "binary", "verbosity": -1, "max_cat_to_onehot": 1}
    booster = lightgbm.train(chosen, data, 2)
    assert "\ncat_threshold=" in booster.model_to_string()

    assert compiled(booster) is None


def test_edge_rows_are_the_same_each_time_and_meet_thresholds_exactly() -> None:
    model = check_model_text(train().model_to_string().encode())
    rows = edge_rows(model, make_rows(50))
    thresholds = np.concatenate([tree.threshold for tree in model.trees])

    assert edge_rows(model, make_rows(50)).tobytes() == rows.tobytes()
    assert np.isin(rows, thresholds).mean() > 0.1
    assert np.isnan(rows).any()
    assert np.isinf(rows).any()
