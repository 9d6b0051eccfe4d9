"""What Feast would read of a backfilled table is what ``hr.history`` says at its keys and times."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.lake.backfill import backfill

HOUR_MS = 3_600_000
TIME = pa.timestamp("ms", "UTC")
AVRO_TIME = {"type": "long", "logicalType": "timestamp-millis"}
SCHEMAS = {
    "sales": {"id": "long", "who": ["null", "string"], "at": AVRO_TIME, "price": "double"},
    "returns": {"who": "string", "at": AVRO_TIME, "seen": AVRO_TIME},
}
DEFINITIONS = """
import headrace as hr

sales = hr.Source("sales", key="who", event_time="at", event_id="id")
returns = hr.Source("returns", key="who", event_time="at", known_at="seen")
who = hr.FeatureView(
    "who",
    entity=hr.Entity("who", key="who"),
    source=sales,
    features=[
        hr.count(over=["1h", "9h"]),
        hr.sum("price", over="30h"),
        hr.count(source=returns, name="returned", over="30h"),
    ],
)
scores = hr.Pipeline("scores", source=sales, views=[who])
"""

# Few times, so that many events share one; hours apart, so that a run has parts and days.
hours = st.integers(0, 60).map(lambda hour: hour * HOUR_MS)
names = st.sampled_from(["ann", "bob"])
sale = st.tuples(st.none() | names, hours, st.floats(-1e6, 1e6))
gone = st.tuples(names, hours, st.integers(0, 20).map(lambda hour: hour * HOUR_MS))


def write(folder, sales, returned):
    (folder / "schemas").mkdir()
    for name, fields in SCHEMAS.items():
        columns = [{"name": column, "type": kind} for column, kind in fields.items()]
        schema = {"type": "record", "name": name.title(), "fields": columns}
        (folder / "schemas" / f"{name}.avsc").write_text(json.dumps(schema))
    (folder / "definitions.py").write_text(DEFINITIONS)
    (folder / "headrace.yaml").write_text(
        "project: shop\nhistory: {sales: sales.parquet, returns: returns.parquet}\n"
    )
    sold = pa.table(
        {
            "id": pa.array(range(len(sales)), pa.int64()),
            "who": pa.array([row[0] for row in sales], pa.string()),
            "at": pa.array([row[1] for row in sales], TIME),
            "price": pa.array([row[2] for row in sales], pa.float64()),
        }
    )
    back = pa.table(
        {
            "who": pa.array([row[0] for row in returned], pa.string()),
            "at": pa.array([row[1] for row in returned], TIME),
            "seen": pa.array([row[1] + row[2] for row in returned], TIME),
        }
    )
    pq.write_table(sold, folder / "sales.parquet")
    pq.write_table(back, folder / "returns.parquet")


def last_rows(table):
    """Return by key and time the features that Feast takes: those that were created last."""
    rows = table.sort_by([("event_timestamp", "ascending"), ("created_timestamp", "ascending")])
    found = {}
    for row in rows.to_pylist():
        key = row.pop("who"), row.pop("event_timestamp")
        row.pop("created_timestamp")
        found[key] = row
    return found


@settings(max_examples=25, deadline=None)
@given(
    st.lists(sale, min_size=1, max_size=30),
    st.lists(gone, min_size=1, max_size=10),
    st.integers(1, 20),
)
def test_the_last_row_of_every_key_and_time_is_what_history_says(sales, returned, rows_at_once):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, sales, returned)
        project = hr.load(folder)

        written = backfill(project, rows_at_once=rows_at_once).views[0]

        found = last_rows(pq.read_table(written.folder))
        asked = list(dict.fromkeys(key for key in ((row[0], row[1]) for row in sales) if key[0]))
        spine = pa.table(
            {
                "who": pa.array([key for key, _ in asked], pa.string()),
                "at": pa.array([at for _, at in asked], TIME),
            }
        )
        expected = {}
        for row in hr.history(spine, "who", project=project).to_pylist():
            key = row.pop("who"), row.pop("at")
            expected[key] = {name.removeprefix("who__"): value for name, value in row.items()}
        assert found == expected
        assert written.rows == sum(row[0] is not None for row in sales)
