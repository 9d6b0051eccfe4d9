"""Erasures: what the topic says, where a stage forgets, and which rows count no more."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from stream_cases import (
    DAY_MS,
    DriverLog,
    make_payments,
    make_reports,
    one_stage,
    three_stages,
    two_stages,
)

from headrace.scoring.receipts import as_matrix, same_bits
from headrace.streams.batch import EventBatch, Forget
from headrace.streams.erasures import (
    ErasedRows,
    ErasureBook,
    ErasurePosition,
    ErasureRequest,
    cut,
    decode_erasure,
    encode_erasure,
    forget_of,
    typed_key,
)
from headrace.streams.errors import ErasureError
from headrace.streams.rerun import Asked, rerun
from headrace.streams.testing import Driver, once

REQUEST = ErasureRequest("r1", "customer", "c3", 5, {"payments": ("id-of-payments", [9, 0, 4])})
POSITION = ErasurePosition("r1", "spend", "payments", "id-of-payments", 2, 17)


def forget_at(position, key="c3", bounds=()):
    return Forget(
        "payments",
        0,
        0,
        "r1",
        position,
        pa.array([key]),
        {"payments": np.array(bounds, np.int64)} if bounds else {},
    )


def batch_of(offsets):
    return EventBatch(
        topic="payments",
        partition=0,
        epoch=0,
        offsets=np.array(offsets, np.int64),
        arrival_time_ms=np.array(offsets, np.int64),
        keys=[b"%d" % offset for offset in offsets],
        values=[b"v%d" % offset for offset in offsets],
        headers=[None] * len(offsets),
        emit_from=0,
        at_end=True,
    )


@pytest.mark.parametrize("erasure", [REQUEST, POSITION])
def test_what_is_written_is_what_is_read(erasure):
    assert decode_erasure(encode_erasure(erasure)) == erasure


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b'{"kind": "request", "id": "x"}'])
def test_what_is_no_erasure_is_refused(value):
    with pytest.raises(ErasureError, match="hold every field"):
        decode_erasure(value)


def test_of_two_owners_the_first_ones_word_holds():
    book = ErasureBook()
    later = ErasurePosition(*POSITION.place, position=30)
    assert later.record_key != POSITION.record_key

    for erasure in (REQUEST, POSITION, later):
        book.take(encode_erasure(erasure))

    assert book.positions == {POSITION.place: 17}
    assert book.of_entity("customer") == [REQUEST]
    assert book.of_entity("terminal") == []


@pytest.mark.parametrize(
    ("key", "kind", "typed"),
    [
        ("17", "int64", 17),
        ("-2", "int64", -2),
        ("x y", "string", "x y"),
        ("0aff", "bytes", b"\n\xff"),
    ],
)
def test_a_key_is_read_as_predictions_spell_it(key, kind, typed):
    assert typed_key(key, kind)[0].as_py() == typed


@pytest.mark.parametrize(("key", "kind"), [("x", "int64"), ("1.5", "int64"), ("xyz", "bytes")])
def test_what_cannot_be_a_key_is_refused(key, kind):
    with pytest.raises(ErasureError, match="the key must"):
        typed_key(key, kind)


@pytest.mark.parametrize(
    ("positions", "parts"),
    [
        ([], [[3, 4, 7, 8]]),
        ([3], ["forget", [3, 4, 7, 8]]),
        ([0], ["forget", [3, 4, 7, 8]]),
        ([4], [[3], "forget", [4, 7, 8]]),
        ([5], [[3, 4], "forget", [7, 8]]),
        ([8], [[3, 4, 7], "forget", [8]]),
        ([9], [[3, 4, 7, 8]]),
        ([4, 4, 8], [[3], "forget", "forget", [4, 7], "forget", [8]]),
    ],
)
def test_a_batch_is_cut_where_something_is_forgotten(positions, parts):
    made = cut(batch_of([3, 4, 7, 8]), [forget_at(position) for position in positions])

    assert ["forget" if isinstance(p, Forget) else p.offsets.tolist() for p in made] == parts
    batches = [part for part in made if isinstance(part, EventBatch)]
    assert [part.at_end for part in batches] == [False] * (len(batches) - 1) + [True]
    assert [v for part in batches for v in part.values] == [b"v3", b"v4", b"v7", b"v8"]


def test_rows_below_the_bounds_of_their_partition_count_no_more():
    erased = ErasedRows()
    keys = pa.array(["c3", "c3", "c4", None, "c3", "c3"])
    partition = np.array([0, 0, 0, 0, 2, 5], np.int32)
    offset = np.array([8, 9, 1, 1, 3, 1])
    assert erased.counting(keys, "payments", partition, offset) is None

    erased.begin()
    erased.add(forget_at(0, bounds=(9, 0, 4)))
    counting = erased.counting(keys, "payments", partition, offset)
    later = erased.counting(keys, "payments", partition, offset + 9)
    other = erased.counting(keys, "reports", partition, offset)
    erased.abort()

    assert counting.tolist() == [False, True, True, True, False, True]
    assert later is None
    assert other is None
    assert erased.counting(keys, "payments", partition, offset) is None


# --- Stages ---------------------------------------------------------------------------------------


def features_of(driver):
    rows = once(driver.snapshots()).to_pylist()
    names = [feature.name for stage in driver.plan.stages for feature in stage.features]
    return {int(row["event_id"]): [row[name] for name in names] for row in rows}


def forget_everywhere(driver, request):
    """Let every partition of the entity's stage forget where it stands; return what it did."""
    found = {}
    for stage in driver.plan.stages:
        if stage.entity != request.entity:
            continue
        for (topic, partition), owned in driver.owned.items():
            if topic == stage.topic:
                where = (partition, 0)
                ids = driver.context.topic_ids
                forget = forget_of(driver.plan, stage, request, ids, where, owned.position)
                owned.processor.forget(forget)
                found[topic, partition] = [forget]
    return found


