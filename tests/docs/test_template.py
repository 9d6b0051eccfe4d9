"""What the README of a new project says can be done with it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from headrace.cli.init import make_project
from headrace.cli.main import COMMANDS


@pytest.fixture
def folder(tmp_path):
    make_project(tmp_path / "site", "site")
    subprocess.run([sys.executable, "generate.py", "2000"], cwd=tmp_path / "site", check=True)
    return tmp_path / "site"


def blocks(folder, language):
    text = (folder / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_its_python_runs_and_shows_the_features_of_every_event(folder):
    (code,) = blocks(folder, "python")

    done = subprocess.run(
        [sys.executable, "-c", code + "\nassert table.num_rows == 2000, table.num_rows\n"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "vs_usual" in done.stdout


def test_its_commands_exist(folder):
    called = {
        words[1]
        for block in blocks(folder, "")
        for line in block.splitlines()
        if (words := line.split()) and words[0] == "headrace"
    }

    assert {"up", "plan", "apply", "send", "worker", "tail"} <= called
    assert called <= set(COMMANDS)


def test_its_next_steps_are_right(folder):
    definitions = folder / "definitions.py"
    text = definitions.read_text()
    definitions.write_text(
        text.replace("    ],\n", '        hr.max("seconds", over="7d"),\n    ],\n', 1)
    )

    done = subprocess.run(
        [sys.executable, "-m", "headrace.cli.main", "plan"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "visitor__seconds_max_7d" in done.stdout, done.stderr
