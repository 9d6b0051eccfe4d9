"""A small schema registry that speaks Confluent's REST API, for laptops, tests and small sites.

Avro only, no references. ``python -m headrace.serving.registry --port 8081 --bootstrap host:9092``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from headrace.runtime.errors import explain
from headrace.runtime.logging import configure
from headrace.schemas.compatibility import LEVELS, incompatibilities
from headrace.schemas.errors import SchemaRefused
from headrace.serving.errors import RegistryError
from headrace.serving.registry_log import RegistryLog
from headrace.serving.registry_subjects import (
    INCOMPATIBLE,
    INVALID_LEVEL,
    INVALID_SCHEMA,
    SCHEMA_NOT_FOUND,
    Subjects,
    Version,
    deletion_record,
    level_record,
    schema_record,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class SchemaBody(BaseModel):
    """A schema as clients send it."""

    model_config = ConfigDict(extra="ignore")

    schema_: str
    schemaType: str = "AVRO"  # noqa: N815 - Confluent's name.
    references: list[Any] = []

    def __init__(self, **content: Any) -> None:
        super().__init__(
            **{("schema_" if key == "schema" else key): content[key] for key in content}
        )


class LevelBody(BaseModel):
    """A compatibility level as clients send it."""

    compatibility: str


class _Answer(JSONResponse):
    media_type = "application/vnd.schemaregistry.v1+json"


@dataclass(slots=True)
class Registry:
    """What the routes call: checks and allots under one lock, then writes to the log."""

    subjects: Subjects
    log: RegistryLog
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def register(self, subject: str, body: SchemaBody) -> int:
        """Return the id of the schema, as a new version of the subject unless it is one already."""
        schema = _checked(body)
        with self._lock:
            known = self.subjects.find(subject, schema)
            if known is not None:
                return known.schema_id
            problems = self.problems(subject, schema, self._earlier(subject))
            if problems:
                message = explain(
                    "schema",
                    f"be {self.subjects.level(subject)} compatible",
                    "; ".join(problems),
                    f"subject {subject}",
                    "give new fields a default, or use another name",
                )
                raise RegistryError(INCOMPATIBLE, message)
            version = Version(
                subject, self.subjects.next_version(subject), self.subjects.id_for(schema), schema
            )
            self.log.append([schema_record(version)])
            return version.schema_id

    def lookup(self, subject: str, body: SchemaBody) -> Version:
        """Return the version that has this schema."""
        schema = _checked(body)
        self.subjects.versions(subject)
        known = self.subjects.find(subject, schema)
        if known is None:
            raise RegistryError(SCHEMA_NOT_FOUND, f"schema must exist; got none in {subject!r}")
        return known

    def problems(self, subject: str, schema: str, earlier: Sequence[str]) -> list[str]:
        """Return why ``schema`` may not follow ``earlier`` under the subject's level."""
        try:
            return incompatibilities(schema, earlier, self.subjects.level(subject))
        except SchemaRefused as error:
            raise RegistryError(INVALID_SCHEMA, str(error)) from error

    def set_level(self, subject: str | None, level: str | None) -> None:
        """Set or (None) take back a compatibility level."""
        if level is not None and level not in LEVELS:
            message = explain(
                "compatibility level", f"be one of {', '.join(LEVELS)}", level, "config"
            )
            raise RegistryError(INVALID_LEVEL, message)
        with self._lock:
            self.log.append([level_record(subject, level)])

    def delete(self, subject: str) -> list[int]:
        """Delete all versions of a subject; their ids stay readable."""
        with self._lock:
            numbers = [version.version for version in self.subjects.versions(subject)]
            self.log.append([deletion_record(subject, numbers[-1])])
            return numbers

    def delete_version(self, subject: str, number: str) -> int:
        """Delete one version of a subject; its id stays readable."""
        with self._lock:
            old = self.subjects.version(subject, number)
            gone = Version(subject, old.version, old.schema_id, old.schema, deleted=True)
            self.log.append([schema_record(gone)])
            return old.version

    def _earlier(self, subject: str) -> list[str]:
        if subject not in self.subjects.subjects():
            return []
        return [version.schema for version in self.subjects.versions(subject)]


