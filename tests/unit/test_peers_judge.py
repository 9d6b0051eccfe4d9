"""The kill test of peers must see what is lost, doubled, out of order, wrong or not stable."""

from __future__ import annotations

import pytest

from bench.chaos.peers.judge import Seen, judge, recoveries_s

EXPECTED = {"a": 3, "b": 2}


def seen(*rows):
    """Return outputs of one partition from (key, seq, total), appended and read a second apart."""
    return [
        Seen(0, offset, key, seq, total, 1000 * offset, 1000 * offset + 500)
        for offset, (key, seq, total) in enumerate(rows)
    ]


RIGHT = [("a", 1, 1), ("b", 1, 1), ("a", 2, 2), ("a", 3, 3), ("b", 2, 2)]


def test_outputs_of_a_run_without_faults_are_exact():
    assert judge(EXPECTED, seen(*RIGHT), seen(*RIGHT)).exact


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (RIGHT[:-1], {"lost": 1}),
        ([*RIGHT, ("a", 3, 3)], {"duplicated": 1}),
        ([*RIGHT, ("a", 3, 4)], {"duplicated": 1, "wrong": 1}),
        ([*RIGHT[:-1], ("b", 2, 3)], {"wrong": 1}),
        ([RIGHT[2], RIGHT[0], *RIGHT[1:2], *RIGHT[3:]], {"reordered": 1}),
        # Going over a stretch again is no new order: its outputs are duplicates.
        ([*RIGHT, *RIGHT[:2]], {"duplicated": 2}),
        ([*RIGHT, ("c", 1, 1)], {"duplicated": 1}),
    ],
)
def test_each_kind_of_fault_is_counted_as_what_it_is(rows, found):
    verdict = judge(EXPECTED, seen(*rows), seen(*rows))

    kinds = ("lost", "duplicated", "reordered", "wrong", "unstable")
    assert {kind: getattr(verdict, kind) for kind in kinds if getattr(verdict, kind)} == found
    assert not verdict.exact


def test_what_one_reader_sees_alone_is_not_stable():
    assert judge(EXPECTED, seen(*RIGHT), seen(*RIGHT[:-1])).unstable == 1
    assert judge(EXPECTED, seen(*RIGHT[:-1]), seen(*RIGHT)).unstable == 1


def test_a_recovery_ends_with_the_first_output_read_that_was_written_after_the_kill():
    outputs = seen(*RIGHT)

    assert recoveries_s([900, 3_200, 9_999], outputs) == [0.6, 1.3]
