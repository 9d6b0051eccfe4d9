"""The oracle that knows nothing of Headrace, and the comparisons made with it."""

from __future__ import annotations

import math
import struct

from bench.chaos.payments import Sent, differing, draw_payments, of_fate
from bench.chaos.plain import HOUR_MS, Feature, expected, features_at, of_rows
from bench.chaos.verdict import Outputs, compare, inversions

COUNT = Feature("customer__count_1h", "count")
SUM = Feature("customer__amount_sum_1h", "sum", column="amount")
MEAN = Feature("customer__amount_mean_1h", "mean", column="amount")
WEIGHT = Feature("weight", "row", column="weight")


def bits(value):
    return struct.pack("<d", value)


def row(number, time_ms, amount=1.0, customer="c1", weight=None):
    return {
        "payment_id": number,
        "event_time": time_ms,
        "customer_id": customer,
        "amount": amount,
        "weight": weight,
    }


def test_a_window_is_open_at_its_far_end_and_closed_at_the_rows_own_time():
    rows = [row(0, 0), row(1, 1), row(2, HOUR_MS), row(3, HOUR_MS)]

    assert features_at(rows, [COUNT]) == [(1,), (2,), (2,), (3,)]


def test_a_row_that_comes_late_counts_what_came_before_it_as_of_its_own_time():
    rows = [row(0, 10, 0.5), row(1, 30, 4.0), row(2, 20, 0.25), row(3, 30, 1.0)]

    assert features_at(rows, [COUNT, SUM]) == [
        (1, bits(0.5)),
        (2, bits(4.5)),
        (2, bits(0.75)),
        (4, bits(5.75)),
    ]


def test_keys_are_apart_nulls_are_passed_over_and_a_row_without_a_key_has_nothing():
    rows = [
        row(0, 0, None),
        row(1, 1, -0.0),
        row(2, 2, 6.0, "c2"),
        row(3, 3, 3.0),
        row(4, 4, 7.0, None, weight=math.inf),
    ]

    assert features_at(rows, [COUNT, SUM, MEAN, WEIGHT]) == [
        (1, None, None, None),
        (2, bits(0.0), bits(0.0), None),
        (1, bits(6.0), bits(6.0), None),
        (3, bits(3.0), bits(1.5), None),
        (0, None, None, bits(math.inf)),
    ]


def test_outputs_with_another_bit_or_another_row_differ_from_what_is_expected():
    rows = draw_payments(seed=3, count=300)
    wanted = expected(rows, [COUNT, SUM])
    there = [
        {
            "event_id": event_id,
            "customer_key": key,
            COUNT.name: count,
            SUM.name: struct.unpack("<d", total)[0],
        }
        for event_id, key, (count, total) in zip(
            wanted.ids, wanted.keys, wanted.contents, strict=True
        )
    ]

    def judged(outputs):
        found = compare(wanted, of_rows(outputs, [COUNT, SUM]))
        return found.lost, found.duplicated, found.wrong

    spoilt = {**there[7], SUM.name: math.nextafter(there[7][SUM.name], math.inf)}
    assert max(count for count, _ in wanted.contents) > 5
    assert judged(there) == (0, 0, 0)
    assert judged([*there[:7], spoilt, *there[8:]]) == (0, 0, 1)
    assert judged([*there, there[0]]) == (0, 1, 0)
    assert judged(there[1:]) == (1, 0, 0)


def test_an_event_without_a_place_has_no_order_and_hides_none():
    outputs = Outputs(["b", "x", "a"], [()] * 3, ["c1"] * 3)

    assert inversions(outputs, [0] * 3, {"a": 0, "b": 1}) == 1
    assert inversions(outputs, [0] * 3, {"b": 1}) == 0


def test_a_record_that_was_refused_for_another_reason_is_missing_and_too_many():
    sent = [
        Sent(b"c1", b"1", None, "late"),
        Sent(b"c1", b"2", None, "not_finite"),
        Sent(b"c1", b"3", {}),
    ]

    assert differing(of_fate(sent, "late"), of_fate(sent, "late")) == (0, "")
    count, said = differing(of_fate(sent, "late"), of_fate(sent, "not_finite"))
    assert count == 2
    assert said == "1 missing, as late; 1 too many, as not_finite"
