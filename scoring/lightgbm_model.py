"""LightGBM's own Booster behind the port ``Model``. Trusts its text: check and probe it first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightgbm
import numpy as np

from headrace.scoring.errors import ModelRefusedError

if TYPE_CHECKING:
    from headrace.scoring.scorer import Model


@dataclass(frozen=True, slots=True)
class BoosterModel:
    """A Booster that predicts on the calling thread alone."""

    booster: Any

    def predict(self, vector: np.ndarray) -> np.ndarray:
        """Return the score of each row.

        Shape: float64 (n, n_features) -> float64 (n,).
        """
        # More threads than one would fight the broker's client for the cores (DESIGN 4.2).
        return np.asarray(self.booster.predict(vector, num_threads=1), np.float64)


def load_booster(text: bytes) -> Model:
    """Return the model that ``text`` holds.

    Raises:
        ModelRefusedError: If LightGBM refuses it. A text that was not checked may do worse.
    """
    try:
        return BoosterModel(lightgbm.Booster(model_str=text.decode("ascii")))
    except (lightgbm.basic.LightGBMError, ValueError, KeyError, TypeError) as error:
        message = f"LightGBM does not load the model: {error}"
        raise ModelRefusedError(message, "structure") from error
