"""The fault matrix: a row is a fault, how large it is tried, and a function that tries it.

Each module ``bench.chaos.rows_<name>`` holds some rows in its ``ROWS``; all such modules are found
by themselves.
"""

from __future__ import annotations

import importlib
import pkgutil
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bench.chaos.verdict import Verdict
    from headrace.runtime.dev.stack import Endpoints


@dataclass(frozen=True, slots=True)
class Size:
    """How large a row is tried; what a number means to it, the row says.

    Attributes:
        runs: How often the fault strikes.
        events: How many events are sent.
        seconds: How long the fault lasts, where it lasts.

    """

    runs: int = 1
    events: int = 10_000
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a row found; None is what it does not look at.

    Attributes:
        runs: How often the fault struck.
        lost: Events without their outputs.
        duplicated: Outputs that came more often than without faults.
        reordered: Outputs of a key that came before an earlier one of the same key.
        wrong: Outputs with other values than without faults, and records that a reader who looked
            on all the time saw otherwise than one who looked at the end.
        seconds_to_recover: The longest time from the fault's end to the first output committed
            after it; None where the row has no such time.
        met: Whether the row's own figure was reached. That nothing was lost, duplicated, reordered
            or wrong is asked of every row besides.
        note: What was measured, in few words.

    """

    runs: int
    lost: int | None
    duplicated: int | None
    reordered: int | None
    wrong: int
    seconds_to_recover: float | None
    met: bool
    note: str = ""

    @classmethod
    def of(
        cls,
        runs: int,
        verdicts: Sequence[Verdict],
        seconds_to_recover: float | None = None,
        *,
        met: bool = True,
        note: str = "",
    ) -> Outcome:
        """Return the outcome that some scenes' verdicts add up to."""
        assert verdicts, "a row that judged nothing has no outcome"
        return cls(
            runs,
            sum(one.lost for one in verdicts),
            sum(one.duplicated for one in verdicts),
            sum(one.reordered for one in verdicts),
            sum(one.wrong for one in verdicts),
            seconds_to_recover,
            met,
            note,
        )

    @property
    def exact(self) -> bool:
        """Whether the outputs are what they would be without the fault."""
        return not (self.lost or self.duplicated or self.reordered or self.wrong)


@dataclass(slots=True)
class Lab:
    """What a row works with: the infrastructure, a folder of its own, and its seed.

    Attributes:
        endpoints: Where the infrastructure is; of as many brokers as the row asks for.
        stack_folder: Where the infrastructure keeps its data, logs and ``stack.json``.
        folder: Empty; what the row leaves there stays for whoever looks for a cause.
        seed: Of everything that the row draws.
        say: Shows one line of what is going on.
        advance: Tells how many of the row's runs are done.

    """

    endpoints: Endpoints
    stack_folder: Path
    folder: Path
    seed: int
    say: Callable[[str], None] = field(default=lambda _line: None)
    advance: Callable[[int], None] = field(default=lambda _done: None)

    @property
    def random(self) -> random.Random:
        """A new generator; the same one each time."""
        return random.Random(self.seed)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the fault matrix.

    Attributes:
        number: Its number there.
        name: The fault.
        asked: The figure asked for, beside exactness.
        run: Tries it.
        full: The size of the published result.
        ci: The size of ``--ci``; None: not part of it.
        nodes: How many brokers.
        known: Why the figure is known to be missed; then it does not fail the run.

    """

    number: int
    name: str
    asked: str
    run: Callable[[Lab, Size], Outcome]
    full: Size
    ci: Size | None = None
    nodes: int = 1
    known: str | None = None

    def passes(self, outcome: Outcome) -> bool:
        """Return whether the run may go on as good."""
        return outcome.exact and (outcome.met or self.known is not None)


def all_rows() -> dict[int, Row]:
    """Return every row by its number, in order."""
    import bench.chaos

    found: dict[int, Row] = {}
    for module in pkgutil.iter_modules(bench.chaos.__path__):
        if module.name.startswith("rows_"):
            for row in importlib.import_module(f"bench.chaos.{module.name}").ROWS:
                assert row.number not in found, row
                found[row.number] = row
    return dict(sorted(found.items()))
