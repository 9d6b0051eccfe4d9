"""The demo runs to its end and cleans up, also when it is stopped in the middle."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

DEMO = Path(__file__).parents[2] / "examples" / "fraud" / "demo.py"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def place(tmp_path):
    """Give the demo a temporary folder of its own, in which nothing may stay behind."""
    folder = tmp_path / "t"
    folder.mkdir()
    yield folder
    left = processes_of(folder)
    for process in left:
        process.kill()
    assert not left


def processes_of(folder):
    return [
        process
        for process in psutil.process_iter()
        if any(str(folder) in part for part in command_of(process))
    ]


def command_of(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def start(folder, *arguments):
    # A suite in the background of a shell has SIGINT ignored, and its children would have, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, str(DEMO), "--fast", *arguments],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_demo_trains_scores_accounts_for_it_and_leaves_the_drift_page_only(place):
    demo = start(place)

    output, _ = demo.communicate()

    assert demo.returncode == 0, output
    assert "against the fraud reports" in output
    assert "top 100" in output
    assert "12 of 12 equal the snapshot" in output
    assert re.search(r"headrace explain \S+-\d+-\d+", output)
    assert re.search(r"20[01] of 20[01] the same, scores and vectors, bit for bit", output)
    assert re.search(r"events against fraud/1", output)
    (page,) = place.iterdir()
    assert page.as_uri() in output
    assert "terminal__risk_7d" in page.read_text(encoding="utf-8")
    assert processes_of(place) == []


@pytest.mark.parametrize("last_line", ["Playing the past", "Playing the 2. "])
def test_stopped_in_the_middle_it_leaves_nothing_behind(place, last_line):
    demo = start(place, "--forever")
    seen = []
    for line in demo.stdout:
        seen.append(line)
        if last_line in line:
            break
    demo.send_signal(signal.SIGINT)

    rest, _ = demo.communicate()

    assert demo.returncode == 130, "".join([*seen, rest])
    assert list(place.iterdir()) == []
    assert processes_of(place) == []
