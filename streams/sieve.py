"""The source's end of a pipeline: from a log's raw bytes to rows that may count.

Decodes, applies the source's policies, sorts out late rows; what is refused leaves with its
original bytes for the DLQ or late topic. Holds one number of state: the largest time seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from headrace.features.columns import REJECT_REASONS, check_rows, event_columns, take
from headrace.runtime import topics
from headrace.streams.batch import SingleOutput
from headrace.streams.lanes import NEVER
from headrace.streams.partitioning import placing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.features.columns import EventColumns
    from headrace.features.plan import SourcePlan
    from headrace.streams.batch import EventBatch, Outputs
    from headrace.streams.context import ProcessorContext

ERROR_HEADER_PREFIX = "headrace.errors."
ATTEMPT_HEADER = "headrace.errors.attempt"


@dataclass(slots=True)
class Accepted:
    """The rows of a batch that may count, and where they stood in it (int64[k])."""

    events: EventColumns
    rows: np.ndarray


class SourceSieve:
    """Sifts one partition of a source for one pipeline."""

    def __init__(
        self,
        source: SourcePlan,
        context: ProcessorContext,
        stage: str,
        *,
        scored: bool,
        kafka_key: bool,
    ) -> None:
        """Sift ``source``; its time for lateness is the event's if ``scored``, else known-at.

        Args:
            source: The source as the pipeline reads it.
            context: What comes from outside.
            stage: Name of the place, for the DLQ headers.
            scored: Whether the source's events are scored.
            kafka_key: Whether the Kafka key says whose the event is (it is read directly), so that
                a record without one falls under the source's policy for null keys.

        """
        self._source = source
        self._decoder = context.decoder(source)
        self._scored = scored
        self._needs_kafka_key = kafka_key and source.null_key == "dlq"
        self._max_record_bytes = context.max_record_bytes
        self._app_version = context.app_version
        self._stage = stage
        dlq, late = topics.dlq(source.topic), topics.late(source.topic)
        self._dlq = (dlq, context.partition_counts[dlq])
        self._late = (late, context.partition_counts[late])
        self._saved_watermark_ms = NEVER
        self.watermark_ms = NEVER

    def accept(self, batch: EventBatch, outputs: Outputs) -> Accepted:
        """Return the rows that count; write the others and the counts to ``outputs``.

        Raises:
            RegistryUnavailableError: If a schema cannot be asked for; nothing has changed then.

        """
        outputs.events += int(np.count_nonzero(batch.offsets >= batch.emit_from))
        decoded = self._decoder.decode(batch.values, self._max_record_bytes)
        for bad in decoded.rejected:
            self._reject(batch, bad.index, bad.reason, bad.detail, outputs)
        events = event_columns(decoded.batch, self._source)
        rows = decoded.rows
        reasons = check_rows(events, batch.arrival_time_ms[rows])
        if self._needs_kafka_key:
            raw = pa.array([batch.keys[row] for row in rows.tolist()], pa.binary())
            placed = placing(self._source, raw).to_numpy(zero_copy_only=False)
            reasons[~placed & (reasons == 0)] = REJECT_REASONS.index("null_key")
        if reasons.any():
            for index in np.flatnonzero(reasons).tolist():
                reason = REJECT_REASONS[reasons[index]]
                self._reject(batch, int(rows[index]), reason, "", outputs)
            good = np.flatnonzero(reasons == 0)
            events, rows = take(events, good), rows[good]
        events, rows = self._without_late(batch, events, rows, outputs)
        if events.length:
            outputs.event_time_ms_max = int(events.event_time_ms.max())
        return Accepted(events, rows)

    def begin(self) -> None:
        """Remember the state, for ``abort``."""
        self._saved_watermark_ms = self.watermark_ms

    def commit(self) -> None:
        """Forget what ``begin`` remembered."""

    def abort(self) -> None:
        """Go back to the state at ``begin``."""
        self.watermark_ms = self._saved_watermark_ms

    def dump(self) -> dict[str, Any]:
        """Return the state, for a checkpoint."""
        return {"watermark_ms": self.watermark_ms}

    def load(self, kept: dict[str, Any]) -> None:
        """Take over what ``dump`` returned."""
        self.watermark_ms = kept["watermark_ms"]

    def _without_late(
        self, batch: EventBatch, events: EventColumns, rows: np.ndarray, outputs: Outputs
    ) -> tuple[EventColumns, np.ndarray]:
        """Sort out rows older than the largest time before them by more than the lateness."""
        if not events.length:
            return events, rows
        times = events.event_time_ms if self._scored else events.known_at_ms
        newest = np.maximum.accumulate(times)
        np.maximum(newest, self.watermark_ms, out=newest)
        self.watermark_ms = int(newest[-1])
        late = times < newest - self._source.lateness_ms
        if not late.any():
            return events, rows
        topic, partitions = self._late
        for index in np.flatnonzero(late).tolist():
            row = int(rows[index])
            if batch.offsets[row] < batch.emit_from:
                continue
            message = f"{int(newest[index] - times[index])} ms behind the newest record before it"
            outputs.late += 1
            outputs.single.append(self._original(batch, row, "late", message, topic, partitions))
        keep = np.flatnonzero(~late)
        return take(events, keep), rows[keep]

    def _reject(
        self, batch: EventBatch, row: int, reason: str, message: str, outputs: Outputs
    ) -> None:
        if batch.offsets[row] < batch.emit_from:
            return
        topic, partitions = self._dlq
        outputs.rejected[reason] += 1
        outputs.single.append(self._original(batch, row, reason, message, topic, partitions))

    def _original(
        self, batch: EventBatch, row: int, reason: str, message: str, topic: str, partitions: int
    ) -> SingleOutput:
        """Return the record as it came, with headers that say what became of it."""
        headers = error_headers(
            batch.headers[row] or [],
            reason=reason,
            message=message,
            topic=batch.topic,
            partition=batch.partition,
            offset=int(batch.offsets[row]),
            stage=self._stage,
            app_version=self._app_version,
        )
        return SingleOutput(
            topic,
            batch.values[row],
            batch.keys[row],
            batch.partition % partitions,
            headers,
            int(batch.arrival_time_ms[row]),
        )


def error_headers(
    before: Sequence[tuple[str, bytes]],
    *,
    reason: str,
    message: str,
    topic: str,
    partition: int,
    offset: int,
    stage: str,
    app_version: str,
) -> list[tuple[str, bytes]]:
    """Return a record's own headers, ``before``, and those that say what became of it."""
    headers = [pair for pair in before if not pair[0].startswith(ERROR_HEADER_PREFIX)]
    errors = {
        "reason": reason,
        "message": message,
        "topic": topic,
        "partition": str(partition),
        "offset": str(offset),
        "stage": stage,
        "attempt": str(_attempts(before) + 1),
        "app_version": app_version,
    }
    return headers + [(ERROR_HEADER_PREFIX + name, text.encode()) for name, text in errors.items()]


def _attempts(headers: Sequence[tuple[str, bytes]]) -> int:
    """Return how often the record has been through: a replayed one carries its last attempt."""
    for name, value in headers:
        if name == ATTEMPT_HEADER and value.isdigit():
            return int(value)
    return 0
