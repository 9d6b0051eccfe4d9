"""The figures follow the protocol; each rule of it is one small case."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.training.errors import TrainingError
from headrace.training.evaluate import NEVER_MS, evaluate, key_precision, unknown_at_day_start
from headrace.training.split import DAY_MS, TRAIN_MS_MAX, Period, default_period, split_by_time


def precision(rows: list[tuple[int, str, float, int]], checked: int) -> float:
    """Return the figure of (day, key, score, label) rows."""
    days, keys, scores, labels = (np.array(column) for column in zip(*rows, strict=True))
    return key_precision(scores, labels, keys, days, checked)


def test_a_key_counts_once_a_day_with_its_highest_score_and_its_highest_label() -> None:
    # a's fraud is not its highest score: checking a finds it all the same.
    rows = [(0, "a", 0.9, 0), (0, "a", 0.1, 1), (0, "b", 0.8, 0), (0, "c", 0.7, 1)]

    assert precision(rows, 1) == 1.0
    assert precision(rows, 2) == 0.5


def test_fewer_keys_than_checks_are_checks_without_a_find() -> None:
    assert precision([(0, "a", 0.9, 1)], 4) == 0.25


def test_a_key_that_was_found_is_left_out_of_later_days() -> None:
    # day 0: a is found; day 1: a would be first, b is.
    rows = [(0, "a", 0.9, 1), (1, "a", 0.9, 1), (1, "b", 0.5, 1)]

    assert precision(rows, 1) == 1.0
    assert precision([*rows[:2], (1, "b", 0.5, 0)], 1) == 0.5


def test_a_key_that_was_checked_and_found_innocent_comes_again() -> None:
    rows = [(0, "a", 0.9, 0), (1, "a", 0.9, 1)]

    assert precision(rows, 1) == 0.5


def test_a_positive_key_that_was_not_checked_comes_again() -> None:
    rows = [(0, "a", 0.9, 0), (0, "b", 0.1, 1), (1, "b", 0.9, 1)]

    assert precision(rows, 1) == 0.5


def test_equal_scores_go_by_key_whatever_the_order_of_the_rows() -> None:
    rows = [(0, "a", 0.5, 1), (0, "b", 0.5, 0), (0, "c", 0.5, 1)]

    assert precision(rows, 1) == 1.0
    assert precision(rows[::-1], 1) == 1.0
    assert precision(rows, 2) == precision(rows[::-1], 2) == 0.5


def test_ranking_figures_are_those_of_their_definitions() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    labels = np.array([1, 0, 1, 0])
    figures = evaluate(scores, labels, np.arange(4), np.zeros(4, np.int64), checked_a_day=2)

    # Of four pairs three are in order; precision is 1 at the first find and 2/3 at the second.
    assert figures.auc == pytest.approx(0.75)
    assert figures.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert (figures.key_precision, figures.rows, figures.positives) == (0.5, 4, 2)
    assert figures.as_metrics("test")["test_key_precision_at_2"] == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_labels_of_one_kind_are_refused(label: int) -> None:
    with pytest.raises(TrainingError, match="positive and negative"):
        evaluate(np.ones(3), np.full(3, label), np.arange(3), np.zeros(3, np.int64))


def test_a_key_is_known_from_the_first_midnight_after_its_report() -> None:
    # key 1: reported in the midst of day 10; key 2: exactly at midnight, when day 11 begins.
    reported = {1: 10 * DAY_MS + 5, 2: 11 * DAY_MS, 3: NEVER_MS}
    rows = [(key, day) for day in (0, 10, 11, 12) for key in reported]
    keys = np.array([key for key, _ in rows])
    times = np.array([day * DAY_MS + 100 for _, day in rows])
    # Only the row of day 0 is what the report is about.
    known = np.array([reported[key] if day == 0 else NEVER_MS for key, day in rows])
    kept = unknown_at_day_start(keys, times, known, Period(10 * DAY_MS, 13 * DAY_MS))

    assert [rows[i] for i in np.flatnonzero(kept)] == [
        (1, 10),
        (2, 10),
        (3, 10),
        (2, 11),
        (3, 11),
        (3, 12),
    ]


def test_the_test_period_is_at_the_end_and_a_gap_lies_before_it() -> None:
    split = split_by_time(0, 21 * DAY_MS, gap_ms=7 * DAY_MS)

    assert Period(0, 7 * DAY_MS) == split.train
    assert Period(14 * DAY_MS, 21 * DAY_MS) == split.test
    assert split.label_cutoff_ms == 14 * DAY_MS


def test_a_period_holds_its_start_and_not_its_end() -> None:
    assert Period(5, 7).mask(np.array([4, 5, 6, 7])).tolist() == [False, True, True, False]


def test_a_period_that_leaves_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(TrainingError, match="longer than gap and test"):
        split_by_time(0, 14 * DAY_MS, gap_ms=7 * DAY_MS)


def test_by_default_training_takes_the_last_weeks_whose_labels_are_in() -> None:
    period = default_period(Period(0, 183 * DAY_MS - 5), gap_ms=7 * DAY_MS, reach_ms=37 * DAY_MS)

    assert period.end_ms == 175 * DAY_MS
    assert split_by_time(period.start_ms, period.end_ms, gap_ms=7 * DAY_MS).train.length_ms == (
        TRAIN_MS_MAX
    )


def test_by_default_a_short_history_gives_up_a_quarter_for_windows_to_fill() -> None:
    period = default_period(Period(0, 60 * DAY_MS), gap_ms=7 * DAY_MS, reach_ms=37 * DAY_MS)

    assert Period(15 * DAY_MS, 53 * DAY_MS) == period
