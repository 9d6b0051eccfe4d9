"""Rows and positions in one commit, and what two tables of a topic mean together."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lakes import Message, Schemas, places, record, wire

from headrace.lake.errors import SecondWriterError, TableBusyError
from headrace.lake.gather import Gather
from headrace.lake.process import one_writer
from headrace.lake.tables import REJECTED_FIELDS, Lake
from headrace.lake.targets import Target
from headrace.lake.writer import Advance, TableWriter, record_columns
from headrace.schemas.errors import RegistryUnavailableError

SCHEMA = record(("x", "long"))


def rows(first: int, count: int, topic_id: str = "T", partition: int = 0) -> pa.Table:
    offsets = np.arange(first, first + count)
    table = record_columns(topic_id, partition, offsets, offsets + 1_000)
    return table.add_column(0, "x", pa.array(offsets))


def test_positions_are_those_of_the_rows_and_survive_all_that_is_done_to_a_table(tmp_path):
    writer = TableWriter(tmp_path, "t")
    writer.append(rows(0, 10), [Advance("T", 0, None, 10)])
    writer.append(rows(0, 5, partition=1), [Advance("T", 1, None, 5)])
    for first in range(10, 40, 10):
        writer.append(rows(first, 10), [Advance("T", 0, first, first + 10)])

    writer.delta.create_checkpoint()
    writer.delta.cleanup_metadata()
    writer.delta.optimize.compact()
    writer.delta.delete("_offset < 20")

    table = Lake(tmp_path).table("t")
    assert table.next_offset("T", 0) == 40
    assert table.next_offset("T", 1) == 5
    assert table.next_offset("U", 0) is None
    assert [offset for _, _, offset in places(Lake(tmp_path), "t")] == list(range(20, 40))


def test_a_position_can_move_without_rows(tmp_path):
    writer = TableWriter(tmp_path, "t")

    writer.append(rows(0, 0), [Advance("T", 0, None, 3)])

    assert TableWriter(tmp_path, "t").position("T", 0) == 3
    assert Lake(tmp_path).table("t").schema.names[0] == "x"


def test_two_writers_of_a_table_cannot_both_append(tmp_path):
    first, second = TableWriter(tmp_path, "t"), TableWriter(tmp_path, "t")
    first.append(rows(0, 10), [Advance("T", 0, None, 10)])
    second.reload()
    first.append(rows(10, 10), [Advance("T", 0, 10, 20)])

    with pytest.raises(SecondWriterError, match="stop the other 'headrace lake'"):
        second.append(rows(10, 7), [Advance("T", 0, 10, 17)])

    assert len(places(Lake(tmp_path), "t")) == 20


def test_delta_itself_refuses_the_later_of_two_appends_with_one_position(tmp_path):
    """What the second line of defence rests on: pinned, since it is Delta's behaviour, not ours."""
    from deltalake import CommitProperties, Transaction, write_deltalake
    from deltalake.exceptions import CommitFailedError

    TableWriter(tmp_path, "t").append(rows(0, 1), [Advance("T", 0, None, 1)])
    path = str(tmp_path / "t")
    stale = DeltaTable(path)
    properties = [CommitProperties(app_transactions=[Transaction("T:0", n)]) for n in (2, 3)]
    write_deltalake(path, rows(1, 1), mode="append", commit_properties=properties[0])

    with pytest.raises(CommitFailedError, match="Concurrent transaction"):
        write_deltalake(stale, rows(1, 2), mode="append", commit_properties=properties[1])


def test_new_columns_are_null_in_old_rows_and_missing_ones_in_new_rows(tmp_path):
    writer = TableWriter(tmp_path, "t")
    writer.append(pa.table({"a": [1]}), [])
    writer.append(writer.aligned(pa.table({"a": [2], "b": ["x"]}))[0], [])
    writer.append(writer.aligned(pa.table({"b": ["y"]}))[0], [])

    found = sorted(map(str, writer.delta.to_pyarrow_table().to_pylist()))
    assert found == ["{'a': 1, 'b': None}", "{'a': 2, 'b': 'x'}", "{'a': None, 'b': 'y'}"]


def test_files_tell_the_least_and_greatest_of_every_column(tmp_path):
    wide = pa.table({f"c{i}": [i] for i in range(60)})
    for name, column in zip(("_offset", "x"), ([7], [1]), strict=True):
        wide = wide.append_column(name, pa.array(column))
    TableWriter(tmp_path, "t").append(wide, [])

    actions = Lake(tmp_path).table("t").file_actions()

    assert actions["max._offset"].to_pylist() == [7]


