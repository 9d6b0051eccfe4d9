"""The pictures of docs/time-and-parity.md are those that their script draws, and tell the truth."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from bench.time_picture import (
    EVENT_HOURS,
    PICTURES,
    PICTURES_BY_NAME,
    TTL_HOURS,
    feast_steps,
    history_steps,
    windows,
)


def value_at(steps, hour):
    return [value for start, value in steps if start <= hour][-1]


@pytest.mark.parametrize("name", sorted(PICTURES_BY_NAME))
def test_a_picture_is_what_its_script_draws(name, repository):
    drawn = PICTURES_BY_NAME[name]()

    assert (PICTURES / name).read_text(encoding="utf-8") == drawn, (
        "run python -m bench.time_picture"
    )
    ET.fromstring(drawn)  # noqa: S314 - it is our own text
    assert f"(pictures/{name})" in (repository / "docs" / "time-and-parity.md").read_text()


def test_the_two_lines_meet_at_events_and_part_when_a_window_ends():
    ours, theirs = history_steps(), feast_steps()

    for hour in EVENT_HOURS:
        assert value_at(ours, hour) == value_at(theirs, hour)
    # A day after the second event the window has lost it; Feast has not noticed.
    assert (value_at(ours, 36.0), value_at(theirs, 36.0)) == (3, 4)
    end = EVENT_HOURS[-1] + TTL_HOURS
    assert (value_at(ours, end + 1), value_at(theirs, end + 1)) == (0, None)
    assert windows(np.array([EVENT_HOURS[-1] + 24.0])) == [0]
