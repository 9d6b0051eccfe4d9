"""A worker's life: the real source and processors on simulated clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from confluent_kafka import KafkaException

from bench.simulate.consumer import SimulatedConsumer
from bench.simulate.process import KilledError, Process
from bench.simulate.producer import SimulatedProducer
from headrace.streams.errors import DeliveryError, FencedError
from headrace.streams.processors import build
from headrace.streams.source import Source
from headrace.streams.tickets import ProcessorTable, process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.simulate.broker import Broker
    from bench.simulate.group import Group
    from headrace.features.plan import PipelinePlan
    from headrace.streams.batch import EventBatch, Outputs
    from headrace.streams.checkpoint_feed import CheckpointFeed
    from headrace.streams.clients import ConsumerClient, ProducerClient
    from headrace.streams.context import ProcessorContext
    from headrace.streams.positions import OwnedPartition
    from headrace.streams.source_options import SourceOptions
    from headrace.streams.tickets import Ticket

TICKET_S = 0.002
SLOW_TICKET_S = (0.5, 8.0)
# What may end a worker where faults happen; anything else is a finding.
ENDS = (FencedError, DeliveryError, KafkaException)


class SimulatedClients:
    """The ports of one process."""

    def __init__(self, one: Process, broker: Broker, groups: Callable[[str], Group]) -> None:
        self._process = one
        self._broker = broker
        self._groups = groups
        self.consumers: list[SimulatedConsumer] = []
        self.producers: list[SimulatedProducer] = []

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass."""
        self._process.step("sleep")
        self._process.sleep(seconds)

    def monotonic_s(self) -> float:
        """Return the virtual clock."""
        return self._process.world.now_s

    def consumer(self, properties: Mapping[str, Any]) -> ConsumerClient:
        """Make a consumer."""
        made = SimulatedConsumer(self._process, self._broker, self._groups, properties)
        self.consumers.append(made)
        return cast("ConsumerClient", made)

    def producer(self, properties: Mapping[str, Any]) -> ProducerClient:
        """Make a producer."""
        made = SimulatedProducer(self._process, self._broker, self._groups, properties)
        self.producers.append(made)
        return cast("ProducerClient", made)

    def members(self, client: Mapping[str, Any], group: str) -> set[str]:
        """Return the instance ids of a group's members."""
        del client
        self._process.step("members")
        if self._broker.away or self._process.chaos.trouble(self._process, "members"):
            raise TimeoutError
        return {m.instance for m in self._groups(group).members.values() if m.instance}

    def wait(self, ticket: Ticket, timeout_s: float) -> bool:
        """Wait until a ticket is done."""
        self._process.gate()
        deadline_s = self.monotonic_s() + timeout_s
        while not ticket.future.done():
            left_s = deadline_s - self.monotonic_s()
            if left_s <= 0:
                return False
            self._process.listen(left_s)
        return True


class Worker:
    """One life: from its start to its end, whatever that is."""

    def __init__(
        self,
        one: Process,
        broker: Broker,
        groups: Callable[[str], Group],
        options: SourceOptions,
        plan: PipelinePlan,
        context: ProcessorContext,
        checkpoints: CheckpointFeed | None,
    ) -> None:
        self.process = one
        self._clients = SimulatedClients(one, broker, groups)
        self._options = options
        self._plan = plan
        self._context = context
        self._checkpoints = checkpoints
        self._free_s = 0.0
        self.source: Source | None = None
        self.ordinal = 0
        # Another life of the same name was started.
        self.replaced = False
        self.ended = ""

    def run(self) -> None:
        """Work until stopped or ended."""
        world = self.process.world
        world.note(self.process.name, "starts")
        self._table = ProcessorTable(undoes=self._options.worker is not None)
        try:
            self.source = Source(
                self._options,
                self._table,
                lambda topic, partition: build(self._plan, topic, partition, self._context),
                self._submit,
                self,
                [] if self._checkpoints is None else [self._checkpoints],
                self._checkpoints,
                self._clients,
            )
            self.source.run()
            self.ended = "stopped"
        except KilledError:
            self.ended = "killed"
        except ENDS as error:
            self.ended = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        finally:
            self.process.dead = True
            for producer in self._clients.producers:
                producer.abandon()
        world.note(self.process.name, "ends", self.ended)

    def stop(self) -> None:
        """Ask for a clean end."""
        if self.source is not None:
            self.source.stop(drain=True)

    def miss(self) -> None:
        """Let the group miss this life, unless it goes on."""
        for consumer in self._clients.consumers:
            consumer.be_missed()

    # --- Tickets ------------------------------------------------------------------------------

    def _submit(self, ticket: Ticket) -> None:
        world = self.process.world
        delay_s = world.draw.random() * TICKET_S
        if self.process.chaos.is_slow():
            delay_s = world.draw.uniform(*SLOW_TICKET_S)
        start_s = max(world.now_s, self._free_s)
        self._free_s = start_s + delay_s
        world.after(self._free_s - world.now_s, lambda: self._work(ticket, start_s))

    def _work(self, ticket: Ticket, start_s: float) -> None:
        world = self.process.world
        if self.process.dead:
            return
        if not self.process.responds:
            left_s = self.process.frozen_until_s - world.now_s
            self._free_s = max(self._free_s, world.now_s + left_s)
            world.after(left_s, lambda: self._work(ticket, start_s))
            return
        ticket.started_s = start_s
        process(self._table, ticket)
        ticket.finished_s = world.now_s
        ticket.future.set_result(ticket.done)
        world.tell()

    # --- What the source tells ----------------------------------------------------------------

    def assigned(self, owned: Sequence[OwnedPartition]) -> None:
        """Write down what is owned."""
        held = [f"{one.topic}[{one.partition}]<{one.emit_from}" for one in owned]
        self.process.world.note(self.process.name, "owns", *held)

    def sent(self, batch: EventBatch, outputs: Outputs) -> None:
        """Write down what was sent."""
        if self.process.world.tracing:
            offsets = f"{batch.offsets[0]}-{batch.offsets[-1]}" if len(batch) else "none"
            where = f"{batch.topic}[{batch.partition}]"
            what = "end" if batch.at_end else ""
            self.process.world.note(
                self.process.name, "sent", where, offsets, outputs.scored, "scored", what
            )

    def ticked(self, owned: Sequence[OwnedPartition]) -> None:
        """Do nothing."""

    def caught_up(self) -> None:
        """Do nothing."""

    def transaction_committed(self, seconds: float) -> None:
        """Write down a commit."""
        self.process.world.note(self.process.name, "committed", f"in {seconds:.4f}")

    def transaction_aborted(self) -> None:
        """Write down an abort."""
        self.process.world.note(self.process.name, "aborted")

    def transaction_unknown(self) -> None:
        """Write down that a commit was not answered."""
        self.process.world.note(self.process.name, "outcome unknown")

    def delivers(self, able: bool) -> None:
        """Write down whether outputs can be committed."""
        self.process.world.note(self.process.name, "delivers" if able else "delivers nothing")
