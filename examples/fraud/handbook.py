"""Convert the Fraud-Detection-Handbook's transactions to this example's two tables.

The data are not part of the project; see the README for where they come from.

    python handbook.py raw.parquet customer_tie_order.json --output data
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

DAY_MS = 86_400_000
REPORT_DELAY_MS = 7 * DAY_MS
TIME = pa.timestamp("ms", tz="UTC")


def reference_order(raw: pa.Table, tie_order: Path) -> pa.Array:
    """Return the rows' indices in the order in which the handbook counted them.

    The handbook sorted by customer and second with an unstable sort: of 29 pairs of rows with the
    same customer and second, ten stand in reverse. A customer's windows hold the rows up to the
    current one, so the order of such a pair shows in its counts.
    """
    ids = raw["TRANSACTION_ID"].to_numpy()
    order = np.arange(len(ids))
    for pair in json.loads(tie_order.read_text()):
        # Rows are sorted by id, and a short file is the beginning of the whole.
        rows = [int(np.searchsorted(ids, number)) for number in pair["reference_order"]]
        if max(rows) < len(ids):
            order[sorted(rows)] = rows
    return pa.array(order)


def convert(raw: pa.Table, tie_order: Path) -> tuple[pa.Table, pa.Table]:
    """Return the transactions in reference order, and the reports on the frauds among them.

    Every fraud is known seven days after the transaction, as the handbook assumes.
    """
    raw = raw.take(reference_order(raw, tie_order))
    event_time = raw["TX_DATETIME"].cast(pa.timestamp("ms")).cast(TIME)
    transactions = pa.table(
        {
            "transaction_id": raw["TRANSACTION_ID"].cast(pa.int64()),
            "event_time": event_time,
            "customer_id": raw["CUSTOMER_ID"].cast(pa.string()),
            "terminal_id": raw["TERMINAL_ID"].cast(pa.string()),
            "amount": raw["TX_AMOUNT"],
        }
    )
    frauds = transactions.filter(pc.equal(raw["TX_FRAUD"], 1))
    known_at_ms = pc.add(frauds["event_time"].cast(pa.int64()), REPORT_DELAY_MS)
    reports = pa.table(
        {
            "report_id": pa.array(np.arange(frauds.num_rows)),
            "transaction_id": frauds["transaction_id"],
            "customer_id": frauds["customer_id"],
            "terminal_id": frauds["terminal_id"],
            "event_time": frauds["event_time"],
            "known_at": known_at_ms.cast(TIME),
            "is_fraud": pa.array(np.ones(frauds.num_rows, np.bool_)),
        }
    )
    return transactions, reports


def main() -> None:
    """Convert the files from the command line."""
    parser = argparse.ArgumentParser(description="Convert the handbook's transactions.")
    parser.add_argument("raw", type=Path, help="all daily files as one Parquet, sorted by id")
    parser.add_argument("tie_order", type=Path, help="customer_tie_order.json")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data")
    options = parser.parse_args()
    transactions, reports = convert(pq.read_table(options.raw), options.tie_order)
    options.output.mkdir(parents=True, exist_ok=True)
    pq.write_table(transactions, options.output / "transactions.parquet", compression="zstd")
    pq.write_table(reports, options.output / "reports.parquet", compression="zstd")
    sys.stdout.write(
        f"{transactions.num_rows:,} transactions, {reports.num_rows:,} of them frauds, "
        f"in {options.output}\n"
    )


if __name__ == "__main__":
    main()
