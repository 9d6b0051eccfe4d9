"""A model as a folder: ``model.txt``, ``profile.json``, ``manifest.json``. Writes and verifies it.

Never a pickle. Does not load the model: that is ``loaders``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson

from headrace.runtime.errors import explain
from headrace.scoring.errors import ArtefactError
from headrace.scoring.scorer import FeatureColumn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MODEL_FILE = "model.txt"
MANIFEST_FILE = "manifest.json"
#: What the training set looked like (``headrace.drift.profile``); artefacts of before have none.
PROFILE_FILE = "profile.json"
FORMAT = 1
# 20,000 trees of 31 leaves: far above any model that scores in microseconds. The text is parsed in
# the worker too, so a hostile one must not fill its memory.
MODEL_BYTES_MAX = 64 << 20
MANIFEST_BYTES_MAX = 16 << 20
# About 8 KB a column.
PROFILE_BYTES_MAX = 64 << 20
CANARY_ROWS_MAX = 1024
_DTYPES = ("int64", "float64")


@dataclass(frozen=True, slots=True)
class Canary:
    """Rows with the scores that the model gave for them when it was made.

    Shape: rows float64 (k, n_features), scores float64 (k,).
    """

    rows: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What a file must be: its sha256 (hex) and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artefact says of itself.

    ``sha256`` and ``size`` (bytes) are those of ``model.txt``; ``fingerprint`` is that of the
    plan whose features the model was trained on; ``training_set_id`` is a sha256 over all that
    went into the training set. ``profile`` is None where the artefact has none.
    """

    model: str
    pipeline: str
    framework: str
    framework_version: str
    sha256: str
    size: int
    columns: tuple[FeatureColumn, ...]
    fingerprint: str
    training_set_id: str
    created_at_ms: int
    metrics: dict[str, float]
    parameters: dict[str, object]
    canary: Canary
    profile: FileDigest | None = None


@dataclass(frozen=True, slots=True)
class Artefact:
    """An artefact that is what its manifest says: the bytes are those that were hashed.

    ``sha256`` is that of ``manifest.json``: it stands for the whole folder.
    """

    folder: Path
    manifest: Manifest
    sha256: str
    model_text: bytes
    manifest_json: bytes
    profile_json: bytes | None = None