def test_a_folder_has_one_writer_and_a_killed_one_has_let_go(tmp_path):
    code = (
        "import pathlib, os, signal, sys\n"
        "from headrace.lake.process import one_writer\n"
        "with one_writer(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(SecondWriterError, match=f"one writer; got 'process {holder.pid}'"),
            one_writer(tmp_path),
        ):
            pass
        holder.stdin.close()
        holder.wait()

    with one_writer(tmp_path):
        pass


# --- Two tables -----------------------------------------------------------------------------------


class KilledError(Exception):
    """The process was killed here."""


class CrashingWriter(TableWriter):
    """Is killed before or after its commit, or finds no space, when its turn comes."""

    def __init__(self, folder, name, when, error=KilledError):
        super().__init__(folder, name)
        self.when = when
        self.error = error

    def append(self, rows, advances):
        if self.when == "before":
            raise self.error
        super().append(rows, advances)
        if self.when == "after":
            raise self.error


def gather(folder, registry, when="never", on="main", error=KilledError):
    made = Gather(Target("t", "topic", SCHEMA, 1_000), "T", folder, registry)
    if on == "main":
        made.tables.main = CrashingWriter(folder, "t", when, error)
    else:
        made.tables.rejected = CrashingWriter(folder, "t_rejected", when, error)
    return made


def log_of(registry: Schemas, seed: int, count: int) -> list[bytes | None]:
    number = registry.add("topic-value", SCHEMA)
    draws = random.Random(seed)
    bad = [None, b"junk", b"\0\0\0\0\x63abc"]
    return [
        draws.choice(bad) if draws.random() < 0.3 else wire(SCHEMA, number, {"x": offset})
        for offset in range(count)
    ]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1_000),
    lives=st.lists(
        st.tuples(
            st.integers(1, 25),
            st.sampled_from(["never", "before", "after"]),
            st.sampled_from(["main", "rejected"]),
        ),
        max_size=5,
    ),
)
@example(seed=0, lives=[(4, "before", "main"), (1, "never", "main")])
def test_killed_anywhere_each_record_stands_in_one_table_once(tmp_path_factory, seed, lives):
    folder = tmp_path_factory.mktemp("lake")
    registry = Schemas()
    log = log_of(registry, seed, 40)

    for count, when, on in [*lives, (40, "never", "main")]:
        life = gather(folder, registry, when, on)
        life.add_lane(0)
        begin = life.lanes[0].next_offset or 0
        pieces = [log[begin : begin + count], log[begin + count :]]
        for piece in pieces if when == "never" else pieces[:1]:
            first = life.lanes[0].next_offset or 0
            if piece:
                life.add(0, [Message(first + i, value) for i, value in enumerate(piece)])
                try:
                    life.append()
                except KilledError:
                    break

    lake = Lake(folder)
    good, bad = places(lake, "t"), places(lake, "t_rejected")
    assert sorted(good + bad) == [("T", 0, offset) for offset in range(40)]
    assert lake.table("t").next_offset("T", 0) == 40
    kept = {
        row["_offset"]: row["x"] for row in lake.table("t").delta.to_pyarrow_table().to_pylist()
    }
    assert all(offset == x for offset, x in kept.items())


def test_a_record_that_was_rejected_stays_so_whatever_the_registry_says_after_a_crash(tmp_path):
    registry = Schemas()
    value = wire(SCHEMA, 1, {"x": 0})
    first = gather(tmp_path, registry, "before", "main")
    first.add_lane(0)
    first.add(0, [Message(0, value)])
    with pytest.raises(KilledError):
        first.append()
    registry.add("topic-value", SCHEMA)

    again = gather(tmp_path, registry)
    again.add_lane(0)
    again.add(0, [Message(0, value), Message(1, value)])
    again.append()

    assert places(Lake(tmp_path), "t_rejected") == [("T", 0, 0)]
    assert places(Lake(tmp_path), "t") == [("T", 0, 1)]


def test_a_table_that_is_busy_is_appended_to_later_and_nothing_is_doubled(tmp_path):
    registry = Schemas()
    log = log_of(registry, 3, 30)
    life = gather(tmp_path, registry, "before", "main", TableBusyError)
    life.add_lane(0)
    life.add(0, [Message(i, value) for i, value in enumerate(log[:20])])
    with pytest.raises(TableBusyError):
        life.append()
    life.resume()
    assert life.rows == 20

    life.add(0, [Message(20 + i, value) for i, value in enumerate(log[20:])])
    life.tables.main.when = "never"
    life.append()

    both = places(Lake(tmp_path), "t") + places(Lake(tmp_path), "t_rejected")
    assert sorted(both) == [("T", 0, offset) for offset in range(30)]


