"""Erasures: what is told of them on ``<project>.erasures``, and what a stage does about them.

An erasure is part of the log. A request says whose events are to count for nothing, and where the
sources ended then. Whoever owns a stage's partition says at which position of its input the key is
forgotten, and says so before any later row is worked on: so state and outputs stay a function of
the log's prefix and of these positions, and a restart forgets where its predecessor did. From there
on rows of the key that the request is about count for nothing, however late they come.

Pure: no Kafka, no clock.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.runtime.errors import explain
from headrace.streams.batch import EventBatch, Forget
from headrace.streams.errors import ErasureError
from headrace.streams.rekey import ARROW_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.features.plan import PipelinePlan, StagePlan


@dataclass(frozen=True, slots=True)
class ErasureRequest:
    """A wish that an entity's key be forgotten.

    ``key`` is spelled as in predictions. ``bounds`` holds, by topic of a source, its id and where
    each of its partitions ended: the rows before are what is erased.
    """

    id: str
    entity: str
    key: str
    at_ms: int
    bounds: dict[str, tuple[str, list[int]]]
    kind: Literal["request"] = "request"

    @property
    def record_key(self) -> str:
        """Return the message's key."""
        return f"request:{self.id}"


@dataclass(frozen=True, slots=True)
class ErasurePosition:
    """Where in its input a stage's partition forgets the key of a request, or (``done``) has.

    ``keys`` counts what it had of the key: 0 or 1.
    """

    id: str
    pipeline: str
    topic: str
    topic_id: str
    partition: int
    position: int
    kind: Literal["position", "done"] = "position"
    keys: int = 0

    @property
    def place(self) -> tuple[str, str, str, str, int]:
        """Return which request and stage partition it is about."""
        return self.id, self.pipeline, self.topic, self.topic_id, self.partition

    @property
    def record_key(self) -> str:
        """Return the message's key: two owners' words are both kept, and the first one holds."""
        place = ":".join(map(str, self.place))
        return f"{self.kind}:{place}:{self.position}"


Erasure = ErasureRequest | ErasurePosition


def encode_erasure(erasure: Erasure) -> bytes:
    """Return the message's value (JSON)."""
    return orjson.dumps(asdict(erasure))


def decode_erasure(value: bytes) -> Erasure:
    """Return what a message says.

    Raises:
        ErasureError: If it is none.

    """
    try:
        content = orjson.loads(value)
        kind = ErasureRequest if content["kind"] == "request" else ErasurePosition
        given = {item.name: content[item.name] for item in fields(kind)}
        if kind is ErasureRequest:
            bounds = {
                t: (str(i), [int(o) for o in ends]) for t, (i, ends) in given["bounds"].items()
            }
            given["bounds"] = bounds
        return kind(**given)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = explain("an erasure", "hold every field", value[:80], "the erasures topic")
        raise ErasureError(message) from error


@dataclass(slots=True)
class ErasureBook:
    """All that the topic has told so far."""

    requests: dict[str, ErasureRequest] = field(default_factory=dict)
    positions: dict[tuple[str, str, str, str, int], int] = field(default_factory=dict)
    done: dict[tuple[str, str, str, str, int], int] = field(default_factory=dict)

    def take(self, value: bytes) -> None:
        """Take note of a message; of two positions for one place the first holds.

        Raises:
            ErasureError: If it says nothing that can be read.

        """
        erasure = decode_erasure(value)
        if isinstance(erasure, ErasureRequest):
            self.requests[erasure.id] = erasure
        elif erasure.kind == "done":
            self.done[erasure.place] = max(erasure.keys, self.done.get(erasure.place, 0))
        else:
            self.positions.setdefault(erasure.place, erasure.position)

    def of_entity(self, entity: str) -> list[ErasureRequest]:
        """Return the requests about an entity's keys, oldest first."""
        return [request for request in self.requests.values() if request.entity == entity]


def typed_key(key: str, kind: str) -> pa.Array:
    """Return a key, spelled as in predictions, as an array of one in the type that a stage keeps.

    Raises:
        ErasureError: If a key of this kind cannot be spelled so.

    """
    try:
        if kind == "bytes":
            return pa.array([bytes.fromhex(key)], pa.binary())
        return pa.array([key], pa.string()).cast(ARROW_TYPES[kind])
    except (ValueError, pa.ArrowInvalid) as error:
        rule = {"int64": "be a whole number", "bytes": "be hex digits"}[kind]
        raise ErasureError(explain("the key", rule, key, "this entity")) from error


