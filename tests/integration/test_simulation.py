"""The deterministic simulation: a thousand seeds find nothing, deliberate faults are found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench.simulate.__main__ import main
from bench.simulate.chaos import PROCESS_FAULTS, REQUEST_FAULTS
from bench.simulate.mutations import MUTATIONS
from bench.simulate.run import YEAR_MS, simulate
from bench.simulate.seeds import caught_by, regressions, run_seeds

REPOSITORY = Path(__file__).resolve().parents[2]
SEEDS = 1000
FAULTS_MIN = 100


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_seeds_lose_nothing_repeat_nothing_and_change_no_bit():
    results = run_seeds([*regressions(), *range(SEEDS)])

    found = {one.seed: one.finding for one in results if one.finding}
    assert not found
    faults = Counter(fault for one in results for fault in one.faults)
    assert {name: faults[name] > FAULTS_MIN for name in (*PROCESS_FAULTS, *REQUEST_FAULTS)} == (
        dict.fromkeys((*PROCESS_FAULTS, *REQUEST_FAULTS), True)
    )


@pytest.mark.parametrize("name", ["position", "offsets", "state", "seek", "flush"])
def test_a_deliberate_fault_is_found(name):
    assert caught_by(name) is not None


def test_a_deliberate_fault_is_there_only_for_a_while():
    seed, _ = caught_by("offsets") or (0, "")
    assert simulate(seed).finding == ""


def test_a_mutation_replaces_what_is_there():
    for mutation in MUTATIONS.values():
        before = [vars(owner)[name] for owner, name, _ in mutation.replaced]
        with mutation.applied():
            now = [vars(owner)[name] for owner, name, _ in mutation.replaced]
        assert all(a is not b for a, b in zip(before, now, strict=True))


@pytest.mark.parametrize("seed", [3, 17])
def test_the_same_seed_gives_the_same_trace_in_any_process(seed):
    def trace(hash_seed: str) -> str:
        command = [sys.executable, "-m", "bench.simulate", "--seed", str(seed), "--trace"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        ran = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
        )
        return ran.stdout

    first = trace("1")
    assert len(first.splitlines()) > 20
    assert first == trace("2")


def test_a_wall_clock_one_year_later_gives_the_same_bytes():
    for seed in range(12):
        now, later = simulate(seed), simulate(seed, later_ms=YEAR_MS)
        assert now.outputs
        assert now.outputs == later.outputs


def test_the_commands_of_the_page_run(capsys):
    page = (REPOSITORY / "docs" / "simulation.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\./dev simulate *([^#\n]*)", page, re.MULTILINE)
    assert len(commands) >= 4

    for command in commands:
        arguments = command.split()
        if "--mutations" not in arguments and "--seed" not in arguments:
            arguments += ["--seeds", "4", "--jobs", "1"]
        if "--mutations" not in arguments:
            assert main(arguments) == 0
    assert "0 with findings" in capsys.readouterr().out
