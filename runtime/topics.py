"""The one table of topics: how they are called and how ``headrace apply`` makes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TopicRole = Literal[
    "source", "dlq", "late", "predictions", "snapshots", "rekey", "deployments", "erasures"
]

# A record that was too large for its reader must still fit the topic that keeps it.
_KEEPER_BYTES_MAX = str(64 * 1024 * 1024)

#: Kafka settings by role. Time inside a stage is the broker's, so the logs that stages read carry
#: LogAppendTime; they are kept for ever because state is rebuilt from them. DLQ and late records
#: keep the time of the record they hold, which any retention by time would delete at once.
ROLE_CONFIG: Mapping[TopicRole, Mapping[str, str]] = MappingProxyType(
    {
        "source": {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"},
        # What is made of a record repeats its key and ids: one that was just small enough to be
        # read must not stop the worker at the next topic.
        "rekey": {
            "message.timestamp.type": "LogAppendTime",
            "retention.ms": "-1",
            "max.message.bytes": _KEEPER_BYTES_MAX,
        },
        "predictions": {
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": _KEEPER_BYTES_MAX,
        },
        "snapshots": {
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": _KEEPER_BYTES_MAX,
        },
        "dlq": {"retention.ms": "-1", "max.message.bytes": _KEEPER_BYTES_MAX},
        "late": {"retention.ms": "-1", "max.message.bytes": _KEEPER_BYTES_MAX},
        "deployments": {
            "cleanup.policy": "compact",
            "message.timestamp.type": "LogAppendTime",
            "min.cleanable.dirty.ratio": "0.1",
        },
        # Kept as long as the logs that it speaks of; no two of its records share a key.
        "erasures": {"cleanup.policy": "compact", "message.timestamp.type": "LogAppendTime"},
    }
)


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as it must be."""

    name: str
    role: TopicRole
    partitions: int
    replication: int
    config: Mapping[str, str] = field(default_factory=dict)


def predictions(pipeline: str) -> str:
    """Return the topic of a pipeline's scores."""
    return f"{pipeline}.predictions"


def snapshots(pipeline: str) -> str:
    """Return the topic of a pipeline's feature vectors."""
    return f"{pipeline}.snapshots"


def rekey(pipeline: str, entity: str, layout: str) -> str:
    """Return the internal topic that an entity's stage reads; ``layout`` says what is in it."""
    return f"{rekey_prefix(pipeline)}{entity}.{layout}"


def rekey_prefix(pipeline: str) -> str:
    """Return how the names of all of a pipeline's re-key topics begin, and no others."""
    return f"{pipeline}.rekey."


def dlq(source: str) -> str:
    """Return the topic of a source's bad records."""
    return f"{source}.dlq"


def late(source: str) -> str:
    """Return the topic of a source's records beyond the lateness."""
    return f"{source}.late"


def deployments(project: str) -> str:
    """Return the compacted topic that says which model is live."""
    return f"{project}.deployments"


def erasures(project: str) -> str:
    """Return the compacted topic that says whose events were erased, and where."""
    return f"{project}.erasures"


def group(project: str, pipeline: str) -> str:
    """Return the consumer group of a pipeline's workers."""
    return f"{project}.{pipeline}"


def preparing(group: str) -> str:
    """Return the group of those who make states ready for a group's workers."""
    return f"{group}.prepare"


def topic_specs(
    project: str,
    source_topics: Iterable[str],
    rekey_topics: Mapping[str, Iterable[str]],
    *,
    partitions: int,
    replication: int,
    source_config: Mapping[str, str] = MappingProxyType({}),
) -> tuple[TopicSpec, ...]:
    """Return every topic of a project, each once, in the order to make them.

    Args:
        project: The project's name.
        source_topics: Topics of the sources.
        rekey_topics: By pipeline, the re-key topics that its stages read.
        partitions: Of every topic but the project's own two, which have one.
        replication: Of every topic.
        source_config: Kafka settings for the source topics, over ours.

    """
    sources = list(dict.fromkeys(source_topics))
    named: list[tuple[str, TopicRole]] = [(topic, "source") for topic in sources]
    named += [(dlq(topic), "dlq") for topic in sources]
    named += [(late(topic), "late") for topic in sources]
    for pipeline, rekeyed in rekey_topics.items():
        named += [(topic, "rekey") for topic in rekeyed]
        named += [(predictions(pipeline), "predictions"), (snapshots(pipeline), "snapshots")]
    named += [(deployments(project), "deployments"), (erasures(project), "erasures")]
    return tuple(
        TopicSpec(
            name,
            role,
            1 if role in {"deployments", "erasures"} else partitions,
            replication,
            {**ROLE_CONFIG[role], **(source_config if role == "source" else {})},
        )
        for name, role in named
    )
