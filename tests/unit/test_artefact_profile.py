"""An artefact keeps its profile, as long as it is the one that the manifest names."""

from __future__ import annotations

import drift_project as made
import numpy as np
import orjson
import pytest

from headrace.drift.profile import decode_profile
from headrace.scoring.artefact import (
    MANIFEST_FILE,
    PROFILE_FILE,
    decode_manifest,
    encode_manifest,
    read_artefact,
)
from headrace.scoring.errors import ArtefactError


@pytest.fixture
def folder(tmp_path):
    return made.register(tmp_path).folder


def test_what_is_read_back_is_the_profile_that_was_written(folder):
    artefact = read_artefact(folder)
    profile = decode_profile(artefact.profile_json, "test")

    assert artefact.profile_json == (folder / PROFILE_FILE).read_bytes()
    assert profile.columns[0].mean == np.mean(made.ordinary(20_000, 1)[:, 0])
    assert profile.score.rows == 20_000


def test_the_manifests_hash_covers_the_profile(folder):
    manifest = orjson.loads((folder / MANIFEST_FILE).read_bytes())
    size = (folder / PROFILE_FILE).stat().st_size

    assert manifest["profile"]["size"] == size
    assert read_artefact(folder).manifest.profile.sha256 == manifest["profile"]["sha256"]


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: b" " + raw[1:]])
def test_a_changed_profile_is_refused(folder, change):
    path = folder / PROFILE_FILE
    path.write_bytes(change(path.read_bytes()))

    with pytest.raises(ArtefactError, match=r"profile\.json must have the manifest's"):
        read_artefact(folder)


def test_a_lost_profile_is_refused(folder):
    (folder / PROFILE_FILE).unlink()

    with pytest.raises(ArtefactError, match=r"must hold profile\.json"):
        read_artefact(folder)


def test_an_artefact_of_before_profiles_still_loads(tmp_path):
    entry = made.register(tmp_path, profile=False)
    artefact = read_artefact(entry.folder)

    assert artefact.profile_json is None
    assert artefact.manifest.profile is None
    assert not (entry.folder / PROFILE_FILE).exists()
    assert b'"profile"' not in artefact.manifest_json


def test_a_manifest_with_a_profile_survives_another_round(folder):
    raw = (folder / MANIFEST_FILE).read_bytes()

    assert encode_manifest(decode_manifest(raw, "test")) == raw


@pytest.mark.parametrize("wrong", [None, "", [], {}, {"sha256": "", "size": 1}, {"sha256": "a"}])
def test_a_manifest_with_half_a_profile_is_refused(folder, wrong):
    data = orjson.loads((folder / MANIFEST_FILE).read_bytes())
    data["profile"] = wrong

    with pytest.raises(ArtefactError):
        decode_manifest(orjson.dumps(data), "test")
