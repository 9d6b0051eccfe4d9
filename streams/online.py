"""The online store's thread: it writes what is committed, and nothing that waits for it ever waits.

The source thread posts blocks and reads wishes. All that the store makes slow or impossible happens
here: the newest values by key pile up in ``PendingRows``, bounded by the number of keys.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from headrace.features.store.errors import StoreFullError, StoreUnavailableError
from headrace.features.store.port import EntityRows, Rebuild
from headrace.features.vector import stage_features
from headrace.runtime.logging import get_logger
from headrace.streams.online_rows import Backoff, KeyBook, PendingRows, Posted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from headrace.features.plan import StagePlan
    from headrace.features.store.port import Marker, OnlineStore
    from headrace.features.store.views import OnlineEntity
    from headrace.runtime.clock import Clock
    from headrace.streams.batch import Forget, OnlineBlock
    from headrace.streams.online_rows import Round

log = get_logger(__name__)

BEAT_MS = 1_000.0
#: Rows of one call: a few milliseconds of this thread, some ten of Redis.
ROUND_ROWS = 2_000
#: How long to rest after a round, in rounds, so that stream and readers have the machine. Behind
#: the end of the log a key's values are soon others, and waiting saves most of the writes.
REST_LIVE, REST_BEHIND = 1.0, 4.0
#: Between the starts of two rounds at least: a round of few rows costs a millisecond and more, and
#: what comes within it costs nothing.
ROUND_EVERY_MS = 200.0
#: A round that took longer waited for an answer, which costs nobody anything.
ROUND_MS_MAX = 50.0
#: For each answer of the store; the thread may end no sooner.
TIMEOUT_S = 2.0
RELEASE_BUDGET_MS = 1_000.0
STOP_BUDGET_MS = 2_000.0


class OnlineWatcher(Protocol):
    """Who is told what the thread does: metrics."""

    def online_wrote(self, entity: str, rows: int) -> None:
        """Rows were written."""
        ...

    def online_failed(self, reason: str) -> None:
        """A call of the store failed."""
        ...

    def online_waits(self, entity: str, pending: int, staleness_s: float, rebuild: int) -> None:
        """So many keys wait, the first of them for so long; so many of a rebuild are left."""
        ...


class Wish(NamedTuple):
    """A pass over all keys that the store needs: those that changed after ``since``."""

    pass_number: int
    since: int


_NO_WISH = Wish(0, 0)


@dataclass(frozen=True, slots=True)
class Erase:
    """A key to be erased from the store, after what was told of it before; then ``confirm``."""

    forget: Forget
    slots: np.ndarray
    confirm: Callable[[Forget, int], None]

    @property
    def version(self) -> int:
        """Return the next offset of the stage's input when the key was forgotten."""
        return self.forget.position


@dataclass(slots=True, eq=False)
class ServedPartition:
    """A partition of a stage that serves keys: what the two threads share of it.

    The source thread sets ``clock_ms`` (None: no event yet) and ``live`` and counts up
    ``posted_rows``; all the rest is the writer's thread's, and ``wish`` its word to the other.

    ``token`` is what the values depend on, ``end_offset`` where the log ended at assignment.
    ``version`` and ``complete`` are what the store is known to hold; ``silent``: nothing is said of
    that yet. ``pass_left`` of ``pass_total`` keys are not gone over yet in the pass under way.
    """

    stage: StagePlan
    entity: OnlineEntity
    partition: int
    token: str
    end_offset: int
    clock_ms: int | None = None
    live: bool = True
    posted_rows: int = 0
    merged_rows: int = 0
    wish: Wish = _NO_WISH
    marker: Marker | None = None
    version: int = 0
    complete: bool = False
    silent: bool = True
    pass_number: int = 0
    passing: bool = False
    pass_total: int = 0
    pass_left: int = 0
    rebuild: int = 0
    reporting: bool = False
    keys: KeyBook = field(init=False)
    pending: PendingRows = field(init=False)
    taken: Round | None = None
    erases: list[Erase] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys = KeyBook(self.stage.key_kind)
        self.pending = PendingRows(len(self.stage.aggregates))

    @property
    def waiting_rows(self) -> int:
        """Return about how many rows are on their way to the store."""
        taken = self.taken  # Once: the other thread may ask.
        on_the_way = 0 if taken is None else len(taken)
        return self.posted_rows - self.merged_rows + len(self.pending) + on_the_way

    @property
    def oldest_ms(self) -> int | None:
        """Return since when the key that waits longest does."""
        waiting = [] if self.taken is None else [int(self.taken.since_ms.min())]
        if (oldest_ms := self.pending.oldest_ms) is not None:
            waiting.append(oldest_ms)
        return min(waiting, default=None)