def forget_of(
    plan: PipelinePlan,
    stage: StagePlan,
    request: ErasureRequest,
    topic_ids: Mapping[str, str],
    where: tuple[int, int],
    position: int,
) -> Forget:
    """Return what a stage's partition is to do for a request.

    Args:
        plan: The pipeline.
        stage: Its stage of the request's entity.
        request: What is erased.
        topic_ids: By topic; bounds of a topic that was made anew since bound nothing.
        where: The partition and the epoch of its ownership.
        position: Of the stage's input.

    """
    bounds = {}
    for source in plan.sources:
        topic_id, ends = request.bounds.get(source.topic, ("", []))
        if ends and topic_id == topic_ids.get(source.topic):
            bounds[source.name] = np.array(ends, np.int64)
    partition, epoch = where
    key = typed_key(request.key, stage.key_kind)
    return Forget(stage.topic, partition, epoch, request.id, position, key, bounds)


class ErasedRows:
    """The rows that may still come and count for nothing, for one stage's partition."""

    def __init__(self) -> None:
        self._forgets: list[Forget] = []
        self._ends: dict[str, np.ndarray] = {}
        self._saved: list[Forget] = []

    def add(self, forget: Forget) -> None:
        """Let no row count from now on that ``forget`` is about."""
        self._forgets.append(forget)
        self._update()

    def counting(
        self, keys: pa.Array, source: str, partition: np.ndarray, offset: np.ndarray
    ) -> np.ndarray | None:
        """Return bool[n], which rows still count; None: all do.

        Args:
            keys: Of the stage's entity, in its type.
            source: Whose rows.
            partition: int32[n], of the source.
            offset: int64[n], of the source.

        """
        ends = self._ends.get(source)
        if ends is None:
            return None
        if not (offset < _at(ends, partition)).any():
            return None
        counting = np.ones(len(offset), bool)
        for forget in self._forgets:
            before = forget.bounds.get(source)
            if before is None:
                continue
            same = pc.fill_null(pc.equal(keys, forget.key[0]), False)
            mine = same.to_numpy(zero_copy_only=False)
            counting &= ~(mine & (offset < _at(before, partition)))
        return None if counting.all() else counting

    def begin(self) -> None:
        """Remember the erasures, for ``abort``."""
        self._saved = list(self._forgets)

    def commit(self) -> None:
        """Forget what ``begin`` remembered."""

    def abort(self) -> None:
        """Go back to the erasures at ``begin``."""
        self._forgets = self._saved
        self._update()

    def dump(self) -> dict[str, Any]:
        """Return the erasures, for a checkpoint."""
        return {
            "forgets": [
                {
                    "place": {
                        name: getattr(one, name)
                        for name in ("topic", "partition", "epoch", "request", "position")
                    },
                    "key": pa.RecordBatch.from_arrays([one.key], ["key"]),
                    "bounds": dict(one.bounds),
                }
                for one in self._forgets
            ]
        }

    def load(self, kept: dict[str, Any]) -> None:
        """Take over what ``dump`` returned."""
        self._forgets = [
            Forget(key=one["key"].column(0), bounds=one["bounds"], **one["place"])
            for one in kept["forgets"]
        ]
        self._update()

    @property
    def requests(self) -> frozenset[str]:
        """The requests that were carried out."""
        return frozenset(forget.request for forget in self._forgets)

    def _update(self) -> None:
        self._ends = {}
        for forget in self._forgets:
            for source, ends in forget.bounds.items():
                known = self._ends.get(source, np.zeros(0, np.int64))
                wide = np.zeros(max(len(known), len(ends)), np.int64)
                wide[: len(known)] = known
                wide[: len(ends)] = np.maximum(wide[: len(ends)], ends)
                self._ends[source] = wide


def _at(ends: np.ndarray, partition: np.ndarray) -> np.ndarray:
    """Return each row's bound; partitions that there were not yet have none."""
    known: np.ndarray = np.append(ends, 0)[np.minimum(partition, len(ends))]
    return known


def cut(batch: EventBatch, forgets: Sequence[Forget]) -> list[EventBatch | Forget]:
    """Return a batch in parts with the forgets at their positions between them.

    ``forgets`` are in the order of their positions; those beyond the batch's last row are left out.
    """
    if not len(batch):
        return [batch]
    parts: list[EventBatch | Forget] = []
    first = 0
    for forget in forgets:
        if forget.position > int(batch.offsets[-1]):
            break
        place = int(np.searchsorted(batch.offsets, forget.position))
        if place > first:
            parts.append(_part(batch, first, place, at_end=False))
        parts.append(forget)
        first = max(first, place)
    parts.append(batch if first == 0 else _part(batch, first, len(batch), at_end=batch.at_end))
    return parts


def _part(batch: EventBatch, first: int, last: int, *, at_end: bool) -> EventBatch:
    return EventBatch(
        topic=batch.topic,
        partition=batch.partition,
        epoch=batch.epoch,
        offsets=batch.offsets[first:last],
        arrival_time_ms=batch.arrival_time_ms[first:last],
        keys=batch.keys[first:last],
        values=batch.values[first:last],
        headers=batch.headers[first:last],
        emit_from=batch.emit_from,
        at_end=at_end,
        unsent=batch.unsent,
    )