def make_app(registry: Registry) -> FastAPI:
    """Return the web application over a registry whose log is started and stopped with it."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        registry.log.stop()

    app = FastAPI(
        title="Headrace schema registry",
        default_response_class=_Answer,
        lifespan=lifespan,
        strict_content_type=False,
    )
    _add_errors(app)
    _add_reads(app, registry)
    _add_writes(app, registry)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RegistryError)
    def refused(_request: Request, error: RegistryError) -> Response:
        return _Answer({"error_code": error.code, "message": str(error)}, error.http_status)

    @app.exception_handler(RequestValidationError)
    def malformed(_request: Request, error: RequestValidationError) -> Response:
        message = "; ".join(f"{fault['loc'][-1]}: {fault['msg']}" for fault in error.errors())
        return _Answer({"error_code": 422, "message": message}, 422)


def _add_reads(app: FastAPI, registry: Registry) -> None:
    subjects = registry.subjects

    @app.get("/")
    def root() -> dict[str, str]:
        return {}

    @app.get("/health/ready")
    def ready() -> Response:
        good = registry.log.writable and not registry.log.failed
        return _Answer({"writable": registry.log.writable}, 200 if good else 503)

    @app.get("/mode")
    def mode() -> dict[str, str]:
        return {"mode": "READWRITE" if registry.log.writable else "READONLY"}

    @app.get("/schemas/types")
    def types() -> list[str]:
        return ["AVRO"]

    @app.get("/schemas/ids/{schema_id}")
    def by_id(schema_id: int) -> dict[str, str]:
        return {"schema": subjects.schema(schema_id)}

    @app.get("/schemas/ids/{schema_id}/schema")
    def text_by_id(schema_id: int) -> Response:
        return Response(subjects.schema(schema_id), media_type=_Answer.media_type)

    @app.get("/schemas/ids/{schema_id}/versions")
    def versions_of_id(schema_id: int) -> list[dict[str, Any]]:
        return [
            {"subject": use.subject, "version": use.version} for use in subjects.uses(schema_id)
        ]

    @app.get("/schemas/ids/{schema_id}/subjects")
    def subjects_of_id(schema_id: int) -> list[str]:
        return sorted({use.subject for use in subjects.uses(schema_id)})

    @app.get("/subjects")
    def names() -> list[str]:
        return subjects.subjects()

    @app.get("/subjects/{subject}/versions")
    def versions(subject: str) -> list[int]:
        return [version.version for version in subjects.versions(subject)]

    @app.get("/subjects/{subject}/versions/{number}")
    def version(subject: str, number: str) -> dict[str, Any]:
        return _version(subjects.version(subject, number))

    @app.get("/subjects/{subject}/versions/{number}/schema")
    def text(subject: str, number: str) -> Response:
        return Response(subjects.version(subject, number).schema, media_type=_Answer.media_type)

    @app.get("/config")
    def level() -> dict[str, str]:
        return {"compatibilityLevel": subjects.level(None)}

    @app.get("/config/{subject}")
    def subject_level(subject: str, *, defaultToGlobal: bool = False) -> dict[str, str]:  # noqa: N803 - Confluent's name.
        found = subjects.level(subject) if defaultToGlobal else subjects.own_level(subject)
        return {"compatibilityLevel": found}


def _add_writes(app: FastAPI, registry: Registry) -> None:
    @app.post("/subjects/{subject}/versions")
    def register(subject: str, body: SchemaBody) -> dict[str, int]:
        return {"id": registry.register(subject, body)}

    @app.post("/subjects/{subject}")
    def lookup(subject: str, body: SchemaBody) -> dict[str, Any]:
        return _version(registry.lookup(subject, body))

    @app.delete("/subjects/{subject}")
    def delete(subject: str) -> list[int]:
        return registry.delete(subject)

    @app.delete("/subjects/{subject}/versions/{number}")
    def delete_version(subject: str, number: str) -> int:
        return registry.delete_version(subject, number)

    @app.put("/config")
    def set_level(body: LevelBody) -> dict[str, str]:
        registry.set_level(None, body.compatibility)
        return {"compatibility": body.compatibility}

    @app.put("/config/{subject}")
    def set_subject_level(subject: str, body: LevelBody) -> dict[str, str]:
        registry.set_level(subject, body.compatibility)
        return {"compatibility": body.compatibility}

    @app.delete("/config/{subject}")
    def unset_subject_level(subject: str) -> dict[str, str]:
        level = registry.subjects.own_level(subject)
        registry.set_level(subject, None)
        return {"compatibilityLevel": level}

    @app.post("/compatibility/subjects/{subject}/versions/{number}")
    def check(
        subject: str, number: str, body: SchemaBody, *, verbose: bool = False
    ) -> dict[str, Any]:
        against = registry.subjects.version(subject, number)
        problems = registry.problems(subject, _checked(body), [against.schema])
        return _verdict(problems, verbose=verbose)

    @app.post("/compatibility/subjects/{subject}/versions")
    def check_all(subject: str, body: SchemaBody, *, verbose: bool = False) -> dict[str, Any]:
        earlier = [version.schema for version in registry.subjects.versions(subject)]
        return _verdict(registry.problems(subject, _checked(body), earlier), verbose=verbose)


def _verdict(problems: list[str], *, verbose: bool) -> dict[str, Any]:
    return {"is_compatible": not problems, **({"messages": problems} if verbose else {})}


def _version(version: Version) -> dict[str, Any]:
    return {
        "subject": version.subject,
        "id": version.schema_id,
        "version": version.version,
        "schema": version.schema,
    }


def _checked(body: SchemaBody) -> str:
    """Return the schema without needless space, or refuse what is no Avro schema on its own."""
    if body.schemaType != "AVRO" or body.references:
        message = explain(
            "schema",
            "be Avro and stand alone",
            body.schemaType,
            "this registry",
            "inline references",
        )
        raise RegistryError(INVALID_SCHEMA, message)
    try:
        content = json.loads(body.schema_)
        incompatibilities(body.schema_, [body.schema_], "BACKWARD")
    except (json.JSONDecodeError, SchemaRefused) as error:
        raise RegistryError(INVALID_SCHEMA, f"schema must be valid Avro; {error}") from error
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


def main() -> None:
    """Run the registry until it is asked to end."""
    parser = argparse.ArgumentParser(description="A small Confluent-compatible schema registry")
    parser.add_argument("--bootstrap", help="Kafka's address")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--instance", default=None, help="name of this instance")
    options = parser.parse_args()
    configure()
    kafka = json.loads(os.environ.get("HEADRACE_REGISTRY_KAFKA", "{}"))
    if options.bootstrap:
        kafka["bootstrap.servers"] = options.bootstrap
    subjects = Subjects()
    log = RegistryLog(kafka, options.instance or f"{options.host}:{options.port}", subjects)
    log.start()
    app = make_app(Registry(subjects, log))
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