def request_about(driver, entity, key):
    bounds = {
        source.topic: (f"id-of-{source.topic}", [len(log) for log in driver._logs[source.topic]])
        for source in driver.plan.sources
    }
    return ErasureRequest("r1", entity, key, 0, bounds)


def played(plan, payments, *, halfway):
    """Send half of the payments, call ``halfway``, and send the others."""
    driver = Driver(plan, partitions=3, seed=5)
    if len(plan.sources) > 1:
        driver.send("reports", make_reports(payments, 5, known_after_ms=DAY_MS))
    half = len(payments) // 2
    driver.send("payments", payments[:half])
    driver.run()
    result = halfway(driver)
    driver.send("payments", payments[half:])
    driver.run()
    return driver, result


ERASED = [
    (one_stage(), "customer", "customer_id", "c3"),
    (two_stages(), "customer", "customer_id", "c3"),
    (two_stages(delay="0s"), "terminal", "terminal_id", "4"),
    (three_stages(), "city", "city", "Oslo"),
]
NAMES = [f"{plan.name}-{entity}" for plan, entity, _, _ in ERASED]


@pytest.mark.parametrize(("plan", "entity", "column", "key"), ERASED, ids=NAMES)
def test_an_erased_key_starts_from_nothing_and_all_others_keep_every_bit(plan, entity, column, key):
    payments = make_payments(300, seed=2)
    half = len(payments) // 2
    typed = int(key) if key.isdecimal() else key
    never = [
        {**row, column: "nobody" if isinstance(typed, str) else 99} if row[column] == typed else row
        for row in payments[:half]
    ]
    plain, _ = played(plan, payments, halfway=lambda _: None)
    erased, _ = played(
        plan,
        payments,
        halfway=lambda driver: forget_everywhere(driver, request_about(driver, entity, key)),
    )
    missing, _ = played(plan, [*never, *payments[half:]], halfway=lambda _: None)

    before, after, wanted = features_of(plain), features_of(erased), features_of(missing)
    own = [
        place
        for place, name in enumerate(f.name for s in plan.stages for f in s.features)
        if any(f.name == name for s in plan.stages if s.entity == entity for f in s.features)
    ]
    changed = 0
    for row in payments:
        number = row["payment_id"]
        if number < half or row[column] != typed:
            assert after[number] == before[number]
            continue
        assert [after[number][i] for i in own] == [wanted[number][i] for i in own]
        changed += after[number] != before[number]
    assert changed


def test_rows_that_were_on_their_way_when_the_key_was_erased_count_for_nothing():
    plan = two_stages()
    payments = make_payments(200, seed=4)
    driver = Driver(plan, partitions=3, seed=5)
    driver.send("payments", payments)
    # Nothing is read yet: the whole log lies below the bounds.
    forget_everywhere(driver, request_about(driver, "customer", "c3"))
    driver.run()

    rows = once(driver.snapshots()).to_pylist()
    mine = [row for row in rows if row["customer_key"] == "c3"]
    others = [row for row in rows if row["customer_key"] not in {"c3", None}]
    assert mine
    assert {row["customer__count_1d"] for row in mine} == {0}
    assert {row["customer__amount_mean_1d"] for row in mine} == {None}
    assert max(row["customer__count_1d"] for row in others) > 1


@pytest.mark.parametrize(("plan", "entity", "column", "key"), ERASED, ids=NAMES)
def test_a_replay_forgets_where_the_log_did(plan, entity, column, key):
    del column
    driver, forgets = played(
        plan,
        make_payments(300, seed=6),
        halfway=lambda driver: forget_everywhere(driver, request_about(driver, entity, key)),
    )
    snapshots = once(driver.snapshots())
    asked = Asked(
        snapshots.column("source_partition").to_numpy(),
        snapshots.column("source_offset").to_numpy(),
        {s.entity: snapshots.column(f"{s.entity}_key").to_pylist() for s in plan.stages},
    )

    honoured = rerun(plan, driver.context, DriverLog(driver, forgets=forgets), asked)
    ignored = rerun(plan, driver.context, DriverLog(driver), asked)

    served = as_matrix(snapshots.select([column.name for column in plan.vector]))
    assert same_bits(served, honoured.vector).all()
    assert not same_bits(served, ignored.vector).all()
