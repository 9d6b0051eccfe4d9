"""Copies of checkpoints in an object store: used where the folder lacks them, and only if whole.

A store is a `file://` URL here; with HEADRACE_TEST_S3_URL the same runs on that one.
"""

from __future__ import annotations

import os
import uuid

import pytest
from pyarrow.fs import FileSelector

from headrace.runtime.clock import ManualClock
from headrace.streams.batch import Kept
from headrace.streams.checkpoint_files import (
    CheckpointFolder,
    Place,
    kept_folders,
    stored_folders,
)
from headrace.streams.checkpoint_storage import below, object_store
from headrace.streams.checkpoint_writer import Capture, CheckpointWriter
from headrace.streams.errors import CheckpointError
from headrace.streams.restore import restore

PLACE = Place("shop.spend", "fp", "payments", "id", 3)


class Processor:
    """Takes back whatever was kept."""

    parts = None

    def restore(self, parts, records, key_count, offset):
        self.parts = {**parts, "offset": offset}
        assert not list(records)
        assert not key_count


class Watcher:
    """Counts what the writer says."""

    written = failed = 0

    def checkpoint_written(self, _manifest):
        self.written += 1

    def checkpoint_failed(self):
        self.failed += 1


class Machine:
    """A worker's checkpoint folder, and the store that all machines share."""

    def __init__(self, root, store):
        self.root, self.store, self.watcher = root, store, Watcher()
        self.folder = CheckpointFolder(PLACE.folder(root))
        self.copies = None if store is None else CheckpointFolder(below(store, PLACE.path))
        self.number = 0

    def keep(self, *offsets):
        writer = CheckpointWriter(self.root, "e", ManualClock(), self.watcher, self.store)
        writer.start()
        for offset in offsets:
            self.number += 1
            capture = Capture(PLACE, self.number, offset, whole=True, chain=())
            writer.post(capture, Kept(self.number, [], {"at": offset}, 0, ended=True))
            writer.publish(capture)
        writer.stop()

    def restore(self):
        found = restore(self.folder, self.copies, lambda _manifest: None, 0, Processor)
        return found.processor.parts and found.processor.parts["at"]

    def spoil(self, offset):
        for path in PLACE.folder(self.root).glob(f"{offset:020d}-*"):
            path.write_bytes(b"x" * path.stat().st_size)


@pytest.fixture(params=["file", "s3"])
def store(request, tmp_path):
    if request.param == "file":
        return object_store(f"file://{tmp_path / 'store'}")
    url = os.environ.get("HEADRACE_TEST_S3_URL")
    if not url:
        pytest.skip("HEADRACE_TEST_S3_URL names no bucket to test with")
    base, _, query = url.partition("?")
    return object_store(f"{base}/{uuid.uuid4().hex}?{query}")


def test_another_machine_begins_with_the_newest_copy(store, tmp_path):
    one, other = Machine(tmp_path / "a", store), Machine(tmp_path / "b", store)
    one.keep(10, 20)

    assert other.restore() == 20
    assert other.folder.names() == [f"manifest-{20:020d}.json"]
    one.keep(30)
    other.keep(25)
    assert (one.restore(), other.restore()) == (30, 30)
    assert (one.watcher.written, one.watcher.failed) == (3, 0)


def test_only_the_newest_copies_stay_in_the_store(store, tmp_path):
    machine = Machine(tmp_path / "a", store)
    machine.keep(10, 20, 30, 40, 50)

    names = [f"manifest-{offset:020d}.json" for offset in (50, 40, 30)]
    assert machine.copies.names() == names
    found = store.system.get_file_info(FileSelector(store.prefix, recursive=True))
    assert len([info for info in found if info.is_file]) == 6
    ((where, folder),) = stored_folders(store, "shop.spend")
    assert where.endswith("shop.spend/fp/payments/3")
    assert folder.names() == names
    assert [f.names() for _, f in kept_folders(tmp_path / "a", "shop.spend")] == [names]


def test_a_copy_takes_the_place_of_a_file_that_is_not_as_it_was_written(store, tmp_path):
    machine = Machine(tmp_path / "a", store)
    machine.keep(10, 20)
    machine.spoil(20)

    with pytest.raises(CheckpointError, match="must have the hash"):
        machine.folder.verify(machine.folder.load(f"manifest-{20:020d}.json"))
    assert machine.restore() == 20
    machine.folder.verify(machine.folder.load(f"manifest-{20:020d}.json"))


def test_without_its_store_a_worker_has_what_lies_in_its_folder(tmp_path):
    lost = tmp_path / "store"
    machine = Machine(tmp_path / "a", object_store(f"file://{lost}"))
    machine.keep(10)
    for path in sorted(lost.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    lost.rmdir()
    lost.write_text("no folder any more")
    machine.keep(20)

    assert machine.restore() == 20
    assert (machine.watcher.written, machine.watcher.failed) == (2, 1)


def test_a_url_that_names_no_store_is_refused():
    with pytest.raises(CheckpointError, match=r"stream\.checkpoints\.url must name an object"):
        object_store("nowhere://bucket")
