"""The repository's folder: what is in it, what would change, and applying it with Feast.

``applied.json`` says which definitions Feast has taken; it is written last, so that what failed is
done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from headrace.features.changes import differences
from headrace.features.durations import duration_text
from headrace.features.feast_repo.errors import FeastError
from headrace.features.feast_repo.tables import ensure_table, offline_folder
from headrace.features.feast_repo.text import (
    PASSWORD_VARIABLE,
    REGISTRY_FILE,
    definitions_text,
    store_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headrace.features.changes import Change
    from headrace.features.feast_repo.objects import RepoObjects
    from headrace.runtime.settings import Settings

STORE_FILE: Final = "feature_store.yaml"
DEFINITIONS_FILE: Final = "definitions.py"
LOG_FILE: Final = "apply.log"
_APPLIED_FILE: Final = "applied.json"
_TIMEOUT_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class _Taken:
    """What Feast has: a digest of the text, and texts for people by kind and name."""

    digest: str = ""
    objects: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FeastRepository:
    """A Feast repository in ``folder``, and the folder of its offline tables."""

    folder: Path
    offline: Path

    def changes(self, objects: RepoObjects) -> tuple[Change, ...]:
        """Return how the objects differ from those that Feast has taken; reads two small files."""
        taken = self._taken()
        changes = tuple(
            change
            for what, texts in _texts(objects).items()
            for change in differences(f"feast {what}", taken.objects.get(what, {}), texts)
        )
        if changes or taken.digest == self._digest(objects):
            return changes
        # Other text for the same objects: another version of Feast or of this generator.
        return differences("feast repository", {}, {objects.project: "is written anew"})

    def apply(self, objects: RepoObjects, redis_url: str) -> tuple[Change, ...]:
        """Write the repository and let Feast take it, if it is not what Feast has already.

        Redis need not run. Costs nothing but two small files if nothing has changed; else about 6 s
        of CPU in a process of its own.

        Raises:
            FeastError: If Feast refuses the repository, or cannot be told of this Redis.

        """
        changes = self.changes(objects)
        store = store_text(objects, redis_url)
        _write(self.folder / STORE_FILE, store)
        _write(self.folder / DEFINITIONS_FILE, definitions_text(objects, self.offline))
        for view in objects.views:
            ensure_table(self.offline, view)
        if changes:
            self._run(redis_url)
            self.remember(objects)
        return changes

    def remember(self, objects: RepoObjects) -> None:
        """Keep what Feast has taken; a crash before this has it taken again."""
        content = {"digest": self._digest(objects), "objects": _texts(objects)}
        _write(self.folder / _APPLIED_FILE, json.dumps(content, indent=1))

    def names(self, fingerprint: str) -> bool:
        """Return whether the definitions that were written last name a table of this definition."""
        file = self.folder / DEFINITIONS_FILE
        return file.is_file() and fingerprint in file.read_text(encoding="utf-8")

    def _digest(self, objects: RepoObjects) -> str:
        parts = objects.project, version("feast"), definitions_text(objects, self.offline)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _taken(self) -> _Taken:
        """Return what Feast has taken: nothing, where its registry is gone."""
        file = self.folder / _APPLIED_FILE
        if not file.is_file() or not (self.folder / REGISTRY_FILE).is_file():
            return _Taken()
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return _Taken(content["digest"], content["objects"])
        except (ValueError, KeyError, TypeError):
            # Whatever it was: applying again makes it right.
            return _Taken()

    def _run(self, redis_url: str) -> None:
        password = urlsplit(redis_url).password
        environment = dict(os.environ)
        if password is not None:
            environment[PASSWORD_VARIABLE] = unquote(password)
        command = [sys.executable, "-m", "headrace.features.feast_repo.apply", str(self.folder)]
        log = self.folder / LOG_FILE
        with log.open("wb") as output:
            try:
                code = subprocess.run(
                    command,
                    cwd=self.folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=_TIMEOUT_S,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired as error:
                message = f"feast apply must end within {_TIMEOUT_S:.0f} s; see {log}"
                raise FeastError(message) from error
        if code:
            message = f"feast apply must succeed; {_last_line(log)}; see {log}"
            raise FeastError(message)


def repository_of(settings: Settings) -> FeastRepository:
    """Return the project's repository: in its state folder, the offline tables beside its lake."""
    return FeastRepository(settings.state_folder / "feast", offline_folder(settings.lake.folder))


def _last_line(log: Path) -> str:
    """Return what an exception said last; a process that was killed says nothing."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").split("\n")]
    return next((line for line in reversed(lines) if line), "it said nothing")


def _texts(objects: RepoObjects) -> dict[str, dict[str, str]]:
    """Return by kind and name what people would see change."""
    return {
        "entity": {e.name: f"{e.join_key} ({e.key_kind})" for e in objects.entities},
        "view": {
            view.name: f"{len(view.fields)} features, ttl {duration_text(view.ttl_ms)}, "
            f"table {view.fingerprint}"
            for view in objects.views
        },
        "service": {service.name: ", ".join(service.views) for service in objects.services},
    }


def _write(file: Path, text: str) -> None:
    """Write a file whole or not at all; leave it alone if it is equal."""
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
