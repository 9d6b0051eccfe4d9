"""Simulated card transactions and fraud reports, of any size, from any date, the same for a seed.

Written from the published description of the Fraud-Detection-Handbook's simulator: customers and
terminals lie on a 100 x 100 grid, a customer pays at terminals near by, most of it around noon, and
three kinds of fraud start every day and end again. No code of the book is used. Each day draws from
its own random stream, so a simulation can be continued, and no day depends on how many others are
made.

    python generate.py --days 60 --output data
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from numpy.typing import NDArray

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
GRID = 100.0
RADIUS = 5.0

# Scenario 1: a payment above this amount is a fraud.
LARGE_AMOUNT = 220.0
# Scenario 2: two terminals of 10,000 fall into wrong hands each day, for four weeks.
TERMINALS_PER_DAY = 2 / 10_000
TERMINAL_DAYS = 28
# Scenario 3: three customers of 5,000 lose their card data each day; for two weeks a third of
# their payments are not theirs and five times as large.
CUSTOMERS_PER_DAY = 3 / 5_000
CUSTOMER_DAYS = 14
STOLEN_SHARE = 1 / 3
STOLEN_FACTOR = 5.0

# The random streams of a seed, so that a change to one leaves the others as they are.
_WORLD, _PAYMENTS, _STARTS, _REPORTS = range(4)

TIME = pa.timestamp("ms", tz="UTC")
TRANSACTION_SCHEMA = pa.schema(
    [
        ("transaction_id", pa.int64()),
        ("event_time", TIME),
        ("customer_id", pa.string()),
        ("terminal_id", pa.string()),
        ("amount", pa.float64()),
    ]
)
REPORT_SCHEMA = pa.schema(
    [
        ("report_id", pa.int64()),
        ("transaction_id", pa.int64()),
        ("customer_id", pa.string()),
        ("terminal_id", pa.string()),
        ("event_time", TIME),
        ("known_at", TIME),
        ("is_fraud", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class World:
    """Who pays where: fixed for a seed.

    The terminals near customer c are ``near[near_start[c]:near_start[c + 1]]``.
    """

    seed: int
    mean_amount: NDArray[np.float64]
    payments_per_day: NDArray[np.float64]
    near_start: NDArray[np.int64]
    near: NDArray[np.int32]
    terminal_count: int

    @property
    def customer_count(self) -> int:
        """Number of customers, those without a terminal near by included."""
        return len(self.mean_amount)


@dataclass(frozen=True, slots=True)
class Simulation:
    """Transactions in time order, the reports on the frauds among them by the time they are known.

    ``scenario`` holds, per transaction, 0 for an honest one or the number of the fraud scenario.
    """

    transactions: pa.Table
    reports: pa.Table
    scenario: NDArray[np.int8]


def make_world(customers: int = 5_000, terminals: int = 10_000, seed: int = 0) -> World:
    """Place customers and terminals and draw the customers' habits."""
    rng = np.random.default_rng([seed, _WORLD])
    customer_places = rng.uniform(0.0, GRID, (customers, 2))
    terminal_places = rng.uniform(0.0, GRID, (terminals, 2))
    near_start, near = _near(customer_places, terminal_places)
    return World(
        seed=seed,
        mean_amount=rng.uniform(5.0, 100.0, customers),
        payments_per_day=rng.uniform(0.0, 4.0, customers),
        near_start=near_start,
        near=near,
        terminal_count=terminals,
    )


