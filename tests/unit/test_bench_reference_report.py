"""A bench's exit code follows the bounds that decide, and only them."""

from __future__ import annotations

import json
import os
import time

import pytest

from bench.measure import TreeSampler
from bench.report import Bound, exit_code, write_json


@pytest.mark.parametrize(
    ("figure", "at_least", "decides", "verdict", "code"),
    [
        (0.40, True, True, "ok", 0),
        (0.39, True, True, "missed", 1),
        (0.39, False, True, "ok", 0),
        (0.41, False, True, "missed", 1),
        (0.41, False, False, "missed (reported)", 0),
        (None, True, True, "not measured", 0),
    ],
)
def test_a_bound_decides_by_its_own_direction(figure, at_least, decides, verdict, code):
    bound = Bound("ratio", figure, 0.40, at_least=at_least, decides=decides)

    assert bound.verdict == verdict
    assert exit_code([bound]) == code


def test_a_run_is_kept_with_its_machine_and_verdicts(tmp_path):
    path = tmp_path / "runs" / "card.json"
    write_json(path, "card", {"events": 3}, [Bound("ratio", 0.5, 0.4, at_least=True)])

    content = json.loads(path.read_text())

    assert content["events"] == 3
    assert content["machine"]["cores"] == os.cpu_count()
    assert content["bounds"][0]["verdict"] == "ok"


def test_the_sampler_sees_what_this_process_burns_and_no_more():
    sampler = TreeSampler(os.getpid())
    while sampler.cpu_s_between(0, 1e12) < 0.2:
        sum(range(1_000))
    sampler.stop()

    assert sampler.cpu_s_between(0, 1e12) <= time.process_time() + 0.05
    assert sampler.rss_mib_max > 10
