"""What a project needs outside itself (topics, schemas), what was applied, and applying it.

``<state folder>/applied.json`` is what ``headrace plan`` compares with and what freezes the number
of partitions; the broker and the registry stay the truth about what is there.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.features.changes import Change, differences, plan_changes
from headrace.features.compiler import compile_project, plan_from_json, plan_to_json
from headrace.features.errors import PlanFormatError
from headrace.features.output_schemas import output_schemas
from headrace.features.plan import ProjectPlan
from headrace.features.project import load_project
from headrace.runtime import topics
from headrace.runtime.errors import HeadraceError, explain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from headrace.features.project import Project
    from headrace.runtime.settings import Settings
    from headrace.runtime.topics import TopicSpec
    from headrace.schemas.registry import SchemaRegistry

FILE = "applied.json"
FORMAT_VERSION = 1
COMPATIBILITY = "FULL_TRANSITIVE"


class AppliedError(HeadraceError):
    """What was applied, and what the definitions now ask for, cannot both be."""


@dataclass(frozen=True, slots=True)
class Target:
    """All that a project's plan needs: topics by name, schemas as JSON by subject.

    ``decoders`` says by source how events written with its own schema are read: ``fast``, or
    ``fallback`` record by record.
    """

    plan: ProjectPlan
    topics: tuple[TopicSpec, ...]
    schemas: Mapping[str, str]
    decoders: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Applied:
    """What ``headrace apply`` did last.

    ``topics`` holds the number of partitions of every topic; ``foreign`` are those sources' topics
    that were there before: their settings are their owner's.
    """

    plan: ProjectPlan | None = None
    topics: Mapping[str, int] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    schemas: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an apply did, or with ``dry_run`` would do.

    ``first``: nothing was applied before. ``foreign`` topics are left as they are. ``schemas`` are
    ids by subject, None where none is registered.
    """

    first: bool
    changes: tuple[Change, ...]
    created: tuple[str, ...]
    foreign: tuple[str, ...]
    schemas: Mapping[str, int | None]


def target_of(project: Project) -> Target:
    """Return what a project needs, compiled from its definitions.

    Raises:
        DefinitionError: If they break a rule.

    """
    settings = project.settings
    plan = compile_project(project, settings.topics.partitions)
    schemas: dict[str, str] = {}
    decoders: dict[str, str] = {}
    sources: list[str] = []
    for pipeline in plan.pipelines:
        for source in pipeline.sources:
            schemas[_subject(source.topic)] = source.schema
            decoders[source.name] = _decoder(source.schema)
            sources.append(source.topic)
        schemas |= {_subject(topic): text for topic, text in output_schemas(pipeline).items()}
    specs = topics.topic_specs(
        plan.project,
        sources,
        {p.name: [s.topic for s in p.stages if not s.direct] for p in plan.pipelines},
        partitions=settings.topics.partitions,
        replication=settings.topics.replication,
        source_config={k: str(v) for k, v in settings.topics.properties.items()},
    )
    return Target(plan, specs, schemas, decoders)


def _decoder(schema: str) -> str:
    from headrace.schemas.codec import SchemaDecoder

    return "fast" if SchemaDecoder(schema).fast else "fallback"


def _subject(topic: str) -> str:
    return f"{topic}-value"


def target_changes(applied: Applied, target: Target) -> tuple[Change, ...]:
    """Return how what is needed differs from what was applied."""
    wanted = {spec.name: _count(spec.partitions) for spec in target.topics}
    known = {name: _count(count) for name, count in applied.topics.items()}
    # Topics that are not ours may have any number, and sources that are re-keyed.
    spread = {s.name for s in target.topics if s.role == "source"} - _direct(target)
    wanted |= {name: known[name] for name in {*applied.foreign, *spread} & {*wanted} & {*known}}
    return (
        *plan_changes(applied.plan, target.plan),
        *differences("topic", known, wanted),
        *differences("schema", applied.schemas, target.schemas),
    )


def _count(partitions: int) -> str:
    return f"{partitions} partition{'s' if partitions > 1 else ''}"


# --- The file -------------------------------------------------------------------------------------


