"""A deployment event says all that a worker needs, and a bad one is refused."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import orjson
import pytest

from headrace.scoring.deployments import (
    Deployment,
    decode_deployment,
    encode_deployment,
    next_revision,
    supersedes,
)
from headrace.scoring.errors import DeploymentError

if TYPE_CHECKING:
    from pathlib import Path

EVENT = Deployment(
    pipeline="fraud",
    model="fraud",
    version="3",
    uri="file:///models/fraud/3",
    sha256="ab" * 32,
    role="champion",
    revision=7,
    at_ms=1_700_000_000_000,
    fingerprint="0123456789abcdef",
)


@pytest.mark.parametrize("event", [EVENT, dataclasses.replace(EVENT, fingerprint=None)])
def test_what_is_read_is_what_was_written(event: Deployment) -> None:
    assert event == decode_deployment(encode_deployment(event))


def test_the_key_is_the_pipeline_so_that_compaction_keeps_one_each() -> None:
    assert EVENT.key == b"fraud"


def test_a_field_of_a_later_version_is_passed_over() -> None:
    data = {**orjson.loads(encode_deployment(EVENT)), "traffic": 0.5}

    assert decode_deployment(orjson.dumps(data)) == EVENT


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Deployment)])
def test_an_event_without_one_of_its_fields_is_refused(name: str) -> None:
    data = orjson.loads(encode_deployment(EVENT))
    del data[name]

    with pytest.raises(DeploymentError):
        decode_deployment(orjson.dumps(data))


@pytest.mark.parametrize(
    "change",
    [
        {"revision": "7"},
        {"revision": 7.5},
        {"revision": True},
        {"revision": 0},
        {"revision": -1},
        {"at_ms": None},
        {"role": "king"},
        {"role": []},
        {"pipeline": ""},
        {"model": 3},
        {"uri": None},
        {"fingerprint": 1},
    ],
    ids=str,
)
def test_an_event_with_a_field_of_another_kind_is_refused(change: dict) -> None:
    data = {**orjson.loads(encode_deployment(EVENT)), **change}

    with pytest.raises(DeploymentError):
        decode_deployment(orjson.dumps(data))


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"null", b"7", b"\xff", b'"text"'])
def test_what_is_no_event_is_refused(value: bytes) -> None:
    with pytest.raises(DeploymentError):
        decode_deployment(value)


def test_an_address_with_blanks_and_signs_names_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my models (ü)" / "3"
    event = dataclasses.replace(EVENT, uri=folder.as_uri())

    assert folder == event.folder


@pytest.mark.parametrize("uri", ["/models/3", "s3://bucket/3", "file://host/models/3", ""])
def test_an_address_that_is_no_local_folder_is_refused(uri: str) -> None:
    with pytest.raises(DeploymentError, match="file://"):
        _ = dataclasses.replace(EVENT, uri=uri).folder


def test_revisions_only_rise() -> None:
    later = dataclasses.replace(EVENT, revision=8)

    assert (next_revision(None), next_revision(EVENT)) == (1, 8)
    assert supersedes(EVENT, None)
    assert supersedes(later, EVENT)
    assert not supersedes(EVENT, EVENT)
    assert not supersedes(EVENT, later)
