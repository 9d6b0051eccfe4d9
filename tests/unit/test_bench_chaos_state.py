"""What chaos says of checkpoints that were spoilt, of a log that was cut, and of what grows."""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from bench.chaos.rows_soak import ACTS, EVERY_S, Growth, Sample, schedule
from bench.chaos.spoil import SPOIL, KeptFolder, content, newest, spoil_each
from bench.restore import Partition, visits
from headrace.streams.checkpoint_files import CheckpointFolder
from headrace.streams.restore import restore
from headrace.streams.testing import Driver

MINUTES = 60.0


@pytest.fixture
def partition(tmp_path):
    """Return a partition with three checkpoints below ``tmp_path``: a base and two segments."""
    plan = visits()
    made = Partition(plan, Driver(plan, partitions=1), 0, 300)
    made.fill()
    for number in range(3):
        made.read(*made.some())
        made.keep(tmp_path, whole=number == 0, rows=False)
    return made


@pytest.fixture
def folder(partition, tmp_path):
    return KeptFolder(partition.place.folder(tmp_path))


def restored(partition, root):
    folder = KeptFolder(partition.place.folder(root))
    found = restore(folder, None, lambda _manifest: None, 0, partition.make)
    return found.offset, content(found.processor)


def test_spoilt_files_lead_to_an_older_checkpoint_and_to_what_that_one_was(
    partition, folder, tmp_path
):
    faults = []
    before = {path.name: path.read_bytes() for path in folder.folder.iterdir()}

    tried = spoil_each(folder, lambda: restored(partition, tmp_path), random.Random(1), faults)

    assert faults == []
    assert tried > 10 * len(before)
    assert {path.name: path.read_bytes() for path in folder.folder.iterdir()} == before


def test_whoever_believes_a_spoilt_file_is_found(partition, folder, tmp_path, monkeypatch):
    read = CheckpointFolder.read

    def believing(self, manifest):
        files = []
        for file in manifest.files:
            data = (self.folder / file.name).read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            files.append(replace(file, bytes=len(data), sha256=sha256))
        return read(self, replace(manifest, files=tuple(files)))

    monkeypatch.setattr(CheckpointFolder, "read", believing)
    faults = []

    spoil_each(folder, lambda: restored(partition, tmp_path), random.Random(1), faults)

    assert len(faults) > 10


@pytest.mark.parametrize("way", SPOIL)
def test_each_way_to_spoil_makes_the_newest_checkpoint_unusable(partition, folder, tmp_path, way):
    offset, _ = restored(partition, tmp_path)
    assert offset == newest(folder).offset

    SPOIL[way](folder, random.Random(2))

    assert restored(partition, tmp_path)[0] < offset


def test_a_seed_draws_the_same_faults_and_each_kind_before_any_comes_again():
    strikes = schedule(random.Random(7), 30 * MINUTES)

    assert strikes == schedule(random.Random(7), 30 * MINUTES)
    assert strikes != schedule(random.Random(8), 30 * MINUTES)
    assert len(strikes) == 30 * MINUTES / EVERY_S
    for first in range(0, len(strikes) - len(ACTS) + 1, len(ACTS)):
        assert {one.kind for one in strikes[first : first + len(ACTS)]} == set(ACTS)
    assert all(a.at_s < b.at_s for a, b in itertools.pairwise(strikes))


def samples(mb_h=0.0, fds=0, threads=0, noise_mb=0.0, minutes=60):
    """Return a process's samples, one a second; ``fds`` and ``threads`` come in the middle."""
    draw = np.random.default_rng(3)
    count = int(minutes * MINUTES)
    return [
        Sample(
            at_s,
            300 + mb_h * at_s / 3600 + noise_mb * draw.standard_normal(),
            40 + fds * (at_s > count / 2),
            20 + threads * (at_s > count / 2),
        )
        for at_s in range(count)
    ]


def test_a_slope_is_found_under_noise_and_jumps():
    jumping = [
        one._replace(rss_mb=one.rss_mb + 50 * (n % 997 < 20))
        for n, one in enumerate(samples(mb_h=3.0, noise_mb=2.0))
    ]

    growth = Growth.of(jumping, 600)

    assert growth.mb_h == pytest.approx(3.0, abs=0.5)
    assert growth.low_mb_h < 3.0 < growth.high_mb_h
    assert growth.too_much(3_600)
    # Over a short time nobody can know.
    assert not growth.too_much(300)


@pytest.mark.parametrize(
    ("grown", "too_much"),
    [({}, False), ({"noise_mb": 1.0}, False), ({"fds": 5}, True), ({"threads": 5}, True)],
)
def test_what_stays_is_flat_and_what_comes_more_is_not(grown, too_much):
    assert Growth.of(samples(**grown), 600).too_much(3_600) is too_much


def test_what_grows_while_it_warms_up_does_not_count():
    flat = samples(minutes=20)
    rising = [one._replace(rss_mb=one.rss_mb + min(one.at_s, 600)) for one in flat]

    assert not Growth.of(rising, 600).too_much(3_600)
    assert Growth.of(rising, 0).too_much(3_600)
    assert Growth.of(samples(minutes=0.5), 30) is None


@pytest.mark.parametrize(
    ("mb_h", "threads", "beyond"), [(6.9, 0, False), (31.0, 0, True), (0.0, 5, True)]
)
def test_what_is_known_of_the_soak_excuses_some_memory_and_no_threads(mb_h, threads, beyond):
    assert Growth(mb_h, mb_h, mb_h, 0.0, 0.0, threads).beyond_known(3_600) is beyond
