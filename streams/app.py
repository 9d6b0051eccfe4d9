"""The only place that knows Faust: an app whose agents take tickets from our own source.

Faust runs the process (services, agents, signals, crash); no Faust consumer, producer, table or
recovery is in the path. tests/contract/test_faust_contract.py pins what this relies on.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import faust
from faust.app.base import BootStrategy
from mode import CrashingSupervisor, Service

from headrace.runtime.errors import HeadraceError
from headrace.runtime.logging import get_logger
from headrace.schemas.errors import RegistryUnavailableError
from headrace.streams.tickets import ProcessorTable, Ticket, process, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.streams.source import Source

log = get_logger(__name__)

REGISTRY_RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
STOP_BUDGET_S = 60.0


class KafkalessBoot(BootStrategy):
    """Start agents and services, and nothing of Faust's own Kafka or web."""

    enable_kafka = False
    enable_kafka_consumer = False
    enable_kafka_producer = False
    enable_web = False


class StreamApp(faust.App):
    """A Faust app that waits for no table: restoring is the source's own replay."""

    BootStrategy = KafkalessBoot

    async def _wait_for_table_recovery_completed(self) -> bool:
        return False

    def _create_directories(self) -> None:
        """Make none: there are no tables, and Faust's folders would lie where the user works."""


class Bench:
    """Where tickets are worked on: one thread, so that each processor has one caller at a time."""

    def __init__(self, table: ProcessorTable) -> None:
        self._table = table
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="headrace-work")

    async def work(self, ticket: Ticket) -> None:
        """Process the ticket's batches and set its result, from the worker's thread.

        A registry that is away is waited for: without the schema nobody can say whether a record
        is bad. Decoding comes before any change of state, so the batch can be tried again.
        """
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            try:
                await loop.run_in_executor(self._executor, self._process, ticket)
            except RegistryUnavailableError as error:
                wait_s = REGISTRY_RETRY_S[min(attempt, len(REGISTRY_RETRY_S) - 1)]
                log.warning("schema_registry_unavailable", error=str(error), retry_in_s=wait_s)
                await asyncio.sleep(wait_s)
                attempt += 1
            else:
                return

    def close(self) -> None:
        """Let the thread end after what it is at."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _process(self, ticket: Ticket) -> None:
        ticket.started_s = time.perf_counter()
        process(self._table, ticket)
        ticket.finished_s = time.perf_counter()
        # Set here and not by the agent: the source thread wakes without a turn of the event loop.
        ticket.future.set_result(ticket.done)


def build_app(
    name: str,
    kinds: Sequence[str],
    table: ProcessorTable,
    start_source: Callable[[Callable[[Ticket], None]], Source],
    capacity: int,
) -> StreamApp:
    """Return the app of one worker: an agent for each kind of processor, and the source service.

    Args:
        name: The app's id.
        kinds: The kinds of processor; each gets its channel and its agent.
        table: Who owns which topic partition.
        start_source: Makes the source, given how to submit a ticket of a kind.
        capacity: Tickets that a channel holds before ``put`` waits.

    """
    app = StreamApp(name, broker="kafka://unused", store="memory://", web_enabled=False)
    bench = Bench(table)
    channels: dict[str, Any] = {}
    for kind in kinds:
        channels[kind] = app.channel(maxsize=capacity)
        _add_agent(app, kind, channels[kind], bench)

    @app.service
    class SourceService(Service):
        """The source's thread as a service: started after the agents, stopped before them."""

        _source: Source
        _thread: threading.Thread

        async def on_start(self) -> None:
            loop = asyncio.get_running_loop()
            # Once, and before the first put: `resume` empties the queues and cancels who waits.
            app.flow_control.resume()

            def submit(ticket: Ticket) -> None:
                channel = channels[ticket.kind]
                assert channel.subscriber_count == 1, ticket.kind
                asyncio.run_coroutine_threadsafe(channel.put(ticket), loop)

            self._source = start_source(submit)
            self._thread = threading.Thread(
                target=self._run, args=(loop,), name="headrace-source", daemon=True
            )
            self._thread.start()

        async def on_stop(self) -> None:
            # After a crash nothing may be committed that is not known to be right.
            self._source.stop(drain=not app.crashed)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, self._thread.join, STOP_BUDGET_S)
            bench.close()

        def _run(self, loop: asyncio.AbstractEventLoop) -> None:
            try:
                self._source.run()
                if not self.should_stop:
                    # It ended by itself: end as if somebody had asked for it.
                    loop.call_soon_threadsafe(signal.raise_signal, signal.SIGTERM)
            except BaseException as error:  # noqa: BLE001 -- the thread's boundary: it crashes the app
                asyncio.run_coroutine_threadsafe(self.crash(error), loop)

    return app


def run(app: StreamApp) -> int:
    """Run the app until a signal or a crash and return the process's exit code."""
    for library in ("faust", "mode", "aiokafka"):
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    worker = faust.Worker(
        app, loop=loop, quiet=True, redirect_stdouts=False, override_logging=False
    )
    # Faust's spinner writes to the terminal even when told to be quiet.
    worker.spinner = None
    try:
        worker.execute_from_commandline()
    except SystemExit as stop:
        reason = worker.crash_reason
        if reason is not None:
            _explain_crash(reason)
            return 1
        return int(stop.code or 0)


def _add_agent(app: StreamApp, kind: str, channel: Any, bench: Bench) -> None:
    @app.agent(
        channel, name=f"headrace.{kind}", concurrency=1, supervisor_strategy=CrashingSupervisor
    )
    async def agent(tickets: faust.StreamT[Any]) -> None:
        await serve(tickets, bench.work)


def _explain_crash(reason: BaseException) -> None:
    if isinstance(reason, HeadraceError):
        log.error("worker_stopped", error=str(reason))
    else:
        log.error("worker_crashed", exc_info=reason)