def read_applied(settings: Settings) -> Applied:
    """Return what was applied last; nothing, if nothing was.

    Raises:
        AppliedError: If the file is damaged, or another version's.

    """
    file = settings.state_folder / FILE
    if not file.is_file():
        return Applied()
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        assert data["version"] == FORMAT_VERSION, f"it is of version {data['version']}"
        plan = plan_from_json(json.dumps(data["plan"]))
        assert isinstance(plan, ProjectPlan), "it holds one pipeline only"
        return Applied(plan, data["topics"], tuple(data["foreign"]), data["schemas"])
    except (ValueError, KeyError, TypeError, AssertionError, PlanFormatError) as error:
        rule = "be one that this version of headrace wrote"
        hint = "delete it and run 'headrace apply': topics and schemas that are there stay"
        message = explain(FILE, rule, str(error), str(file), hint)
        raise AppliedError(message) from error


def write_applied(settings: Settings, applied: Applied) -> None:
    """Keep what was applied; a crash leaves the file of before."""
    assert applied.plan is not None
    content: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "plan": json.loads(plan_to_json(applied.plan)),
        "topics": dict(applied.topics),
        "foreign": list(applied.foreign),
        "schemas": dict(applied.schemas),
    }
    folder = settings.state_folder
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FILE}.partial"
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(folder / FILE)


def check_applied(folder: Path, name: str | None) -> None:
    """See that what would run is what was applied; where nothing was, on this machine, let it pass.

    Args:
        folder: The project's folder.
        name: The pipeline that would run; None for all.

    Raises:
        AppliedError: If the definitions give other values than the applied ones.
        HeadraceError: If the definitions are wrong.

    """
    project = load_project(folder)
    applied = read_applied(project.settings).plan
    if applied is None:
        return
    known = {pipeline.name: pipeline.fingerprint for pipeline in applied.pipelines}
    for pipeline in compile_project(project, project.settings.topics.partitions).pipelines:
        if name in (None, pipeline.name) and known.get(pipeline.name) != pipeline.fingerprint:
            hint = "'headrace plan' shows what has changed, 'headrace apply' applies it"
            got = f"fingerprint {pipeline.fingerprint}"
            raise AppliedError(
                explain("definitions", "be applied", got, f"pipeline {pipeline.name}", hint)
            )


# --- Applying -------------------------------------------------------------------------------------


def apply_project(folder: Path, *, dry_run: bool = False) -> Outcome:
    """Create the topics and register the schemas that a project needs; twice is as once.

    Everything that can be refused is checked before anything is made.

    Raises:
        AppliedError: If partitions were changed, or a schema cannot follow the registered one.
        HeadraceError: If the definitions are wrong, or Kafka or the registry do not answer.

    """
    from headrace.runtime.dev.stack import endpoints
    from headrace.runtime.kafka import admin, client_properties, ensure_topics, partition_counts
    from headrace.schemas.registry import SchemaRegistry

    project = load_project(folder)
    settings = project.settings
    target = target_of(project)
    applied = read_applied(settings)
    found = endpoints(settings, project.folder)
    client = admin(client_properties(settings, found.bootstrap_servers))
    there = partition_counts(client, [spec.name for spec in target.topics])
    foreign = _foreign(target.topics, there, applied)
    target = dataclasses.replace(target, topics=as_wide(target, there))
    own = [spec for spec in target.topics if spec.name not in foreign]
    check_partitions(own, there, applied, [name for name in foreign if name in _direct(target)])
    with SchemaRegistry(found.registry_url) as registry:
        check_schemas(registry, target.schemas)
        missing = tuple(spec.name for spec in own if spec.name not in there)
        first, changes = applied.plan is None, target_changes(applied, target)
        if dry_run:
            unregistered = {subject: _registered(registry, subject) for subject in target.schemas}
            return Outcome(first, changes, missing, foreign, unregistered)
        created = ensure_topics(client, own)
        ids = {subject: _register(registry, subject, s) for subject, s in target.schemas.items()}
    counts = {spec.name: spec.partitions for spec in own}
    counts |= {name: there[name] for name in foreign}
    write_applied(settings, Applied(target.plan, counts, foreign, target.schemas))
    return Outcome(first, changes, created, foreign, ids)


