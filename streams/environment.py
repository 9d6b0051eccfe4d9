"""A project with its plan and the infrastructure that it runs on, opened once per process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.features.compiler import compile_project
from headrace.features.project import Project, load_project
from headrace.runtime.dev.stack import Endpoints, endpoints
from headrace.runtime.errors import explain
from headrace.runtime.kafka import Properties, admin, client_properties, partition_counts
from headrace.schemas.registry import SchemaRegistry
from headrace.streams.errors import NotAppliedError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from headrace.features.plan import PipelinePlan, ProjectPlan, SourcePlan

HINT = "run 'headrace apply'"


@dataclass(frozen=True, slots=True)
class Environment:
    """What every command on a running project starts from. ``client`` are Kafka's properties."""

    project: Project
    plan: ProjectPlan
    endpoints: Endpoints
    client: Properties
    registry: SchemaRegistry

    def pipeline(self, name: str | None) -> PipelinePlan:
        """Return the plan of the pipeline called ``name``; None names the only one.

        Raises:
            NotAppliedError: If there is none of this name, or several to choose from.

        """
        names = [pipeline.name for pipeline in self.plan.pipelines]
        if name is None and len(names) == 1:
            return self.plan.pipelines[0]
        if name not in names:
            hint = f"name one with --pipeline: {', '.join(names)}"
            message = explain("pipeline", "be one of the project's", name, "this command", hint)
            raise NotAppliedError(message)
        return self.plan.pipelines[names.index(name)]

    def sources(self) -> list[SourcePlan]:
        """Return the plan of each source that a pipeline reads, once."""
        found = [source for pipeline in self.plan.pipelines for source in pipeline.sources]
        return list({source.name: source for source in found}.values())

    def source(self, name: str) -> SourcePlan:
        """Return the plan of the source called ``name``, whichever pipeline reads it.

        Raises:
            NotAppliedError: If no pipeline reads such a source.

        """
        sources = {source.name: source for source in self.sources()}
        if name not in sources:
            hint = f"known: {', '.join(sources)}"
            raise NotAppliedError(
                explain("source", "be read by a pipeline", name, "this project", hint)
            )
        return sources[name]

    def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        """Return the number of partitions of each topic.

        Raises:
            NotAppliedError: If a topic is missing.

        """
        names = list(dict.fromkeys(topics))
        counts = partition_counts(admin(self.client), names)
        missing = [name for name in names if name not in counts]
        if missing:
            raise NotAppliedError(
                explain("topics", "exist", missing, self.endpoints.bootstrap_servers, HINT)
            )
        return counts

    def registered(self, topic: str) -> tuple[int, str]:
        """Return id and text of the newest schema of a topic's values.

        Raises:
            NotAppliedError: If none is registered.
            RegistryUnavailableError: If the registry does not answer.

        """
        subject = f"{topic}-value"
        found = self.registry.latest(subject)
        if found is None:
            message = explain(
                "subject", "be registered", subject, self.endpoints.registry_url, HINT
            )
            raise NotAppliedError(message)
        return found


def open_environment(folder: Path) -> Environment:
    """Load the project in ``folder``, compile it, and find its infrastructure.

    Raises:
        HeadraceError: If the project is not in order, or the infrastructure is not there.

    """
    project = load_project(folder)
    found = endpoints(project.settings, project.folder)
    return Environment(
        project=project,
        plan=compile_project(project, project.settings.topics.partitions),
        endpoints=found,
        client=client_properties(project.settings, found.bootstrap_servers),
        registry=SchemaRegistry(found.registry_url),
    )
