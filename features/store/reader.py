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
from headrace.features.store.freshness import EXPIRED, MISSING, STATUSES, Witness
from headrace.features.store.layout import (
    Fence,
    KeyLayout,
    feature_field,
    fence_field,
    marker_key,
    read_time_ms,
    read_value,
    time_field,
)
from headrace.features.store.packing import bulk, command, key_bytes
from headrace.features.store.redis_store import read_markers
from headrace.features.store.request import key_columns, request_for
from headrace.runtime.clock import SystemClock
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.features.plan import KeyKind
    from headrace.features.store.request import Entities, Features, Request, WantedView
    from headrace.features.store.views import OnlineEntity, OnlineFeature
    from headrace.runtime.clock import Clock

_TIMEOUT_S: Final = 1.0
_STATUSES: Final = pa.array(STATUSES, pa.string())
_STATUS_INDEX: Final = {status: index for index, status in enumerate(STATUSES)}
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
    tail: bytes

    @classmethod
    def of(cls, views: Sequence[WantedView]) -> _Hash:
        entities = tuple(dict.fromkeys(wanted.entity for wanted in views))
        names = [fence_field(entity.pipeline) for entity in entities]
        for wanted in views:
            names.append(time_field(wanted.view.name))
            names += [feature_field(feature) for feature in wanted.features]
        fields = {name: index for index, name in enumerate(dict.fromkeys(names))}
        return cls(entities, tuple(views), fields, b"".join(map(bulk, fields)))

    def commands(self, keys: pa.Array) -> bytes:
        """Return one HMGET a key."""
        layout = KeyLayout.of(self.entities[0])
        head = b"*%d\r\n%b" % (2 + len(self.fields), bulk(b"HMGET"))
        return b"".join(
            head + bulk(layout.key(key)) + self.tail
            for key in key_bytes(self.entities[0], keys).to_list()
        )


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
        columns: dict[str, pa.Array] = {}
        at = len(self._writers)
        for name, column in keys.items():
            found = distinct[name]
            rows: list[Any] = [*replies[at : at + len(found)], None]
            at += len(found)
            places = pc.index_in(column, found)
            if places.null_count or len(found) != len(column):
                order = pc.fill_null(places, len(found)).to_pylist()
                rows = [rows[place] for place in order]
            else:
                rows.pop()
            for wanted in self._hashes[name].views:
                columns |= self._view(wanted, self._hashes[name].fields, rows, witnesses)
        return self._answer(keys, columns)

    def _answer(self, keys: dict[str, pa.Array], columns: dict[str, pa.Array]) -> OnlineAnswer:
        views = tuple(wanted.view.name for wanted in self._request.views)
        names = [*self._request.names]
        for view in views:
            names += [f"{view}__{AGE}", f"{view}__{STATUS}"]
        arrays = [*keys.values(), *(columns[name] for name in names)]
        return OnlineAnswer(pa.Table.from_arrays(arrays, names=[*keys, *names]), views)

    def _witnesses(self, replies: Sequence[Any]) -> dict[OnlineEntity, Witness]:
        now_ms = self._clock.now_ms()
        witnesses = {}
        for entity, flat in zip(self._writers, replies[: len(self._writers)], strict=True):
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            witnesses[entity] = Witness(read_markers(fields), now_ms, self._stale_after_ms)
        return witnesses

    def _view(
        self,
        wanted: WantedView,
        fields: dict[bytes, int],
        rows: Sequence[Sequence[bytes | None] | None],
        witnesses: dict[OnlineEntity, Witness],
    ) -> dict[str, pa.Array]:
        """Return a view's columns. A row that is None has no key: MISSING by definition."""
        witness, view = witnesses[wanted.entity], wanted.view
        fence_at = fields[fence_field(wanted.entity.pipeline)]
        time_at = fields[time_field(view.name)]
        ages: list[int | None] = []
        statuses: list[int] = []
        empty: list[bool] = []
        for row in rows:
            if row is None:
                status, age_ms = MISSING, None
            else:
                text = row[fence_at]
                fence = Fence.read(text) if text else None
                status, age_ms = witness.judge(fence, read_time_ms(row[time_at]), view.reach_ms)
            ages.append(age_ms)
            statuses.append(_STATUS_INDEX[status])
            empty.append(status in {EXPIRED, MISSING})
        columns = {f"{view.name}__{AGE}": pa.array(ages, pa.int64())}
        indices = pa.array(statuses, pa.int8())
        columns[f"{view.name}__{STATUS}"] = pa.DictionaryArray.from_arrays(indices, _STATUSES)
        for feature in wanted.features:
            place, default = fields[feature_field(feature)], _default(feature)
            values = [
                default if gone else (None if row is None else read_value(row[place]))
                for row, gone in zip(rows, empty, strict=True)
            ]
            columns[feature.name] = pa.array(values, _TYPES[feature.dtype])
        return columns

    def _refuse(self, replies: Sequence[Any]) -> None:
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise StoreUnavailableError(
                    explain("Redis", "answer what is read", str(reply), self._redis.name)
                )


def _default(feature: OnlineFeature) -> float | int | None:
    if feature.default is None or feature.dtype == "float64":
        return feature.default
    return int(feature.default)
