"""The status of a value: who vouches for it, and how old it is."""

from __future__ import annotations

import pytest

from headrace.features.store.freshness import EXPIRED, FRESH, MISSING, STALE, Witness
from headrace.features.store.layout import Fence
from headrace.features.store.port import Marker

NOW, REACH, PATIENCE = 1_000_000_000, 86_400_000, 10_000


def marker(lineage=5, complete=True, silent_ms=0, ahead_ms=0):
    return Marker(lineage, 70, complete, NOW - silent_ms, ahead_ms)


def fence(lineage=5, partition=0):
    return Fence(lineage, 60, NOW, partition)


#             markers                                fence             age           status
CASES = {
    "live": ({0: marker()}, fence(), 5, FRESH),
    "just heard of": ({0: marker(silent_ms=PATIENCE)}, fence(), 5, FRESH),
    "silent": ({0: marker(silent_ms=PATIENCE + 1)}, fence(), 5, STALE),
    "not complete": ({0: marker(complete=False)}, fence(), 5, STALE),
    "no marker": ({}, fence(), 5, STALE),
    "of another lineage": ({0: marker(lineage=6)}, fence(), 5, STALE),
    "not of a worker": ({0: marker()}, None, 5, STALE),
    "another partition is silent": ({0: marker(), 1: marker(silent_ms=99_999)}, fence(), 5, FRESH),
    "its own partition is silent": ({0: marker(silent_ms=99_999), 1: marker()}, fence(), 5, STALE),
    "at its reach": ({0: marker()}, fence(), REACH, EXPIRED),
    "just before its reach": ({0: marker()}, fence(), REACH - 1, FRESH),
    "old and silent": ({0: marker(silent_ms=99_999)}, fence(), REACH, STALE),
}


@pytest.mark.parametrize("name", CASES)
def test_status_of_a_value(name):
    markers, own, age_ms, status = CASES[name]

    witness = Witness(markers, NOW, PATIENCE)

    assert witness.judge(witness.believe(own), NOW - age_ms, REACH) == (status, age_ms)


ABSENT = {
    "all live": ({0: marker(), 1: marker()}, MISSING),
    "one silent": ({0: marker(), 1: marker(silent_ms=99_999)}, STALE),
    "one being rebuilt": ({0: marker(complete=False), 1: marker()}, STALE),
    "nobody": ({}, STALE),
}


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_absent_is_missing_only_if_all_writers_say_they_are_complete(name):
    markers, status = ABSENT[name]

    witness = Witness(markers, NOW, PATIENCE)

    assert witness.judge(witness.believe(None), None, REACH) == (status, None)


def test_a_value_ages_by_the_clock_of_its_stream():
    # A replay of events of ten days ago: the stream's clock is that far behind.
    behind = {0: marker(ahead_ms=-10 * REACH)}

    witness = Witness(behind, NOW, PATIENCE)
    found = witness.judge(witness.believe(fence()), NOW - 10 * REACH - 7, REACH)

    assert found == (FRESH, 7)
