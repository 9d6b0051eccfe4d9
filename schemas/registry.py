"""The client of a schema registry with Confluent's REST API, ours or any other.

Two answers are told apart everywhere: the registry says no (``UnknownSchemaError``,
``IncompatibleSchemaError``), or it does not say anything (``RegistryUnavailableError``, try again).
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote

import httpx

from headrace.runtime.errors import explain
from headrace.schemas.errors import (
    IncompatibleSchemaError,
    RegistryUnavailableError,
    SchemaError,
    SchemaRefused,
    UnknownSchemaError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_MEDIA_TYPE: Final = "application/vnd.schemaregistry.v1+json"
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_UNPROCESSABLE: Final = 422
_SERVER_ERROR: Final = 500
_RETRY_LATER: Final = frozenset({401, 403, 408, 425, 429})
_AVRO: Final = "AVRO"
# An id that the registry does not know is asked for again after this: it may be registered late.
UNKNOWN_SECONDS: Final = 30.0
_MAX_UNKNOWN: Final = 10_000


class SchemaRegistry:
    """Asks a registry, and remembers what cannot change: the schema of an id, the id of a schema.

    Safe for use by several threads.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 10.0,
        monotonic: Callable[[], float] = time.monotonic,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Prepare a client; nothing is asked yet.

        Args:
            url: Base address, with ``user:password@`` if the registry wants it.
            timeout_seconds: For each request.
            monotonic: The clock for the memory of unknown ids.
            transport: The HTTP transport, for tests.

        """
        self.url = url.rstrip("/")
        self._client = httpx.Client(
            base_url=self.url,
            timeout=timeout_seconds,
            transport=transport,
            headers={"Accept": _MEDIA_TYPE, "Content-Type": _MEDIA_TYPE},
            trust_env=False,
        )
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._schemas: dict[int, str] = {}
        self._ids: dict[tuple[str, str], int] = {}
        self._unknown: dict[int, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def schema(self, schema_id: int) -> str:
        """Return the schema of an id, as JSON.

        Raises:
            UnknownSchemaError: If the registry has no such id, or it is not an Avro schema.
            RegistryUnavailableError: If it gave no answer.

        """
        about = f"schema id {schema_id}"
        with self._lock:
            known = self._schemas.get(schema_id)
            if known is not None:
                return known
            if self._monotonic() < self._unknown.get(schema_id, float("-inf")):
                raise _unknown(about, self.url)
        try:
            answer = self._ask("GET", f"/schemas/ids/{schema_id}", about)
            _require_avro(answer, about, self.url)
        except UnknownSchemaError:
            with self._lock:
                if len(self._unknown) >= _MAX_UNKNOWN:
                    self._unknown.clear()
                self._unknown[schema_id] = self._monotonic() + UNKNOWN_SECONDS
            raise
        schema = _text(answer, "schema", self.url)
        with self._lock:
            self._schemas[schema_id] = schema
        return schema

    def register(self, subject: str, schema: str) -> int:
        """Register a schema under a subject and return its id; the same schema keeps its id.

        Raises:
            IncompatibleSchemaError: If the subject's level forbids it.
            SchemaRefused: If the registry does not take it for a schema.
            RegistryUnavailableError: If the registry gave no answer.

        """
        with self._lock:
            known = self._ids.get((subject, schema))
        if known is not None:
            return known
        path = f"/subjects/{quote(subject, safe='')}/versions"
        answer = self._ask("POST", path, f"subject {subject!r}", {"schema": schema})
        schema_id = _number(answer, "id", self.url)
        with self._lock:
            self._ids[subject, schema] = schema_id
            self._schemas.setdefault(schema_id, schema)
        return schema_id

    def latest(self, subject: str) -> tuple[int, str] | None:
        """Return id and schema of a subject's newest version, None if there is none.

        Raises:
            RegistryUnavailableError: If the registry gave no answer.

        """
        path = f"/subjects/{quote(subject, safe='')}/versions/latest"
        try:
            answer = self._ask("GET", path, f"subject {subject!r}")
        except UnknownSchemaError:
            return None
        _require_avro(answer, f"subject {subject!r}", self.url)
        return _number(answer, "id", self.url), _text(answer, "schema", self.url)

    def subjects(self) -> list[str]:
        """Return the names of all subjects."""
        answer = self._ask("GET", "/subjects", "the subjects")
        if not isinstance(answer, list):
            raise _strange(self.url, answer)
        return [str(subject) for subject in answer]

    def compatibility(self, subject: str) -> str | None:
        """Return the subject's own compatibility level, None if it has none."""
        try:
            answer = self._ask("GET", f"/config/{quote(subject, safe='')}", f"subject {subject!r}")
        except UnknownSchemaError:
            return None
        return _text(answer, "compatibilityLevel", self.url)

    def set_compatibility(self, subject: str, level: str) -> None:
        """Set the subject's compatibility level (one of ``compatibility.LEVELS``)."""
        path = f"/config/{quote(subject, safe='')}"
        self._ask("PUT", path, f"subject {subject!r}", {"compatibility": level})

    def check(self, subject: str, schema: str) -> list[str]:
        """Return why the registry would refuse the schema as the subject's next; nothing if not."""
        path = f"/compatibility/subjects/{quote(subject, safe='')}/versions/latest?verbose=true"
        try:
            answer = self._ask("POST", path, f"subject {subject!r}", {"schema": schema})
        except UnknownSchemaError:
            return []
        if not isinstance(answer, dict) or "is_compatible" not in answer:
            raise _strange(self.url, answer)
        if answer["is_compatible"]:
            return []
        return [str(message) for message in answer.get("messages") or ["not compatible"]]

    def _ask(self, method: str, path: str, about: str, body: dict[str, str] | None = None) -> Any:
        try:
            response = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            hint = "is the registry up? `headrace status` tells"
            problem = f"{type(error).__name__}: {error}"
            raise RegistryUnavailableError(
                explain("schema registry", "answer", problem, f"{about} at {self.url}", hint)
            ) from error
        if response.status_code >= _SERVER_ERROR or response.status_code in _RETRY_LATER:
            got = f"status {response.status_code}: {response.text[:200]}"
            raise RegistryUnavailableError(
                explain("schema registry", "answer", got, f"{about} at {self.url}")
            )
        if response.is_success:
            try:
                return response.json()
            except ValueError as error:
                raise _strange(self.url, response.text) from error
        raise _refusal(response, about, self.url)


