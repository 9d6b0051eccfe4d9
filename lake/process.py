"""``headrace lake``: the process that keeps the tables up with the topics."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headrace.features.errors import PlanFormatError
from headrace.lake.consume import Follower
from headrace.lake.errors import LakeError, SecondWriterError, TableBusyError
from headrace.lake.maintenance import maintain
from headrace.lake.tables import Lake
from headrace.lake.targets import targets_of
from headrace.runtime.errors import KafkaUnavailableError, TopicError, explain
from headrace.runtime.logging import get_logger
from headrace.runtime.settings import duration_ms
from headrace.schemas.errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from headrace.features.plan import ProjectPlan
    from headrace.lake.gather import Gather
    from headrace.lake.targets import Target
    from headrace.lake.telemetry import LakeTelemetry
    from headrace.runtime.clock import Clock
    from headrace.runtime.settings import LakeSettings
    from headrace.schemas.registry import SchemaRegistry

log = get_logger(__name__)

#: Records gathered as bytes; decoded they take about as much again while they are appended.
GATHER_BYTES_MAX: Final = 128 << 20
LOOK_EVERY_S: Final = 2.0
TICK_EVERY_S: Final = 1.0
MAINTAIN_EVERY_S: Final = 60.0
WIPE_EVERY_S: Final = 3_600.0
IDLE_WAIT_S: Final = 0.25
RETRY_WAIT_S_MAX: Final = 10.0
_LOCK_FILE: Final = ".lake.lock"


@dataclass(frozen=True, slots=True)
class LakeOptions:
    """What a run works with. ``client`` are Kafka's properties.

    ``once``: read up to where the topics end now, append, and stop; nothing is waited for.
    """

    project: str
    client: Mapping[str, object]
    settings: LakeSettings
    max_record_bytes: int
    once: bool = False


class LakeProcess:
    """The loop. ``stop`` may be called from a signal handler."""

    def __init__(
        self,
        options: LakeOptions,
        plan: Callable[[], ProjectPlan | None],
        registry: SchemaRegistry,
        telemetry: LakeTelemetry,
        clock: Clock,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            options: What is decided.
            plan: Returns what is applied now, None if nothing is. Asked every few seconds.
            registry: The schemas.
            telemetry: The metrics page.
            clock: For the retention.

        """
        self._options = options
        self._settings = options.settings
        self._plan = plan
        self._telemetry = telemetry
        self._clock = clock
        self._follower = Follower(
            options.client, options.project, self._settings.folder, registry, telemetry
        )
        self._stopping = threading.Event()
        self._targets: tuple[Target, ...] = ()
        self._first_row_s: float | None = None
        self._retry_at_s = 0.0
        self._retry_wait_s = 1.0
        now_s = time.monotonic()
        self._due_s = {"look": now_s, "tick": now_s, "maintain": now_s, "wipe": now_s}

    def stop(self) -> None:
        """Ask the loop to append what it has and to end."""
        self._stopping.set()

    def run(self) -> None:
        """Work until stopped, or with ``once`` until all that is there now has been appended.

        Raises:
            SecondWriterError: If another process writes to the same folder.
            HeadraceError: With ``once``, whatever does not answer.

        """
        with one_writer(self._settings.folder):
            try:
                self._loop()
            finally:
                self._follower.close()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            if self._is_due("look", LOOK_EVERY_S):
                self._look()
            if self._is_due("tick", TICK_EVERY_S):
                self._tick()
            self._read()
            if self._must_flush():
                self._flush(self._gathered())
            elif self._is_done():
                break
            else:
                self._maintain()
        # Positions that moved over control records alone are kept too.
        self._flush([gather for gather in self._gathers() if gather.has_moved])
        self._tick()

    def _is_due(self, what: str, every_s: float) -> bool:
        now_s = time.monotonic()
        if now_s < self._due_s[what]:
            return False
        self._due_s[what] = now_s + every_s
        return True

    def _gathers(self) -> list[Gather]:
        return list(self._follower.gathers.values())

    def _gathered(self) -> list[Gather]:
        return [gather for gather in self._gathers() if gather.rows]

    def _look(self) -> None:
        try:
            plan = self._plan()
            if plan is not None:
                self._targets = targets_of(plan, self._options.max_record_bytes)
            self._follower.look(self._targets)
        except (KafkaUnavailableError, PlanFormatError, LakeError) as error:
            if self._options.once:
                raise
            log.warning("cannot_look", error=str(error))
            self._telemetry.is_ready = False
            return
        if not self._retry_at_s:
            self._telemetry.is_ready = True

    def _tick(self) -> None:
        self._follower.refresh_ends()
        self._telemetry.ticked(self._follower.lanes(), self._bytes())

    def _rows(self) -> int:
        return sum(gather.rows for gather in self._gathers())

    def _bytes(self) -> int:
        return sum(gather.bytes for gather in self._gathers())

    def _read(self) -> None:
        room = self._settings.flush_rows - self._rows()
        if room <= 0 or self._bytes() >= GATHER_BYTES_MAX:
            # It is full and cannot be appended now: what is in the topics stays there.
            self._stopping.wait(max(0.0, min(IDLE_WAIT_S, self._retry_at_s - time.monotonic())))
            return
        if self._follower.read(room, IDLE_WAIT_S) and self._first_row_s is None:
            self._first_row_s = time.monotonic()

    def _must_flush(self) -> bool:
        now_s = time.monotonic()
        if self._first_row_s is None or now_s < self._retry_at_s:
            return False
        waited_ms = (now_s - self._first_row_s) * 1000
        return (
            waited_ms >= self._settings.flush_interval_ms
            or self._rows() >= self._settings.flush_rows
            or self._bytes() >= GATHER_BYTES_MAX
            or self._is_done()
        )

    def _is_done(self) -> bool:
        return self._options.once and all(lane.at_end for _, lane in self._follower.lanes())

    def _flush(self, gathers: list[Gather]) -> None:
        """Append what is gathered; what cannot be appended now is kept for later."""
        if not gathers:
            return
        try:
            self._follower.drop_recreated()
        except (KafkaUnavailableError, TopicError) as error:
            self._put_off("kafka", error)
            return
        there = self._gathers()
        failed = [gather for gather in gathers if gather in there and not self._append(gather)]
        self._first_row_s = time.monotonic() if failed else None
        if not failed:
            self._retry_at_s, self._retry_wait_s = 0.0, 1.0
            self._telemetry.is_ready = True

    def _append(self, gather: Gather) -> bool:
        begin_s = time.monotonic()
        try:
            appended = gather.append()
        except SchemaError as error:
            self._put_off("registry", error)
            return False
        except TableBusyError as error:
            self._put_off("table", error)
            # After that: the tables may be as hard to read as to write.
            with contextlib.suppress(OSError):
                gather.resume()
            return False
        seconds = time.monotonic() - begin_s
        self._telemetry.appended(gather.target.table, appended, seconds)
        log.info(
            "appended",
            table=gather.target.table,
            rows=appended.rows,
            rejected=sum(appended.rejected.values()),
            seconds=round(seconds, 3),
        )
        return True

    def _put_off(self, reason: str, error: Exception) -> None:
        if self._options.once:
            raise error
        self._telemetry.is_ready = False
        self._telemetry.retried(reason)
        log.warning("append_put_off", error=str(error), retry_in_s=self._retry_wait_s)
        self._retry_at_s = time.monotonic() + self._retry_wait_s
        self._retry_wait_s = min(2 * self._retry_wait_s, RETRY_WAIT_S_MAX)

    def _maintain(self) -> None:
        if self._options.once or not self._is_due("maintain", MAINTAIN_EVERY_S):
            return
        wipe = self._is_due("wipe", WIPE_EVERY_S)
        retention = self._settings.retention
        for name in Lake(self._settings.folder).names():
            if self._stopping.is_set():
                return
            try:
                done = maintain(
                    self._settings.folder,
                    name,
                    retention_ms=None if retention is None else duration_ms(retention),
                    now_ms=self._clock.now_ms(),
                    wipe=wipe,
                )
            except TableBusyError as error:
                log.warning("maintenance_put_off", table=name, error=str(error))
                continue
            self._telemetry.measured(name, done.files_after, done.size_bytes)
            if done.files_before != done.files_after or done.deleted_rows:
                log.info(
                    "maintained",
                    table=name,
                    files_before=done.files_before,
                    files_after=done.files_after,
                    deleted_rows=done.deleted_rows,
                )


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; a holder that was killed has freed it.

    Raises:
        SecondWriterError: If another process holds it.

    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK_FILE
    with path.open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            got = f"process {handle.read().strip() or 'unknown'}"
            hint = "one is enough: it reads every topic; 'headrace status' shows it"
            message = explain("the lake", "have one writer", got, str(folder), hint)
            raise SecondWriterError(message) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
