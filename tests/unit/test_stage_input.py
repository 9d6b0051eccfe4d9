"""Bad, late and unowned records of a source, at a direct stage and at a router."""

from __future__ import annotations

import io
import json
import math

import fastavro
import pytest
from stream_cases import (
    DAY_MS,
    HOUR_MS,
    START_MS,
    make_payments,
    make_reports,
    one_stage,
    two_stages,
)

from headrace.features.layouts import rekey_layout
from headrace.streams.errors import LaneError, PartitioningError
from headrace.streams.testing import ARRIVAL_TIME_MS, MAX_RECORD_BYTES, Driver, Message

ORIGINAL = [("trace", b"abc")]
MINUTE_MS = 60_000


def payment(number=0, **values):
    row = {
        "payment_id": number,
        "event_time": START_MS + number * MINUTE_MS,
        "customer_id": "c1",
        "terminal_id": 1,
        "city": "Oslo",
        "amount": 10.0,
    }
    return row | values


def good(driver):
    return driver.encode("payments", payment())


BAD_VALUES = {
    "empty": (lambda _: b"", "empty"),
    "tombstone": (lambda _: None, "empty"),
    "magic": (lambda d: b"\1" + good(d)[1:], "bad_magic"),
    "text": (lambda _: b'{"payment_id": 1}', "bad_magic"),
    "schema": (lambda d: b"\0\0\0\x27\x0f" + good(d)[5:], "unknown_schema"),
    "cut": (lambda d: good(d)[:-3], "truncated"),
    "tail": (lambda d: good(d) + b"\0", "trailing_bytes"),
    "utf8": (lambda d: good(d).replace(b"Oslo", b"Os\xff\xfe"), "invalid_utf8"),
    "huge": (lambda d: good(d) + b"x" * MAX_RECORD_BYTES, "too_large"),
    "nan": (lambda d: d.encode("payments", payment(amount=math.nan)), "not_finite"),
    "infinite": (lambda d: d.encode("payments", payment(amount=-math.inf)), "not_finite"),
    "range": (lambda d: d.encode("payments", payment(amount=2.0**40)), "out_of_range"),
    "negative": (lambda d: d.encode("payments", payment(event_time=-1)), "negative_time"),
    "future": (
        lambda d: d.encode("payments", payment(event_time=ARRIVAL_TIME_MS + HOUR_MS)),
        "future_time",
    ),
}


def headers_of(message):
    return {name: value.decode() for name, value in message.headers}


