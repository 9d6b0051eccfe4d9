"""A ticket: the batches of one hand-over and the promise of what they cause.

An agent's exception would otherwise lose its batch in silence (ADR on Faust): the source thread
waits on the ticket, so that it sees either the outputs or the exception. No Faust, no Kafka here.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from headrace.streams.batch import EventBatch, Look, Outputs, Processor, Viewer

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable


@dataclass(slots=True)
class Ticket:
    """Batches, or a look, for one kind of processor; ``future`` yields the outputs in their order.

    ``done`` collects the outputs, so that work that was interrupted goes on where it stopped.
    The times are readings of a monotonic clock.
    """

    kind: str
    batches: list[EventBatch | Look]
    future: Future[list[Outputs]] = field(default_factory=Future)
    done: list[Outputs] = field(default_factory=list)
    submitted_s: float = 0.0
    started_s: float = 0.0
    finished_s: float = 0.0

    @property
    def rows(self) -> int:
        """Count the rows of all batches."""
        return sum(len(batch) for batch in self.batches if isinstance(batch, EventBatch))


class ProcessorTable:
    """Who owns which topic partition's state, by (topic, partition) and epoch.

    The source thread assigns and drops, while no ticket of that partition is under way; the
    executor's thread looks up. A batch of an epoch that is gone finds nobody and causes nothing.
    """

    def __init__(self) -> None:
        self._owners: dict[tuple[str, int], tuple[int, Processor]] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def assign(self, topic: str, partition: int, epoch: int, processor: Processor) -> None:
        """Hand the partition over to ``processor`` for the time of ``epoch``."""
        assert (topic, partition) not in self._owners, (topic, partition)
        self._owners[topic, partition] = (epoch, processor)

    def drop(self, topic: str, partition: int) -> None:
        """Forget the partition's processor and its state, if there is one."""
        self._owners.pop((topic, partition), None)

    def find(self, batch: EventBatch | Look) -> Processor | None:
        """Return the processor of the batch's partition and epoch, or None if it is gone."""
        epoch, processor = self._owners.get((batch.topic, batch.partition), (-1, None))
        return processor if epoch == batch.epoch else None


def process(table: ProcessorTable, ticket: Ticket) -> None:
    """Run each batch through its partition's processor; a lost partition's batch causes nothing."""
    for batch in ticket.batches[len(ticket.done) :]:
        processor = table.find(batch)
        started_s = time.perf_counter()
        if processor is None:
            outputs = Outputs()
        elif isinstance(batch, Look):
            outputs = cast("Viewer", processor).look(batch)
        else:
            outputs = processor.process(batch)
        outputs.stage_seconds = time.perf_counter() - started_s
        ticket.done.append(outputs)


async def serve(tickets: AsyncIterable[Ticket], work: Callable[[Ticket], Awaitable[None]]) -> None:
    """Be an agent: await ``work`` on one ticket after the other, until the stream ends.

    Any failure, cancellation too, is the ticket's result, so that who waits on it always learns.
    """
    async for ticket in tickets:
        try:
            await work(ticket)
        except BaseException as error:
            if not ticket.future.done():
                ticket.future.set_exception(error)
            raise
