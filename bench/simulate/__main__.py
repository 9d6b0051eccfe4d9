"""``./dev simulate``: seeds, each a run of the real source over Kafka in memory, full of faults."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from bench.simulate.mutations import MUTATIONS
from bench.simulate.run import simulate
from bench.simulate.seeds import JOBS, MUTATION_SEEDS, catches, quiet, regressions, run_seeds

if TYPE_CHECKING:
    from collections.abc import Sequence

SEEDS = 1000


def main(arguments: Sequence[str]) -> int:
    """Run what the command line says and return the exit code: 1 where something was found."""
    options = _options(arguments)
    if options.mutations:
        return _mutations()
    if options.seed is not None:
        return _one(options.seed, trace=options.trace)
    seeds = [*regressions(), *range(options.start, options.start + options.seeds)]
    started_s = time.perf_counter()
    results = run_seeds(seeds, options.jobs)
    found = [result for result in results if result.finding]
    for result in found:
        print(f"seed {result.seed}: {result.finding}")
        print(f"  again: ./dev simulate --seed {result.seed} --trace")
    faults = Counter(fault for result in results for fault in result.faults)
    told = ", ".join(f"{count} {name}" for name, count in sorted(faults.items()))
    virtual_s = sum(result.virtual_s for result in results)
    print(
        f"{len(results):,} seeds, {virtual_s / 3600:.1f} virtual hours in"
        f" {time.perf_counter() - started_s:.1f} s: {len(found)} with findings"
    )
    print(f"faults: {told}")
    return 1 if found else 0


def _one(seed: int, *, trace: bool) -> int:
    result = simulate(seed, trace=trace)
    for line in result.trace:
        print(line)
    print(
        f"seed {seed}: {result.finding or 'all right'} ({', '.join(result.faults) or 'no faults'})"
    )
    return 1 if result.finding else 0


def _mutations() -> int:
    print(f"{'mutation':<22}{'found by seed':<16}what is wrong on purpose")
    missed = 0
    for name, caught in catches():
        missed += caught is None
        seed = f"none of {MUTATION_SEEDS}" if caught is None else str(caught[0])
        print(f"{name:<22}{seed:<16}{MUTATIONS[name].about}", flush=True)
        if caught is not None:
            print(f"{'':<38}{caught[1][:120]}")
    return 1 if missed else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many (default: %(default)s)")
    parser.add_argument("--from", type=int, default=0, dest="start", help="the first one")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--trace", action="store_true", help="with --seed: all that happens")
    parser.add_argument("--jobs", type=int, default=JOBS, help="processes (default: %(default)s)")
    parser.add_argument("--mutations", action="store_true", help="whether deliberate faults show")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    quiet()
    sys.exit(main(sys.argv[1:]))
