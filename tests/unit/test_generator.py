"""The simulated transactions have the statistics of the published description."""

from __future__ import annotations

import numpy as np
import pytest

from examples.fraud.generate import DAY_MS, World, make_world, simulate

SEED = 20
START_MS = 1_767_225_600_000  # 2026-01-01
DAYS = 60


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(seed=SEED)


@pytest.fixture(scope="module")
def simulation(world):
    return simulate(world, START_MS, DAYS)


def epoch_ms(table, column):
    return table[column].cast("int64").to_numpy()


def test_all_customers_have_the_published_habits_and_terminals_near_by(world):
    assert world.mean_amount.min() >= 5.0
    assert world.mean_amount.max() <= 100.0
    assert world.payments_per_day.max() <= 4.0
    assert abs(world.payments_per_day.mean() - 2.0) < 0.05
    # A circle of radius 5 on the grid holds 78.5 of 10,000 terminals; less at the border.
    assert 70 < np.diff(world.near_start).mean() < 78.5


def test_the_squares_find_the_same_terminals_as_comparing_every_pair():
    world = make_world(customers=300, terminals=400, seed=SEED)
    rng = np.random.default_rng([SEED, 0])
    customers = rng.uniform(0, 100, (300, 2))
    terminals = rng.uniform(0, 100, (400, 2))
    distance = np.sqrt(((customers[:, None] - terminals[None]) ** 2).sum(axis=2))

    for customer in range(300):
        near = world.near[world.near_start[customer] : world.near_start[customer + 1]]

        assert sorted(near) == list(np.flatnonzero(distance[customer] < 5.0))


def test_ids_and_times_ascend_and_stay_in_the_days_asked_for(simulation):
    time_ms = epoch_ms(simulation.transactions, "event_time")
    ids = simulation.transactions["transaction_id"].to_numpy()

    assert (np.diff(time_ms) >= 0).all()
    assert (ids == np.arange(len(ids))).all()
    assert time_ms[0] > START_MS
    assert time_ms[-1] < START_MS + DAYS * DAY_MS


def test_days_are_equally_busy_and_noon_is_the_busiest_time(simulation):
    time_ms = epoch_ms(simulation.transactions, "event_time") - START_MS
    per_day = np.bincount(time_ms // DAY_MS)
    of_day_s = time_ms % DAY_MS / 1000

    # 5,000 customers with 2 payments on average, 3 % of which fall outside the day.
    assert len(per_day) == DAYS
    assert abs(per_day.mean() / 9_690 - 1) < 0.03
    assert per_day.std() < 3 * np.sqrt(9_690)
    assert abs(of_day_s.mean() - 43_200) < 200
    assert abs(of_day_s.std() - 18_200) < 200


def test_amounts_are_cents_and_have_the_published_distribution(simulation):
    amount = simulation.transactions["amount"].to_numpy()
    honest = amount[simulation.scenario == 0]

    assert (amount >= 0).all()
    assert (amount == np.round(amount, 2)).all()
    assert abs(honest.mean() - 53.0) < 1.5
    assert honest.max() <= 220.0


def test_each_fraud_scenario_has_its_published_share(simulation):
    # The published set of the same length and size holds 973, 9,077 and 4,631 frauds in 183 days;
    # the first weeks hold fewer of the scenarios that last.
    count = np.bincount(simulation.scenario, minlength=4)
    late = epoch_ms(simulation.transactions, "event_time") >= START_MS + 30 * DAY_MS
    share = np.bincount(simulation.scenario[late], minlength=4) / late.sum()

    assert len(count) == 4
    assert 0.0003 < share[1] < 0.0009
    assert 0.0044 < share[2] < 0.0066
    assert 0.0022 < share[3] < 0.0034


def test_large_amounts_are_frauds_of_the_first_scenario_unless_another_took_them(
    simulation,
):
    amount = simulation.transactions["amount"].to_numpy()

    assert (simulation.scenario[amount > 220.0] > 0).all()
    assert (amount[simulation.scenario == 1] > 220.0).all()


def test_a_compromised_terminal_defrauds_everybody_for_four_weeks_and_then_stops(
    simulation,
):
    terminal = simulation.transactions["terminal_id"].to_numpy(zero_copy_only=False)
    day = (epoch_ms(simulation.transactions, "event_time") - START_MS) // DAY_MS
    fraud = simulation.scenario == 2
    name = terminal[np.flatnonzero(fraud & (day >= 28) & (day < 32))[0]]
    days = np.unique(day[fraud & (terminal == name)])
    between = (terminal == name) & (day >= days[0]) & (day <= days[-1])

    assert days[-1] - days[0] < 2 * 28
    # Stolen cards of the third scenario count as such also at this terminal.
    assert (simulation.scenario[between] >= 2).mean() > 0.95


def test_a_third_of_the_payments_of_a_stolen_card_are_five_times_as_large(simulation, world):
    amount = simulation.transactions["amount"].to_numpy()
    customer = simulation.transactions["customer_id"].to_numpy(zero_copy_only=False)
    index = np.array([int(name[1:]) for name in customer])
    stolen = simulation.scenario == 3

    factor = amount[stolen] / world.mean_amount[index[stolen]]

    assert abs(factor.mean() / 5.0 - 1) < 0.05


def test_every_fraud_is_reported_once_within_seven_days_and_nothing_else(simulation):
    reports = simulation.reports
    delay_ms = epoch_ms(reports, "known_at") - epoch_ms(reports, "event_time")
    frauds = np.flatnonzero(simulation.scenario)

    assert sorted(reports["transaction_id"].to_pylist()) == list(frauds)
    assert delay_ms.min() >= 3_600_000
    assert delay_ms.max() <= 7 * DAY_MS
    assert (np.diff(epoch_ms(reports, "known_at")) >= 0).all()
    for column in ("customer_id", "terminal_id", "event_time"):
        of_transaction = simulation.transactions[column].take(reports["transaction_id"])
        assert reports[column].equals(of_transaction)


def test_a_seed_makes_the_same_events_and_another_seed_others():
    def made(seed):
        return simulate(make_world(200, 400, seed), START_MS, 5)

    assert made(1).transactions.equals(made(1).transactions)
    assert made(1).reports.equals(made(1).reports)
    assert not made(1).transactions.equals(made(2).transactions)


def test_a_simulation_in_two_parts_equals_one_in_one_part():
    world = make_world(500, 1_000, SEED)
    whole = simulate(world, START_MS, 50)
    first = simulate(world, START_MS, 20)
    rest = simulate(world, START_MS, 30, first_day=20, first_id=first.transactions.num_rows)

    assert whole.transactions.slice(0, first.transactions.num_rows).equals(first.transactions)
    assert (
        whole.transactions.slice(first.transactions.num_rows)
        .combine_chunks()
        .equals(rest.transactions)
    )
    assert (whole.scenario == np.concatenate([first.scenario, rest.scenario])).all()


def test_the_fraud_rate_of_a_small_world_is_that_of_a_large_one():
    share = (simulate(make_world(500, 1_000, SEED), START_MS, 183).scenario > 0).mean()

    assert abs(share / 0.0085 - 1) < 0.25
