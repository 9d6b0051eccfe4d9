"""``as_of="served"`` is what the stream emitted, bit for bit; the audit says why it differs."""

from __future__ import annotations

import dataclasses
import math
import struct

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from lake_files import lake_project, send_shuffled, write_lake
from stream_cases import HOUR_MS, SCHEMAS, make_payments, make_reports, one_stage, two_stages

import headrace as hr
from headrace.features.compiler import compile_pipeline
from headrace.lake.errors import HistoryError
from headrace.lake.log_order import replay_direct
from headrace.lake.stored import open_stored
from headrace.lake.tables import Lake, snapshots_table
from headrace.runtime import topics
from headrace.streams.testing import Driver, once

ROWS = 400


def bits(value):
    return None if value is None or math.isnan(value) else struct.pack("<d", value)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return drivers that read payments up to an hour late, crashed now and then, and the lakes.

    Where there is one stage some are later than the stream allows.
    """
    made = {}
    payments = make_payments(ROWS, seed=11, step_ms=300_000)
    for name, plan in (("one", one_stage()), ("two", two_stages(delay="0s"))):
        driver = Driver(plan, partitions=2, seed=3, batch_rows=20)
        stragglers = 0.05 if name == "one" else 0.0
        send_shuffled(driver, "payments", payments, 5, HOUR_MS, stragglers)
        if name == "two":
            reports = make_reports(payments, seed=6, known_after_ms=2 * HOUR_MS)
            for row in sorted(reports, key=lambda row: row["known_at"]):
                driver.send("reports", [row], arrival_time_ms=row["known_at"])
        driver.run(crash_odds=0.1)
        folder = tmp_path_factory.mktemp(name)
        write_lake(folder, driver)
        made[name] = (driver, folder, lake_project(folder))
    return made


def emitted(driver):
    """Return the snapshots by event id, as the topic holds them."""
    return {int(row["event_id"]): row for row in once(driver.snapshots()).to_pylist()}


def vector_names(plan):
    ages = [f"{age.view}__age_ms" for stage in plan.stages for age in stage.ages]
    return [column.name for column in plan.vector] + ages


def assert_served(table, snapshots, names):
    for row in table.to_pylist():
        for name in names:
            wanted = snapshots[row["payment_id"]][name]
            assert bits(row[name]) == bits(wanted), (row["payment_id"], name)


@pytest.mark.parametrize("which", ["one", "two"])
@pytest.mark.parametrize("rows_in_memory", [4_000_000, 100])
def test_every_emitted_snapshot_comes_back_bit_for_bit(runs, which, rows_in_memory):
    driver, _, project = runs[which]
    snapshots = emitted(driver)
    assert driver.snapshots().num_rows > len(snapshots), "crashes have repeated some"

    table = hr.history(
        None,
        driver.plan,
        project=project,
        as_of="served",
        ages=True,
        rows_in_memory=rows_in_memory,
    )

    assert sorted(table["payment_id"].to_pylist()) == sorted(snapshots)
    assert_served(table, snapshots, vector_names(driver.plan))
    times = table["event_time"].to_pylist()
    assert times == sorted(times)
    for column in driver.plan.vector:
        kind = pa.int64() if column.dtype == "int64" else pa.float64()
        assert table.schema.field(column.name).type == kind


def test_rows_by_id_come_in_the_order_of_the_spine_and_late_ones_are_null(runs):
    driver, _, project = runs["one"]
    snapshots = emitted(driver)
    late = set(range(ROWS)) - set(snapshots)
    assert late, "some came more than an hour behind"
    ids = [17, 3, *sorted(late)[:2], 17]

    table = hr.history(pa.table({"payment_id": ids}), driver.plan, project=project, as_of="served")

    known = table.filter(pa.array([i not in late for i in ids]))
    assert table["payment_id"].to_pylist() == ids
    assert_served(known, snapshots, [column.name for column in driver.plan.vector])
    unknown = table.filter(pa.array([i in late for i in ids]))
    assert set(unknown["customer__count_1d"].to_pylist()) == {None}
    assert table.schema.metadata[b"headrace.unanswered"] == b"2"


def test_a_bare_row_takes_the_keys_last_snapshot_up_to_its_time(runs):
    driver, _, project = runs["two"]
    rows = once(driver.snapshots()).to_pylist()
    draw = np.random.default_rng(2)
    start = min(row["event_time"] for row in rows)
    hours = draw.integers(0, 24 * 14, 40)
    spine = pa.table(
        {
            "customer_id": pa.array([f"c{n}" for n in draw.integers(1, 14, 40)]),
            "terminal_id": pa.array(draw.integers(1, 8, 40)),
            "event_time": pa.array([start] * 40),
        }
    )
    times = (spine["event_time"].cast(pa.int64()).to_numpy() // 1_000) + hours * HOUR_MS
    # Half of them at the very time of one of the key's snapshots.
    for row in range(20):
        mine = [r for r in rows if r["customer_key"] == spine["customer_id"][row].as_py()]
        if mine:
            times[row] = int(mine[len(mine) // 2]["event_time"].timestamp() * 1_000 + 0.5)
    times = pa.array(times)
    spine = spine.set_column(2, "event_time", times.cast(pa.timestamp("ms", "UTC")))
    features = [f.name for stage in driver.plan.stages for f in stage.features]
    views = dataclasses.replace(
        driver.plan, vector=tuple(c for c in driver.plan.vector if c.name in features)
    )

    table = hr.history(spine, views, project=project, as_of="served")

    seen = 0
    for row in table.to_pylist():
        for entity in ("customer", "terminal"):
            key = str(row[f"{entity}_id"])
            mine = [
                one
                for one in rows
                if one[f"{entity}_key"] == key and one["event_time"] <= row["event_time"]
            ]
            last = max((one["event_time"] for one in mine), default=None)
            candidates = [one for one in mine if one["event_time"] == last]
            for name in (n for n in features if n.startswith(entity)):
                wanted = {bits(one[name]) for one in candidates} or {None}
                assert bits(row[name]) in wanted
                seen += bool(candidates)
    assert seen > 100


def test_the_log_replayed_in_the_order_of_its_offsets_gives_the_snapshots(runs):
    driver, folder, _ = runs["one"]
    plan = driver.plan
    reader = open_stored(Lake(folder).table("payments"), "payments", "event_time")
    places = {
        (row["source_partition"], row["source_offset"]): row
        for row in once(driver.snapshots()).to_pylist()
    }

    compared = 0
    for position, numbers in replay_direct(plan, plan.stages[0], reader):
        for index, place in enumerate(position.tolist()):
            wanted = places[place >> 46, place & ((1 << 46) - 1)]
            compared += 1
            for name, values in numbers.items():
                assert bits(values[index]) == bits(wanted[name])

    assert compared == len(places)


def widened(driver):
    """The same customers' view with one feature more, which nobody has served yet."""
    source = hr.Source(
        "payments",
        key="customer_id",
        event_time="event_time",
        event_id="payment_id",
        partitioner="murmur2",
    )
    view = hr.FeatureView(
        "customer",
        entity=hr.Entity("customer", key="customer_id"),
        source=source,
        features=[
            hr.count(over=["6h", "1d"]),
            hr.mean("amount", over=["6h", "1d"]),
            hr.max("amount", over=["1d"]),
        ],
    )
    pipeline = hr.Pipeline(driver.plan.name, source, [view], request={"amount": hr.col("amount")})
    return compile_pipeline(pipeline, SCHEMAS)


