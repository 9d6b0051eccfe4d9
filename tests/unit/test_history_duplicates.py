"""Training equals serving where a tenth of the events is sent twice."""

from __future__ import annotations

import json
import math
import random

import pyarrow as pa
import pytest
from lake_files import lake_project, write_lake, write_rows
from stream_cases import (
    DAY_MS,
    HOUR_MS,
    differences,
    expected,
    make_payments,
    make_reports,
    one_stage,
    two_stages,
)

import headrace as hr
from headrace.lake.log_order import replay_direct
from headrace.lake.repeats import find_repeats
from headrace.lake.stored import open_stored
from headrace.lake.tables import Lake
from headrace.streams.testing import Driver

REPORTS = {"event_id": "report_id", "dedupe": "1d"}
COUNT = 300


def arrivals(rows, seed, time):
    """Return (arrival, row): each when it happened, a tenth once more within the lateness."""
    draw = random.Random(seed)
    pairs = [(row[time], row) for row in rows]
    again = draw.sample(rows, len(rows) // 10)
    pairs += [(row[time] + draw.randint(1, HOUR_MS), row) for row in again]
    return sorted(pairs, key=lambda pair: pair[0])


@pytest.fixture(scope="module", params=["direct", "two stages", "routed"])
def run(request, tmp_path_factory):
    """Return a driver that has read a log with copies, the logs without, and the lake of it."""
    options = {"dedupe": "1d", "lateness": "2h"}
    if request.param == "direct":
        plan = one_stage(**options)
    else:
        routed = {"partitioner": None} if request.param == "routed" else {}
        plan = two_stages(alignment_ms=0, reports_options=REPORTS, **options, **routed)
    payments = make_payments(COUNT, seed=21)
    payments = [row | {"customer_id": row["customer_id"] or "c1"} for row in payments]
    logs = {"payments": payments, "reports": make_reports(payments, seed=22, share=0.5)}
    driver = Driver(plan, partitions=3, batch_rows=17)
    for source in plan.sources:
        time = source.known_at or source.event_time
        # Copies in other partitions, too, where nobody demands that a key has its own.
        anywhere = random.Random(5) if request.param == "routed" else None
        for arrival_ms, row in arrivals(logs[source.name], 23, time):
            partition = anywhere.randrange(3) if anywhere else None
            driver.send(source.name, [row], partition, arrival_time_ms=arrival_ms)
    driver.run()
    folder = tmp_path_factory.mktemp("lake")
    write_lake(folder, driver)
    return driver, logs, lake_project(folder)


def assert_equal(table, snapshots, plan):
    by_id = {int(row["event_id"]): row for row in snapshots.to_pylist()}
    assert len(by_id) == snapshots.num_rows == COUNT, "one output for each event"
    assert sorted(table["payment_id"].to_pylist()) == sorted(by_id)
    for row in table.to_pylist():
        for column in plan.vector:
            assert row[column.name] == by_id[row["payment_id"]][column.name], column.name


def test_the_stream_counts_each_event_once(run):
    driver, logs, _ = run

    assert differences(driver.snapshots(), expected(driver.plan, logs)) == []


@pytest.mark.parametrize("rows_in_memory", [4_000_000, 100])
def test_history_in_event_order_is_what_was_served(run, rows_in_memory):
    driver, _, project = run

    table = hr.history(
        None, driver.plan, project=project, sources="lake", rows_in_memory=rows_in_memory
    )

    assert_equal(table, driver.snapshots(), driver.plan)
    rejected = json.loads(table.schema.metadata[b"headrace.rejected"])
    assert rejected["payments.duplicate"] == COUNT // 10
    assert int(table.schema.metadata[b"headrace.unanswered"]) == COUNT // 10


def test_an_event_asked_by_its_id_is_the_one_that_counted(run):
    driver, _, project = run
    ids = pa.table({"payment_id": list(range(COUNT))})

    table = hr.history(ids, driver.plan, project=project, sources="lake")

    assert_equal(table, driver.snapshots(), driver.plan)
    assert int(table.schema.metadata[b"headrace.unanswered"]) == 0


def test_served_order_gives_the_snapshots_and_nothing_for_copies(run):
    driver, _, project = run

    table = hr.history(None, driver.plan, project=project, as_of="served")

    assert_equal(table, driver.snapshots(), driver.plan)


def test_a_lag_counts_each_event_once(run):
    driver, logs, project = run

    table = hr.history(None, driver.plan, project=project, sources="lake", as_of="3h")

    assert table.num_rows == COUNT
    # Everything arrives within three hours, reports on the day.
    wanted = expected(driver.plan, logs)
    for row in table.to_pylist():
        assert row["customer__count_1d"] == wanted[row["payment_id"]]["customer__count_1d"]


def test_the_log_of_a_direct_stage_computes_what_it_gave(run):
    driver, _, project = run
    plan = driver.plan
    stage = plan.stages[0]
    if not stage.direct:
        return
    table = Lake(project.settings.lake.folder).table("payments")
    reader = open_stored(table, "payments", "event_time")
    snapshots = {
        (row["source_partition"] << 46 | row["source_offset"]): row
        for row in driver.snapshots().to_pylist()
    }
    seen = 0
    for position, numbers in replay_direct(plan, stage, reader):
        for row, place in enumerate(position.tolist()):
            assert numbers["customer__count_1d"][row] == snapshots[place]["customer__count_1d"]
            seen += 1
    assert seen == COUNT


def test_files_with_copies_that_come_days_late_and_conflicts_count_the_first():
    plan = one_stage(dedupe="1d", lateness="2h")
    payments = make_payments(30, seed=4)
    late_copy, other = payments[0], payments[28] | {"amount": 1.0}
    far = payments[29] | {"event_time": payments[29]["event_time"] + 3 * DAY_MS}
    rows = [*payments, late_copy, other, far]
    table = pa.Table.from_pylist(rows).set_column(
        1, "event_time", pa.array([r["event_time"] for r in rows]).cast(pa.timestamp("ms", "UTC"))
    )

    answer = hr.history(None, plan, sources={"payments": table})

    wanted = expected(plan, {"payments": payments})
    for row in answer.to_pylist()[:30]:
        for name, value in wanted[row["payment_id"]].items():
            if name in row:
                assert row[name] == value or (row[name] is None and math.isnan(value))
    assert [row["customer__count_1d"] for row in answer.to_pylist()[30:]][:2] == [None, None]
    # An id that is used again three days on is another event.
    assert answer.to_pylist()[32]["customer__count_1d"] == 1
    rejected = json.loads(answer.schema.metadata[b"headrace.rejected"])
    assert rejected == {"payments.duplicate": 1, "payments.id_conflict": 1}


@pytest.mark.parametrize("rows_in_memory", [4_000_000, 1])
def test_of_copies_in_two_partitions_of_the_lake_the_one_that_came_first_counts(
    tmp_path, rows_in_memory
):
    plan = one_stage(dedupe="1d", partitioner=None)
    payment = make_payments(1, seed=4)[0]
    names = plan.sources[0].columns
    rows = pa.Table.from_pylist([{c.name: payment[c.name] for c in names}] * 3)
    time = rows.schema.names.index("event_time")
    stamp = rows["event_time"].cast(pa.timestamp("ms", "UTC"))
    # The broker's times of partition 1 go back: there the offsets say what came first.
    arrival_ms = [payment["event_time"] + after for after in (900, 500, 100)]
    write_rows(
        tmp_path,
        "payments",
        rows.set_column(time, "event_time", stamp),
        topic_id="id-of-payments",
        partition=[0, 1, 1],
        offset=[0, 0, 1],
        arrival_ms=arrival_ms,
        files=1,
    )
    reader = open_stored(Lake(tmp_path).table("payments"), "payments", "event_time")

    found = find_repeats(plan.sources[0], reader, scored=True, rows_in_memory=rows_in_memory)

    assert found.position.tolist() == [0, (1 << 46) + 1]
    assert found.reasons == {"duplicate": 2}
