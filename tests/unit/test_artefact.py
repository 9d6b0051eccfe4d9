"""An artefact is there in full or not at all, and is what its manifest says or refused."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import orjson
import pytest

from headrace.scoring.artefact import (
    MANIFEST_FILE,
    MODEL_FILE,
    Canary,
    Manifest,
    decode_manifest,
    encode_manifest,
    read_artefact,
    write_artefact,
)
from headrace.scoring.errors import ArtefactError
from headrace.scoring.scorer import FeatureColumn

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = (FeatureColumn("amount", "float64"), FeatureColumn("count_1d", "int64"))
ROWS = np.array([[1.5, 2.0], [math.nan, -0.0], [1e-320, math.inf]])
SCORES = np.array([0.1, 1 / 3, 5e-324])
TEXT = b"tree\nnot looked into here\n"


def write(folder: Path, **changes: object) -> Manifest:
    given: dict = {
        "model": "fraud",
        "pipeline": "fraud",
        "framework_version": "4.7.0",
        "columns": COLUMNS,
        "fingerprint": "0123456789abcdef",
        "training_set_id": "t",
        "created_at_ms": 1_700_000_000_000,
        "canary": Canary(ROWS, SCORES),
        "metrics": {"test_auc": 0.875},
        "parameters": {"num_leaves": 7},
    }
    return write_artefact(folder, TEXT, **{**given, **changes})


def test_what_is_read_is_what_was_written_to_the_last_bit(tmp_path: Path) -> None:
    written = write(tmp_path / "a")
    read = read_artefact(tmp_path / "a")

    assert read.model_text == TEXT
    assert read.manifest.columns == COLUMNS
    assert read.manifest.metrics == {"test_auc": 0.875}
    assert read.manifest.canary.rows.tobytes() == ROWS.tobytes()
    assert read.manifest.canary.scores.tobytes() == SCORES.tobytes()
    assert read.manifest.sha256 == written.sha256
    assert (read.manifest.fingerprint, read.manifest.size) == ("0123456789abcdef", len(TEXT))


def test_nothing_but_the_finished_folder_is_left(tmp_path: Path) -> None:
    write(tmp_path / "a")

    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert {path.name for path in (tmp_path / "a").iterdir()} == {MODEL_FILE, MANIFEST_FILE}


def test_an_artefact_is_never_written_over(tmp_path: Path) -> None:
    write(tmp_path / "a")

    with pytest.raises(ArtefactError, match="new folder"):
        write(tmp_path / "a", model="other")
    assert read_artefact(tmp_path / "a").manifest.model == "fraud"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": ()},
        {"columns": (COLUMNS[0], COLUMNS[0])},
        {"columns": (FeatureColumn("amount", "float32"), COLUMNS[1])},
        {"canary": Canary(ROWS[:, :1], SCORES)},
        {"canary": Canary(ROWS, SCORES[:2])},
        {"canary": Canary(ROWS[:0], SCORES[:0])},
        {"canary": Canary(ROWS, np.array([0.1, math.nan, 0.2]))},
    ],
    ids=["none", "twice", "dtype", "narrow", "short", "empty", "nan"],
)
def test_an_artefact_that_could_not_be_checked_is_not_written(
    tmp_path: Path, changes: dict
) -> None:
    with pytest.raises(ArtefactError):
        write(tmp_path / "a", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_model_is_refused_at_each_byte(tmp_path: Path) -> None:
    write(tmp_path / "a")
    path = tmp_path / "a" / MODEL_FILE
    for at in range(len(TEXT)):
        changed = bytearray(TEXT)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ArtefactError, match="sha256"):
            read_artefact(tmp_path / "a")
    for content in (TEXT[:-1], TEXT + b"\n", b""):
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match="bytes"):
            read_artefact(tmp_path / "a")


def test_a_manifest_other_than_the_deployed_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a")
    deployed = read_artefact(tmp_path / "a").sha256
    assert read_artefact(tmp_path / "a", sha256=deployed).manifest.model == "fraud"
    path = tmp_path / "a" / MANIFEST_FILE
    path.write_bytes(path.read_bytes().replace(b"0.875", b"0.975"))

    with pytest.raises(ArtefactError, match="deployed"):
        read_artefact(tmp_path / "a", sha256=deployed)


FIELDS = [
    "format",
    "model",
    "pipeline",
    "framework",
    "file",
    "features",
    "fingerprint",
    "training_set_id",
    "created_at_ms",
    "metrics",
    "parameters",
    "canary",
]


@pytest.mark.parametrize("name", FIELDS)
def test_a_manifest_without_one_of_its_fields_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a")
    data = orjson.loads((tmp_path / "a" / MANIFEST_FILE).read_bytes())
    assert list(data) == FIELDS
    del data[name]

    with pytest.raises(ArtefactError):
        decode_manifest(orjson.dumps(data), "test")


@pytest.mark.parametrize("wrong", [None, "", [], [[]], -1.5], ids=repr)
@pytest.mark.parametrize("name", FIELDS)
def test_a_manifest_with_a_field_of_another_kind_is_refused(
    tmp_path: Path, name: str, wrong: object
) -> None:
    write(tmp_path / "a")
    data = orjson.loads((tmp_path / "a" / MANIFEST_FILE).read_bytes())
    data[name] = wrong

    with pytest.raises(ArtefactError):
        decode_manifest(orjson.dumps(data), "test")


def test_a_manifest_of_a_later_format_says_to_upgrade(tmp_path: Path) -> None:
    write(tmp_path / "a")
    data = orjson.loads((tmp_path / "a" / MANIFEST_FILE).read_bytes())
    data["format"] = 2

    with pytest.raises(ArtefactError, match="upgrade headrace"):
        decode_manifest(orjson.dumps(data), "test")


def test_a_manifest_survives_another_round(tmp_path: Path) -> None:
    write(tmp_path / "a")
    raw = (tmp_path / "a" / MANIFEST_FILE).read_bytes()

    assert encode_manifest(decode_manifest(raw, "test")) == raw


def test_a_folder_without_an_artefact_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"must hold manifest\.json"):
        read_artefact(tmp_path / "nowhere")
