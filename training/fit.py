"""Fits the pipeline's model.

The same data, parameters and library give the same model, byte for byte, on any number of cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightgbm
import numpy as np

from headrace.runtime.errors import explain
from headrace.scoring.errors import ModelTextError
from headrace.scoring.lightgbm_text import check_model_text
from headrace.training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ROUNDS = 100
KIND = "lightgbm"
# LightGBM's own names for the number of trees: they may not come twice.
_ROUNDS_NAMES = ("n_estimators", "num_iterations", "num_boost_round", "num_trees", "n_iter")
_OURS: Mapping[str, object] = {
    "objective": "binary",
    "seed": 0,
    # Without it sums over histograms depend on the number of threads. Checked for 1 to 5.
    "deterministic": True,
    "force_col_wise": True,
    "verbosity": -1,
}


@dataclass(frozen=True, slots=True)
class FittedModel:
    """A trained model; ``text`` has passed the check that a worker makes."""

    text: bytes
    booster: Any
    parameters: dict[str, object]
    framework_version: str

    def predict(self, vector: np.ndarray) -> np.ndarray:
        """Return the scores.

        Shape: float64 (n, n_features) -> float64 (n,).
        """
        return np.asarray(self.booster.predict(vector, num_threads=1), np.float64)


def fit(
    parameters: Mapping[str, object],
    vector: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> FittedModel:
    """Return a LightGBM model fitted to the labels.

    Args:
        parameters: The plan's ``model``: LightGBM's training parameters, and ``kind``.
        vector: Training rows, NaN = null.
        labels: 0 or 1.
        names: The features' names, in the vector's order.
        progress: Told after each tree how many of how many there are.

    Raises:
        TrainingError: If LightGBM refuses the parameters or the data, or makes a model that a
            worker would refuse.

    Shape: float64 (n, n_features), (n,).
    """
    chosen, rounds = _parameters(parameters)
    if len(np.unique(labels)) != 2:
        kinds = np.unique(labels).tolist()
        message = explain(
            "training labels",
            "be of both kinds",
            kinds,
            f"{len(labels)} training rows",
            "take a longer training period, or check the label source",
        )
        raise TrainingError(message)
    try:
        data = lightgbm.Dataset(
            vector, labels, feature_name=list(names), params={"verbosity": -1}, free_raw_data=True
        )
        callbacks = [_reporting(progress, rounds)] if progress is not None else []
        booster = lightgbm.train(chosen, data, rounds, callbacks=callbacks)
    except (lightgbm.basic.LightGBMError, ValueError, TypeError) as error:
        message = explain("model", "be trainable", str(error), f"parameters {dict(parameters)}")
        raise TrainingError(message) from error
    text = booster.model_to_string().encode("ascii")
    try:
        check_model_text(text, names)
    except ModelTextError as error:
        message = explain(
            "model", "be one that a worker loads", str(error), f"parameters {dict(parameters)}"
        )
        raise TrainingError(message) from error
    return FittedModel(text, booster, {**chosen, "num_iterations": rounds}, lightgbm.__version__)


def _parameters(given: Mapping[str, object]) -> tuple[dict[str, object], int]:
    chosen: dict[str, object] = {**_OURS, **given}
    kind = chosen.pop("kind", KIND)
    if kind != KIND:
        raise TrainingError(explain("model", f"be {KIND}", kind, "the pipeline"))
    asked = [chosen.pop(name) for name in _ROUNDS_NAMES if name in chosen]
    if len(asked) > 1 or any(type(rounds) is not int or rounds < 1 for rounds in asked):
        message = explain("n_estimators", "be one whole number above 0", asked, "the model")
        raise TrainingError(message)
    return chosen, int(str(asked[0])) if asked else ROUNDS


def _reporting(progress: Callable[[int, int], None], rounds: int) -> Callable[[Any], None]:
    def report(state: Any) -> None:
        progress(state.iteration + 1, rounds)

    return report