def test_rejected_records_keep_reason_key_and_bytes(tmp_path):
    registry = Schemas()
    registry.add("topic-value", SCHEMA)
    life = gather(tmp_path, registry)
    life.add_lane(3)
    large = wire(SCHEMA, 1, {"x": 1}) + b"x" * 2_000
    life.add(3, [Message(5, b"junk", b"key"), Message(9, None, None), Message(11, large)])

    appended = life.append()

    table = Lake(tmp_path).table("t_rejected")
    assert table.schema.names == REJECTED_FIELDS.names
    found = table.delta.to_pyarrow_table().sort_by("_offset").to_pylist()
    assert [(r["reason"], r["key"], r["value"]) for r in found] == [
        ("bad_magic", b"key", b"junk"),
        ("empty", None, None),
        ("too_large", b"k", large),
    ]
    assert [(r["_partition"], r["_offset"]) for r in found] == [(3, 5), (3, 9), (3, 11)]
    assert appended.rejected == {"bad_magic": 1, "empty": 1, "too_large": 1}
    assert Lake(tmp_path).table("t").next_offset("T", 3) == 12


def test_without_the_registry_nothing_is_rejected_and_nothing_appended(tmp_path):
    registry = Schemas()
    log = [wire(SCHEMA, registry.add("topic-value", SCHEMA), {"x": 0})]
    registry.is_away = True
    life = gather(tmp_path, registry)
    life.add_lane(0)
    life.add(0, [Message(0, log[0])])

    with pytest.raises(RegistryUnavailableError):
        life.append()
    assert Lake(tmp_path).names() == []

    registry.is_away = False
    assert life.append().rows == 1


def test_another_topic_of_the_name_is_another_progress(tmp_path):
    registry = Schemas()
    value = wire(SCHEMA, registry.add("topic-value", SCHEMA), {"x": 0})
    for topic_id in ("T", "U"):
        life = Gather(Target("t", "topic", SCHEMA, None), topic_id, tmp_path, registry)
        life.add_lane(0)
        assert life.lanes[0].next_offset is None
        life.add(0, [Message(0, value)])
        life.append()

    assert places(Lake(tmp_path), "t") == [("T", 0, 0), ("U", 0, 0)]


def test_rows_of_an_append_are_sorted_by_partition_and_offset(tmp_path):
    registry = Schemas()
    value = wire(SCHEMA, registry.add("topic-value", SCHEMA), {"x": 0})
    life = gather(tmp_path, registry)
    for partition in (2, 0, 1):
        life.add_lane(partition)
    for first in (0, 3):
        for partition in (1, 2, 0):
            life.add(partition, [Message(first + i, value) for i in range(3)])
    life.append()

    (file,) = Lake(tmp_path).table("t").files()
    found = pq.read_table(file.removeprefix("file://")).to_pylist()
    stood = [(row["_partition"], row["_offset"]) for row in found]
    assert stood == sorted(stood)
    assert len(stood) == 18


def test_records_that_delta_cannot_hold_go_aside_by_name(tmp_path):
    schema = record(("a", "long"), ("A", "long"))
    registry = Schemas()
    number = registry.add("topic-value", schema)
    life = Gather(Target("t", "topic", schema, None), "T", tmp_path, registry)
    life.add_lane(0)
    life.add(0, [Message(0, wire(schema, number, {"a": 1, "A": 2}))])

    assert life.append().rejected == {"not_storable": 1}

    (row,) = Lake(tmp_path).table("t_rejected").delta.to_pyarrow_table().to_pylist()
    assert "a, A" in row["detail"]
    assert Lake(tmp_path).table("t").next_offset("T", 0) == 1


@pytest.mark.parametrize("name", ["_offset", "_Topic_ID"])
def test_a_field_with_a_name_of_the_lakes_own_goes_aside_by_name(tmp_path, name):
    schema = record((name, "long"))
    registry = Schemas()
    number = registry.add("topic-value", schema)
    life = Gather(Target("t", "topic", schema, None), "T", tmp_path, registry)
    life.add_lane(0)
    life.add(0, [Message(0, wire(schema, number, {name: 1}))])

    assert life.append().rejected == {"not_storable": 1}
