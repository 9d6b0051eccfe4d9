"""Reading the online store: many views of many entities in one round trip.

Values are taken out of Feast's messages by hand: protobuf objects cost more than the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import pyarrow as pa
import pyarrow.compute as pc
from redis.exceptions import ResponseError

from headrace.features.compiler import compile_project
from headrace.features.definitions import FeatureView, Pipeline
from headrace.features.durations import duration_ms
from headrace.features.project import Project, load_project, project_of
from headrace.features.store.answer import AGE, STATUS, OnlineAnswer
from headrace.features.store.connection import RedisConnection
from headrace.features.store.errors import StoreUnavailableError
from headrace.features.store.freshness import EXPIRED, MISSING, Witness
from headrace.features.store.layout import (
    Fence,
    KeyLayout,
    feature_field,
    fence_field,
    key_values,
    marker_key,
    read_time_ms,
    read_value,
    time_field,
)
from headrace.features.store.markers import read_markers
from headrace.features.store.request import key_columns, request_for
from headrace.features.store.resp import bulk, command
from headrace.runtime.clock import SystemClock
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.features.plan import KeyKind
    from headrace.features.store.request import Entities, Features, Request, WantedView
    from headrace.features.store.views import OnlineEntity, OnlineFeature
    from headrace.runtime.clock import Clock

    # The fields that were asked for; None where there was no key to ask with.
    _Row = Sequence[bytes | None] | None
    _Writer = tuple[str, str]

_TIMEOUT_S: Final = 1.0
#: A row without a key has no value by definition.
_NO_KEY: Final = (MISSING, None)
_GONE: Final = frozenset({EXPIRED, MISSING})
_TYPES: Final = {"int64": pa.int64(), "float64": pa.float64()}


def online(
    features: Features, entities: Entities, *, project: Project | Path | str | None = None
) -> OnlineAnswer:
    """Return the newest values of entities, each with its age and status.

    For a notebook or a script; who reads often keeps ``online_reader(features)``.

    Args:
        features: A pipeline, a view, their name or ``<view>__<feature>``; or a list of them.
        entities: Keys by column: ``{"customer_id": 7}``, ``{"customer_id": [7, 8]}``, a list of
            mappings, an Arrow table, or a pandas frame.
        project: Or its folder; default: where the definitions stand, else the working folder.

    Raises:
        OnlineError: If the names or keys are not what can be asked for.
        StoreUnavailableError: If Redis does not answer.

    """
    with online_reader(features, project=project) as reader:
        return reader.read(entities)


def online_reader(
    features: Features,
    *,
    project: Project | Path | str | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> OnlineReader:
    """Return a reader of these features, which keeps its connection; see ``online``."""
    from headrace.runtime.dev.stack import redis_url

    loaded = _project(features, project)
    request = request_for(features, compile_project(loaded))
    stale_after_ms = duration_ms(loaded.settings.online.stale_after.replace(" ", ""))
    assert stale_after_ms is not None
    url = redis_url(loaded.settings, loaded.folder)
    return OnlineReader(request, url, stale_after_ms, timeout_s=timeout_s)


def _project(features: Features, project: Project | Path | str | None) -> Project:
    if isinstance(project, Project):
        return project
    items = [features] if isinstance(features, str | Pipeline | FeatureView) else list(features)
    if project is None and (found := project_of(items)) is not None:
        return found
    return load_project(project or Path())


@dataclass(frozen=True, slots=True)
class _Hash:
    """The fields that are read of one kind of key: of all its views at once."""

    entities: tuple[OnlineEntity, ...]
    views: tuple[WantedView, ...]
    fields: dict[bytes, int]
    features: dict[str, int]
    tail: bytes

    @classmethod
    def of(cls, views: Sequence[WantedView]) -> _Hash:
        entities = tuple(dict.fromkeys(wanted.entity for wanted in views))
        names = [fence_field(entity.pipeline) for entity in entities]
        for wanted in views:
            names.append(time_field(wanted.view.name))
            names += [feature_field(feature) for feature in wanted.features]
        fields = {name: index for index, name in enumerate(dict.fromkeys(names))}
        features = {f.name: fields[feature_field(f)] for wanted in views for f in wanted.features}
        return cls(entities, tuple(views), fields, features, b"".join(map(bulk, fields)))

    @property
    def takes_all(self) -> bool:
        """Return whether to read whole hashes and pick.

        Redis looks for each field of a small hash from its beginning: 80 of 80 fields take it 50 us
        one by one, and 5 us at once.
        """
        there = sum(1 + len(e.views) + len(e.features) for e in self.entities)
        return 2 * len(self.fields) >= there

    def commands(self, keys: pa.Array) -> bytes:
        """Return the command that reads each key."""
        entity = self.entities[0]
        layout = KeyLayout.of(entity)
        head = b"*%d\r\n%b" % (2 + len(self.fields), bulk(b"HMGET"))
        tail = self.tail
        if self.takes_all:
            head, tail = b"*2\r\n" + bulk(b"HGETALL"), b""
        return b"".join(
            head + bulk(layout.key(key)) + tail for key in key_values(entity.key_kind, keys)
        )

    def rows(self, replies: Sequence[Any]) -> list[_Row]:
        """Return the values of the fields, key by key."""
        if not self.takes_all:
            return list(replies)
        fields = tuple(self.fields)
        found: list[_Row] = []
        for flat in replies:
            get = dict(zip(flat[::2], flat[1::2], strict=True)).get
            found.append([get(field) for field in fields])
        return found


class OnlineReader:
    """Reads the same features again and again; threads may share it.

    Args:
        request: What is read.
        url: Where Redis is.
        stale_after_ms: How long a writer may be silent before its values are STALE.
        clock: The wall clock.
        timeout_s: How long to wait for Redis.

    """

    def __init__(
        self,
        request: Request,
        url: str,
        stale_after_ms: int,
        clock: Clock | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._request = request
        self._redis = RedisConnection(url, timeout_s)
        self._stale_after_ms = stale_after_ms
        self._clock = clock or SystemClock()
        by_key: dict[str, list[WantedView]] = {}
        for wanted in request.views:
            by_key.setdefault(wanted.entity.join_key, []).append(wanted)
        self._hashes = {name: _Hash.of(views) for name, views in by_key.items()}
        types = {f.name: _TYPES[f.dtype] for wanted in request.views for f in wanted.features}
        self._types = {name: types[name] for name in request.names}
        self._writers = tuple(dict.fromkeys(wanted.entity for wanted in request.views))
        self._marker_commands = b"".join(
            command((b"HGETALL", marker_key(entity))) for entity in self._writers
        )

    @property
    def join_keys(self) -> Mapping[str, KeyKind]:
        """Return the columns that find the entities, with what they hold."""
        return self._request.join_keys

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def read(self, entities: Entities) -> OnlineAnswer:
        """Return the newest values of entities; see ``online``. One round trip.

        Raises:
            OnlineError: If the keys are not what finds these entities.
            StoreUnavailableError: If Redis does not answer.

        """
        keys = key_columns(entities, self._request.join_keys)
        distinct = {name: pc.unique(column).drop_null() for name, column in keys.items()}
        data = [self._hashes[name].commands(column) for name, column in distinct.items()]
        count = len(self._writers) + sum(map(len, distinct.values()))
        replies = self._redis.run([b"".join((self._marker_commands, *data))], count)
        self._refuse(replies)
        witnesses = self._witnesses(replies)
        columns: dict[str, list[Any]] = {}
        at = len(self._writers)
        for name, column in keys.items():
            found = distinct[name]
            rows: list[_Row] = self._hashes[name].rows(replies[at : at + len(found)])
            at += len(found)
            if len(found) != len(column):
                places = pc.fill_null(pc.index_in(column, found), len(found)).to_pylist()
                rows.append(None)
                rows = [rows[place] for place in places]
            self._add(columns, self._hashes[name], rows, witnesses)
        views = tuple(wanted.view.name for wanted in self._request.views)
        names = [*self._types]
        for view in views:
            names += [f"{view}__{AGE}", f"{view}__{STATUS}"]
        return OnlineAnswer(keys, {name: columns[name] for name in names}, self._types, views)

    def _witnesses(self, replies: Sequence[Any]) -> dict[_Writer, Witness]:
        now_ms = self._clock.now_ms()
        witnesses = {}
        for entity, flat in zip(self._writers, replies[: len(self._writers)], strict=True):
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            witnesses[_writer(entity)] = Witness(read_markers(fields), now_ms, self._stale_after_ms)
        return witnesses

    def _add(
        self,
        columns: dict[str, list[Any]],
        found: _Hash,
        rows: Sequence[_Row],
        witnesses: Mapping[_Writer, Witness],
    ) -> None:
        """Add the columns of all views of one hash. What is the same for views is read once."""
        times_ms: dict[bytes | None, int | None] = {}
        for entity in found.entities:
            witness = witnesses[_writer(entity)]
            fence_at = found.fields[fence_field(entity.pipeline)]
            beliefs = [
                None if row is None else witness.believe(_fence(row[fence_at])) for row in rows
            ]
            for wanted in found.views:
                if wanted.entity is not entity:
                    continue
                time_at, reach_ms = found.fields[time_field(wanted.view.name)], wanted.view.reach_ms
                judged: list[tuple[str, int | None]] = []
                for row, belief in zip(rows, beliefs, strict=True):
                    if row is None or belief is None:
                        judged.append(_NO_KEY)
                        continue
                    data = row[time_at]
                    if data not in times_ms:
                        times_ms[data] = read_time_ms(data)
                    judged.append(witness.judge(belief, times_ms[data], reach_ms))
                columns[f"{wanted.view.name}__{AGE}"] = [age_ms for _, age_ms in judged]
                columns[f"{wanted.view.name}__{STATUS}"] = [status for status, _ in judged]
                gone = [status in _GONE for status, _ in judged]
                for feature in wanted.features:
                    place = found.features[feature.name]
                    columns[feature.name] = _values(feature, place, rows, gone)

    def _refuse(self, replies: Sequence[Any]) -> None:
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise StoreUnavailableError(
                    explain("Redis", "answer what is read", str(reply), self._redis.name)
                )


def _writer(entity: OnlineEntity) -> _Writer:
    return entity.pipeline, entity.entity


def _fence(text: bytes | None) -> Fence | None:
    return Fence.read(text) if text else None


def _values(
    feature: OnlineFeature, place: int, rows: Sequence[_Row], gone: Sequence[bool]
) -> list[Any]:
    """Return a feature's values; where all is gone, what empty windows give."""
    if not any(gone):
        return [read_value(row[place]) if row else None for row in rows]
    default: float | int | None = feature.default
    if default is not None and feature.dtype == "int64":
        default = int(default)
    return [
        default if is_gone else (read_value(row[place]) if row else None)
        for row, is_gone in zip(rows, gone, strict=True)
    ]
