"""Many seeds in some processes, and which of them finds a deliberate fault."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bench.simulate.mutations import MUTATIONS
from bench.simulate.run import simulate
from headrace.runtime.logging import configure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bench.simulate.run import Result

REGRESSIONS = Path(__file__).with_name("regressions.txt")
JOBS = 2
CHUNK = 20
# Seeds within which a mutation must be found.
MUTATION_SEEDS = 1000


def regressions() -> list[int]:
    """Return the seeds that have found something once, and are run first for ever."""
    lines = REGRESSIONS.read_text(encoding="utf-8").splitlines()
    return [int(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]


def run_seeds(seeds: Iterable[int], jobs: int = JOBS) -> list[Result]:
    """Run seeds in some processes and return how they went, in order."""
    with pool(jobs) as processes:
        return list(processes.map(simulate, seeds, chunksize=CHUNK))


def caught_by(name: str, seeds: int = MUTATION_SEEDS) -> tuple[int, str] | None:
    """Return the first seed that finds a mutation, with what it says; None where none does."""
    for seed in range(seeds):
        with MUTATIONS[name].applied():
            result = simulate(seed)
        if result.finding:
            return seed, result.finding
    return None


def catches() -> Iterator[tuple[str, tuple[int, str] | None]]:
    """Yield each mutation with what ``caught_by`` says of it."""
    with pool(JOBS) as processes:
        yield from zip(MUTATIONS, processes.map(caught_by, MUTATIONS), strict=True)


def pool(jobs: int) -> ProcessPoolExecutor:
    """Return processes that run seeds and say nothing."""
    # Not forked: tests have threads.
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), quiet)


def quiet() -> None:
    """Let no log be written: what happens is in the trace."""
    configure(level="critical")
