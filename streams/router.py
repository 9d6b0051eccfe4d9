"""The way of a source's rows into stages that do not read it themselves; keeps no state of keys.

Reads one source partition, sorts out bad and late records, and writes the rest into the re-key
topic of every stage that the source takes part in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.streams.batch import Outputs
from headrace.streams.keeping import Keeper
from headrace.streams.routes import SourceRoutes, source_rows
from headrace.streams.sieve import SourceSieve

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.features.capture import SlotRecords
    from headrace.features.plan import PipelinePlan, SourcePlan
    from headrace.streams.batch import EventBatch, Keep
    from headrace.streams.context import ProcessorContext


class RouterProcessor:
    """Routes one partition of a source."""

    def __init__(
        self, plan: PipelinePlan, source: SourcePlan, partition: int, context: ProcessorContext
    ) -> None:
        """Route ``partition`` of ``source`` for ``plan``."""
        scored = source.name == plan.source
        self._sieve = SourceSieve(source, context, "router", scored=scored, kafka_key=False)
        self._routes = SourceRoutes(plan, source.name, partition)
        assert self._routes, source.name
        self._keeper = Keeper()

    def process(self, batch: EventBatch) -> Outputs:
        """Return the batch's rows, by the stages and keys that they belong to."""
        outputs = Outputs()
        accepted = self._sieve.accept(batch, outputs)
        rows = source_rows(batch, accepted)
        self._routes.send(batch, rows, self._sieve.watermark_ms, outputs)
        return outputs

    def keep(self, keep: Keep) -> Outputs:
        """Return a slice of a checkpoint."""
        return self._keeper.keep(keep, self._dump)

    def restore(
        self, parts: dict[str, Any], records: Iterable[SlotRecords], key_count: int, offset: int
    ) -> None:
        """Be what was kept at ``offset``."""
        del records, offset
        assert not key_count, key_count
        self._sieve.load(parts["sieve"])
        self._routes.load(parts["routes"])

    def _dump(self) -> dict[str, Any]:
        return {"sieve": self._sieve.dump(), "routes": self._routes.dump()}

    def begin(self) -> None:
        """Remember the state, for ``abort``."""
        self._sieve.begin()
        self._routes.begin()

    def commit(self) -> None:
        """Forget what ``begin`` remembered."""
        self._sieve.commit()
        self._routes.commit()

    def abort(self) -> None:
        """Go back to the state at ``begin``."""
        self._sieve.abort()
        self._routes.abort()
