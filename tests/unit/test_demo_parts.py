"""The demo's parts tell the truth: what unfolds, what was found, why an alert is one."""

from __future__ import annotations

import numpy as np
import pytest

from examples.fraud.generate import DAY_MS, make_world, simulate
from examples.fraud.show.board import reasons
from examples.fraud.show.findings import find
from examples.fraud.show.story import Story

START_MS = 1_767_225_600_000  # 2026-01-01
SEED = 4


@pytest.fixture(scope="module")
def world():
    return make_world(customers=200, terminals=400, seed=SEED)


def epoch_ms(table, column):
    return table[column].cast("int64").to_numpy()


def test_chapters_hold_every_event_once_in_its_time(world):
    whole = simulate(world, START_MS, 40)
    story = Story(world, START_MS)
    ends_ms = [START_MS + int(days * DAY_MS) for days in (10.3, 10.9, 33, 40)]
    chapters = [story.until(end_ms) for end_ms in ends_ms]

    ids = np.concatenate([c.transactions["transaction_id"].to_numpy() for c in chapters])

    assert (ids == np.arange(whole.transactions.num_rows)).all()
    for chapter, start_ms, end_ms in zip(chapters, [START_MS, *ends_ms], ends_ms, strict=False):
        for table, column in ((chapter.transactions, "event_time"), (chapter.reports, "known_at")):
            times_ms = epoch_ms(table, column)
            assert (np.diff(times_ms) >= 0).all()
            assert ((times_ms >= start_ms) & (times_ms < end_ms)).all()


def test_a_report_comes_in_the_chapter_in_which_it_becomes_known(world):
    story = Story(world, START_MS)
    first, second = story.until(START_MS + 30 * DAY_MS), story.until(START_MS + 60 * DAY_MS)
    whole = simulate(world, START_MS, 60)
    due = epoch_ms(whole.reports, "known_at") < START_MS + 60 * DAY_MS

    told = [*first.reports["report_id"].to_pylist(), *second.reports["report_id"].to_pylist()]

    assert len(told) == len(set(told)) == due.sum()
    earlier = second.reports["transaction_id"].to_numpy() < second.first_id
    assert earlier.any()


def test_what_is_reported_of_a_chapter_is_what_its_own_reports_say(world):
    story = Story(world, START_MS)
    story.until(START_MS + 30 * DAY_MS)
    chapter = story.until(START_MS + 37 * DAY_MS)

    reported = chapter.reported()

    named = set(chapter.reports["transaction_id"].to_pylist())
    ids = chapter.transactions["transaction_id"].to_pylist()
    assert reported.tolist() == [number in named for number in ids]
    assert 0 < reported.sum() < len(named)


def test_findings_count_frauds_and_money_among_the_highest_scores():
    score = np.array([0.9, 0.2, 0.8, np.nan, 0.6, 0.1])
    amount = np.array([10.0, 20.0, 30.0, 40.0, 50.0, 60.0])
    reported = np.array([True, False, False, True, True, True])

    top, alerts = find(score, amount, reported, threshold=0.5, tops=(2,))

    assert (top.alerts, top.reported, top.amount) == (2, 1, 10.0)
    assert (top.precision, top.recall) == (0.5, 0.25)
    assert (alerts.alerts, alerts.reported, alerts.amount) == (3, 2, 60.0)
    assert alerts.precision == pytest.approx(2 / 3)
    assert alerts.amount_recall == pytest.approx(60 / 160)


def test_without_any_report_there_is_no_recall_to_speak_of():
    (finding,) = find(np.array([0.1]), np.array([1.0]), np.array([False]), 0.5, tops=())

    assert finding.alerts == 0
    assert np.isnan(finding.precision)
    assert np.isnan(finding.recall)


def test_the_strongest_reasons_come_first_and_what_lowers_the_score_is_none():
    names = ["amount", "night", "risk"]
    vectors = np.array([[250.0, 1.0, 0.75]])

    (found,) = reasons(vectors, names, lambda _: np.array([[0.5, -2.0, 3.25, -4.0]]))

    assert found == ("risk 0.75 (+3.2)", "amount 250 (+0.5)")
