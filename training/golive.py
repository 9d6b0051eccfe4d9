"""From a registry's reference to a published deployment: what ``headrace deploy`` does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.runtime import topics
from headrace.runtime.clock import SystemClock
from headrace.runtime.dev.stack import endpoints
from headrace.runtime.kafka import client_properties
from headrace.schemas.registry import SchemaRegistry
from headrace.schemas.wire import WireDecoder
from headrace.scoring.deployments import Deployment, next_revision
from headrace.scoring.loaders import load_with_suspicion
from headrace.training.deploy import LivePredictions, publish_deployment, read_deployments
from headrace.training.registry import CHAMPION, FileRegistry

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.features.plan import PipelinePlan
    from headrace.features.project import Project
    from headrace.runtime.dev.stack import Endpoints
    from headrace.runtime.kafka import Properties
    from headrace.training.registry import RegistryEntry


@dataclass(frozen=True, slots=True)
class ReadyDeployment:
    """A deployment whose model has stood every test, not yet published."""

    event: Deployment
    project: str
    entry: RegistryEntry
    registry: FileRegistry
    endpoints: Endpoints
    client: Properties
    max_record_bytes: int

    def publish(self, *, wait_s: float = 0) -> bool:
        """Publish it, point the alias at it, and return whether it was seen at work.

        Args:
            wait_s: How long to wait for a prediction of this revision; 0 does not look.

        Raises:
            KafkaUnavailableError: If the broker does not take it.
        """
        live = self._live_predictions() if wait_s > 0 else None
        try:
            publish_deployment(self.client, topics.deployments(self.project), self.event)
            self.registry.alias(self.entry.model, CHAMPION, self.entry.version)
            return live is not None and live.wait_for(self.event.revision, wait_s)
        finally:
            if live is not None:
                live.close()

    def _live_predictions(self) -> LivePredictions:
        topic = topics.predictions(self.event.pipeline)
        registry = SchemaRegistry(self.endpoints.registry_url)
        found = registry.latest(f"{topic}-value")
        schema = found[1] if found is not None else ""
        decoder = WireDecoder(schema, registry.schema)

        def decode(values: list[bytes | None]) -> pa.RecordBatch:
            return decoder.decode(values, self.max_record_bytes).batch

        return LivePredictions(self.client, topic, decode)


def open_deployment(
    project: Project, plan: PipelinePlan, reference: str, *, any_plan: bool = False
) -> ReadyDeployment:
    """Check a registered model against the applied plan and return it ready to go live.

    Args:
        project: The project.
        plan: The applied plan of the pipeline.
        reference: ``fraud/3``, ``fraud@champion`` or ``fraud``.
        any_plan: Also take a model whose features were defined otherwise when it was trained.

    Raises:
        ModelRefusedError: If the model fails a test; features that are missing are named.
        HeadraceError: If registry or broker are not in order.
    """
    settings = project.settings
    registry = FileRegistry(settings.registry_folder)
    entry = registry.resolve(reference)
    fingerprint = None if any_plan else plan.fingerprint
    scorer = load_with_suspicion(entry.folder, plan.vector, fingerprint=fingerprint)
    found = endpoints(settings, project.folder)
    client = client_properties(settings, found.bootstrap_servers)
    current = read_deployments(client, topics.deployments(plan.project)).get(plan.name)
    event = Deployment(
        pipeline=plan.name,
        model=entry.model,
        version=str(entry.version),
        uri=entry.uri,
        sha256=scorer.identity.sha256,
        role=CHAMPION,
        revision=next_revision(current),
        at_ms=SystemClock().now_ms(),
        fingerprint=fingerprint,
    )
    bytes_max = settings.stream.max_record_bytes
    return ReadyDeployment(event, plan.project, entry, registry, found, client, bytes_max)
