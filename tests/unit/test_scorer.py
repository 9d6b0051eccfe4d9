"""The scorer hands rows to its model as they are meant, and the columns must be the plan's."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from headrace.scoring.scorer import FeatureColumn, Scorer, ScorerIdentity, column_differences

A, B, C = (FeatureColumn(name, "float64") for name in "abc")
IDENTITY = ScorerIdentity("fraud", "3", "ab", "champion", 7)


@dataclass
class SumModel:
    """A model that scores a row by its sum and remembers what it was asked."""

    asked: list[np.ndarray] = field(default_factory=list)

    def predict(self, vector: np.ndarray) -> np.ndarray:
        self.asked.append(vector)
        return vector.sum(axis=1)


def test_each_row_gets_its_score() -> None:
    scorer = Scorer(IDENTITY, (A, B), SumModel())

    assert scorer.score(np.array([[1.0, 2.0], [3.0, 4.0]])).tolist() == [3.0, 7.0]


@pytest.mark.parametrize(
    "vector",
    [
        np.asfortranarray(np.arange(6.0).reshape(3, 2)),
        np.arange(12.0).reshape(3, 4)[:, ::2],
        np.arange(6).reshape(3, 2),
    ],
    ids=["columns first", "every other column", "integers"],
)
def test_the_model_always_gets_contiguous_rows_of_float64(vector: np.ndarray) -> None:
    model = SumModel()
    scores = Scorer(IDENTITY, (A, B), model).score(vector)

    assert model.asked[0].flags.c_contiguous
    assert model.asked[0].dtype == np.float64
    assert scores.tolist() == vector.sum(axis=1).tolist()


def test_rows_that_are_right_are_not_copied() -> None:
    model = SumModel()
    vector = np.zeros((3, 2))
    Scorer(IDENTITY, (A, B), model).score(vector)

    assert model.asked[0] is vector


def test_no_rows_are_no_scores_and_the_model_is_not_asked() -> None:
    model = SumModel()

    assert Scorer(IDENTITY, (A, B), model).score(np.empty((0, 2))).shape == (0,)
    assert not model.asked


def test_rows_of_another_width_are_a_programmers_error() -> None:
    with pytest.raises(AssertionError):
        Scorer(IDENTITY, (A, B), SumModel()).score(np.zeros((3, 3)))


def test_warming_up_takes_a_single_row_and_many() -> None:
    model = SumModel()
    Scorer(IDENTITY, (A, B), model).warm_up()

    assert len(model.asked[0]) == 1
    assert len(model.asked[-1]) > 50


def test_equal_columns_do_not_differ() -> None:
    assert column_differences([A, B, C], [A, B, C]) == []


@pytest.mark.parametrize(
    ("model", "plan", "expected"),
    [
        ([A, B], [B, A], ["the order differs: the model's column 0 is 'a', the plan's is 'b'"]),
        ([A, B], [A], ["the plan has no 'b'"]),
        ([A], [A, B], ["the model does not know 'b'"]),
        ([A, B], [A, C], ["the plan has no 'b'", "the model does not know 'c'"]),
        (
            [A, B],
            [A, FeatureColumn("b", "int64")],
            ["'b' is float64 in the model and int64 in the plan"],
        ),
    ],
    ids=["order", "missing", "unknown", "both", "dtype"],
)
def test_each_difference_is_named(
    model: list[FeatureColumn], plan: list[FeatureColumn], expected: list[str]
) -> None:
    assert expected == column_differences(model, plan)