def _refusal(response: httpx.Response, about: str, url: str) -> SchemaError:
    """Return the error for an answer of class 4xx; only the registry's own 404 means unknown."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or "error_code" not in body:
        got = f"status {response.status_code}: {response.text[:200]}"
        hint = "is this the address of a schema registry?"
        return RegistryUnavailableError(explain("schema registry", "answer", got, url, hint))
    message = str(body.get("message", ""))
    if response.status_code == _NOT_FOUND:
        return _unknown(about, url)
    if response.status_code == _CONFLICT:
        rule = "be compatible with the earlier ones"
        return IncompatibleSchemaError(explain("schema", rule, message, about))
    if response.status_code == _UNPROCESSABLE:
        return SchemaRefused(explain("schema", "be accepted by the registry", message, about))
    return SchemaError(explain("schema registry", "accept the request", message, about))


def _require_avro(answer: Any, about: str, url: str) -> None:
    kind = answer.get("schemaType", _AVRO) if isinstance(answer, dict) else _AVRO
    if kind != _AVRO:
        raise UnknownSchemaError(explain(about, "be an Avro schema", kind, url))


def _text(answer: Any, key: str, url: str) -> str:
    if isinstance(answer, dict) and isinstance(answer.get(key), str):
        return str(answer[key])
    raise _strange(url, answer)


def _number(answer: Any, key: str, url: str) -> int:
    if isinstance(answer, dict) and isinstance(answer.get(key), int):
        return int(answer[key])
    raise _strange(url, answer)


def _unknown(about: str, url: str) -> UnknownSchemaError:
    return UnknownSchemaError(explain(about, "be registered", "404", url))


def _strange(url: str, answer: object) -> RegistryUnavailableError:
    rule = "answer as Confluent's REST API does"
    return RegistryUnavailableError(explain("schema registry", rule, str(answer)[:200], url))
