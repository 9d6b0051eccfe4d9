"""What a log has lost, from the lake: as if it had never been lost, or not at all."""

from __future__ import annotations

import dataclasses

import deltalake
import numpy as np
import pytest
from lake_files import write_rows, write_topic
from stream_cases import make_payments, make_reports, two_stages

from headrace.lake.tables import Lake, rejected_table
from headrace.schemas.codec import RecordEncoder
from headrace.streams.errors import PositionError
from headrace.streams.positions import OwnedPartition, refuse_lost_history
from headrace.streams.processors import build
from headrace.streams.refill import LakeRefill
from headrace.streams.testing import Driver, Message

PARTITIONS = 3
PAYMENTS, REPORTS = "payments", "reports"


class Scene:
    """A pipeline that has read its logs, with all of them in a lake, whose logs are cut then."""

    def __init__(self, folder):
        payments = make_payments(600, seed=3)
        self.driver = Driver(two_stages(), partitions=PARTITIONS, batch_rows=50)
        self.driver.send(PAYMENTS, payments[:300])
        self.driver.send(REPORTS, make_reports(payments, seed=4))
        # Bad input has its place in the log, and in the lake.
        self.driver.send_raw(PAYMENTS, 0, Message(b"c1", b"\0\0\0\0\1rest", [], 5))
        self.driver.send(PAYMENTS, payments[300:])
        self.driver.run()
        self.folder = folder
        for source in self.driver.plan.sources:
            number = self.driver._schema_ids[source.name]
            write_topic(folder, source.name, self.driver, source.topic, number)
        self.lake = Lake(folder)

    def length(self, topic, partition):
        return len(self.driver.logs(topic)[partition])

    def reject(self, topic, partition, offset):
        """Let a record stand in the lake as a rejected one."""
        import pyarrow as pa

        rows = pa.table({"reason": ["not_decodable"], "detail": [""], "key": [b""], "value": [b""]})
        where = {"partition": [partition], "offset": [offset], "arrival_ms": [5]}
        name = rejected_table(topic)
        write_rows(self.folder, name, rows, topic_id=f"id-of-{topic}", files=1, **where)

    def owned(self, topic, partition, first):
        end = self.length(topic, partition)
        return OwnedPartition(
            topic, partition, 0, f"id-of-{topic}", first + 5, first + 5, first, first, end
        )

    def refill(self):
        driver = self.driver
        encoders = {
            source.name: RecordEncoder(
                driver._schemas[driver._schema_ids[source.name]], driver._schema_ids[source.name]
            )
            for source in driver.plan.sources
        }
        counts = driver.context.partition_counts
        return LakeRefill(None, self.lake, driver.plan, counts, encoders)

    def restored(self, owned):
        driver, refill = self.driver, self.refill()
        make = lambda: build(driver.plan, owned.topic, owned.partition, driver.context)  # noqa: E731
        if not refill.wanted(owned):
            return make()
        return refill.restore(owned, make)

    def outputs(self, processor, owned, first, *, emit_from):
        """Return what the rows from an offset on cause."""
        reads = next(
            one
            for place, one in self.driver.owned.items()
            if place == (owned.topic, owned.partition)
        )
        at = dataclasses.replace(reads, processor=processor, position=first, emit_from=emit_from)
        made = processor.process(self.driver._batch(at, self.length(*_place(owned)) - first))
        return made.single, made.bulk, made.scored


def _place(owned):
    return owned.topic, owned.partition


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def bad_row(scene):
    (found,) = [
        offset
        for offset, message in enumerate(scene.driver.logs(PAYMENTS)[0])
        if message.value == b"\0\0\0\0\1rest"
    ]
    return found


