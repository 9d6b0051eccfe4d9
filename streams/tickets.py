"""A ticket: the batches of one hand-over and the promise of what they cause.

An agent's exception would otherwise lose its batch in silence (ADR on Faust): the source thread
waits on the ticket, so that it sees either the outputs or the exception. No Faust, no Kafka here.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from headrace.streams.batch import EventBatch, Forget, Keep, Look, Outputs, Processor, Viewer
from headrace.streams.routes import emits

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable

    from headrace.streams.batch import Forgetter, Undoable
    from headrace.streams.keeping import Restorable


@dataclass(slots=True)
class Ticket:
    """Batches with forgets between them, a look or a keep, for one kind of processor.

    ``future`` yields the outputs in their order.
    ``done`` collects the outputs, so that work that was interrupted goes on where it stopped.
    The times are readings of a monotonic clock.
    """

    kind: str
    batches: list[EventBatch | Look | Forget | Keep]
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

    Where the guarantee ``undoes``, a processor is opened by the first batch that may emit, and all
    that are open are committed or aborted together, by the source thread, with no ticket under
    way. A silent replay opens nobody: it is never undone.
    """

    def __init__(self, *, undoes: bool = False) -> None:
        self._undoes = undoes
        self._owners: dict[tuple[str, int], tuple[int, Processor]] = {}
        self._next_offset: dict[tuple[str, int], int] = {}
        self._opened: dict[tuple[str, int], int] = {}
        # A revoke out of its budget drops a partition while its batch is worked on.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._owners)

    def assign(
        self, topic: str, partition: int, epoch: int, processor: Processor, offset: int = 0
    ) -> None:
        """Hand the partition over to ``processor``, from ``offset`` on, while ``epoch`` lasts."""
        assert (topic, partition) not in self._owners, (topic, partition)
        self._owners[topic, partition] = (epoch, processor)
        self._next_offset[topic, partition] = offset

    def drop(self, topic: str, partition: int) -> None:
        """Forget the partition's processor and its state, if there is one."""
        with self._lock:
            self._owners.pop((topic, partition), None)
            self._next_offset.pop((topic, partition), None)
            self._opened.pop((topic, partition), None)

    def is_open(self, topic: str, partition: int) -> bool:
        """Whether the partition's changes wait for the end of a transaction."""
        return (topic, partition) in self._opened

    def commit(self) -> None:
        """Keep all changes since the processors were opened."""
        for place in self._opened:
            self._undoable(place).commit()
        self._opened.clear()

    def abort(self) -> dict[tuple[str, int], int]:
        """Take back all changes since; return the offset that each partition is at again."""
        for place, offset in self._opened.items():
            self._undoable(place).abort()
            self._next_offset[place] = offset
        starts, self._opened = self._opened, {}
        return starts

    def entered(self, batch: EventBatch | Forget, processor: Processor) -> None:
        """Take note that a batch is about to be processed, by the executor's thread."""
        if not self._undoes:
            return
        with self._lock:
            if self.find(batch) is processor:
                self._entered(batch, processor)

    def _entered(self, batch: EventBatch | Forget, processor: Processor) -> None:
        place = batch.topic, batch.partition
        offset = self._next_offset.get(place, 0)
        opens = True
        if isinstance(batch, EventBatch):
            opens = emits(batch) or bool(batch.unsent)
            if len(batch):
                offset = int(batch.offsets[0])
                self._next_offset[place] = int(batch.offsets[-1]) + 1
        if opens and place not in self._opened:
            cast("Undoable", processor).begin()
            self._opened[place] = offset

    def _undoable(self, place: tuple[str, int]) -> Undoable:
        return cast("Undoable", self._owners[place][1])

    def find(self, batch: EventBatch | Look | Forget | Keep) -> Processor | None:
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
        elif isinstance(batch, Keep):
            outputs = cast("Restorable", processor).keep(batch)
        elif isinstance(batch, Forget):
            table.entered(batch, processor)
            outputs = cast("Forgetter", processor).forget(batch)
        else:
            table.entered(batch, processor)
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
