"""The two files of a Feast repository as text: ``definitions.py`` and ``feature_store.yaml``."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from headrace.features.feast_repo.errors import FeastError
from headrace.features.feast_repo.objects import CREATED_TIME, EVENT_TIME, VALUE_TYPES
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.features.feast_repo.objects import RepoEntity, RepoObjects, RepoService, RepoView

REGISTRY_FILE: Final = "registry.db"
#: Feast takes the password from here: none is written into a file.
PASSWORD_VARIABLE: Final = "HEADRACE_REDIS_PASSWORD"  # noqa: S105 - the name of a variable

_STORE: Final = """\
# Written by 'headrace apply'; changes are overwritten.
project: {project}
provider: local
registry:
  registry_type: file
  path: {registry}
online_store:
  type: redis
  connection_string: {connection}
  # Else the end of a view would make Feast walk through all of Redis.
  full_scan_for_deletion: false
offline_store:
  type: duckdb
entity_key_serialization_version: 3
"""

_HEAD: Final = '''\
"""The Feast objects of project {project}. Written by 'headrace apply'; changes are overwritten."""

from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, Project, ValueType
from feast.data_format import ParquetFormat
from feast.types import Float64, Int64

# The tables that 'headrace backfill' writes.
OFFLINE = Path({offline})

project = Project(name={project_name}, description="Served by Headrace.")
'''


def store_text(objects: RepoObjects, redis_url: str) -> str:
    """Return ``feature_store.yaml``.

    Raises:
        FeastError: If Feast cannot be told of this Redis.

    """
    return _STORE.format(
        project=objects.project,
        registry=REGISTRY_FILE,
        connection=json.dumps(connection_string(redis_url)),
    )


def connection_string(redis_url: str) -> str:
    """Return a Redis URL in Feast's form; a password stays out, in an environment variable.

    Raises:
        FeastError: If the URL has a form that Feast does not know.

    Examples:
        >>> connection_string("redis://127.0.0.1:6379/2")
        '127.0.0.1:6379,db=2'
        >>> connection_string("rediss://app:secret@cache:6380")
        'cache:6380,ssl=true,username=app,password=${HEADRACE_REDIS_PASSWORD}'

    """
    url = urlsplit(redis_url)
    host, number = url.hostname or "", url.path.strip("/")
    if (
        url.scheme not in {"redis", "rediss"}
        or not re.fullmatch(r"[A-Za-z0-9._-]+", host)
        or not re.fullmatch(r"\d*", number)
        or url.query
    ):
        shown = redis_url if url.password is None else f"{url.scheme}://…@{host}"
        hint = "write redis://host:port/db or rediss://host:port/db"
        raise FeastError(explain("redis.url", "be one that Feast can use", shown, "Feast", hint))
    parts = [f"{host}:{url.port or 6379}"]
    if number and int(number):
        parts.append(f"db={int(number)}")
    if url.scheme == "rediss":
        parts.append("ssl=true")
    if url.username:
        parts.append(f"username={unquote(url.username)}")
    if url.password is not None:
        parts.append(f"password=${{{PASSWORD_VARIABLE}}}")
    return ",".join(parts)


def definitions_text(objects: RepoObjects, offline: Path) -> str:
    """Return ``definitions.py``."""
    head = _HEAD.format(
        project=objects.project,
        project_name=_quoted(objects.project),
        offline=_quoted(str(offline)),
    )
    parts = [head]
    parts += [_entity(entity) for entity in objects.entities]
    parts += [_view(view) for view in objects.views]
    parts += [_service(service) for service in objects.services]
    return "\n\n".join(parts)


def _entity(entity: RepoEntity) -> str:
    return (
        f"entity_{entity.name} = Entity(\n"
        f"    name={_quoted(entity.name)},\n"
        f"    join_keys=[{_quoted(entity.join_key)}],\n"
        f"    value_type=ValueType.{VALUE_TYPES[entity.key_kind]},\n"
        ")\n"
    )


def _view(view: RepoView) -> str:
    fields = "".join(
        # One line a feature, however long: it is read as a list.
        f"        Field(name={_quoted(field.name)}, dtype={field.dtype}, "
        f"description={_quoted(field.description)}),\n"
        for field in view.fields
    )
    return (
        f"view_{view.name} = FeatureView(\n"
        f"    name={_quoted(view.name)},\n"
        f"    entities=[entity_{view.entity.name}],\n"
        f"    ttl={_timedelta(view.ttl_ms)},\n"
        f"    schema=[\n{fields}    ],\n"
        f"    source=FileSource(\n"
        f"        name={_quoted(f'{view.name}_offline')},\n"
        f"        path=str(OFFLINE / {_quoted(view.name)} / {_quoted(view.fingerprint)}),\n"
        f"        file_format=ParquetFormat(),\n"
        f"        timestamp_field={_quoted(EVENT_TIME)},\n"
        f"        created_timestamp_column={_quoted(CREATED_TIME)},\n"
        f"    ),\n"
        f"    online=True,\n"
        f'    tags={{"headrace.source": {_quoted(view.source)}}},\n'
        ")\n"
    )


def _service(service: RepoService) -> str:
    views = ", ".join(f"view_{name}" for name in service.views)
    return (
        f"service_{service.name} = FeatureService(\n"
        f"    name={_quoted(service.name)},\n"
        f"    features=[{views}],\n"
        ")\n"
    )


def _timedelta(milliseconds: int) -> str:
    """Return a length of time as people would write it in Python.

    Examples:
        >>> _timedelta(37 * 86_400_000), _timedelta(90_061_500)
        ('timedelta(days=37)', 'timedelta(days=1, seconds=3661, milliseconds=500)')

    """
    length = timedelta(milliseconds=milliseconds)
    parts = {
        "days": length.days,
        "seconds": length.seconds,
        "milliseconds": length.microseconds // 1_000,
    }
    return f"timedelta({', '.join(f'{unit}={n}' for unit, n in parts.items() if n)})"


def _quoted(text: str) -> str:
    return json.dumps(text)
