"""`headrace send` on the real broker: what a file holds lies on the topic, in its order."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from live import make_project

START_MS = 1_750_000_000_000


@pytest.fixture
def project(project_folder):
    made = make_project(project_folder)
    yield made
    made.close()


def write_payments(path, count, seed):
    """Write payments in which time now and then steps back, as in real files."""
    random = np.random.default_rng(seed)
    times = START_MS + np.arange(count) * 10 + random.integers(-50, 50, count)
    table = pa.table(
        {
            # Finer times and narrower integers than the schema's, and a column that it lacks.
            "event_time": pa.array(times * 1000, pa.timestamp("us")),
            "payment_id": pa.array(np.arange(count), pa.int32()),
            "customer_id": [f"c{i}" for i in random.integers(0, 500, count)],
            "amount": random.random(count),
            "note": ["x"] * count,
        }
    )
    pq.write_table(table, path)
    return table


def send(project, *arguments):
    command = [sys.executable, "-m", "headrace.cli.main", "send", *map(str, arguments)]
    return subprocess.run(
        [*command, "--project", str(project.folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_file_is_published_whole_in_its_order_each_row_where_its_key_belongs(project, tmp_path):
    table = write_payments(tmp_path / "payments.parquet", 100_000, seed=11)
    done = send(project, f"{project.plan.source}={tmp_path / 'payments.parquet'}")
    assert done.returncode == 0, done.stderr
    messages = project.read("payments", len(table))

    rows = table.to_pylist()
    seen = 0
    for partition in range(project.partitions):
        mine = [m for m in messages if m.partition() == partition]
        records = [project.decode(message.value()) for message in mine]
        ids = [record["payment_id"] for record in records]
        assert ids == sorted(ids)
        for message, record in zip(mine, records, strict=True):
            row = rows[record["payment_id"]]
            assert message.key() == row["customer_id"].encode()
            assert project.place(message.key()) == partition
            assert record["amount"] == row["amount"]
            assert record["event_time"].timestamp() == pytest.approx(
                row["event_time"].timestamp(), abs=0.002
            )
        seen += len(mine)
    assert seen == len(rows)


def test_a_rate_is_kept_and_a_maximum_too(project, tmp_path):
    write_payments(tmp_path / "payments.parquet", 5_000, seed=12)
    data = f"{project.plan.source}={tmp_path / 'payments.parquet'}"
    done = send(project, data, "--rate", "500", "--max", "1000")

    assert done.returncode == 0, done.stderr
    assert "1,000 events" in done.stderr
    seconds = float(re.search(r"([\d.]+) s, ", done.stderr)[1])
    assert 1.9 <= seconds <= 4.0
    assert len(project.read("payments", 1_000)) == 1_000


def test_data_that_does_not_fit_is_refused_in_one_line(project, tmp_path):
    pq.write_table(pa.table({"payment_id": [1]}), tmp_path / "payments.parquet")
    wrong_columns = send(project, f"{project.plan.source}={tmp_path / 'payments.parquet'}")
    no_source = send(project, f"orders={tmp_path / 'payments.parquet'}")
    nothing = send(project, tmp_path)

    assert wrong_columns.returncode != 0
    assert "no column" in wrong_columns.stderr
    assert no_source.returncode != 0
    assert "name a source" in no_source.stderr
    assert nothing.returncode != 0
    assert nothing.stderr.count("\n") <= 3
