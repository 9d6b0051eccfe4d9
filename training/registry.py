"""A model registry of folders: ``<model>/<version>/`` and ``<model>/aliases/<alias>``.

Everything appears by an atomic rename, so a reader never sees half a model. Not for two machines
that do not share the folder.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headrace.runtime.errors import explain
from headrace.scoring.artefact import (
    MANIFEST_FILE,
    MODEL_FILE,
    PROFILE_FILE,
    publish_folder,
    read_artefact,
    sync_folder,
    write_durably,
)
from headrace.scoring.errors import ArtefactError
from headrace.training.errors import ModelRegistryError

CHAMPION: Literal["champion"] = "champion"
_ALIASES = "aliases"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_ADD_TRIES = 100


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """One version of a model."""

    model: str
    version: int
    folder: Path

    @property
    def uri(self) -> str:
        """The folder's ``file://`` address."""
        return self.folder.resolve().as_uri()


class FileRegistry:
    """Models in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, artefact: Path) -> RegistryEntry:
        """Copy an artefact in as the next version of the model that its manifest names.

        Raises:
            ArtefactError: If it is not what its manifest says.
            ModelRegistryError: If the model's name cannot be a folder's.
        """
        source = read_artefact(artefact)
        model = _checked(source.manifest.model)
        home = self.folder / model
        home.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=home))
        try:
            draft.chmod(0o755)
            write_durably(draft / MODEL_FILE, source.model_text)
            if source.profile_json is not None:
                write_durably(draft / PROFILE_FILE, source.profile_json)
            write_durably(draft / MANIFEST_FILE, source.manifest_json)
            sync_folder(draft)
            return self._publish(model, draft)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _publish(self, model: str, draft: Path) -> RegistryEntry:
        for _ in range(_ADD_TRIES):
            version = max(self.versions(model), default=0) + 1
            target = self.folder / model / str(version)
            try:
                publish_folder(draft, target)
            except ArtefactError:
                # Another process took this version between the look and the rename.
                continue
            return RegistryEntry(model, version, target)
        message = explain("version", "be free", "taken each time", f"model {model!r}")
        raise ModelRegistryError(message)

    def models(self) -> list[str]:
        """Return the names of all models."""
        if not self.folder.is_dir():
            return []
        names = sorted(path.name for path in self.folder.iterdir() if path.is_dir())
        return [name for name in names if _NAME.fullmatch(name) and self.versions(name)]

    def versions(self, model: str) -> list[int]:
        """Return a model's versions, oldest first; none for an unknown model."""
        home = self.folder / _checked(model)
        if not home.is_dir():
            return []
        return sorted(int(path.name) for path in home.iterdir() if path.name.isdecimal())

    def alias(self, model: str, alias: str, version: int) -> None:
        """Point ``alias`` at a version; readers see the old one or the new one.

        Raises:
            ModelRegistryError: If there is no such version.
        """
        if version not in self.versions(model):
            raise ModelRegistryError(self._unknown(model, f"version {version}"))
        folder = self.folder / model / _ALIASES
        folder.mkdir(exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=".draft-", dir=folder)
        os.close(handle)
        write_durably(Path(draft), f"{version}\n".encode())
        Path(draft).replace(folder / _checked(alias))
        sync_folder(folder)

    def aliases(self, model: str) -> dict[str, int]:
        """Return a model's aliases with the versions they point at."""
        folder = self.folder / _checked(model) / _ALIASES
        if not folder.is_dir():
            return {}
        return {
            path.name: int(path.read_text())
            for path in sorted(folder.iterdir())
            if _NAME.fullmatch(path.name)
        }

    def resolve(self, reference: str) -> RegistryEntry:
        """Return what ``fraud@champion``, ``fraud/3`` or ``fraud`` (the newest) stands for.

        Raises:
            ModelRegistryError: If there is no such model, version or alias.
        """
        model, mark, rest = _split(reference)
        versions = self.versions(model)
        if not versions:
            raise ModelRegistryError(self._unknown(model, "model"))
        if mark == "@":
            aliases = self.aliases(model)
            if rest not in aliases:
                raise ModelRegistryError(self._unknown(model, f"alias {rest!r}"))
            version = aliases[rest]
        else:
            version = int(rest) if mark else versions[-1]
        if version not in versions:
            raise ModelRegistryError(self._unknown(model, f"version {version}"))
        return RegistryEntry(model, version, self.folder / model / str(version))

    def _unknown(self, model: str, what: str) -> str:
        versions = self.versions(model)
        if not versions:
            hint = f"there are: {', '.join(self.models()) or 'none yet, run headrace train'}"
        else:
            hint = f"there are versions {versions} and aliases {sorted(self.aliases(model))}"
        return explain(what, "exist", model, f"registry {self.folder}", hint)


def _split(reference: str) -> tuple[str, str, str]:
    for mark in "@/":
        model, found, rest = reference.partition(mark)
        if found and (mark == "@" or rest.isdecimal()):
            return _checked(model), mark, rest
    return _checked(reference), "", ""


def _checked(name: str) -> str:
    """Return a name that is a plain one: it becomes a path's part."""
    if not _NAME.fullmatch(name):
        message = explain(
            "name", "be letters, digits, '_', '-', '.'", name, "registry", "write model@champion"
        )
        raise ModelRegistryError(message)
    return name