def test_a_feature_that_no_snapshot_has_is_computed_in_log_order(runs):
    driver, folder, project = runs["one"]
    plan = widened(driver)

    table = hr.history(None, plan, project=project, as_of="served")

    # An independent run of the stream with the new definitions over the same log.
    again = Driver(plan, partitions=2, batch_rows=50)
    for partition, log in enumerate(driver._logs["payments"]):
        for message in log:
            again.send_raw("payments", partition, message)
    again.run()
    assert_served(table, emitted(again), ["customer__amount_max_1d", "customer__count_1d"])
    assert b"headrace.other_definitions" in table.schema.metadata
    assert folder.exists()


def test_a_re_keyed_feature_that_no_snapshot_has_is_refused(runs):
    driver, _, project = runs["two"]
    stage = driver.plan.stages[1]
    feature = dataclasses.replace(stage.features[0], name="terminal__new")
    stages = (driver.plan.stages[0], dataclasses.replace(stage, features=(feature,)))
    column = dataclasses.replace(driver.plan.vector[2], name="terminal__new", kind="feature")
    plan = dataclasses.replace(driver.plan, stages=stages, vector=(column,))

    with pytest.raises(HistoryError, match=r"terminal__new.*does not read its source itself"):
        hr.history(None, plan, project=project, as_of="served")


def test_served_over_files_is_refused(runs):
    driver, _, project = runs["one"]
    table = pa.Table.from_pylist(make_payments(3, seed=1))

    with pytest.raises(HistoryError, match="as_of='served' must be asked of the lake"):
        hr.history(None, driver.plan, project=project, sources={"payments": table}, as_of="served")


def brute_force(driver, project, names):
    """Return the ids whose two values differ, by comparing all of them."""
    event = hr.history(None, driver.plan, project=project).to_pylist()
    snapshots = emitted(driver)
    return {
        row["payment_id"]
        for row in event
        if row["payment_id"] in snapshots
        and any(bits(row[n]) != bits(snapshots[row["payment_id"]][n]) for n in names)
    }