@pytest.mark.parametrize("topic", [PAYMENTS, REPORTS])
@pytest.mark.parametrize("partition", range(PARTITIONS))
def test_outputs_are_those_of_a_log_that_was_never_cut(scene, topic, partition):
    scene.reject(PAYMENTS, 0, bad_row(scene))
    first = scene.length(topic, partition) * 3 // 4
    owned = scene.owned(topic, partition, first)
    whole = build(scene.driver.plan, topic, partition, scene.driver.context)

    processor = scene.restored(owned)
    refuse_lost_history(owned, "stop")

    assert owned.refilled
    assert owned.next_offset == first
    expected = scene.outputs(whole, owned, 0, emit_from=owned.emit_from)
    assert any(expected)
    assert scene.outputs(processor, owned, first, emit_from=owned.emit_from) == expected
    # It would not be so without the beginning, where there is state.
    if topic == PAYMENTS:
        empty = build(scene.driver.plan, topic, partition, scene.driver.context)
        assert scene.outputs(empty, owned, first, emit_from=owned.emit_from) != expected


def refused(scene, owned):
    """Restore, and return whether what came is as good as nothing."""
    scene.restored(owned)
    with pytest.raises(PositionError, match="must begin at offset 0"):
        refuse_lost_history(owned, "stop")
    return not owned.refilled


def test_a_lake_that_lacks_a_record_is_not_used(scene, capsys):
    # The bad one is in neither table.
    assert refused(scene, scene.owned(PAYMENTS, 0, bad_row(scene) + 1))

    assert "must hold each of" in capsys.readouterr().out
    table = scene.folder / PAYMENTS
    deltalake.DeltaTable(str(table)).delete("_partition = 1 and _offset = 3")
    assert refused(scene, scene.owned(PAYMENTS, 1, 20))
    other = scene.owned(PAYMENTS, 2, 20)
    scene.restored(other)
    assert other.refilled


def test_a_lake_whose_file_cannot_be_read_is_not_used(scene):
    for path in (scene.folder / PAYMENTS).glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:100])

    assert refused(scene, scene.owned(PAYMENTS, 1, 20))


class Recording:
    """Takes note of what it is given."""

    def __init__(self):
        self.batches = []

    def process(self, batch):
        self.batches.append(batch)


def test_rows_come_as_the_messages_that_they_were_in_the_order_of_the_log(scene, monkeypatch):
    monkeypatch.setattr("headrace.streams.refill.STEP", 7)
    owned, recording = scene.owned(PAYMENTS, 1, 40), Recording()

    scene.refill().restore(owned, lambda: recording)

    log = scene.driver.logs(PAYMENTS)[1][:40]
    rows = [
        row
        for one in recording.batches
        for row in zip(one.offsets, one.keys, one.values, one.arrival_time_ms, strict=True)
    ]
    assert rows == [(n, m.key, m.value, m.timestamp_ms) for n, m in enumerate(log)]
    assert all(one.emit_from == owned.emit_from for one in recording.batches)


def test_rows_of_another_topic_of_the_name_are_not_taken(scene):
    owned = dataclasses.replace(scene.owned(PAYMENTS, 1, 20), topic_id="made-anew")

    assert refused(scene, owned)


def test_rows_that_do_not_lie_where_their_keys_say_are_not_taken(scene):
    """Their messages had another key, or none; the lake does not know which."""
    table = scene.folder / PAYMENTS
    rows = deltalake.DeltaTable(str(table)).to_pyarrow_table(filters=[("_partition", "=", 2)])
    rows = rows.sort_by("_offset")
    deltalake.DeltaTable(str(table)).delete("_partition = 1")
    own = [name for name in rows.schema.names if not name.startswith("_")]
    count = rows.num_rows
    write_rows(
        scene.folder, PAYMENTS, rows.select(own), topic_id=f"id-of-{PAYMENTS}",
        partition=[1] * count, offset=np.arange(count), arrival_ms=[5] * count,
    )  # fmt: skip

    assert refused(scene, scene.owned(PAYMENTS, 1, 20))


def test_a_log_that_is_whole_asks_no_lake(scene):
    owned = dataclasses.replace(scene.owned(PAYMENTS, 1, 20), next_offset=0)

    scene.restored(owned)

    assert not owned.refilled
    refuse_lost_history(owned, "stop")
