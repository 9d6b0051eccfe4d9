"""What the lake's metrics page shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.lake.gather import Appended, Gather, Lane

FLUSH_BOUNDS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class LakeTelemetry:
    """The lake's metrics, and whether it is ready: its tables take what comes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.is_ready = False
        self._labelled: set[tuple[str, str]] = set()
        self._rows = Counter("headrace_lake_rows", "Rows appended", ("table",), registry=registry)
        self._rejected = Counter(
            "headrace_lake_rejected",
            "Records that could not be decoded or stored, kept with their bytes",
            ("table", "reason"),
            registry=registry,
        )
        self._missed = Counter(
            "headrace_lake_missed",
            "Records that the broker had deleted before they were read",
            ("topic",),
            registry=registry,
        )
        self._retries = Counter(
            "headrace_lake_retries",
            "Appends put off: no answer of Kafka or the registry, or the disk does not take them",
            ("reason",),
            registry=registry,
        )
        self._flush = Histogram(
            "headrace_lake_flush_seconds",
            "What decoding and appending a table's rows took",
            buckets=FLUSH_BOUNDS_S,
            registry=registry,
        )
        self._lag = Gauge(
            "headrace_lake_lag_records",
            "Records that are not in the tables yet",
            ("topic", "partition"),
            registry=registry,
        )
        self._gathered = Gauge(
            "headrace_lake_gathered_bytes",
            "Bytes of records read and not appended",
            registry=registry,
        )
        self._files = Gauge(
            "headrace_lake_files", "Files of a table", ("table",), registry=registry
        )
        self._bytes = Gauge(
            "headrace_lake_bytes", "Size of a table's files", ("table",), registry=registry
        )

    def missed(self, topic: str, partition: int, records: int) -> None:
        """Count records that were deleted before they were read."""
        del partition
        self._missed.labels(topic).inc(records)

    def appended(self, table: str, appended: Appended, seconds: float) -> None:
        """Count an append."""
        self._rows.labels(table).inc(appended.rows)
        for reason, count in appended.rejected.items():
            self._rejected.labels(table, reason).inc(count)
        self._flush.observe(seconds)

    def retried(self, reason: str) -> None:
        """Count an append that is put off."""
        self._retries.labels(reason).inc()

    def ticked(self, lanes: Iterable[tuple[Gather, Lane]], gathered_bytes: int) -> None:
        """Refresh the lag of each partition."""
        now = set()
        for gather, lane in lanes:
            labels = (gather.target.topic, str(lane.partition))
            now.add(labels)
            self._lag.labels(*labels).set(max(0, lane.end_offset - (lane.position or 0)))
        for gone in self._labelled - now:
            self._lag.remove(*gone)
        self._labelled = now
        self._gathered.set(gathered_bytes)

    def measured(self, table: str, files: int, size_bytes: int) -> None:
        """Show what a table takes."""
        self._files.labels(table).set(files)
        self._bytes.labels(table).set(size_bytes)
