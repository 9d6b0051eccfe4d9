"""From a project and names of files to what the publisher takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.runtime.errors import explain
from headrace.schemas.codec import RecordEncoder
from headrace.streams.commit import CheckedProducer, producer_properties
from headrace.streams.environment import open_environment
from headrace.streams.errors import PublishError
from headrace.streams.publisher import Feed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DELIVERY_TIMEOUT_MS = 120_000
LINGER_MS = 5.0


@dataclass(frozen=True, slots=True)
class Publication:
    """A producer and the feeds to publish with it."""

    producer: CheckedProducer
    feeds: list[Feed]


def open_publication(folder: Path, data: Sequence[str]) -> Publication:
    """Open the files that ``data`` names for the project in ``folder``.

    Args:
        folder: The project's folder.
        data: Folders with ``<source>.parquet`` files, and ``name=path``; empty: the history of
            the settings.

    Raises:
        HeadraceError: If a file is missing, or the project is not applied.

    """
    environment = open_environment(folder)
    names = {source.name for plan in environment.plan.pipelines for source in plan.sources}
    scored = {plan.source for plan in environment.plan.pipelines}
    files = find_files(data, sorted(names), environment.project.settings.history)
    sources = [environment.source(name) for name in files]
    partitions = environment.partitions(source.topic for source in sources)
    feeds = []
    for source in sources:
        schema_id, schema = environment.registered(source.topic)
        feeds.append(
            Feed(
                source,
                files[source.name],
                RecordEncoder(schema, schema_id),
                partitions[source.topic],
                source.name in scored,
            )
        )
    properties = producer_properties(environment.client, LINGER_MS, DELIVERY_TIMEOUT_MS)
    return Publication(CheckedProducer(properties), feeds)


def find_files(
    data: Sequence[str], sources: Sequence[str], history: Mapping[str, Path]
) -> dict[str, Path]:
    """Return the file of each source that has one.

    Raises:
        PublishError: If a name is no source's, a file is missing, or nothing is found.

    """
    files = {} if data else {name: path for name, path in history.items() if name in sources}
    for one in data:
        given, equals, place = one.partition("=")
        if equals:
            files[given] = Path(place)
            continue
        inside = {name: Path(one) / f"{name}.parquet" for name in sources}
        files |= {name: path for name, path in inside.items() if path.is_file()}
    for name, path in files.items():
        if name not in sources:
            hint = f"known: {', '.join(sources)}"
            raise PublishError(explain("data", "name a source", name, str(path), hint))
        if not path.is_file():
            raise PublishError(explain("data", "be a file", str(path), f"source {name}"))
    if not files:
        wanted = ", ".join(f"{name}.parquet" for name in sources)
        hint = "give a folder, or name=path"
        raise PublishError(explain("data", f"hold one of {wanted}", list(data), "send", hint))
    return files