class _PostedTo(NamedTuple):
    part: ServedPartition
    posted: Posted


@dataclass(slots=True)
class _Asked:
    answered: bool = False


class OnlineWriter:
    """Writes blocks to the store. ``turn`` is the body of its thread's loop."""

    def __init__(self, store: OnlineStore, watcher: OnlineWatcher, clock: Clock) -> None:
        self._store = store
        self._watcher = watcher
        self._clock = clock
        self._inbox: deque[Callable[[], None] | _PostedTo] = deque()
        self._called = threading.Event()
        self._parts: list[ServedPartition] = []
        self._entities: set[str] = set()
        self._calls, self._room = Backoff(), Backoff()
        self._next_beat_ms = 0.0
        self._next_round_ms = 0.0
        self._stopping = False
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="headrace-online", daemon=True)

    # --- Called by the source thread ------------------------------------------------------------

    def assign(self, part: ServedPartition) -> None:
        """Keep the store for a partition from now on."""
        self._call(functools.partial(self._assign, part))

    def post(self, part: ServedPartition, block: OnlineBlock) -> None:
        """Write a block, which is committed."""
        part.posted_rows += len(block)
        # Nobody is woken for it: hundreds may come in the time of a round.
        self._inbox.append(_PostedTo(part, Posted(block, self._clock.now_ms())))

    def release(self, part: ServedPartition, *, flush: bool) -> None:
        """Let a partition go: with ``flush`` what waits is written in a second, or not at all."""
        self._call(functools.partial(self._release, part, flush=flush))

    def erase(self, part: ServedPartition, erase: Erase) -> None:
        """Erase a key from the store; nothing of it that was posted before is written any more."""
        self._call(functools.partial(self._take_erase, part, erase))

    def _call(self, call: Callable[[], None]) -> None:
        self._inbox.append(call)
        self._called.set()

    # --- The thread -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, for two seconds at most, and end the thread."""
        if self._thread.is_alive():
            self._call(self._stop)
            self._thread.join(2 * (STOP_BUDGET_MS + RELEASE_BUDGET_MS) / 1000)
        self._store.close()

    def check(self) -> None:
        """Raise what ended the thread: a programmer's error, as the store's are waited out."""
        if self._fault is not None:
            raise self._fault

    def _run(self) -> None:
        try:
            while not self._stopping:
                self.turn(self._wait_ms() / 1000)
        except BaseException as error:  # noqa: BLE001 -- the thread's boundary: ``check`` raises it
            self._fault = error

    def turn(self, wait_s: float = 0.0) -> None:
        """Take what was posted, waiting for it a while, and do what is due now."""
        self._take_in(wait_s)
        now_ms = self._clock.monotonic_ms()
        if now_ms >= self._calls.until_ms:
            self._open()
        if now_ms >= self._next_round_ms:
            self._write()
        if now_ms >= self._next_beat_ms:
            self._next_beat_ms = now_ms + BEAT_MS
            self._report()
            self._beat()

    def _wait_ms(self) -> float:
        """Return how long nothing is to be done unless something is asked for."""
        due_ms = min(self._next_beat_ms, self._clock.monotonic_ms() + ROUND_EVERY_MS)
        if any(part.marker is None for part in self._parts):
            due_ms = min(due_ms, self._calls.until_ms)
        if any(part.waiting_rows or part.erases for part in self._parts):
            ready_ms = max(self._next_round_ms, self._calls.until_ms, self._room.until_ms)
            due_ms = min(due_ms, ready_ms)
        return max(0.0, due_ms - self._clock.monotonic_ms())

    def _take_in(self, wait_s: float) -> None:
        if wait_s > 0.0:
            self._called.wait(wait_s)
        self._called.clear()
        posted: dict[ServedPartition, list[Posted]] = {}
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, _PostedTo):
                posted.setdefault(item.part, []).append(item.posted)
                continue
            self._merge(posted)
            item()
        self._merge(posted)

    def _assign(self, part: ServedPartition) -> None:
        self._parts.append(part)
        self._entities.add(part.entity.entity)

    def _merge(self, posted: dict[ServedPartition, list[Posted]]) -> None:
        """Take in what was posted since, which then is no more."""
        for part, blocks in posted.items():
            for block, _ in blocks:
                if len(block.keys):
                    assert block.first_key == len(part.keys), (block.first_key, len(part.keys))
                    part.keys.append(block.keys)
                part.merged_rows += len(block)
                if block.total or block.ended_pass:
                    part.pass_total, part.pass_left = block.total, block.left
            part.pending.merge(blocks)
        posted.clear()

    def _take_erase(self, part: ServedPartition, erase: Erase) -> None:
        part.pending.forget(erase.slots)
        part.erases.append(erase)

    def _erase_round(self, part: ServedPartition) -> bool:
        """Carry out the erasures that wait; False when the store did not answer."""
        while part.erases:
            erase = part.erases[0]
            # On a replay the store has gone beyond it: what it holds of the key is newer.
            told_before = part.complete and erase.version < part.version
            if erase.slots.size and not told_before:
                with self._asking() as asked:
                    self._store.delete(part.entity, erase.forget.key)
                if not asked.answered:
                    return False
            part.erases.pop(0)
            erase.confirm(erase.forget, erase.slots.size)
        return True

    def _release(self, part: ServedPartition, *, flush: bool) -> None:
        if part not in self._parts:
            return
        if flush:
            self._flush([part], RELEASE_BUDGET_MS)
        self._parts.remove(part)

    def _stop(self) -> None:
        self._flush(self._parts, STOP_BUDGET_MS)
        self._stopping = True

    def _flush(self, parts: Iterable[ServedPartition], budget_ms: float) -> None:
        """Write what waits and say so, until the first failure or the end of the budget."""
        until_ms = self._clock.monotonic_ms() + budget_ms
        for part in parts:
            while part.marker is not None and (part.waiting_rows or part.erases):
                if self._clock.monotonic_ms() > until_ms or not self._erase_round(part):
                    return
                if not self._write_round(part):
                    return
            if not self._beat_part(part):
                return

    def _open(self) -> None:
        for part in self._parts:
            if part.marker is not None:
                continue
            with self._asking() as asked:
                self._opened(part, self._marker(part))
            if not asked.answered:
                return

    def _marker(self, part: ServedPartition) -> Marker:
        now_ms = self._clock.now_ms()
        marker = self._store.open(part.entity, part.partition, part.token, now_ms)
        if not part.pass_number and marker.version > part.end_offset:
            # The log was cut since: offsets come a second time, and the store would take what is
            # new for older. Any other token begins a lineage; then again with the right one.
            self._store.open(part.entity, part.partition, f"{part.token}:cut", now_ms)
            marker = self._store.open(part.entity, part.partition, part.token, now_ms)
        return marker

    def _opened(self, part: ServedPartition, marker: Marker) -> None:
        """Ask for a pass over what the store does not hold; until it ends only that is claimed."""
        again = part.pass_number > 0
        part.marker, part.version = marker, marker.version
        # The first time nothing is said until it is true: readers see the last writer's word age.
        # A store that lost something is said to be incomplete at once.
        part.complete = marker.complete and not again
        part.silent = part.complete
        part.rebuild = marker.rebuild
        self._wish(part, marker.version if marker.complete else 0)
        log.info(
            "online_store_opened",
            entity=part.entity.entity,
            partition=part.partition,
            lineage=marker.lineage,
            version=marker.version,
            complete=marker.complete,
        )

    def _wish(self, part: ServedPartition, since: int) -> None:
        part.pass_number += 1
        part.passing, part.pass_total, part.pass_left = True, 0, 0
        part.wish = Wish(part.pass_number, since)

    def _write(self) -> None:
        started_ms = self._clock.monotonic_ms()
        if started_ms < max(self._calls.until_ms, self._room.until_ms):
            return
        live, wrote = True, False
        for part in self._parts:
            if part.marker is None:
                continue
            if not self._erase_round(part):
                return
            if part.waiting_rows:
                wrote, live = True, live and part.live
                if not self._write_round(part):
                    return
            else:
                self._passed(part)
        if wrote:
            now_ms = self._clock.monotonic_ms()
            rest = REST_LIVE if live else REST_BEHIND
            rested_ms = now_ms + rest * min(now_ms - started_ms, ROUND_MS_MAX)
            # With a full round there is more: it goes on.
            full = any(part.waiting_rows for part in self._parts)
            self._next_round_ms = rested_ms if full else max(rested_ms, started_ms + ROUND_EVERY_MS)

    def _write_round(self, part: ServedPartition) -> bool:
        """Write one round of a partition; False when the store did not take it."""
        pending = part.pending
        taken = pending.take(ROUND_ROWS) if part.taken is None else pending.still(part.taken)
        part.taken = taken if len(taken) else None
        if len(taken):
            with self._asking() as asked:
                written = self._write_rows(part, taken)
                self._watcher.online_wrote(part.entity.entity, written)
            if not asked.answered:
                return False
            part.taken = None
            self._room.worked()
        self._passed(part)
        return True

    def _write_rows(self, part: ServedPartition, taken: Round) -> int:
        assert part.marker is not None, part.entity.entity
        features = stage_features(part.stage, taken.aggregates)
        values = np.column_stack([features[feature.name] for feature in part.entity.features])
        rows = EntityRows(
            part.keys.take(taken.slots),
            values,
            taken.event_time_ms,
            taken.as_of_ms,
            taken.version,
        )
        clock_ms = int(taken.as_of_ms.max())
        if part.clock_ms is not None:
            clock_ms = max(clock_ms, part.clock_ms)
        lineage = part.marker.lineage
        return self._store.write(part.entity, part.partition, lineage, rows, clock_ms)

    def _passed(self, part: ServedPartition) -> None:
        """Take note of what the store holds now."""
        if part.erases:
            return
        for mark in part.pending.reached():
            if mark.ended_pass == part.pass_number:
                part.passing, part.complete, part.silent = False, True, False
            if not part.passing:
                part.version = mark.version

    def _beat(self) -> None:
        for part in self._parts:
            if self._clock.monotonic_ms() < self._calls.until_ms:
                return
            if not self._beat_part(part):
                return

    def _beat_part(self, part: ServedPartition) -> bool:
        """Say what the store holds; False when it did not answer."""
        marker = part.marker
        if marker is None or part.silent:
            return True
        now_ms = self._clock.now_ms()
        oldest_ms = part.oldest_ms
        said = replace(
            marker,
            version=part.version,
            complete=part.complete,
            # A store that answers, and takes no rows, must not pass for one that has them.
            beat_ms=now_ms if oldest_ms is None else min(now_ms, oldest_ms),
            clock_ahead_ms=0 if part.clock_ms is None else part.clock_ms - now_ms,
        )
        with self._asking() as asked:
            part.marker = self._store.beat(part.entity, part.partition, said)
        if not asked.answered:
            return False
        if part.marker is None:
            log.warning("online_store_lost", entity=part.entity.entity, partition=part.partition)
            return True
        self._serve_rebuild(part, part.marker)
        return True

    def _serve_rebuild(self, part: ServedPartition, marker: Marker) -> None:
        """Start a rebuild that was asked for, and say how far the last one is."""
        if marker.rebuild > part.rebuild:
            part.rebuild = marker.rebuild
            part.reporting = True
            self._wish(part, 0)
            log.info("online_rebuild", entity=part.entity.entity, partition=part.partition)
        elif part.reporting and (part.pass_total or not part.passing):
            left = self._rebuild_left(part)
            total = max(part.pass_total, left)
            with self._asking() as asked:
                self._store.report_rebuild(
                    part.entity, part.partition, Rebuild(part.rebuild, total - left, total)
                )
            part.reporting = part.passing or not asked.answered

    @contextlib.contextmanager
    def _asking(self) -> Iterator[_Asked]:
        """Ask the store; where it cannot answer, there is a while to wait."""
        asked = _Asked()
        try:
            yield asked
        except StoreFullError as error:
            self._room.failed(self._clock.monotonic_ms())
            self._failed("full", error, self._room.wait_ms)
        except StoreUnavailableError as error:
            self._calls.failed(self._clock.monotonic_ms())
            self._failed("unavailable", error, self._calls.wait_ms)
        else:
            self._calls.worked()
            asked.answered = True

    def _failed(self, reason: str, error: Exception, wait_ms: float) -> None:
        self._watcher.online_failed(reason)
        log.warning("online_store_failed", reason=reason, error=str(error), retry_in_ms=wait_ms)

    def _report(self) -> None:
        now_ms = self._clock.now_ms()
        for entity in self._entities:
            parts = [part for part in self._parts if part.entity.entity == entity]
            since = [part.oldest_ms for part in parts if part.oldest_ms is not None]
            staleness_s = max(0, now_ms - min(since, default=now_ms)) / 1000
            pending = sum(part.waiting_rows for part in parts)
            left = sum(self._rebuild_left(part) for part in parts)
            self._watcher.online_waits(entity, pending, staleness_s, left)

    def _rebuild_left(self, part: ServedPartition) -> int:
        return part.pass_left + part.waiting_rows if part.passing else 0
