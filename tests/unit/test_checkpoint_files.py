"""Checkpoint files: whole or not used, whatever happens to them."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import resource
import signal

import numpy as np
import pytest
from stream_cases import make_payments, make_reports, two_stages

from headrace.streams.batch import Keep
from headrace.streams.checkpoint_files import (
    CaptureFiles,
    CheckpointFolder,
    Manifest,
    Place,
    load_manifest,
)
from headrace.streams.errors import CheckpointError
from headrace.streams.positions import OwnedPartition
from headrace.streams.processors import build
from headrace.streams.restore import Lineage, restore
from headrace.streams.testing import Driver


@pytest.fixture(scope="module")
def driver():
    """Return a pipeline that has read a log; its first partition with keys is what is kept."""
    payments = make_payments(200, seed=3)
    driver = Driver(two_stages(), partitions=2, batch_rows=20)
    driver.send("payments", payments)
    driver.send("reports", make_reports(payments, seed=4))
    driver.run()
    return driver


@pytest.fixture
def owned(driver):
    return next(o for (topic, _), o in driver.owned.items() if topic == "payments")


class Kept:
    """Checkpoints of one processor at growing offsets, in a folder of their own."""

    def __init__(self, root, driver, owned):
        self.root, self.driver, self.owned = root, driver, owned
        self.place = Place("g", driver.plan.fingerprint, owned.topic, "id", owned.partition)
        self.path = self.place.folder(root)
        self.folder = CheckpointFolder(self.path)
        self.chain, self.number = (), 0
        self.copies = None

    def make(self):
        return build(self.driver.plan, self.owned.topic, self.owned.partition, self.driver.context)

    def processor(self, stop):
        """Return a processor that has read the log up to ``stop``."""
        fresh = dataclasses.replace(self.owned, processor=self.make(), position=0, kept=[])
        fresh.processor.process(self.driver._batch(fresh, stop))
        return fresh.processor

    def keep(self, offset, *, whole=True, writer="w", **publish):
        self.number += 1
        place = self.owned.topic, self.owned.partition, 0
        keep = Keep(*place, self.number, offset, opens=True, whole=True)
        kept = self.processor(offset).keep(keep).kept
        files = CaptureFiles(self.path, offset, f"{writer}{self.number}", whole=whole)
        try:
            for records in kept.records:
                files.add(records)
            parts, *slots = files.finish(kept.parts)
        except OSError:
            files.discard()
            raise
        self.chain = (*(() if whole else self.chain), *slots)
        manifest = Manifest(
            *(self.place.plan, "engine", self.place.topic, "id", self.owned.partition, offset),
            *(kept.key_count, (parts, *self.chain)),
        )
        self.folder.publish(manifest, **publish)
        return manifest

    def restore(self, low=0, committed=10**9):
        return self.restore_of(self.place, low, committed)

    def restore_of(self, place, low=0, committed=10**9, lineage=None, **owned):
        one = OwnedPartition(
            *(place.topic, place.partition, 0, place.topic_id, committed, committed),
            next_offset=low,
            **owned,
        )
        usable = functools.partial((lineage or Lineage()).usable, place=place, owned=one)
        folder = CheckpointFolder(place.folder(self.root))
        return restore(folder, self.copies, usable, low, self.make)


@pytest.fixture
def kept(tmp_path, driver, owned):
    return Kept(tmp_path, driver, owned)


def test_the_newest_usable_checkpoint_is_taken(kept):
    for offset in (20, 40, 60):
        kept.keep(offset)

    assert kept.restore().offset == 60
    assert kept.restore(committed=59).offset == 40
    assert kept.restore(low=40, committed=59).offset == 40
    assert kept.restore(low=41, committed=59).manifest is None
    other = dataclasses.replace(kept.place, topic_id="other")
    assert kept.restore_of(other).manifest is None


def test_what_is_restored_from_files_has_every_bit(kept):
    kept.keep(40)
    restored = kept.restore().processor

    slots = np.arange(restored.state.key_count)
    straight = kept.processor(40).state

    assert slots.size > 3
    assert restored.state.keys(0).equals(straight.keys(0))
    got, wanted = restored.state.probe(slots), straight.probe(slots)
    assert got.aggregates.tobytes() == wanted.aggregates.tobytes()


def test_a_segment_over_a_base_is_read_with_it(kept):
    kept.keep(20)
    manifest = kept.keep(40, whole=False)

    assert [file.kind for file in manifest.files] == ["parts", "base", "segment"]
    assert kept.restore().offset == 40


@pytest.mark.parametrize("kind", ["parts", "base", "manifest"])
def test_a_file_cut_or_flipped_anywhere_is_found_and_an_older_one_is_taken(kept, kind):
    kept.keep(20)
    manifest = kept.keep(40)
    names = {file.kind: file.name for file in manifest.files} | {"manifest": manifest.name}
    path = kept.path / names[kind]
    whole = path.read_bytes()
    # Every 4 kB, and as these files are small, many places between.
    places = sorted({*range(0, len(whole), 4096), *range(0, len(whole), len(whole) // 23)})
    for place in places:
        path.write_bytes(whole[:place])
        assert kept.restore().offset == 20, place
        flipped = bytearray(whole)
        flipped[place] ^= 0x10
        path.write_bytes(flipped)
        assert kept.restore().offset == 20, place
    path.write_bytes(whole)

    assert kept.restore().offset == 40


def test_with_all_of_them_corrupt_the_processor_starts_empty(kept):
    for offset in (20, 40):
        for file in kept.keep(offset).files:
            (kept.path / file.name).write_bytes(b"")

    restored = kept.restore(low=7)

    assert restored.manifest is None
    assert restored.offset == 7
    assert restored.processor.state.key_count == 0


def test_three_manifests_stay_with_the_files_that_they_name(kept):
    first = kept.keep(10)
    stale = CaptureFiles(kept.path, 15, "crashed", whole=True)
    stale.finish({})
    kept.keep(20, whole=False)
    others = CaptureFiles(kept.path, 90, "other-writer", whole=True)
    others.finish({})
    for offset in (30, 40, 50):
        kept.keep(offset, whole=False)

    names = {path.name for path in kept.path.iterdir()}
    assert kept.folder.names() == [f"manifest-{n:020d}.json" for n in (50, 40, 30)]
    base = next(file.name for file in first.files if file.kind == "base")
    assert base in names
    assert f"{15:020d}-crashed.parts" not in names
    assert f"{90:020d}-other-writer.parts" in names
    for name in kept.folder.names():
        kept.folder.verify(kept.folder.load(name))


def test_one_that_must_be_alone_leaves_nothing_older(kept):
    kept.keep(20)
    kept.keep(30, whole=False)

    kept.keep(40, alone=True)

    assert kept.folder.names() == [f"manifest-{40:020d}.json"]
    assert {path.name[:20] for path in kept.path.iterdir()} == {
        f"{40:020d}",
        "manifest-" + "0" * 11,
    }


def test_a_full_disk_leaves_no_half_checkpoint_and_the_next_one_works(kept):
    kept.keep(20)
    before = sorted(path.name for path in kept.path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            kept.keep(40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)

    assert sorted(path.name for path in kept.path.iterdir()) == before
    assert kept.restore().offset == 20
    kept.keep(40)
    assert kept.restore().offset == 40


def test_a_manifest_is_read_as_it_was_written(kept):
    manifest = kept.keep(20)

    assert load_manifest(manifest.dump(), "here") == manifest
    with pytest.raises(CheckpointError, match="a manifest must be JSON of its fields"):
        load_manifest(b"[]", "here")


def test_a_state_that_was_prepared_is_used_by_who_has_committed_nothing_of_it_yet(kept):
    made = kept.keep(40)
    fresh = {"committed": 0, "is_fresh": True, "high_offset": 60}
    assert kept.restore_of(kept.place, **fresh).manifest is None
    kept.folder.publish(dataclasses.replace(made, follows={}))
    assert kept.restore_of(kept.place, **fresh).manifest is None
    kept.folder.publish(dataclasses.replace(made, follows={"payments[0]": 7}))

    for committed, offset in (({"payments[0]": 7}, 40), ({"payments[0]": 6}, None), ({}, None)):
        restored = kept.restore_of(kept.place, lineage=Lineage({}, committed), **fresh)
        assert (restored.manifest and restored.offset) == offset


def test_a_state_is_used_only_if_what_is_lacking_elsewhere_holds_all_that_came_before(kept):
    made = kept.keep(40)
    lacking = {"unsent": frozenset({"rekey"})}
    now = Lineage({"rekey": "new"})

    assert kept.restore_of(kept.place, lineage=now, **lacking).manifest is None
    for topic_id, expected in (("former", None), ("new", 40)):
        sends = Lineage({"rekey": topic_id}).named(["rekey"])
        kept.folder.publish(dataclasses.replace(made, sends=sends))
        restored = kept.restore_of(kept.place, lineage=now, **lacking)
        assert (restored.manifest and restored.offset) == expected
