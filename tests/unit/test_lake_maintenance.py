"""Compaction, retention and wiping move no row and no position."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from lakes import places

from headrace.lake.maintenance import compact, file_sizes, maintain
from headrace.lake.tables import Lake
from headrace.lake.writer import Advance, TableWriter, record_columns

DAY_MS = 86_400_000
NOW_MS = 1_800_000_000_000


@pytest.fixture
def many(tmp_path):
    """Return a writer of a table of 20 small files, a day and an offset apart."""
    writer = TableWriter(tmp_path, "t")
    for number in range(20):
        arrival = np.array([NOW_MS - (20 - number) * DAY_MS])
        rows = record_columns("T", 0, np.array([number]), arrival).append_column(
            "x", pa.array([f"{number}"])
        )
        writer.append(rows, [Advance("T", 0, number or None, number + 1)])
    return writer


def test_small_files_become_one_and_nothing_else_changes(tmp_path, many):
    before = places(Lake(tmp_path), "t")
    opened = Lake(tmp_path).table("t")

    done = maintain(tmp_path, "t", retention_ms=None, now_ms=NOW_MS)

    assert (done.files_before, done.files_after) == (20, 1)
    assert places(Lake(tmp_path), "t") == before
    assert Lake(tmp_path).table("t").next_offset("T", 0) == 20
    # A reader of the version before goes on reading it.
    assert opened.delta.to_pyarrow_table().num_rows == 20
    # And the writer that had it open goes on writing.
    rows = many.aligned(record_columns("T", 0, np.array([20]), np.array([NOW_MS])))[0]
    many.append(rows, [Advance("T", 0, 20, 21)])
    assert len(places(Lake(tmp_path), "t")) == 21


@pytest.mark.usefixtures("many")
def test_few_small_files_are_left_alone_until_there_are_enough(tmp_path):
    delta = Lake(tmp_path).table("t").delta

    assert not compact(delta, files_min=21)
    assert compact(delta, files_min=20)
    assert not compact(delta, files_min=2)


@pytest.mark.usefixtures("many")
def test_files_of_a_size_are_not_written_again_for_every_small_one(tmp_path):
    """Each row is written again about once a size: what has reached a size waits for its equals."""
    delta = Lake(tmp_path).table("t").delta
    small = max(file_sizes(delta))

    compact(delta, files_min=8, targets=(3 * small, 1 << 30))

    # The first size leaves files of it, which are few enough for the second to wait.
    assert 1 < len(file_sizes(delta)) < 20


@pytest.mark.usefixtures("many")
def test_rows_beyond_the_retention_go_and_positions_stay(tmp_path):
    done = maintain(tmp_path, "t", retention_ms=5 * DAY_MS, now_ms=NOW_MS)

    assert done.deleted_rows == 15
    assert [offset for _, _, offset in places(Lake(tmp_path), "t")] == [15, 16, 17, 18, 19]
    assert Lake(tmp_path).table("t").next_offset("T", 0) == 20
    version = Lake(tmp_path).table("t").version
    assert maintain(tmp_path, "t", retention_ms=5 * DAY_MS, now_ms=NOW_MS).deleted_rows == 0
    assert Lake(tmp_path).table("t").version == version


@pytest.mark.usefixtures("many")
def test_old_files_are_wiped_and_those_that_a_reader_may_hold_are_not(tmp_path):
    maintain(tmp_path, "t", retention_ms=None, now_ms=NOW_MS)
    folder = tmp_path / "t"
    assert len(list(folder.glob("*.parquet"))) == 21
    stray = folder / "part-from-a-killed-append.parquet"
    stray.write_bytes(b"half")

    assert maintain(tmp_path, "t", retention_ms=None, now_ms=NOW_MS).wiped_files == 0
    old_s = dt.datetime(2020, 1, 1, tzinfo=dt.UTC).timestamp()
    os.utime(stray, (old_s, old_s))
    assert maintain(tmp_path, "t", retention_ms=None, now_ms=NOW_MS).wiped_files == 1

    assert not stray.exists()
    assert len(places(Lake(tmp_path), "t")) == 20
    assert all(Path(file).exists() for file in Lake(tmp_path).table("t").files())
