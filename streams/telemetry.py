"""What the worker's metrics page shows; it counts per batch, never per event."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from headrace.runtime.clock import Clock
    from headrace.scoring.scorer import Scorer
    from headrace.streams.batch import EventBatch, Outputs
    from headrace.streams.checkpoint_files import Manifest
    from headrace.streams.positions import OwnedPartition

LATENCY_BOUNDS_S = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0),
)
STAGE_BOUNDS_S = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
COMMIT_BOUNDS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0)
ROWS_BOUNDS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)


class LatencyHistogram(Collector):
    """A histogram that takes a whole batch's latencies at once (prometheus-client's takes one)."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._edges = np.array(LATENCY_BOUNDS_S)
        self._counts = np.zeros(len(LATENCY_BOUNDS_S) + 1, dtype=np.int64)
        self._sum_s = 0.0
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, latency_s: np.ndarray) -> None:
        """Count latencies, seconds, float64[n]."""
        places = np.searchsorted(self._edges, latency_s, side="left")
        counts = np.bincount(places, minlength=self._counts.size)
        with self._lock:
            self._counts += counts
            self._sum_s += float(latency_s.sum())

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return the histogram as prometheus-client wants it."""
        with self._lock:
            cumulative = np.cumsum(self._counts).tolist()
            sum_s = self._sum_s
        bounds = [*map(str, LATENCY_BOUNDS_S), "+Inf"]
        family = HistogramMetricFamily(self._name, self._documentation)
        family.add_metric([], list(zip(bounds, cumulative, strict=True)), sum_s)
        yield family


class OnlineMetrics:
    """What the metrics page shows of the online store's thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.writes = _counter(
            registry, "online_writes", "Entities written to the online store", "entity"
        )
        self.errors = _counter(
            registry, "online_errors", "Calls that the online store did not take", "reason"
        )
        labels = ("entity",)
        self.pending = Gauge(
            "headrace_online_pending_entities",
            "Entities whose newest values wait for the online store",
            labels,
            registry=registry,
        )
        self.staleness_s = Gauge(
            "headrace_online_staleness_seconds",
            "How long the first of them has waited since its commit",
            labels,
            registry=registry,
        )
        self.rebuild = Gauge(
            "headrace_online_rebuild_entities",
            "Entities that a pass over all of them has still to go over or to write",
            labels,
            registry=registry,
        )

    def online_wrote(self, entity: str, rows: int) -> None:
        """Count entities that the online store took."""
        self.writes.labels(entity).inc(rows)

    def online_failed(self, reason: str) -> None:
        """Count a call that the online store did not take."""
        self.errors.labels(reason).inc()

    def online_waits(self, entity: str, pending: int, staleness_s: float, rebuild: int) -> None:
        """Show what waits for the online store."""
        self.pending.labels(entity).set(pending)
        self.staleness_s.labels(entity).set(staleness_s)
        self.rebuild.labels(entity).set(rebuild)


class TransactionMetrics:
    """What the metrics page shows of transactions; at-least-once has none."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.commits = _counter(registry, "transactions_committed", "Transactions committed")
        self.aborts = _counter(
            registry, "transactions_aborted", "Transactions that came to nothing, and were undone"
        )
        self.unknown = _counter(
            registry, "transactions_unknown", "Commits whose outcome had to be looked up"
        )
        self.seconds = Histogram(
            "headrace_commit_seconds",
            "What the requests of a transaction's commit took",
            buckets=COMMIT_BOUNDS_S,
            registry=registry,
        )


class CheckpointMetrics:
    """What the metrics page shows of checkpoints."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.written = _counter(registry, "checkpoints", "Checkpoints written", "topic")
        self.failures = _counter(
            registry, "checkpoint_failures", "Checkpoints that could not be written"
        )
        self.bytes = _counter(registry, "checkpoint_bytes", "Bytes of new checkpoint files")
        self.restored = _counter(
            registry, "checkpoints_restored", "Partitions that began with a checkpoint"
        )
        self.restore_seconds = _counter(
            registry, "restore_seconds", "What reading and placing checkpoints took"
        )

    def checkpoint_written(self, manifest: Manifest) -> None:
        """Count one that can be restored."""
        new = [file for file in manifest.files if file.name.startswith(f"{manifest.offset:020d}-")]
        self.written.labels(manifest.topic).inc()
        self.bytes.inc(sum(file.bytes for file in new))

    def checkpoint_restored(self, manifest: Manifest, seconds: float) -> None:
        """Count one that a partition began with."""
        del manifest
        self.restored.inc()
        self.restore_seconds.inc(seconds)

    def checkpoint_failed(self) -> None:
        """Count one that could not be written."""
        self.failures.inc()