def write_artefact(
    folder: Path,
    model_text: bytes,
    *,
    model: str,
    pipeline: str,
    framework_version: str,
    columns: Sequence[FeatureColumn],
    fingerprint: str,
    training_set_id: str,
    created_at_ms: int,
    canary: Canary,
    metrics: Mapping[str, float],
    parameters: Mapping[str, object],
    framework: str = "lightgbm",
    profile_json: bytes | None = None,
) -> Manifest:
    """Write an artefact folder that is there in full or not at all.

    Raises:
        ArtefactError: If ``folder`` exists.
    """
    manifest = Manifest(
        model=model,
        pipeline=pipeline,
        framework=framework,
        framework_version=framework_version,
        sha256=hashlib.sha256(model_text).hexdigest(),
        size=len(model_text),
        columns=tuple(columns),
        fingerprint=fingerprint,
        training_set_id=training_set_id,
        created_at_ms=created_at_ms,
        metrics=dict(metrics),
        parameters=dict(parameters),
        canary=canary,
        profile=None if profile_json is None else _digest(profile_json),
    )
    _check_canary(manifest, str(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        draft.chmod(0o755)
        write_durably(draft / MODEL_FILE, model_text)
        if profile_json is not None:
            write_durably(draft / PROFILE_FILE, profile_json)
        write_durably(draft / MANIFEST_FILE, encode_manifest(manifest))
        sync_folder(draft)
        publish_folder(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return manifest


def publish_folder(draft: Path, folder: Path) -> None:
    """Rename a finished folder into place; a folder that is there already stays as it is.

    Raises:
        ArtefactError: If ``folder`` exists.
    """
    if folder.exists():
        raise ArtefactError(_taken(folder))
    try:
        # Renaming a folder onto one that is not empty fails, so two writers cannot mix.
        draft.rename(folder)
    except OSError as error:
        raise ArtefactError(_taken(folder)) from error
    sync_folder(folder.parent)


def _taken(folder: Path) -> str:
    return explain("artefact", "go to a new folder", "an existing one", str(folder))


def read_artefact(folder: Path, *, sha256: str | None = None) -> Artefact:
    """Read an artefact and check sizes and hashes; the text itself is not looked into.

    Args:
        folder: The artefact's folder.
        sha256: The hash that the manifest itself must have (hex), from the deployment.

    Raises:
        ArtefactError: If a file is missing, too large, or differs from what is said of it.
    """
    raw = _read(folder / MANIFEST_FILE, MANIFEST_BYTES_MAX)
    digest = hashlib.sha256(raw).hexdigest()
    if sha256 is not None and digest != sha256:
        message = explain(
            "manifest",
            f"have the deployed sha256 {sha256}",
            digest,
            str(folder),
            "the artefact was changed after it was deployed: deploy it again",
        )
        raise ArtefactError(message)
    manifest = decode_manifest(raw, str(folder))
    model = FileDigest(manifest.sha256, manifest.size)
    text = _read_as_said(folder / MODEL_FILE, MODEL_BYTES_MAX, model)
    profile = None
    if manifest.profile is not None:
        profile = _read_as_said(folder / PROFILE_FILE, PROFILE_BYTES_MAX, manifest.profile)
    return Artefact(folder, manifest, digest, text, raw, profile)


def _digest(content: bytes) -> FileDigest:
    return FileDigest(hashlib.sha256(content).hexdigest(), len(content))


def _read_as_said(path: Path, size_max: int, said: FileDigest) -> bytes:
    """Return a file's bytes if they are those that the manifest names."""
    content = _read(path, size_max)
    found = _digest(content)
    where = str(path.parent)
    if found.size != said.size:
        rule = f"have the manifest's {said.size} bytes"
        raise ArtefactError(explain(path.name, rule, found.size, where))
    if found.sha256 != said.sha256:
        rule = f"have the manifest's sha256 {said.sha256}"
        raise ArtefactError(explain(path.name, rule, found.sha256, where))
    return content


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as JSON; canary numbers as hex floats, so that no bit is lost."""
    said = manifest.profile
    # Readers of before pass over what they do not know, so the format stays.
    profile = {} if said is None else {"profile": _file(PROFILE_FILE, said)}
    return orjson.dumps(
        {
            "format": FORMAT,
            "model": manifest.model,
            "pipeline": manifest.pipeline,
            "framework": {
                "name": manifest.framework,
                "version": manifest.framework_version,
            },
            "file": _file(MODEL_FILE, FileDigest(manifest.sha256, manifest.size)),
            **profile,
            "features": [{"name": c.name, "dtype": c.dtype} for c in manifest.columns],
            "fingerprint": manifest.fingerprint,
            "training_set_id": manifest.training_set_id,
            "created_at_ms": manifest.created_at_ms,
            "metrics": manifest.metrics,
            "parameters": manifest.parameters,
            "canary": {
                "rows": [[float(x).hex() for x in row] for row in manifest.canary.rows],
                "scores": [float(x).hex() for x in manifest.canary.scores],
            },
        },
        option=orjson.OPT_INDENT_2,
    )


def _file(name: str, said: FileDigest) -> dict[str, object]:
    return {"name": name, "sha256": said.sha256, "size": said.size}


def decode_manifest(raw: bytes, where: str) -> Manifest:
    """Return the manifest that ``raw`` holds.

    Raises:
        ArtefactError: If it is not one of format 1, whole and consistent.
    """
    try:
        data = orjson.loads(raw)
        if data["format"] != FORMAT:
            message = explain(
                "manifest",
                f"be of format {FORMAT}",
                data["format"],
                where,
                "upgrade headrace",
            )
            raise ArtefactError(message)
        manifest = Manifest(
            model=_text(data["model"]),
            pipeline=_text(data["pipeline"]),
            framework=_text(data["framework"]["name"]),
            framework_version=_text(data["framework"]["version"]),
            sha256=_text(data["file"]["sha256"]),
            size=_whole(data["file"]["size"]),
            columns=tuple(
                FeatureColumn(_text(f["name"]), _text(f["dtype"])) for f in data["features"]
            ),
            fingerprint=_text(data["fingerprint"]),
            training_set_id=_text(data["training_set_id"]),
            created_at_ms=_whole(data["created_at_ms"]),
            metrics={_text(k): float(v) for k, v in data["metrics"].items()},
            parameters={_text(k): v for k, v in data["parameters"].items()},
            canary=_canary(data["canary"], len(data["features"])),
            profile=_said(data["profile"]) if "profile" in data else None,
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        message = explain("manifest", "hold every field in its form", str(error), where)
        raise ArtefactError(message) from error
    _check_canary(manifest, where)
    return manifest


def _said(data: Mapping[str, object]) -> FileDigest:
    return FileDigest(_text(data["sha256"]), _whole(data["size"]))


def _canary(data: Mapping[str, list[list[str]]], width: int) -> Canary:
    rows = [[float.fromhex(x) for x in row] for row in data["rows"][:CANARY_ROWS_MAX]]
    scores = [float.fromhex(str(x)) for x in data["scores"][:CANARY_ROWS_MAX]]
    return Canary(np.array(rows, np.float64).reshape(len(rows), width), np.array(scores))


def _check_canary(manifest: Manifest, where: str) -> None:
    names = [column.name for column in manifest.columns]
    canary = manifest.canary
    wrong = next((c.dtype for c in manifest.columns if c.dtype not in _DTYPES), None)
    if not names or len(set(names)) != len(names):
        raise ArtefactError(explain("manifest", "name each feature once", names, where))
    if wrong is not None:
        raise ArtefactError(explain("feature dtype", f"be one of {_DTYPES}", wrong, where))
    if canary.rows.shape != (len(canary.scores), len(names)) or not len(canary.scores):
        shapes = (canary.rows.shape, canary.scores.shape)
        raise ArtefactError(explain("canary", "have a score for each row", shapes, where))
    if not np.isfinite(canary.scores).all():
        raise ArtefactError(explain("canary scores", "be finite", "others", where))


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        message = f"a text is missing; got {value!r}"
        raise ValueError(message)
    return value


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        message = f"a whole number is missing; got {value!r}"
        raise ValueError(message)
    return value


def _read(path: Path, size_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(size_max + 1)
    except OSError as error:
        message = explain("artefact", f"hold {path.name}", str(error), str(path.parent))
        raise ArtefactError(message) from error
    if len(raw) > size_max:
        message = explain(path.name, f"be at most {size_max} bytes", "more", str(path.parent))
        raise ArtefactError(message)
    return raw


def write_durably(path: Path, content: bytes) -> None:
    """Write a file whose content has reached the disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the renames and new files of a folder reach the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
