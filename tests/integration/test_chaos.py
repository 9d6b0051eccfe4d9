"""A small part of ``./dev chaos`` on the real broker, and that it sees harm where there is some."""

from __future__ import annotations

import pytest

from bench.chaos.reader import OUTPUTS
from bench.chaos.rows import Lab, Size, all_rows
from bench.chaos.scene import Scene, wait

SEED = 11


@pytest.fixture
def lab(stack, tmp_path, unique_name):
    folder = tmp_path / unique_name.replace("_", "-")
    folder.mkdir()
    return Lab(stack, tmp_path, folder, SEED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "size", "timed"),
    [
        (1, Size(runs=4, events=2_000), False),
        (7, Size(runs=3, events=900), False),
        # Longer than a session: the worker loses its partitions while it waits.
        (10, Size(runs=1, events=300, seconds=12.0), True),
        # Whether the other comes before so small a state is there is a matter of time.
        (14, Size(runs=1, events=20_000), True),
        (19, Size(runs=1, events=900), False),
        # The second of its tries makes a state from the lake.
        (21, Size(runs=2, events=2_000), False),
        (23, Size(runs=2, events=3_000), False),
        (25, Size(runs=1, events=1_000, seconds=2.0), False),
    ],
)
def test_outputs_are_those_of_a_run_without_faults(lab, number, size, timed):
    row = all_rows()[number]

    outcome = row.run(lab, size)

    assert outcome.runs == size.runs
    assert outcome.exact, outcome
    # How long something takes is asked of `./dev chaos`, on a machine that does nothing else.
    assert timed or outcome.met, outcome


@pytest.mark.slow
def test_what_comes_twice_without_transactions_is_seen(lab):
    stream = {"guarantee": "at_least_once", "commit_interval_ms": 60_000}
    with Scene(lab, "s", stream=stream) as scene:
        worker = scene.started()
        scene.send(500)
        for name in OUTPUTS:
            wait(lambda name=name: len(scene.reader.records(name)) == 500, f"all {name}")
        worker.kill()
        scene.started()
        verdict = scene.verdict()

    # A prediction and a snapshot of each.
    assert verdict.duplicated == 2 * 500
    assert (verdict.lost, verdict.wrong) == (0, 0)
