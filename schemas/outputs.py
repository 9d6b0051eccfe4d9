"""The Avro schemas of what a pipeline writes: predictions and snapshots.

Every field that a change of definitions can add or remove is nullable with default null, so that
any two versions read each other (docs: compatibility level FULL_TRANSITIVE). A feature whose type
changes must get a new name.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from headrace.runtime.errors import explain
from headrace.schemas.errors import SchemaRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

_AVRO_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_DTYPES: Final = {"float64": "double", "int64": "long"}
_EVENT_TIME: Final = {"type": "long", "logicalType": "timestamp-millis"}
#: How much of the hash of a model's manifest goes into a prediction, in hex digits.
MODEL_HASH_DIGITS: Final = 16


class PredictionId(NamedTuple):
    """Which event a prediction and a snapshot are about: where it stands in its source's topic."""

    topic_id: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic_id}-{self.partition}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the id that ``text`` spells; a topic id may itself hold hyphens.

        Raises:
            ValueError: If it spells none.

        Examples:
            >>> PredictionId.parse("9Xa-_kQ-3-17")
            PredictionId(topic_id='9Xa-_kQ', partition=3, offset=17)

        """
        topic_id, *numbers = text.rsplit("-", 2)
        if not topic_id or len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            form = "be <source topic id>-<partition>-<offset>"
            message = explain("prediction id", form, text, "a receipt", "'headrace tail' shows ids")
            raise ValueError(message)
        return cls(topic_id, *map(int, numbers))


def prediction_schema(pipeline: str, entities: Sequence[str]) -> str:
    """Return the schema of ``<pipeline>.predictions``.

    Args:
        pipeline: The pipeline's name.
        entities: The entities whose keys a prediction carries, as ``<entity>_key``.

    Raises:
        SchemaRefused: If a name is not an Avro name, or stands twice.

    """
    fields = [
        *_ids(entities),
        _field("fingerprint", "string"),
        _nullable("score", "double"),
        _field("status", "string"),
        _nullable("model", "string"),
        _nullable("model_version", "string"),
        _field("role", "string"),
        _field("revision", "long"),
        _nullable("model_hash", "string"),
        _nullable("engine", "string"),
    ]
    return _record("Prediction", pipeline, fields)


def snapshot_schema(
    pipeline: str,
    entities: Sequence[str],
    vector: Sequence[tuple[str, str]],
    views: Sequence[str],
) -> str:
    """Return the schema of ``<pipeline>.snapshots``: ids, the model's vector, the views' ages.

    Args:
        pipeline: The pipeline's name.
        entities: The entities whose keys a snapshot carries, as ``<entity>_key``.
        vector: Name and dtype (``float64`` or ``int64``) of each of the vector's columns, in order.
        views: The views whose ages a snapshot carries, as ``<view>__age_ms``.

    Raises:
        SchemaRefused: If a name is not an Avro name, or stands twice.

    """
    fields = [
        *_ids(entities),
        _field("fingerprint", "string"),
        *(_nullable(name, _DTYPES[dtype]) for name, dtype in vector),
        *(_nullable(f"{view}__age_ms", "long") for view in views),
    ]
    return _record("Snapshot", pipeline, fields)


def _ids(entities: Sequence[str]) -> list[dict[str, Any]]:
    return [
        _field("prediction_id", "string"),
        _nullable("event_id", "string"),
        _field("source", "string"),
        _field("source_topic_id", "string"),
        _field("source_partition", "int"),
        _field("source_offset", "long"),
        *(_nullable(f"{entity}_key", "string") for entity in entities),
        _field("event_time", _EVENT_TIME),
    ]


def _field(name: str, kind: object) -> dict[str, Any]:
    return {"name": name, "type": kind}


def _nullable(name: str, kind: object) -> dict[str, Any]:
    return {"name": name, "type": ["null", kind], "default": None}


def _record(name: str, pipeline: str, fields: list[dict[str, Any]]) -> str:
    names = [str(field["name"]) for field in fields]
    where = f"{name.lower()}s of pipeline {pipeline!r}"
    for field in names:
        if not _AVRO_NAME.match(field):
            rule = "be letters, digits and underscores"
            raise SchemaRefused(explain("field name", rule, field, where))
        if names.count(field) > 1:
            hint = "rename the column: ids and times of the event have fixed names"
            raise SchemaRefused(explain("field name", "stand once", field, where, hint))
    space = re.sub(r"[^A-Za-z0-9_]", "_", pipeline)
    if not _AVRO_NAME.match(space):
        space = f"_{space}"
    record = {"type": "record", "name": name, "namespace": f"headrace.{space}", "fields": fields}
    return json.dumps(record)
