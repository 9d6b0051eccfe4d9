"""The handbook's rows become events without a change to any value."""

from __future__ import annotations

import json

import pyarrow as pa

from examples.fraud.handbook import convert

START_MS = 1_522_540_800_000  # 2018-04-01, without a zone as in the handbook's files


def raw_rows():
    return pa.table(
        {
            "TRANSACTION_ID": pa.array([0, 1, 2, 3], pa.int32()),
            "TX_DATETIME": pa.array([START_MS] * 4, pa.timestamp("ms")),
            "CUSTOMER_ID": pa.array([7, 8, 7, 9], pa.int32()),
            "TERMINAL_ID": pa.array([1, 2, 3, 4], pa.int32()),
            "TX_AMOUNT": [1.25, 2.5, 3.0, 0.0],
            "TX_FRAUD": pa.array([0, 1, 1, 0], pa.int8()),
        }
    )


def test_a_tied_pair_is_put_in_the_order_the_handbook_counted_it(tmp_path):
    ties = tmp_path / "ties.json"
    ties.write_text(json.dumps([{"reference_order": [2, 0]}, {"reference_order": [900, 901]}]))

    transactions, reports = convert(raw_rows(), ties)

    assert transactions["transaction_id"].to_pylist() == [2, 1, 0, 3]
    assert transactions["customer_id"].to_pylist() == ["7", "8", "7", "9"]
    assert transactions["amount"].to_pylist() == [3.0, 2.5, 1.25, 0.0]
    assert reports["transaction_id"].to_pylist() == [2, 1]


def test_a_fraud_is_known_seven_days_after_the_transaction(tmp_path):
    ties = tmp_path / "ties.json"
    ties.write_text("[]")

    _, reports = convert(raw_rows(), ties)

    for row in reports.to_pylist():
        assert (row["known_at"] - row["event_time"]).total_seconds() == 7 * 86_400
        assert row["event_time"].isoformat() == "2018-04-01T00:00:00+00:00"
        assert row["is_fraud"] is True
