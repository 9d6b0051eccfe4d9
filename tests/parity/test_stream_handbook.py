"""The handbook's first 450,000 transactions through Kafka, two workers and a kill.

The first row that loses a row from its 37-day window is number 355,270.
"""

from __future__ import annotations

import pytest
from rich.console import Console

from bench.parity import run

ROWS = 450_000

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def report(shared_data, tmp_path_factory):
    return run(ROWS, shared_data / "fraud", tmp_path_factory.mktemp("parity"), Console())


def test_every_row_comes_and_none_in_two_ways_although_a_worker_was_killed(report):
    assert report.restarts == 1
    assert report.killed_in_the_middle, report.made_at_kill
    assert report.missing == 0
    assert report.differing == 0


def test_every_feature_equals_the_handbook_at_every_row(report):
    assert len(report.handbook) == 14
    assert {found.rows for found in report.handbook} == {ROWS}
    assert [found for found in report.handbook if found.mismatches] == []


def test_history_equals_what_the_stream_emitted_to_the_last_bit(report):
    assert len(report.history) == 15
    assert {found.rows for found in report.history} == {ROWS}
    assert [found for found in report.history if found.mismatches] == []


def test_reports_and_transactions_side_by_side_with_an_outage_give_the_same(shared_data, tmp_path):
    rows = 120_000

    found = run(rows, shared_data / "fraud", tmp_path, Console(), concurrent=True)

    assert found.restarts == found.outages == 1
    assert (found.missing, found.differing) == (0, 0)
    assert {one.rows for one in [*found.handbook, *found.history]} == {rows}
    assert [one for one in [*found.handbook, *found.history] if one.mismatches] == []