class Telemetry:
    """The worker's metrics, and whether it is live and ready."""

    def __init__(
        self,
        registry: CollectorRegistry,
        pipeline: str,
        clock: Clock,
        on_ready: Callable[[int], None],
    ) -> None:
        self._pipeline = pipeline
        self._clock = clock
        self._on_ready = on_ready
        self._partitions = 0
        self._labelled: set[tuple[str, str]] = set()
        self._caught_up = False
        self._delivers = self._broker_answers = True
        self.events = _counter(registry, "events", "Events read, without silent replay", "topic")
        self.replayed = _counter(registry, "replayed", "Events replayed in silence", "topic")
        self.scored = _counter(registry, "scored", "Predictions sent", "pipeline")
        self.late = _counter(registry, "late", "Events sent to the late topic", "topic")
        self.dlq = _counter(registry, "dlq", "Records sent to the DLQ", "topic", "reason")
        self.duplicates = _counter(
            registry, "duplicates", "Events left out because their id had come before", "source"
        )
        self.out_of_window = _counter(
            registry,
            "duplicates_out_of_window",
            "Events that count although their id had come before the window, or came after it",
            "source",
        )
        self.refused = _counter(
            registry, "models_refused", "Deployments refused", "pipeline", "reason"
        )
        self.stage_seconds = Histogram(
            "headrace_stage_seconds",
            "What a batch took in the stage or router that reads the topic",
            ("topic",),
            buckets=STAGE_BOUNDS_S,
            registry=registry,
        )
        labels = ("topic", "partition")
        self.lag_rows = Gauge("headrace_lag_records", "Records not done", labels, registry=registry)
        self.lag_s = Gauge(
            "headrace_lag_seconds",
            "Age of the newest record that is done, 0 at the end of the partition",
            labels,
            registry=registry,
        )
        self.replay_rows = Gauge(
            "headrace_replay_records", "Records still to replay in silence", registry=registry
        )
        self.owned = Gauge("headrace_partitions", "Partitions owned", registry=registry)
        self.batch_rows = Histogram(
            "headrace_batch_rows", "Rows of a batch", buckets=ROWS_BOUNDS, registry=registry
        )
        self.latency = LatencyHistogram(
            "headrace_end_to_end_seconds",
            "From an event's broker timestamp to its prediction being handed to the producer",
            registry,
        )
        self.model = Gauge(
            "headrace_model_info",
            "The live model",
            ("pipeline", "model", "version", "revision"),
            registry=registry,
        )
        self.online = OnlineMetrics(registry)
        self.transactions = TransactionMetrics(registry)
        self.checkpoints = CheckpointMetrics(registry)

    def transaction_committed(self, seconds: float) -> None:
        """Count a commit, and what its requests took."""
        self.transactions.commits.inc()
        self.transactions.seconds.observe(seconds)

    def transaction_aborted(self) -> None:
        """Count a transaction that came to nothing."""
        self.transactions.aborts.inc()

    def transaction_unknown(self) -> None:
        """Count a commit whose outcome had to be looked up."""
        self.transactions.unknown.inc()

    @property
    def is_ready(self) -> bool:
        """Whether the state is whole, the broker answers, and outputs can be committed."""
        return self._caught_up and self._delivers and self._broker_answers

    def delivers(self, able: bool) -> None:
        """Take note of whether outputs can be committed now."""
        self._delivers = able

    def broker_answers(self, answers: bool) -> None:
        """Take note of whether a broker answers; any thread may call."""
        self._broker_answers = answers

    def assigned(self, owned: Sequence[OwnedPartition]) -> None:
        """Take note of the partitions owned now; those that left lose their lag."""
        self._partitions = len(owned)
        self.owned.set(len(owned))
        if any(one.replay_rows for one in owned):
            self._caught_up = False
        now = {(one.topic, str(one.partition)) for one in owned}
        for gone in self._labelled - now:
            self.lag_rows.remove(*gone)
            self.lag_s.remove(*gone)
        self._labelled &= now

    def caught_up(self) -> None:
        """Be ready: all that was committed is in the state."""
        first = not self._caught_up
        self._caught_up = True
        if first:
            self._on_ready(self._partitions)

    def sent(self, batch: EventBatch, outputs: Outputs) -> None:
        """Count a batch and what it caused."""
        rows = len(batch)
        if rows:
            silent = min(rows, max(0, batch.emit_from - int(batch.offsets[0])))
            if silent:
                silent = int(np.searchsorted(batch.offsets, batch.emit_from))
                self.replayed.labels(batch.topic).inc(silent)
            self.events.labels(batch.topic).inc(rows - silent)
            self.batch_rows.observe(rows)
            self.stage_seconds.labels(batch.topic).observe(outputs.stage_seconds)
        if outputs.scored:
            self.scored.labels(self._pipeline).inc(outputs.scored)
        if outputs.late:
            self.late.labels(batch.topic).inc(outputs.late)
        for reason, count in outputs.rejected.items():
            self.dlq.labels(batch.topic, reason).inc(count)
        for source, count in outputs.duplicates.items():
            self.duplicates.labels(source).inc(count)
        for source, count in outputs.out_of_window.items():
            self.out_of_window.labels(source).inc(count)
        arrivals = outputs.scored_arrival_time_ms
        if arrivals is not None and arrivals.size:
            self.latency.observe(np.maximum(self._clock.now_ms() - arrivals, 0) / 1000)

    def ticked(self, owned: Sequence[OwnedPartition]) -> None:
        """Refresh the lag of each partition."""
        now_ms = self._clock.now_ms()
        self.replay_rows.set(sum(one.replay_rows for one in owned))
        for one in owned:
            labels = (one.topic, str(one.partition))
            self._labelled.add(labels)
            self.lag_rows.labels(*labels).set(one.lag_rows)
            newest_ms = one.newest_arrival_ms if one.lag_rows else None
            age_ms = 0 if newest_ms is None else max(0, now_ms - newest_ms)
            self.lag_s.labels(*labels).set(age_ms / 1000)

    def deployed(self, pipeline: str, scorer: Scorer) -> None:
        """Show the model that scores now."""
        self.model.clear()
        self.model.labels(pipeline, scorer.model, scorer.version, str(scorer.revision)).set(1)

    def model_refused(self, pipeline: str, reason: str) -> None:
        """Count a deployment that changed nothing."""
        self.refused.labels(pipeline, reason).inc()


def _counter(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Counter:
    return Counter(f"headrace_{name}", text, labels, registry=registry)
