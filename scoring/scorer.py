"""Rows in, predictions out: the pure part of scoring. Loads nothing, reads no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

# A batch of one row and one of many may take different paths through a model: warm both.
WARM_UP_ROWS = (1, 4, 64)


class Model(Protocol):
    """The port behind which a loaded model stands; called by one thread at a time."""

    def predict(self, vector: np.ndarray) -> np.ndarray:
        """Return one float64 score per row of a C-contiguous float64 matrix."""
        ...


class Column(Protocol):
    """What the scorer needs to know of a column of the vector (``VectorColumn`` has it)."""

    @property
    def name(self) -> str:
        """The column's name."""
        ...

    @property
    def dtype(self) -> str:
        """``int64`` or ``float64``: what the column holds; the matrix is float64 all the same."""
        ...


@dataclass(frozen=True, slots=True)
class FeatureColumn:
    """A column of the model's input as the artefact's manifest names it."""

    name: str
    dtype: str


@dataclass(frozen=True, slots=True)
class ScorerIdentity:
    """Whose scores these are; goes into every prediction.

    ``revision`` counts the pipeline's deployments; ``sha256`` is the manifest's (hex).
    """

    model: str
    version: str
    sha256: str
    role: str = "champion"
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Scorer:
    """A model that was checked, loaded and warmed, with its identity."""

    identity: ScorerIdentity
    columns: tuple[FeatureColumn, ...]
    loaded: Model

    @property
    def model(self) -> str:
        """The model's name."""
        return self.identity.model

    @property
    def version(self) -> str:
        """The model's version in its registry."""
        return self.identity.version

    @property
    def role(self) -> str:
        """``champion`` or ``challenger``."""
        return self.identity.role

    @property
    def revision(self) -> int:
        """The deployment's revision."""
        return self.identity.revision

    @property
    def sha256(self) -> str:
        """The hash of the model's manifest (hex)."""
        return self.identity.sha256

    def score(self, vector: np.ndarray) -> np.ndarray:
        """Return the score of each row.

        Args:
            vector: The plan's vector, NaN = null; copied only if not C-contiguous float64.

        Shape: (n, n_features) -> float64 (n,).
        Cost: see ``headrace.scoring.forest``; a row's score does not depend on its batch.
        """
        assert vector.ndim == 2, vector.shape
        assert vector.shape[1] == len(self.columns), (vector.shape, len(self.columns))
        if vector.shape[0] == 0:
            return np.empty(0)
        return self.loaded.predict(np.ascontiguousarray(vector, dtype=np.float64))

    def warm_up(self) -> None:
        """Score a few rows of nulls, so that no live batch pays for a first call."""
        for rows in WARM_UP_ROWS:
            self.score(np.full((rows, len(self.columns)), np.nan))


def column_differences(model: Sequence[Column], plan: Sequence[Column]) -> list[str]:
    """Return what keeps a model made for ``model`` columns from reading ``plan`` columns.

    Names, dtypes and order must all be equal. An empty list says that they are.

    Examples:
        >>> a, b = FeatureColumn("a", "float64"), FeatureColumn("b", "int64")
        >>> column_differences([a, b], [b, a])
        ["the order differs: the model's column 0 is 'a', the plan's is 'b'"]
        >>> column_differences([a, b], [a])
        ["the plan has no 'b'"]

    """
    have = {column.name: column.dtype for column in plan}
    want = {column.name: column.dtype for column in model}
    differences = [f"the plan has no {name!r}" for name in want if name not in have]
    differences += [f"the model does not know {name!r}" for name in have if name not in want]
    differences += [
        f"{name!r} is {dtype} in the model and {have[name]} in the plan"
        for name, dtype in want.items()
        if have.get(name, dtype) != dtype
    ]
    if not differences:
        differences = [
            f"the order differs: the model's column {index} is {mine.name!r}, "
            f"the plan's is {theirs.name!r}"
            for index, (mine, theirs) in enumerate(zip(model, plan, strict=True))
            if mine.name != theirs.name
        ][:1]
    return differences
