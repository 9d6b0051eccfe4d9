"""What events are read, and what features are about: ``Source`` and ``Entity``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from headrace.features.errors import refuse
from headrace.features.formulas import caller
from headrace.features.rules import (
    assign,
    check_name,
    check_one_of,
    check_text,
    definition,
    milliseconds,
    optional_milliseconds,
)

if TYPE_CHECKING:
    from headrace.features.errors import Location

PARTITIONERS = ("murmur2", "crc32")

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,200}")


@definition
@dataclass(frozen=True, eq=False)
class Source:
    """A topic of events and how to read them.

    Args:
        name: Also the topic and ``schemas/<name>.avsc``, unless ``topic`` or ``schema`` is given.
        key: The column by which producers key their messages.
        event_time: The column that says when it happened: an Avro timestamp, or a long of ms.
        known_at: The column that says when it could first be used; default: the event time.
        event_id: The column that identifies the event to consumers.
        dedupe: For how long of event time an event id is remembered, so that what is sent twice
            counts once; None: not at all. Costs some 22 bytes an id; see docs/duplicates.md.
        schema: Path from the project's folder to the ``.avsc`` file, or the schema itself.
        topic: The topic's name, where it is not the source's.
        partitioner: How producers choose partitions by key: ``murmur2`` (Java), ``crc32``
            (librdkafka's default), None for anything else. Checked on every row.
        lateness: How far behind its partition's newest event one may come and still count.
        max_ahead: How far ahead of the broker's clock a time may be; beyond it is bad input.
        not_finite: What NaN and infinity in an aggregated column are: ``dlq`` or ``null``.
        null_key: Rows without a key: ``default`` (scored with defaults) or ``dlq``.

    """

    name: str
    key: str
    event_time: str
    known_at: str | None = None
    event_id: str | None = None
    dedupe: str | None = None
    schema: str | Mapping[str, Any] | None = None
    topic: str | None = None
    partitioner: str | None = None
    lateness: str = "1h"
    max_ahead: str = "5m"
    not_finite: Literal["dlq", "null"] = "dlq"
    null_key: Literal["default", "dlq"] = "default"
    location: Location | None = field(init=False, repr=False)
    lateness_ms: int = field(init=False, repr=False)
    max_ahead_ms: int = field(init=False, repr=False)
    dedupe_ms: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        at, where = caller(), f"source {self.name}"
        for name in (self.name, self.topic or self.name):
            if not isinstance(name, str) or not _TOPIC.fullmatch(name) or name.strip(".") == "":
                rule = "be letters, digits, dots, dashes and underscores, at most 200"
                raise refuse(at, "the name of a source", rule, name, where)
        for option in ("key", "event_time"):
            check_text(getattr(self, option), option, where, at)
        for option in ("known_at", "event_id"):
            if getattr(self, option) is not None:
                check_text(getattr(self, option), option, where, at)
        dedupe_ms = optional_milliseconds(self.dedupe, "dedupe", where, at)
        if dedupe_ms is not None and not dedupe_ms:
            hint = "leave it out to count every event, or write '24h'"
            raise refuse(at, "dedupe", "be longer than nothing", self.dedupe, where, hint)
        if dedupe_ms and self.event_id is None:
            hint = "write event_id=…, the column with one value for each event"
            raise refuse(at, "dedupe", "come with an event_id", self.dedupe, where, hint)
        if self.partitioner is not None:
            check_one_of(self.partitioner, PARTITIONERS, "partitioner", where, at)
        check_one_of(self.not_finite, ("dlq", "null"), "not_finite", where, at)
        check_one_of(self.null_key, ("default", "dlq"), "null_key", where, at)
        if self.schema is not None and not isinstance(self.schema, str | Mapping):
            raise refuse(at, "schema", "be a path or an Avro schema", self.schema, where)
        assign(
            self,
            location=at,
            lateness_ms=milliseconds(self.lateness, "lateness", where, at),
            max_ahead_ms=milliseconds(self.max_ahead, "max_ahead", where, at),
            dedupe_ms=dedupe_ms or 0,
        )


@definition
@dataclass(frozen=True, eq=False)
class Entity:
    """What features are about: a customer, a terminal. ``key`` finds it in every event of it."""

    name: str
    key: str
    location: Location | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        at = caller()
        check_name(self.name, "entity", at)
        check_text(self.key, "key", f"entity {self.name}", at)
        assign(self, location=at)
