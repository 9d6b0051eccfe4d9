"""The registry never shows half a model, and says what there is when something is not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from headrace.scoring.artefact import MODEL_FILE, Canary, read_artefact, write_artefact
from headrace.scoring.errors import ArtefactError
from headrace.scoring.scorer import FeatureColumn
from headrace.training.errors import ModelRegistryError
from headrace.training.registry import FileRegistry

if TYPE_CHECKING:
    from pathlib import Path


def artefact(folder: Path, model: str = "fraud", text: bytes = b"tree\n") -> Path:
    write_artefact(
        folder,
        text,
        model=model,
        pipeline="fraud",
        framework_version="4.7.0",
        columns=[FeatureColumn("amount", "float64")],
        fingerprint="0123456789abcdef",
        training_set_id="t",
        created_at_ms=0,
        canary=Canary(np.zeros((1, 1)), np.zeros(1)),
        metrics={},
        parameters={},
    )
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> FileRegistry:
    return FileRegistry(tmp_path / "models")


def test_versions_are_counted_from_one(registry: FileRegistry, tmp_path: Path) -> None:
    entries = [registry.add(artefact(tmp_path / name, text=name.encode())) for name in "ab"]

    assert [(entry.model, entry.version) for entry in entries] == [("fraud", 1), ("fraud", 2)]
    assert [read_artefact(entry.folder).model_text for entry in entries] == [b"a", b"b"]
    assert registry.versions("fraud") == [1, 2]
    assert registry.models() == ["fraud"]


def test_an_artefact_is_copied_byte_for_byte(registry: FileRegistry, tmp_path: Path) -> None:
    source = artefact(tmp_path / "a")
    entry = registry.add(source)

    assert read_artefact(source).sha256 == read_artefact(entry.folder).sha256


def test_an_artefact_that_is_not_whole_is_not_added(registry: FileRegistry, tmp_path: Path) -> None:
    source = artefact(tmp_path / "a")
    (source / MODEL_FILE).write_bytes(b"other")

    with pytest.raises(ArtefactError):
        registry.add(source)
    assert registry.versions("fraud") == []


def test_writers_at_once_each_get_a_version_of_their_own(
    registry: FileRegistry, tmp_path: Path
) -> None:
    sources = [artefact(tmp_path / str(n), text=str(n).encode()) for n in range(12)]
    with ThreadPoolExecutor(4) as pool:
        entries = list(pool.map(registry.add, sources))

    assert sorted(entry.version for entry in entries) == list(range(1, 13))
    for source, entry in zip(sources, entries, strict=True):
        assert read_artefact(source).sha256 == read_artefact(entry.folder).sha256
    assert not list(registry.folder.rglob(".draft-*"))


def test_a_version_that_another_writer_took_meanwhile_is_left_to_it(
    registry: FileRegistry, tmp_path: Path
) -> None:
    class LateRegistry(FileRegistry):
        """Looks at the versions, and another writer is quicker."""

        def versions(self, model: str) -> list[int]:
            seen = super().versions(model)
            if len(seen) < 3:
                registry.add(artefact(tmp_path / f"other{len(seen)}", text=b"other"))
            return seen

    entry = LateRegistry(registry.folder).add(artefact(tmp_path / "mine", text=b"mine"))

    assert entry.version == 4
    assert read_artefact(entry.folder).model_text == b"mine"
    assert read_artefact(registry.folder / "fraud" / "3").model_text == b"other"


def test_references_resolve_by_alias_by_version_and_to_the_newest(
    registry: FileRegistry, tmp_path: Path
) -> None:
    for name in "abc":
        registry.add(artefact(tmp_path / name))
    registry.alias("fraud", "champion", 2)

    resolved = {
        reference: registry.resolve(reference).version
        for reference in ("fraud@champion", "fraud/1", "fraud")
    }
    assert resolved == {"fraud@champion": 2, "fraud/1": 1, "fraud": 3}
    assert registry.resolve("fraud/1").folder == registry.folder / "fraud" / "1"


def test_an_alias_moves_and_readers_see_the_old_or_the_new(
    registry: FileRegistry, tmp_path: Path
) -> None:
    for name in "ab":
        registry.add(artefact(tmp_path / name))
    registry.alias("fraud", "champion", 1)

    def move_to_and_fro() -> None:
        for turn in range(60):
            registry.alias("fraud", "champion", 1 + turn % 2)

    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(move_to_and_fro)
        seen = {registry.resolve("fraud@champion").version for _ in range(400)}
        moving.result()

    assert seen <= {1, 2}
    assert registry.aliases("fraud") == {"champion": 2}


def test_an_alias_of_a_version_that_is_not_there_is_refused(
    registry: FileRegistry, tmp_path: Path
) -> None:
    registry.add(artefact(tmp_path / "a"))

    with pytest.raises(ModelRegistryError, match=r"versions \[1\]"):
        registry.alias("fraud", "champion", 2)


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        ("card", "there are: fraud"),
        ("fraud/9", r"there are versions \[1\] and aliases \['champion'\]"),
        ("fraud@best", r"there are versions \[1\] and aliases \['champion'\]"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(
    registry: FileRegistry, tmp_path: Path, reference: str, hint: str
) -> None:
    registry.add(artefact(tmp_path / "a"))
    registry.alias("fraud", "champion", 1)

    with pytest.raises(ModelRegistryError, match=hint):
        registry.resolve(reference)


def test_an_empty_registry_says_to_train(registry: FileRegistry) -> None:
    with pytest.raises(ModelRegistryError, match="run headrace train"):
        registry.resolve("fraud")


@pytest.mark.parametrize(
    "reference", ["../fraud", "fraud/..", "fraud@../1", "/etc", "", ".hidden", "fraud/1/2", "a b"]
)
def test_a_reference_never_leaves_the_registry(
    registry: FileRegistry, tmp_path: Path, reference: str
) -> None:
    registry.add(artefact(tmp_path / "a"))

    with pytest.raises(ModelRegistryError):
        registry.resolve(reference)


def test_a_manifest_cannot_name_a_model_outside(registry: FileRegistry, tmp_path: Path) -> None:
    with pytest.raises(ModelRegistryError):
        registry.add(artefact(tmp_path / "a", model="../escape"))