def _near(
    customers: NDArray[np.float64], terminals: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """List the terminals within ``RADIUS`` of each customer.

    Squares of side ``RADIUS`` keep it linear: only the nine squares around a customer matter.
    """
    side = int(GRID / RADIUS)
    customer_square = np.minimum((customers / RADIUS).astype(np.int64), side - 1)
    terminal_square = np.minimum((terminals / RADIUS).astype(np.int64), side - 1)
    owners: list[NDArray[np.int64]] = []
    found: list[NDArray[np.int64]] = []
    for x in range(side):
        column = np.flatnonzero(np.abs(terminal_square[:, 0] - x) <= 1)
        for y in range(side):
            here = np.flatnonzero((customer_square == (x, y)).all(axis=1))
            around = column[np.abs(terminal_square[column, 1] - y) <= 1]
            distance = customers[here, None] - terminals[None, around]
            row, index = np.nonzero((distance**2).sum(axis=2) < RADIUS**2)
            owners.append(here[row])
            found.append(around[index])
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    start = np.zeros(len(customers) + 1, np.int64)
    np.cumsum(np.bincount(owner, minlength=len(customers)), out=start[1:])
    return start, np.concatenate(found)[order].astype(np.int32)


def simulate(
    world: World, start_ms: int, days: int, first_day: int = 0, first_id: int = 0
) -> Simulation:
    """Make the transactions of some consecutive days, and the reports on their frauds.

    Args:
        world: The customers and terminals.
        start_ms: Midnight of day 0, epoch ms UTC.
        days: How many days to make, >= 1.
        first_day: The first of them; the frauds that started earlier go on.
        first_id: Id of the first transaction and of the first report, to continue a simulation.

    Returns:
        The transactions in time order with ascending ids; the reports by ``known_at``.

    Cost: about 1 s per million transactions.
    """
    parts = [_day(world, day) for day in range(first_day, first_day + days)]
    time_ms = np.concatenate([start_ms + part.time_ms for part in parts])
    customer = np.concatenate([part.customer for part in parts])
    terminal = np.concatenate([part.terminal for part in parts])
    amount = np.concatenate([part.amount for part in parts])
    scenario = np.concatenate([part.scenario for part in parts])
    delay_ms = np.concatenate([part.delay_ms for part in parts])
    ids = first_id + np.arange(len(time_ms))
    transactions = pa.table(
        [
            pa.array(ids),
            pa.array(time_ms).cast(TIME),
            _names("C", world.customer_count, customer),
            _names("T", world.terminal_count, terminal),
            pa.array(amount),
        ],
        schema=TRANSACTION_SCHEMA,
    )
    frauds = np.flatnonzero(scenario)
    frauds = frauds[np.argsort((time_ms + delay_ms)[frauds], kind="stable")]
    known = transactions.take(pa.array(frauds))
    reports = pa.table(
        [
            pa.array(first_id + np.arange(len(frauds))),
            known["transaction_id"],
            known["customer_id"],
            known["terminal_id"],
            known["event_time"],
            pa.array((time_ms + delay_ms)[frauds]).cast(TIME),
            pa.array(np.ones(len(frauds), np.bool_)),
        ],
        schema=REPORT_SCHEMA,
    )
    return Simulation(transactions, reports, scenario)


@dataclass(frozen=True, slots=True)
class _Day:
    time_ms: NDArray[np.int64]
    customer: NDArray[np.int64]
    terminal: NDArray[np.int64]
    amount: NDArray[np.float64]
    scenario: NDArray[np.int8]
    delay_ms: NDArray[np.int64]


def _day(world: World, day: int) -> _Day:
    """Make one day, in time order; times count from midnight of day 0."""
    rng = np.random.default_rng([world.seed, _PAYMENTS, day])
    choices = np.diff(world.near_start)
    habit = np.where(choices > 0, world.payments_per_day, 0.0)
    customer = np.repeat(np.arange(world.customer_count), rng.poisson(habit))
    time_ms = np.rint(rng.normal(DAY_MS / 2, 20_000_000.0, len(customer))).astype(np.int64)
    # What falls outside the day does not take place.
    inside = (time_ms > 0) & (time_ms < DAY_MS)
    customer, time_ms = customer[inside], time_ms[inside]
    order = np.argsort(time_ms, kind="stable")
    customer, time_ms = customer[order], time_ms[order]

    mean = world.mean_amount[customer]
    drawn = rng.normal(mean, mean / 2)
    amount = np.where(drawn < 0.0, rng.uniform(0.0, 2 * mean), drawn).round(2)
    pick = (rng.random(len(customer)) * choices[customer]).astype(np.int64)
    terminal = world.near[world.near_start[customer] + pick].astype(np.int64)

    scenario = np.where(amount > LARGE_AMOUNT, 1, 0).astype(np.int8)
    scenario[_struck(world, day, terminal, "terminal")] = 2
    stolen = _struck(world, day, customer, "customer") & (rng.random(len(customer)) < STOLEN_SHARE)
    scenario[stolen] = 3
    amount[stolen] = (amount[stolen] * STOLEN_FACTOR).round(2)
    # Known after an hour at the soonest, mostly within three days, never after seven.
    delay_rng = np.random.default_rng([world.seed, _REPORTS, day])
    delay_ms = delay_rng.triangular(HOUR_MS, DAY_MS, 7 * DAY_MS, len(customer)).astype(np.int64)
    return _Day(day * DAY_MS + time_ms, customer, terminal, amount, scenario, delay_ms)


def _struck(world: World, day: int, who: NDArray[np.int64], kind: str) -> NDArray[np.bool_]:
    """Say which of ``who`` are compromised on the day: those struck on it or shortly before."""
    if kind == "terminal":
        count, per_day, lasting = world.terminal_count, TERMINALS_PER_DAY, TERMINAL_DAYS
    else:
        count, per_day, lasting = world.customer_count, CUSTOMERS_PER_DAY, CUSTOMER_DAYS
    struck = np.zeros(count, np.bool_)
    for start in range(max(0, day - lasting + 1), day + 1):
        rng = np.random.default_rng([world.seed, _STARTS, int(kind == "terminal"), start])
        # Whole numbers that add up to the rate, also where a small world has less than one a day.
        quota = int((start + 1) * count * per_day) - int(start * count * per_day)
        struck[rng.choice(count, quota, replace=False)] = True
    return struck[who]


def _names(prefix: str, count: int, index: NDArray[np.int64]) -> pa.Array:
    """Write indices as fixed-width ids such as ``C00042``."""
    width = max(5, len(str(count - 1)))
    names = pa.array([f"{prefix}{number:0{width}d}" for number in range(count)])
    return names.take(pa.array(index))


def write(simulation: Simulation, folder: Path) -> None:
    """Write ``transactions.parquet`` and ``reports.parquet`` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(simulation.transactions, folder / "transactions.parquet", compression="zstd")
    pq.write_table(simulation.reports, folder / "reports.parquet", compression="zstd")


def main() -> None:
    """Make the files from the command line."""
    parser = argparse.ArgumentParser(description="Simulate card transactions and fraud reports.")
    parser.add_argument("--customers", type=int, default=5_000)
    parser.add_argument("--terminals", type=int, default=10_000)
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--start", default="2026-01-01", help="first day, YYYY-MM-DD, UTC")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data")
    options = parser.parse_args()
    start = datetime.fromisoformat(options.start).replace(tzinfo=UTC)
    world = make_world(options.customers, options.terminals, options.seed)
    simulation = simulate(world, int(start.timestamp() * 1000), options.days)
    write(simulation, options.output)
    sys.stdout.write(
        f"{simulation.transactions.num_rows:,} transactions, {simulation.reports.num_rows:,} "
        f"of them frauds, in {options.output}\n"
    )


if __name__ == "__main__":
    main()
