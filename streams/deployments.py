"""Which model is live in this worker: follows the deployments topic and swaps between batches.

A model is loaded with suspicion on this module's own thread; one that is refused changes nothing.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

from confluent_kafka import Consumer, KafkaError, TopicPartition

from headrace.runtime.errors import HeadraceError
from headrace.runtime.logging import get_logger
from headrace.scoring.deployments import Deployment, decode_deployment, supersedes
from headrace.scoring.errors import ScoringError
from headrace.scoring.loaders import load_deployment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.features.plan import PipelinePlan
    from headrace.scoring.scorer import Scorer

log = get_logger(__name__)

POLL_S = 0.2
_END = KafkaError._PARTITION_EOF


class DeploymentWatcher(Protocol):
    """Who is told what became of a deployment."""

    def deployed(self, pipeline: str, scorer: Scorer) -> None:
        """The model scores from the next batch on."""
        ...

    def model_refused(self, pipeline: str, reason: str) -> None:
        """The model was refused; what was live stays live."""
        ...


class LiveModels:
    """The models that score now, by pipeline. Written by one thread, read once per batch."""

    def __init__(self) -> None:
        self._champions: dict[str, Scorer] = {}

    def champion(self, pipeline: str) -> Scorer | None:
        """Return the pipeline's live model, None before the first deployment."""
        return self._champions.get(pipeline)

    def swap(self, pipeline: str, scorer: Scorer) -> None:
        """Let ``scorer`` score from the next batch on."""
        self._champions[pipeline] = scorer


class DeploymentFollower:
    """Reads the deployments topic from its beginning, for ever, on a daemon thread."""

    def __init__(
        self,
        properties: Mapping[str, Any],
        topic: str,
        plans: Mapping[str, PipelinePlan],
        models: LiveModels,
        watcher: DeploymentWatcher,
    ) -> None:
        self._consumer = Consumer(
            {
                **properties,
                # A group of no meaning: partitions are assigned, nothing is ever committed.
                "group.id": f"{topic}.follower",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
            }
        )
        self._topic = topic
        self._plans = plans
        self._models = models
        self._watcher = watcher
        self._newest: dict[str, Deployment] = {}
        self._current: dict[str, Deployment] = {}
        self._caught_up = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-deployments", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def wait_until_caught_up(self, timeout_s: float) -> bool:
        """Wait until what was deployed before the start is loaded or refused."""
        return self._caught_up.wait(timeout_s)

    def stop(self) -> None:
        """End the thread; a load that is under way is waited for."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        self._consumer.assign([TopicPartition(self._topic, 0, 0)])
        try:
            while not self._stopping.is_set():
                message = self._consumer.poll(POLL_S)
                if message is None:
                    continue
                error = message.error()
                if error is None:
                    self._read(message.value())
                elif error.code() == _END:
                    self._load_newest()
                    self._caught_up.set()
                else:
                    log.warning("deployments_topic_trouble", error=error.str())
        finally:
            self._consumer.close()

    def _read(self, value: bytes | None) -> None:
        """Take note of a deployment; only the newest of a burst is loaded, at the topic's end."""
        if value is None:
            return
        try:
            deployment = decode_deployment(value)
        except ScoringError as error:
            log.exception("deployment_not_readable", error=str(error))
            return
        if deployment.pipeline in self._plans and deployment.role == "champion":
            self._newest[deployment.pipeline] = deployment

    def _load_newest(self) -> None:
        for pipeline, deployment in self._newest.items():
            if not supersedes(deployment, self._current.get(pipeline)):
                continue
            # Also a refused one is not tried again: only a later revision is.
            self._current[pipeline] = deployment
            where = {
                "pipeline": pipeline,
                "model": deployment.model,
                "version": deployment.version,
                "revision": deployment.revision,
            }
            try:
                scorer = load_deployment(deployment, self._plans[pipeline])
            except HeadraceError as error:
                log.exception("model_refused", error=str(error), **where)
                self._watcher.model_refused(pipeline, getattr(error, "reason", "deployment"))
            else:
                self._models.swap(pipeline, scorer)
                self._watcher.deployed(pipeline, scorer)
                log.info("model_live", **where)
