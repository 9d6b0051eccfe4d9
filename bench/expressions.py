"""Expressions by numpy against the same loops compiled by numba: docs/adr/0003.

Run: ``python -m bench.expressions``. Prints ns per row and expression, and what the compiler takes.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import pyarrow as pa

import headrace as hr
from headrace.features.expressions import evaluate

if TYPE_CHECKING:
    from collections.abc import Callable

EXPRESSIONS = {
    "amount": hr.col("amount"),
    "night": hr.hour("at") <= 6,
    "weekend": hr.weekday("at") >= 5,
    "vs_mean": hr.col("amount") / hr.feature("v__mean"),
    "capped": hr.where(
        (hr.col("amount") > 100) & (hr.hour("at") <= 6), hr.minimum(hr.col("amount"), 500), 0
    ),
}

# The same, one row at a time, as a generator of numba code would write them.
LOOPS = {
    "amount": "amount[i]",
    "night": "1.0 if at[i] // 3600000 % 24 <= 6 else 0.0",
    "weekend": "1.0 if (at[i] // 86400000 + 3) % 7 >= 5 else 0.0",
    "vs_mean": "nan if mean[i] == 0.0 else amount[i] / mean[i]",
    "capped": (
        "nan if amount[i] != amount[i] else "
        "((amount[i] if amount[i] < 500.0 else 500.0) "
        "if amount[i] > 100.0 and at[i] // 3600000 % 24 <= 6 else 0.0)"
    ),
}


def compiled(expression: str) -> Callable[..., np.ndarray]:
    """Return a numba function of (amount, at, mean) for one expression's text."""
    source = (
        "def loop(amount, at, mean):\n"
        "    out = empty(len(amount))\n"
        "    for i in range(len(amount)):\n"
        f"        out[i] = {expression}\n"
        "    return out\n"
    )
    scope: dict[str, Any] = {"empty": np.empty, "nan": np.nan}
    exec(source, scope)  # noqa: S102 - the texts above
    loop: Callable[..., np.ndarray] = numba.njit(nogil=True)(scope["loop"])
    return loop


def nanoseconds(call: Callable[[], object], rows: int) -> float:
    """Return the best of 7 runs of about 20 ms, in ns per row."""
    repeat = max(1, 2_000_000 // rows)
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(repeat):
            call()
        best = min(best, time.perf_counter() - start)
    return best / repeat / rows * 1e9


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(3)
    loops = {}
    for name, text in LOOPS.items():
        start = time.perf_counter()
        loops[name] = compiled(text)
        loops[name](np.ones(1), np.ones(1, np.int64), np.ones(1))
        print(f"compile {name:8} {time.perf_counter() - start:6.2f} s")
    print(f"{'expression':10} {'rows':>6} {'numpy':>8} {'numba':>8}  ns per row; equal bits")
    for rows in (100, 1_000, 10_000):
        amount = np.round(rng.lognormal(3.5, 1, rows), 2)
        at = rng.integers(1_500_000_000_000, 1_700_000_000_000, rows)
        mean = rng.lognormal(3.5, 1, rows)
        columns = {"amount": pa.array(amount), "at": pa.array(at), "v__mean": mean}
        for name, formula in EXPRESSIONS.items():
            loop, node = loops[name], formula.node
            ours = nanoseconds(partial(evaluate, node, columns, rows), rows)
            theirs = nanoseconds(partial(loop, amount, at, mean), rows)
            equal = np.array_equal(
                evaluate(node, columns, rows).view(np.int64), loop(amount, at, mean).view(np.int64)
            )
            print(f"{name:10} {rows:6} {ours:8.2f} {theirs:8.2f}  {equal}")


if __name__ == "__main__":
    main()
