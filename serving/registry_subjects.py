"""What a schema registry knows: subjects, versions, ids and levels, as its log tells them. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.runtime.errors import explain
from headrace.serving.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_LEVEL = "FULL_TRANSITIVE"

SUBJECT_NOT_FOUND = 40401
VERSION_NOT_FOUND = 40402
SCHEMA_NOT_FOUND = 40403
SUBJECT_LEVEL_NOT_FOUND = 40408
INCOMPATIBLE = 409
INVALID_SCHEMA = 42201
INVALID_VERSION = 42202
INVALID_LEVEL = 42203
READ_ONLY = 42205
LOG_FAILED = 50001


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a subject."""

    subject: str
    version: int
    schema_id: int
    schema: str
    deleted: bool = False


@dataclass(slots=True)
class Subjects:
    """The registry's content. ``apply`` is the only way in, so that every reader agrees."""

    _versions: dict[str, dict[int, Version]] = field(default_factory=dict)
    _schemas: dict[int, str] = field(default_factory=dict)
    _ids: dict[str, int] = field(default_factory=dict)
    _levels: dict[str | None, str] = field(default_factory=dict)

    def apply(self, key: bytes, value: bytes | None) -> None:
        """Take in one record of the log, in Confluent's format; unknown kinds are passed over."""
        name = json.loads(key)
        content = None if value is None else json.loads(value)
        kind = name.get("keytype")
        if kind == "SCHEMA":
            self._apply_schema(name["subject"], name["version"], content)
        elif kind == "CONFIG":
            if content is None:
                self._levels.pop(name["subject"], None)
            else:
                self._levels[name["subject"]] = content["compatibilityLevel"]
        elif kind == "DELETE_SUBJECT" and content is not None:
            versions = self._versions.get(name["subject"], {})
            for number, version in versions.items():
                if number <= content["version"]:
                    versions[number] = _deleted(version)

    def _apply_schema(self, subject: str, number: int, content: dict[str, Any] | None) -> None:
        if content is None:
            self._versions.get(subject, {}).pop(number, None)
            return
        version = Version(
            subject, number, content["id"], content["schema"], content.get("deleted", False)
        )
        self._versions.setdefault(subject, {})[number] = version
        # An id never goes: records in topics still carry it.
        self._schemas[version.schema_id] = version.schema
        self._ids.setdefault(identity(version.schema), version.schema_id)

    def subjects(self) -> list[str]:
        """Return the names of the subjects that have a version."""
        return sorted(name for name in self._versions if self._live(name))

    def versions(self, subject: str) -> list[Version]:
        """Return a subject's versions, oldest first.

        Raises:
            RegistryError: 40401 if there is no such subject.

        """
        live = self._live(subject)
        if not live:
            raise _not_found(SUBJECT_NOT_FOUND, "subject", subject)
        return live

    def version(self, subject: str, number: str) -> Version:
        """Return a version by its number, or by ``latest``.

        Raises:
            RegistryError: 40401, 40402, or 42202 if it is no number.

        """
        live = self.versions(subject)
        if number in {"latest", "-1"}:
            return live[-1]
        if not number.isdecimal() or int(number) == 0:
            message = explain("version", "be a number from 1 on, or 'latest'", number, subject)
            raise RegistryError(INVALID_VERSION, message)
        for version in live:
            if version.version == int(number):
                return version
        raise _not_found(VERSION_NOT_FOUND, f"version of {subject}", number)

    def schema(self, schema_id: int) -> str:
        """Return the schema with this id.

        Raises:
            RegistryError: 40403 if there is none.

        """
        if schema_id not in self._schemas:
            raise _not_found(SCHEMA_NOT_FOUND, "schema", schema_id)
        return self._schemas[schema_id]

    def uses(self, schema_id: int) -> list[Version]:
        """Return every version that carries this id."""
        self.schema(schema_id)
        return [
            version
            for name in self.subjects()
            for version in self._live(name)
            if version.schema_id == schema_id
        ]

    def find(self, subject: str, schema: str) -> Version | None:
        """Return the version of ``subject`` with just this schema, if there is one."""
        wanted = identity(schema)
        for version in self._live(subject):
            if identity(version.schema) == wanted:
                return version
        return None

    def next_version(self, subject: str) -> int:
        """Return the number that the next version of ``subject`` gets; none is given twice."""
        return max(self._versions.get(subject, {}), default=0) + 1

    def id_for(self, schema: str) -> int:
        """Return the id of a schema: the one it has, in any subject, else the next free one."""
        return self._ids.get(identity(schema), max(self._schemas, default=0) + 1)

    def level(self, subject: str | None) -> str:
        """Return the compatibility level that holds for a subject, or the global one for None."""
        return self._levels.get(subject, self._levels.get(None, DEFAULT_LEVEL))

    def own_level(self, subject: str) -> str:
        """Return the level set for the subject itself.

        Raises:
            RegistryError: 40408 if there is none.

        """
        if subject not in self._levels:
            raise _not_found(SUBJECT_LEVEL_NOT_FOUND, "compatibility level of subject", subject)
        return self._levels[subject]

    def _live(self, subject: str) -> list[Version]:
        versions: Iterable[Version] = self._versions.get(subject, {}).values()
        return sorted((one for one in versions if not one.deleted), key=lambda one: one.version)


def identity(schema: str) -> str:
    """Return what two texts of one schema have in common: their JSON without order and space."""
    return json.dumps(json.loads(schema), sort_keys=True, separators=(",", ":"))


def schema_record(version: Version) -> tuple[bytes, bytes]:
    """Return the log's record of a version, as Confluent's registry writes it."""
    key = {
        "keytype": "SCHEMA",
        "subject": version.subject,
        "version": version.version,
        "magic": 1,
    }
    value = {
        "subject": version.subject,
        "version": version.version,
        "id": version.schema_id,
        "schema": version.schema,
        "deleted": version.deleted,
    }
    return _json(key), _json(value)


def level_record(subject: str | None, level: str | None) -> tuple[bytes, bytes | None]:
    """Return the log's record of a level; None takes it back."""
    key = {"keytype": "CONFIG", "subject": subject, "magic": 0}
    return _json(key), None if level is None else _json({"compatibilityLevel": level})


def deletion_record(subject: str, last_version: int) -> tuple[bytes, bytes]:
    """Return the log's record of a subject's deletion up to a version."""
    key = {"keytype": "DELETE_SUBJECT", "subject": subject, "magic": 0}
    return _json(key), _json({"subject": subject, "version": last_version})


def _deleted(version: Version) -> Version:
    return Version(
        version.subject, version.version, version.schema_id, version.schema, deleted=True
    )


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _not_found(code: int, what: str, name: object) -> RegistryError:
    return RegistryError(code, explain(what, "exist", name, "this registry"))