@pytest.mark.parametrize("make_plan", [one_stage, two_stages], ids=["direct", "routed"])
@pytest.mark.parametrize(("spoil", "reason"), BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_a_bad_record_leaves_with_its_bytes_and_reason_and_the_good_ones_are_scored(
    make_plan, spoil, reason
):
    plan = make_plan() if make_plan is one_stage else make_plan(partitioner=None)
    driver = Driver(plan, partitions=1)
    value = spoil(driver)
    driver.send("payments", [payment(0)])
    driver.send_raw("payments", 0, Message(b"c1", value, ORIGINAL, ARRIVAL_TIME_MS))
    driver.send("payments", [payment(1)])

    driver.run()

    (bad,) = driver.dlq("payments")
    assert (bad.key, bad.value, bad.timestamp_ms) == (b"c1", value, ARRIVAL_TIME_MS)
    assert bad.headers[: len(ORIGINAL)] == ORIGINAL
    headers = headers_of(bad)
    assert headers["headrace.errors.reason"] == reason
    assert headers["headrace.errors.topic"] == "payments"
    assert headers["headrace.errors.partition"] == "0"
    assert headers["headrace.errors.offset"] == "1"
    assert headers["headrace.errors.attempt"] == "1"
    assert headers["headrace.errors.app_version"] == "test"
    counts = driver.snapshots().column("customer__count_1d").to_pylist()
    assert counts == [1, 2]


def test_a_record_replayed_from_the_dlq_counts_its_attempts_and_keeps_one_set_of_headers():
    driver = Driver(one_stage(), partitions=1)
    driver.send_raw("payments", 0, Message(b"c1", b"?", ORIGINAL, ARRIVAL_TIME_MS))
    driver.run()
    (first,) = driver.dlq("payments")

    driver.send_raw("payments", 0, first)
    driver.run()

    _, second = driver.dlq("payments")
    assert headers_of(second)["headrace.errors.attempt"] == "2"
    assert len(second.headers) == len(first.headers)


def test_a_far_future_record_moves_no_clock():
    driver = Driver(one_stage(), partitions=1)
    driver.send("payments", [payment(0, event_time=ARRIVAL_TIME_MS + HOUR_MS)])
    driver.send("payments", [payment(1)])

    driver.run()

    assert driver.late("payments") == []
    assert driver.snapshots().num_rows == 1


def test_a_record_behind_the_lateness_leaves_for_the_late_topic_and_changes_nothing():
    plan = one_stage(lateness="1h")
    driver = Driver(plan, partitions=1)
    newest = payment(0, event_time=START_MS + 2 * HOUR_MS)
    borderline = payment(1, event_time=START_MS + HOUR_MS)
    late = payment(2, event_time=START_MS + HOUR_MS - 1)
    driver.send(
        "payments", [newest, borderline, late, payment(3, event_time=START_MS + 2 * HOUR_MS)]
    )

    driver.run()

    (message,) = driver.late("payments")
    assert message.value == driver.encode("payments", late)
    assert headers_of(message)["headrace.errors.reason"] == "late"
    assert "3600001 ms" in headers_of(message)["headrace.errors.message"]
    rows = {int(row["event_id"]): row for row in driver.snapshots().to_pylist()}
    assert sorted(rows) == [0, 1, 3]
    assert rows[3]["customer__count_6h"] == 3


def test_an_update_only_record_is_late_by_when_it_was_known_not_by_its_event():
    driver = Driver(two_stages(), partitions=1)
    (report,) = make_reports(make_payments(1, seed=1), seed=2, share=1.0)
    days = [(5.0, 6.0), (1.0, 6.1), (0.5, 5.0), (5.9, 5.9)]
    reports = [
        report
        | {
            "report_id": f"r{number}",
            "event_time": START_MS + int(event_day * DAY_MS),
            "known_at": START_MS + int(known_day * DAY_MS),
        }
        for number, (event_day, known_day) in enumerate(days)
    ]
    driver.send("reports", reports)

    driver.run()

    assert [message.value for message in driver.late("reports")] == [
        driver.encode("reports", report) for report in reports[2:]
    ]


@pytest.mark.parametrize("kafka_key", [None, b"c1"])
def test_a_record_without_a_key_is_scored_with_defaults_and_keeps_no_state(kafka_key):
    driver = Driver(one_stage(), partitions=1)
    spoilt = payment(1, customer_id=None) if kafka_key else payment(1)
    driver.send("payments", [payment(0)])
    value = driver.encode("payments", spoilt)
    driver.send_raw("payments", 0, Message(kafka_key, value, [], ARRIVAL_TIME_MS))
    driver.send("payments", [payment(2)])

    driver.run()

    rows = {int(row["event_id"]): row for row in driver.snapshots().to_pylist()}
    assert [rows[i]["customer__count_1d"] for i in range(3)] == [1, 0, 2]
    assert rows[1]["customer__amount_mean_1d"] is None
    assert rows[1]["customer_key"] == spoilt["customer_id"]


@pytest.mark.parametrize("kafka_key", [None, b"c1"])
def test_a_record_without_a_key_is_bad_input_where_the_source_says_so(kafka_key):
    driver = Driver(one_stage(null_key="dlq"), partitions=1)
    value = driver.encode("payments", payment(1, customer_id=None) if kafka_key else payment(1))
    driver.send_raw("payments", 0, Message(kafka_key, value, [], ARRIVAL_TIME_MS))

    driver.run()

    (bad,) = driver.dlq("payments")
    assert headers_of(bad)["headrace.errors.reason"] == "null_key"


def test_an_empty_key_from_librdkafka_says_nothing_of_its_owner():
    driver = Driver(one_stage(partitioner="crc32"), partitions=4)
    value = driver.encode("payments", payment(0, customer_id=""))
    for partition in range(4):
        driver.send_raw("payments", partition, Message(b"", value, [], ARRIVAL_TIME_MS))

    driver.run()

    assert driver.snapshots().column("customer__count_1d").to_pylist() == [0, 0, 0, 0]


@pytest.mark.parametrize("partitioner", ["murmur2", "crc32"])
def test_a_record_on_a_foreign_partition_stops_the_stage_and_names_itself(partitioner):
    driver = Driver(one_stage(partitioner=partitioner), partitions=4)
    driver.send("payments", [payment(0)])
    wrong = next(p for p in range(4) if not driver._logs["payments"][p])
    driver.send("payments", [payment(1)], partition=wrong)

    with pytest.raises(
        PartitioningError, match=rf"{partitioner}.*payments-{wrong} offset 0.*re-keyed"
    ):
        driver.run()


@pytest.mark.parametrize("key", [b"someone else", b"c1 ", (1).to_bytes(8, "big")])
def test_a_kafka_key_that_is_not_the_events_key_stops_the_stage(key):
    driver = Driver(one_stage(), partitions=1)
    driver.send("payments", [payment(0)])
    value = driver.encode("payments", payment(1))
    driver.send_raw("payments", 0, Message(key, value, [], ARRIVAL_TIME_MS))

    with pytest.raises(PartitioningError, match=r"be the event's customer_id 'c1'.*offset 1"):
        driver.run()


def test_a_foreign_message_on_a_rekey_topic_is_refused_by_name():
    driver = Driver(two_stages())
    driver.send_raw(driver.plan.stages[1].topic, 0, Message(None, b"?", [], ARRIVAL_TIME_MS))

    with pytest.raises(LaneError, match=r"fraud\.rekey\.terminal\.[0-9a-f]{8}-0 offset 0"):
        driver.run()


def test_rows_of_another_plan_on_a_rekey_topic_are_refused_by_name():
    old, new = Driver(two_stages(delay="1d")), Driver(two_stages(delay="1d", event_id=None))
    old.send("payments", make_payments(20, seed=1))
    old.run()
    message = old.messages(old.plan.stages[1].topic)[0]
    new.send_raw(new.plan.stages[1].topic, 0, message)

    with pytest.raises(LaneError, match=rekey_layout(new.plan, 1)):
        new.run()


def test_a_writer_with_an_older_schema_is_read_by_its_own():
    driver = Driver(one_stage(), partitions=1)
    schema = json.loads(driver.plan.source_plan("payments").schema)
    schema["fields"] = list(reversed(schema["fields"]))
    driver._schemas[77] = json.dumps(schema)
    row = payment(0)
    body = fastavro_bytes(schema, row)
    driver.send_raw("payments", 0, Message(b"c1", b"\0\0\0\0\x4d" + body, [], ARRIVAL_TIME_MS))

    driver.run()

    assert driver.snapshots().column("amount").to_pylist() == [10.0]


def fastavro_bytes(schema, row):
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(schema), row)
    return body.getvalue()