def feast_changes(project: Project) -> tuple[Change, ...]:
    """Return how Feast's objects would change; nothing needs to run.

    Raises:
        FeastError: If a name means something else in Feast.

    """
    from headrace.features.feast_repo.objects import repo_objects
    from headrace.features.feast_repo.repository import repository_of

    return repository_of(project.settings).changes(repo_objects(project))


def apply_feast(folder: Path, *, dry_run: bool = False) -> tuple[Change, ...]:
    """Generate the project's Feast repository and let Feast take it; return what changed.

    Raises:
        FeastError: If Feast refuses it, or cannot be told of the project's Redis.

    """
    from headrace.features.feast_repo.objects import repo_objects
    from headrace.features.feast_repo.repository import repository_of
    from headrace.runtime.dev.stack import endpoints

    project = load_project(folder)
    if dry_run:
        return feast_changes(project)
    redis_url = endpoints(project.settings, project.folder).redis_url
    return repository_of(project.settings).apply(repo_objects(project), redis_url)


def _direct(target: Target) -> set[str]:
    """Return the topics whose partition decides where a key's state is."""
    return {stage.topic for plan in target.plan.pipelines for stage in plan.stages if stage.direct}


def as_wide(target: Target, there: Mapping[str, int]) -> tuple[TopicSpec, ...]:
    """Return the topics, sources that are re-keyed with as many partitions as they have.

    Whether a pipeline that has read one can go on is for its worker to see.
    """
    direct = _direct(target)
    return tuple(
        dataclasses.replace(spec, partitions=there[spec.name])
        if spec.role == "source" and spec.name in there and spec.name not in direct
        else spec
        for spec in target.topics
    )


def _foreign(
    specs: Sequence[TopicSpec], there: Mapping[str, int], applied: Applied
) -> tuple[str, ...]:
    """Return the sources' topics that others made: they were there before the first apply."""
    return tuple(
        spec.name
        for spec in specs
        if spec.role == "source"
        and spec.name in there
        and (spec.name in applied.foreign or spec.name not in applied.topics)
    )


def check_partitions(
    own: Sequence[TopicSpec], there: Mapping[str, int], applied: Applied, foreign: Sequence[str]
) -> None:
    """Refuse another number of partitions than keys were spread over.

    Raises:
        AppliedError: For a topic whose number was changed, in the settings or at the broker.

    """
    for spec in own:
        count = there.get(spec.name, applied.topics.get(spec.name, spec.partitions))
        if count != spec.partitions:
            raise AppliedError(_partitions_message(spec, count))
    for name in foreign:
        before = applied.topics.get(name, there[name])
        if before != there[name]:
            rule = f"keep the {before} partitions that it had when it was applied"
            hint = (
                "its keys have moved: copy it to a topic of its own and name that with topic=, or "
                "delete applied.json to go on as with a new source, with a replay"
            )
            raise AppliedError(explain("a topic", rule, there[name], name, hint))


def _partitions_message(spec: TopicSpec, count: int) -> str:
    rule = f"keep its {count} partitions: a key's state is where its events were"
    hint = (
        f"set topics.partitions back to {count}; or make a new start: give the source topic= and "
        "the pipeline another name, publish the history again, and delete the old topics later"
    )
    return explain("a topic", rule, spec.partitions, spec.name, hint)


def check_schemas(registry: SchemaRegistry, schemas: Mapping[str, str]) -> None:
    """Refuse schemas that cannot follow the registered ones.

    Raises:
        AppliedError: With every subject and reason.

    """
    problems = []
    for subject, schema in schemas.items():
        if registry.latest(subject) is not None:
            problems += [f"{subject}: {reason}" for reason in registry.check(subject, schema)]
    if problems:
        rule = "be compatible with those that events were written with"
        hint = "give a feature or field whose type changes a new name, and new fields a default"
        message = explain("schemas", rule, "; ".join(problems), "the registry", hint)
        raise AppliedError(message)


def _register(registry: SchemaRegistry, subject: str, schema: str) -> int:
    # A level that somebody has chosen is theirs.
    if registry.compatibility(subject) is None:
        registry.set_compatibility(subject, COMPATIBILITY)
    return registry.register(subject, schema)


def _registered(registry: SchemaRegistry, subject: str) -> int | None:
    latest = registry.latest(subject)
    return latest[0] if latest else None
