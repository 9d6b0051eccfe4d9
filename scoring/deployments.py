"""Which model is live: events on the compacted topic ``<project>.deployments``, key = pipeline.

Plain data and its JSON form; reads and writes no topic.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import orjson

from headrace.runtime.errors import explain
from headrace.scoring.errors import DeploymentError

Role = Literal["champion", "challenger"]


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model put live on a pipeline.

    ``uri`` is the artefact folder's ``file://`` address; ``sha256`` is its manifest's (hex).
    ``revision`` counts a pipeline's deployments, from 1. ``fingerprint`` is the plan that the
    model was accepted for; None if whoever deployed it waived that.
    """

    pipeline: str
    model: str
    version: str
    uri: str
    sha256: str
    role: Role
    revision: int
    at_ms: int
    fingerprint: str | None = None

    @property
    def folder(self) -> Path:
        """The artefact's folder.

        Raises:
            DeploymentError: If the address is not that of a local folder.
        """
        parts = urlsplit(self.uri)
        if parts.scheme != "file" or parts.netloc not in {"", "localhost"}:
            message = explain("uri", "be a file:// address", self.uri, f"revision {self.revision}")
            raise DeploymentError(message)
        return Path(unquote(parts.path))

    @property
    def key(self) -> bytes:
        """The message's key: one value per pipeline is kept by compaction."""
        return self.pipeline.encode()


def encode_deployment(deployment: Deployment) -> bytes:
    """Return the deployment as a message value (JSON)."""
    return orjson.dumps(asdict(deployment))


def decode_deployment(value: bytes) -> Deployment:
    """Return the deployment that a message value holds; unknown fields are left out.

    Raises:
        DeploymentError: If it is none.

    Examples:
        >>> event = Deployment("fraud", "fraud", "3", "file:///m/3", "ab", "champion", 7, 0)
        >>> decode_deployment(encode_deployment(event)) == event
        True

    """
    try:
        data = orjson.loads(value)
        given = {field.name: data[field.name] for field in fields(Deployment)}
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        message = explain("deployment", "hold every field", value[:80], "deployments topic")
        raise DeploymentError(message) from error
    texts = ("pipeline", "model", "version", "uri", "sha256", "role")
    wrong = [name for name in texts if not isinstance(given[name], str) or not given[name]]
    wrong += [name for name in ("revision", "at_ms") if type(given[name]) is not int]
    if not isinstance(given["fingerprint"], str | None):
        wrong.append("fingerprint")
    if not wrong and given["role"] not in {"champion", "challenger"}:
        wrong = ["role"]
    if not wrong and given["revision"] < 1:
        wrong = ["revision"]
    if wrong:
        got = {name: given[name] for name in wrong}
        message = explain("deployment", "hold fields of the right type", got, "deployments topic")
        raise DeploymentError(message)
    return Deployment(**given)


def next_revision(current: Deployment | None) -> int:
    """Return the revision of the deployment that follows ``current``.

    Examples:
        >>> next_revision(None)
        1

    """
    return 1 if current is None else current.revision + 1


def supersedes(event: Deployment, current: Deployment | None) -> bool:
    """Return whether a worker that runs ``current`` must load ``event``.

    An event read twice, or one from before, is passed over: revisions only rise.
    """
    return current is None or event.revision > current.revision
