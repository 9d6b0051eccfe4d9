"""What each feature added to one score: exact TreeSHAP contributions, from LightGBM itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headrace.scoring.lightgbm_native import load_native

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.scoring.artefact import Artefact

# The library adds the contributions and the trees in different orders.
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Contributions:
    """How a raw score (log odds, for a classifier) comes about.

    ``base`` is the model's mean raw score; ``by_column`` what each column moved it by, largest
    first. ``adds_up`` says that base and contributions sum to ``raw``.
    """

    base: float
    by_column: Mapping[str, float]
    raw: float
    adds_up: bool


def contributions(artefact: Artefact, vector: Sequence[float]) -> Contributions:
    """Return what each column of one vector contributed.

    Args:
        artefact: A model that has been loaded with suspicion before: its text is run as it is.
        vector: The columns of its manifest, in their order; NaN is null.

    Raises:
        ModelRefusedError: If LightGBM does not take the model.

    """
    names = [column.name for column in artefact.manifest.columns]
    row = np.ascontiguousarray(np.array([vector], np.float64))
    assert row.shape == (1, len(names)), row.shape
    model = load_native(artefact.model_text)
    parts = model.contributions(row)[0]
    raw = float(model.raw_scores(row)[0])
    order = np.argsort(-np.abs(parts[:-1]), kind="stable")
    total = math.fsum(parts.tolist())
    return Contributions(
        base=float(parts[-1]),
        by_column={names[index]: float(parts[index]) for index in order.tolist()},
        raw=raw,
        adds_up=math.isclose(total, raw, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE),
    )
