"""A fit gives the same bytes each time, and only models that a worker loads."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.scoring.lightgbm_text import check_model_text
from headrace.training.errors import TrainingError
from headrace.training.fit import fit

NAMES = ["amount", "count_1d", "mean_1d"]


def make_data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    vector = random.normal(size=(3000, len(NAMES)))
    vector[random.random(vector.shape) < 0.1] = np.nan
    noise = random.normal(size=len(vector))
    return vector, (np.nan_to_num(vector[:, 0] - vector[:, 2]) + noise > 0).astype(np.int8)


def test_the_same_data_give_the_same_bytes_on_any_number_of_threads() -> None:
    texts = [fit({"num_threads": threads}, *make_data(), NAMES).text for threads in (1, 2, 3, 1)]

    assert len({text.split(b"\nparameters:")[0] for text in texts}) == 1
    assert texts[0] == texts[3]


def test_the_plans_parameters_are_used() -> None:
    parameters = {"kind": "lightgbm", "num_leaves": 4, "n_estimators": 7, "learning_rate": 0.2}
    fitted = fit(parameters, *make_data(), NAMES)
    model = check_model_text(fitted.text, NAMES)

    assert len(model.trees) == 7
    assert {len(tree.leaf_value) for tree in model.trees} == {4}
    assert b"[learning_rate: 0.2]" in fitted.text
    assert b"[deterministic: 1]" in fitted.text
    assert fitted.parameters["num_iterations"] == 7


def test_progress_is_told_of_each_tree() -> None:
    seen: list[tuple[int, int]] = []
    fit(
        {"n_estimators": 3},
        *make_data(),
        NAMES,
        progress=lambda done, total: seen.append((done, total)),
    )

    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"n_estimators": 0}, "above 0"),
        ({"n_estimators": 2.5}, "above 0"),
        ({"n_estimators": 2, "num_trees": 2}, "one whole number"),
        ({"kind": "prophet"}, "be lightgbm"),
        ({"objective": "multiclass", "num_class": 2}, "worker loads"),
        ({"objective": "nonsense"}, "trainable"),
        ({"objective": "regression", "linear_tree": True, "n_estimators": 2}, "is_linear"),
    ],
    ids=str,
)
def test_a_model_that_no_worker_would_load_is_refused_at_once(parameters: dict, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        fit(parameters, *make_data(), NAMES)


@pytest.mark.parametrize("label", [0, 1])
def test_labels_of_one_kind_are_refused(label: int) -> None:
    vector, labels = make_data()

    with pytest.raises(TrainingError, match="both kinds"):
        fit({}, vector, np.full_like(labels, label), NAMES)