@pytest.mark.parametrize("which", ["one", "two"])
def test_an_audit_counts_what_differs_and_explains_all_of_it(runs, which):
    driver, _, project = runs[which]
    names = [column.name for column in driver.plan.vector]
    differing = brute_force(driver, project, names)

    found = hr.audit(driver.plan, project=project)

    assert found.rows == ROWS
    assert found.compared == len(emitted(driver))
    assert found.differing == len(differing) > 10
    assert found.causes["unexplained"] == 0
    assert found.causes["order"] > 0
    assert (found.causes["too_late"] > 0) == (which == "one")
    assert sum(found.causes.values()) == found.differing
    assert found.features["amount"] == 0
    counts = found.table().to_pylist()
    assert {row["feature"]: row["differing"] for row in counts} == found.features
    if which == "two":
        assert sum(found.causes[cause] for cause in ("label", "other_partition")) > 0


def test_an_audit_in_parts_finds_what_the_whole_finds(runs):
    driver, _, project = runs["one"]
    times = [row["event_time"] for row in driver.snapshots().to_pylist()]
    middle = sorted(times)[len(times) // 2]

    whole = hr.audit(driver.plan, project=project)
    cut = hr.audit(driver.plan, project=project, rows_in_memory=50)
    parts = [
        hr.audit(driver.plan, project=project, end=middle),
        hr.audit(driver.plan, project=project, start=middle),
    ]

    assert cut.data() == whole.data()
    assert sum(part.rows for part in parts) == whole.rows
    assert sum(part.differing for part in parts) == whole.differing


def test_other_definitions_are_a_cause_and_no_snapshots_an_error(runs, tmp_path):
    driver, folder, project = runs["one"]
    plan = dataclasses.replace(driver.plan, fingerprint="0" * 16)

    found = hr.audit(plan, project=project)

    assert found.causes["definitions"] == found.differing > 0
    assert Lake(folder).has(snapshots_table(driver.plan.name))
    assert topics.snapshots(driver.plan.name) not in Lake(folder).names()
    with pytest.raises(HistoryError, match="history must hold source payments"):
        hr.audit(plan, project=lake_project(tmp_path / "none"))


def test_a_snapshot_that_no_order_explains_is_told_as_unexplained(tmp_path):
    plan = one_stage()
    driver = Driver(plan, partitions=2, batch_rows=50)
    for row in make_payments(60, seed=4):
        driver.send("payments", [row], arrival_time_ms=row["event_time"])
    driver.run()
    write_lake(tmp_path, driver)
    table = Lake(tmp_path).table(snapshots_table(plan.name)).delta
    rows = table.to_pyarrow_table()
    index = rows.schema.names.index("customer__count_1d")
    counts = rows["customer__count_1d"].to_numpy().copy()
    counts[7] += 1
    write_deltalake(
        table, rows.set_column(index, rows.schema.field(index), pa.array(counts)), mode="overwrite"
    )

    found = hr.audit(plan, project=lake_project(tmp_path))

    assert (found.differing, found.causes["unexplained"]) == (1, 1)
    (example,) = found.examples
    assert example["features"]["customer__count_1d"]["served"] == counts[7]
    assert (example["partition"], example["offset"]) == (
        rows["source_partition"][7].as_py(),
        rows["source_offset"][7].as_py(),
    )


def test_of_several_snapshots_of_a_row_those_of_todays_definitions_count_then_the_first(tmp_path):
    plan = one_stage()
    driver = Driver(plan, partitions=2, batch_rows=50)
    driver.send("payments", make_payments(40, seed=4))
    driver.run()
    write_lake(tmp_path, driver)
    path = str(tmp_path / snapshots_table(plan.name))
    rows = Lake(tmp_path).table(snapshots_table(plan.name)).delta.to_pyarrow_table()
    place = rows.schema.names.index("customer__count_1d")
    count, zeros = rows.num_rows, pa.array([0] * rows.num_rows, pa.int64())

    def changed(fingerprint, counts, offset):
        offsets = pa.array(rows["_offset"].to_numpy() + offset)
        made = rows.set_column(place, "customer__count_1d", counts)
        made = made.set_column(
            made.schema.names.index("fingerprint"), "fingerprint", pa.array([fingerprint] * count)
        )
        made = made.set_column(made.schema.names.index("_offset"), "_offset", offsets)
        return made.cast(rows.schema)

    def served(*tables):
        write_deltalake(path, pa.concat_tables(tables), mode="overwrite")
        table = hr.history(None, plan, project=lake_project(tmp_path), as_of="served")
        return table["customer__count_1d"].to_pylist(), table.schema.metadata

    true, _ = served(rows)
    sevens = pa.array([7] * count, pa.int64())
    assert true not in ([0] * count, [7] * count)
    # Others before and after, and a second one of today's after the first.
    mixed, _ = served(
        changed(plan.fingerprint, sevens, 1_000), changed("b" * 16, zeros, -10_000), rows
    )
    assert mixed == true
    others, metadata = served(changed("c" * 16, sevens, 50), changed("b" * 16, zeros, 10))
    assert others == [0] * count
    assert metadata[b"headrace.other_definitions"] == b'{"bbbbbbbbbbbbbbbb": 40}'
