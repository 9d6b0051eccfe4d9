"""From a stage's state to blocks for the online store: touched keys, ticks, and passes over all.

Lives with the processor and is called by its thread only. It reads the state and changes nothing of
it, so what the stage emits is the same with and without it. No I/O, no clock.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from headrace.features.kernels.layout import NEVER
from headrace.features.kernels.probe import FAR
from headrace.streams.batch import Look, OnlineBlock, Outputs

if TYPE_CHECKING:
    from headrace.features.state import EntityState
    from headrace.streams.batch import EventBatch

#: How many keys one look probes: some milliseconds, for which a batch may have to wait.
LOOK_KEYS = 4_096


class OnlineTap:
    """What of one state is to be told to the online store.

    Per key it keeps the version at which it last changed, and when it changes next by itself.
    """

    def __init__(self, state: EntityState) -> None:
        """Tap ``state``, of which nothing has been told."""
        self._state = state
        self._changed = np.zeros(0, dtype=np.int64)
        self._due_ms = np.zeros(0, dtype=np.int64)
        self._version = 0
        self._told = 0
        self._saved = (0, 0)
        self._pass_number = self._since = 0
        self._cursor = self._end = 0
        self._saved_pass = (0, 0, 0, 0)
        self._passes = 0
        self._saved_passes = 0
        self._asked = (0, 0)
        self._told_by_looks: list[np.ndarray] | None = None

    def touched(self, batch: EventBatch, slots: np.ndarray | None, outputs: Outputs) -> None:
        """Tell the keys that a batch touched, as of their newest events.

        On a silent replay they are only noted: a pass tells them when it has ended.

        Args:
            batch: What was processed.
            slots: int64[n], of the rows that were applied; None: none were.
            outputs: Of the batch.

        """
        if not len(batch):
            return
        self._version = int(batch.offsets[-1]) + 1
        self._grow()
        found = np.empty(0, np.int64) if slots is None else self._state.distinct(slots)
        self._changed[found] = self._version
        if self._version > batch.emit_from:
            outputs.online.append(self._block(found))

    def look(self, look: Look) -> Outputs:
        """Go on with the pass over all keys, or else tell the keys that are due."""
        self._grow()
        outputs = Outputs()
        if look.pass_number:
            self._pass_number, self._since = look.pass_number, look.since
            self._cursor, self._end = 0, self._state.key_count
            self._passes += 1
            self._asked = look.pass_number, look.since
        if self._pass_number:
            outputs.online.append(self._pass())
        elif look.clock_ms is not None:
            due = np.flatnonzero(self._due_ms[: self._state.key_count] <= look.clock_ms)
            if due.size:
                more = due.size > LOOK_KEYS
                if self._told_by_looks is not None:
                    self._told_by_looks.append(due[:LOOK_KEYS])
                outputs.online.append(self._block(due[:LOOK_KEYS], look.clock_ms, more=more))
        return outputs

    def forget(self, slots: np.ndarray) -> None:
        """Tell nothing more of keys, until they are touched again."""
        self._due_ms[slots] = FAR
        self._changed[slots] = 0

    def restored(self, version: int) -> None:
        """Tap a state that was put back: all its keys may have changed up to ``version``.

        Where they stand is told by the pass that a new owner goes over them.
        """
        self._grow()
        self._changed[: self._state.key_count] = version
        self._version = version

    def begin(self) -> None:
        """Remember what was told, for ``abort``."""
        self._saved = (self._version, self._told)
        self._saved_pass = (self._pass_number, self._since, self._cursor, self._end)
        self._saved_passes = self._passes
        self._told_by_looks = []

    def commit(self) -> None:
        """Forget what ``begin`` remembered."""
        self._told_by_looks = None

    def abort(self) -> None:
        """Take back what was told: its blocks go nowhere, so looks tell it again."""
        self._version, self._told = self._saved
        for slots in self._told_by_looks or ():
            self._due_ms[slots] = NEVER
        self._told_by_looks = None
        if self._passes == self._saved_passes:
            self._pass_number, self._since, self._cursor, self._end = self._saved_pass
        else:
            # A pass that began since is gone over from its first key again.
            self._pass_number, self._since = self._asked
            self._cursor, self._end = 0, self._state.key_count

    def _pass(self) -> OnlineBlock:
        first, last = self._cursor, min(self._cursor + LOOK_KEYS, self._end)
        told = self._changed[first:last] > self._since
        ended = self._pass_number if last == self._end else 0
        block = self._block(np.arange(first, last), told=told, more=True)
        self._cursor = last
        if ended:
            self._pass_number = 0
        return replace(block, total=self._end, left=self._end - last, ended_pass=ended)

    def _block(
        self,
        slots: np.ndarray,
        at_ms: int = NEVER,
        *,
        told: np.ndarray | None = None,
        more: bool = False,
    ) -> OnlineBlock:
        probed = self._state.probe(slots, at_ms)
        self._due_ms[slots] = probed.due_ms
        # Keys of which only other sources have spoken were never scored: they have no values yet.
        wanted = probed.event_time_ms != NEVER
        if told is not None:
            wanted &= told
        first, self._told = self._told, self._state.key_count
        keys = self._state.keys(first)
        columns = slots, probed.aggregates, probed.event_time_ms, probed.as_of_ms
        if not wanted.all():
            columns = tuple(column[wanted] for column in columns)
        return OnlineBlock(self._version, *columns, first, keys, more=more)

    def _grow(self) -> None:
        count, room = self._state.key_count, len(self._due_ms)
        if count <= room:
            return
        room = max(count, 2 * room, LOOK_KEYS)
        changed = np.zeros(room, dtype=np.int64)
        changed[: len(self._changed)] = self._changed
        due_ms = np.full(room, FAR)
        due_ms[: len(self._due_ms)] = self._due_ms
        self._changed, self._due_ms = changed, due_ms
