"""One (stage, partition)'s state: a pure function of the rows applied so far. No I/O, no clock.

The arrays live here, the loops in ``features.kernels``. Growth happens between kernel calls: a
kernel that runs out of room returns the row, the array is doubled, and the kernel goes on there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from headrace.features.capture import SLICE_WORDS, Captures, key_bytes
from headrace.features.kernels.forget import (
    Forgotten,
    find_again,
    forget_slot,
    rebuild_table,
    wipe,
)
from headrace.features.kernels.journal import abort_journal, commit_journal
from headrace.features.kernels.keys import key_columns, read_only
from headrace.features.kernels.layout import NEVER, SIZE_CLASSES, Layout, build_layout
from headrace.features.kernels.memory import (
    M_ARENA,
    M_BASE_ARENA,
    M_BASE_KEYS,
    M_BLOCKS,
    M_KEYS,
    M_LOG,
    M_NEED_LOG,
    M_NEED_POOL,
    M_OPEN,
    M_POOL,
    M_SAVED,
    META_WORDS,
    Memory,
)
from headrace.features.kernels.probe import Probe, build_ticks, distinct_slots, probe_slots
from headrace.features.kernels.records import place_records, room_of, scatter_bytes
from headrace.features.kernels.rows import Rows, apply_rows
from headrace.features.kernels.slots import rehash_slots, resolve_slots

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.features.capture import SlotRecords
    from headrace.features.kernels.slots import Keys
    from headrace.features.plan import StagePlan

_FIRST_KEYS = 64
_FIRST_WORDS = 4096
_KEY_ARRAYS = ("heads", "keys", "key_hashes", "touched")


@dataclass(slots=True)
class Applied:
    """What a batch of rows gave.

    Attributes:
        aggregates: float64[n, len(stage.aggregates)]; NaN is null, and all rows not scored.
        incomplete: bool[n]; a window of the row reaches back to cells that were already dropped
            (older than the ring's retention behind the key's newest scored time).
        slots: int64[n]; the number of the row's key in this state, -1 for none.
    """

    aggregates: np.ndarray
    incomplete: np.ndarray
    slots: np.ndarray


@dataclass(slots=True)
class Probed:
    """What keys look like at a time, without being moved there.

    Attributes:
        aggregates: float64[n, len(stage.aggregates)]; NaN is null.
        event_time_ms: int64[n]; the key's newest scored time, ``NEVER`` if it was never scored.
        as_of_ms: int64[n]; the time that the aggregates are of, ``NEVER`` likewise.
        due_ms: int64[n]; from this time on an aggregate is another with no new row, rounded up to
            a thousandth of its window, a second at least; ``FAR`` if that never comes. The ages of
            the stage's views do not count.
    """

    aggregates: np.ndarray
    event_time_ms: np.ndarray
    as_of_ms: np.ndarray
    due_ms: np.ndarray


class EntityState:
    """The keyed windows of one stage and partition.

    Rows go in by log order; the same rows give the same bits however they are cut into batches.
    """

    def __init__(self, stage: StagePlan) -> None:
        self._layout = Layout(*map(read_only, build_layout(stage)))
        self._stage = stage
        self._transactions = 0
        self._forgotten: list[Forgotten] = []
        read = {index for feature in stage.features for index in feature.aggregates}
        self._ticks = build_ticks(self._layout, {age.aggregate for age in stage.ages} - read)
        self._marks = np.zeros(_FIRST_KEYS, dtype=np.int8)
        self._captures: Captures | None = None
        width, rings = len(self._layout.header), len(stage.rings)
        pool = np.zeros(_FIRST_WORDS, dtype=np.int64)
        self._memory = Memory(
            pool=pool,
            pool_floats=pool.view(np.float64),
            heads=np.zeros((_FIRST_KEYS, width), dtype=np.int64),
            table=np.zeros((2 * _FIRST_KEYS, 2), dtype=np.uint64),
            keys=np.zeros((_FIRST_KEYS, 2), dtype=np.int64),
            key_hashes=np.zeros(_FIRST_KEYS, dtype=np.uint64),
            arena=np.zeros(_FIRST_WORDS, dtype=np.uint8),
            free=np.full((2 * rings, SIZE_CLASSES), -1, dtype=np.int64),
            touched=np.zeros(_FIRST_KEYS, dtype=np.int64),
            saved=np.zeros((_FIRST_KEYS, width), dtype=np.int64),
            saved_slots=np.zeros(_FIRST_KEYS, dtype=np.int64),
            log=np.zeros(_FIRST_WORDS, dtype=np.int64),
            block_log=np.zeros((_FIRST_KEYS, 4), dtype=np.int64),
            meta=np.zeros(META_WORDS, dtype=np.int64),
        )

    @property
    def key_count(self) -> int:
        """Keys with state."""
        return int(self._memory.meta[M_KEYS])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, room to grow included."""
        return sum(array.nbytes for array in self._memory) - self._memory.pool.nbytes

    def apply(
        self,
        keys: pa.Array,
        inputs: np.ndarray,
        event_time_ms: np.ndarray,
        known_at_ms: np.ndarray,
        values: np.ndarray,
        scored: np.ndarray,
        insert: np.ndarray | None = None,
    ) -> Applied:
        """Insert rows in log order and read the aggregates of the scored ones.

        Args:
            keys: The entity's key per row; null keys keep no state.
            inputs: int8[n], index into ``stage.inputs``: the row goes into that source's rings.
            event_time_ms: int64[n], epoch ms, |t| < 2**61.
            known_at_ms: int64[n]; ignored where the source has no known_at.
            values: float64[n, len(stage.values)]; NaN is null, and other sources' values. Finite
                values are below 2**40 in magnitude (``features.columns`` has checked that).
            scored: bool[n]; these rows get aggregates as of their event time, themselves included.
            insert: bool[n]; rows that are False only ask. All True when None.

        Cost: amortised O(aggregates) per row; O(log k) more for min, max and last, k = cells of
        the key in the window; a late row also moves the cells after its time.
        """
        count = len(inputs)
        batch_keys = key_columns(keys)
        assert len(batch_keys.hashes) == count, "one key per row"
        slots = np.empty(count, dtype=np.int64)
        insert = _flags(np.ones(count, dtype=bool) if insert is None else insert)
        self._resolve(batch_keys, insert, slots)
        if self._captures is not None:
            self._captures.touch(self._memory, slots)
        rows = Rows(
            slots=slots,
            inputs=read_only(np.asarray(inputs, dtype=np.int8)),
            event_time_ms=read_only(np.asarray(event_time_ms, dtype=np.int64)),
            known_at_ms=read_only(np.asarray(known_at_ms, dtype=np.int64)),
            values=read_only(np.asarray(values, dtype=np.float64)),
            scored=_flags(scored),
            insert=insert,
            value_count=len(self._stage.values),
        )
        assert rows.values.shape == (count, len(self._stage.values)), "one column per value"
        aggregates = np.full((count, len(self._stage.aggregates)), np.nan)
        incomplete = np.zeros(count, dtype=bool)
        row = 0
        while (row := apply_rows(self._layout, self._memory, rows, aggregates, incomplete, row)) < (
            count
        ):
            self._make_room()
        return Applied(aggregates, incomplete, slots)

    def probe(self, slots: np.ndarray, at_ms: int = NEVER) -> Probed:
        """Look at keys at ``at_ms``, or at their newest scored time where that is later.

        The same as a bare scored ask there, but the state keeps every bit as it is.

        Args:
            slots: int64[n], numbers of keys (``Applied.slots``, or below ``key_count``).
            at_ms: Epoch ms.

        Cost: O(aggregates) for a key whose windows stand there, else also the cells between.
        """
        count = len(slots)
        found = Probe(
            np.empty((count, len(self._stage.aggregates))),
            *(np.empty(count, dtype=np.int64) for _ in range(3)),
        )
        probe_slots(self._layout, self._memory, slots, at_ms, self._ticks, found)
        return Probed(*found)

    def distinct(self, slots: np.ndarray) -> np.ndarray:
        """Return each slot once, in the order of first sight, without those below 0."""
        self._marks = _with_room(self._marks, self.key_count)
        found = np.empty(len(slots), dtype=np.int64)
        return found[: distinct_slots(slots, self._marks, found)]

    def keys(self, first: int) -> pa.Array:
        """Return the keys of all slots from ``first`` on: int64, large strings or large binary."""
        keys = self._memory.keys[first : self.key_count]
        if self._stage.key_kind == "int64":
            return pa.array(keys[:, 0].copy())
        # Keys are never taken out, so their bytes lie in the order of their slots.
        start = int(keys[0, 0]) if len(keys) else 0
        offsets = np.zeros(len(keys) + 1, dtype=np.int64)
        np.cumsum(keys[:, 1], out=offsets[1:])
        data = self._memory.arena[start : start + offsets[-1]].copy()
        kind = pa.large_string() if self._stage.key_kind == "string" else pa.large_binary()
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        return pa.Array.from_buffers(kind, len(keys), buffers)

    def forget(self, keys: pa.Array) -> np.ndarray:
        """Drop all that is kept of keys, as if no row of them had come; return their slots.

        A later row of such a key starts a new slot. The other keys keep every bit.

        Cost: O(slots) for each key; for rare use.
        """
        batch_keys = key_columns(keys)
        slots = np.empty(len(batch_keys.hashes), dtype=np.int64)
        self._resolve(batch_keys, _flags(np.zeros(len(slots), dtype=bool)), slots)
        found: np.ndarray = np.unique(slots[slots >= 0])
        if self._captures is not None:
            self._captures.touch(self._memory, found)
        for slot in found.tolist():
            self._save_header(slot)
            self._forgotten.append(forget_slot(self._layout, self._memory, slot))
        if not self._memory.meta[M_OPEN]:
            self._wipe()
        return found

    def _save_header(self, slot: int) -> None:
        """Do as the kernels do when an open transaction meets a key for the first time."""
        meta, open_number = self._memory.meta, self._memory.meta[M_OPEN]
        if not open_number or slot >= meta[M_BASE_KEYS]:
            return
        if self._memory.touched[slot] == open_number:
            return
        at = int(meta[M_SAVED])
        self._memory = self._memory._replace(
            saved=_with_room(self._memory.saved, at + 1),
            saved_slots=_with_room(self._memory.saved_slots, at + 1),
        )
        self._memory.touched[slot] = open_number
        self._memory.saved_slots[at] = slot
        self._memory.saved[at] = self._memory.heads[slot]
        meta[M_SAVED] = at + 1

    def _wipe(self) -> None:
        if self._forgotten:
            are_integers = self._stage.key_kind == "int64"
            wipe(self._layout, self._memory, self._forgotten, are_integers=are_integers)
            self._forgotten = []

    def begin(self) -> None:
        """Open a transaction: from here on changes can be undone."""
        meta = self._memory.meta
        assert meta[M_OPEN] == 0, "a transaction is open already"
        self._transactions += 1
        meta[M_OPEN] = self._transactions
        meta[M_BASE_KEYS] = meta[M_KEYS]
        meta[M_BASE_ARENA] = meta[M_ARENA]

    def commit(self) -> None:
        """Close the transaction and keep its changes."""
        assert self._memory.meta[M_OPEN] > 0, "no transaction is open"
        commit_journal(self._memory)
        self._wipe()

    def abort(self) -> None:
        """Close the transaction and put back the state as it was at ``begin``.

        Cost: O(keys and late cells touched since), not O(state).
        """
        assert self._memory.meta[M_OPEN] > 0, "no transaction is open"
        if self._captures is not None and self._captures.is_open:
            self._captures.lose()
        find_again(self._memory, self._forgotten)
        abort_journal(self._layout, self._memory)
        self._memory.meta[M_ARENA] = self._memory.meta[M_BASE_ARENA]
        if self._forgotten:
            rebuild_table(self._memory)
            self._forgotten = []

    @property
    def captures(self) -> Captures:
        """What is copied of the state while it goes on; keeps track from the first call on."""
        if self._captures is None:
            integers = self._stage.key_kind == "int64"
            self._captures = Captures(self._layout, integer_keys=integers)
        return self._captures

    def capture(self, words_max: int = SLICE_WORDS) -> list[SlotRecords]:
        """Copy a slice of the open capture, and return all that was copied since the last call.

        ``captures.is_open`` says whether more is to come.
        """
        self.captures.go_on(self._memory, words_max)
        return self.captures.take()

    def open_capture(self, *, whole: bool) -> None:
        """Open a capture of all keys as they are now, or of those changed since the last one."""
        self.captures.open(self._memory, whole=whole)

    def restore(self, records: Iterable[SlotRecords], key_count: int) -> None:
        """Fill the state, which must be empty, with ``key_count`` keys.

        Args:
            records: Of captures, the newest first: of several of one slot the first holds.
            key_count: How many keys there were at the newest one.

        Raises:
            ValueError: If they are not of a stage like this, or a key is missing.

        """
        assert not self._memory.meta[M_KEYS], "a state is restored once, and empty"
        integers = self._stage.key_kind == "int64"
        done = np.zeros(key_count, np.int8)
        self._reserve(key_count)
        names: list[tuple[np.ndarray, SlotRecords]] = []
        for found in records:
            self._check_records(found, key_count)
            memory = self._memory
            fresh = done[found.slots] == 0
            slots = found.slots[fresh]
            memory.key_hashes[slots] = found.hashes[fresh]
            if integers:
                memory.keys[slots, 0] = found.keys.to_numpy()[fresh]
            else:
                memory.keys[slots, 1] = np.diff(key_bytes(found)[0])[fresh]
                names.append((np.where(fresh, found.slots, -1), found))
            columns = tuple(map(read_only, (found.slots, found.heads, found.ends, found.cells)))
            words = room_of(self._layout, columns[0], columns[1], done)
            pool = _with_room(memory.pool, int(memory.meta[M_POOL]) + words)
            if pool is not memory.pool:
                self._memory = memory = memory._replace(pool=pool, pool_floats=pool.view(float))
            place_records(self._layout, memory, *columns, done)
        if not done.all():
            message = f"{int((done == 0).sum())} of {key_count} keys are in no record"
            raise ValueError(message)
        self._memory.meta[M_KEYS] = key_count
        if not integers:
            self._restore_names(names)
        rehash_slots(self._memory.table, self._memory.key_hashes, key_count)

    def _check_records(self, records: SlotRecords, key_count: int) -> None:
        """Let no record in that the kernels would take for an address."""
        width = len(self._layout.header)
        slots, ends = records.slots, records.ends
        if records.heads.shape[1] != width:
            message = f"records of {records.heads.shape[1]} words are not of a stage of {width}"
            raise ValueError(message)
        if len(slots) and (slots.min() < 0 or slots.max() >= key_count):
            message = f"slot {int(slots.max())} is not one of {key_count}"
            raise ValueError(message)
        if ends[0] != 0 or (np.diff(ends) < 0).any() or ends[-1] > len(records.cells):
            message = "cells do not lie back to back"
            raise ValueError(message)

    def _reserve(self, key_count: int) -> None:
        """Make room for so many keys, where there are none yet."""
        memory = self._memory
        table = memory.table
        if 2 * (key_count + 1) > len(table):
            table = np.zeros((1 << (2 * (key_count + 1) - 1).bit_length(), 2), np.uint64)
        grown = {name: _with_room(getattr(memory, name), key_count) for name in _KEY_ARRAYS}
        self._memory = memory._replace(table=table, **grown)

    def _restore_names(self, names: list[tuple[np.ndarray, SlotRecords]]) -> None:
        """Lay the keys' bytes out in the order of their slots."""
        memory = self._memory
        count = int(memory.meta[M_KEYS])
        ends = np.zeros(count + 1, np.int64)
        np.cumsum(memory.keys[:count, 1], out=ends[1:])
        memory.keys[:count, 0] = ends[:-1]
        arena = _with_room(memory.arena, int(ends[-1]))
        for slots, found in names:
            key_ends, data = key_bytes(found)
            targets = np.where(slots < 0, -1, ends[slots])
            scatter_bytes(data, key_ends, targets, arena)
        self._memory = memory._replace(arena=arena)
        self._memory.meta[M_ARENA] = int(ends[-1])

    def _resolve(self, keys: Keys, insert: np.ndarray, slots: np.ndarray) -> None:
        count, row = len(slots), 0
        while (row := resolve_slots(self._layout, self._memory, keys, insert, slots, row)) < count:
            meta = self._memory.meta
            if meta[M_KEYS] >= len(self._memory.heads):
                self._memory = self._memory._replace(
                    **{name: _doubled(getattr(self._memory, name)) for name in _KEY_ARRAYS}
                )
            if 2 * (meta[M_KEYS] + 1) > len(self._memory.table):
                table = np.zeros((2 * len(self._memory.table), 2), dtype=np.uint64)
                rehash_slots(table, self._memory.key_hashes, int(meta[M_KEYS]))
                self._memory = self._memory._replace(table=table)
            if not keys.are_integers:
                length = int(keys.offsets[row + 1] - keys.offsets[row])
                arena = _with_room(self._memory.arena, int(meta[M_ARENA]) + length)
                self._memory = self._memory._replace(arena=arena)

    def _make_room(self) -> None:
        """Grow whatever the row that stopped the kernel may need."""
        memory, meta = self._memory, self._memory.meta
        pool = _with_room(memory.pool, int(meta[M_POOL] + meta[M_NEED_POOL]))
        saved, saved_slots = memory.saved, memory.saved_slots
        if meta[M_SAVED] >= len(saved):
            saved, saved_slots = _doubled(saved), _doubled(saved_slots)
        blocks = int(meta[M_BLOCKS]) + 4 * len(self._stage.rings)
        self._memory = memory._replace(
            pool=pool,
            pool_floats=pool.view(np.float64),
            saved=saved,
            saved_slots=saved_slots,
            log=_with_room(memory.log, int(meta[M_LOG] + meta[M_NEED_LOG])),
            block_log=_with_room(memory.block_log, blocks),
        )


def _flags(flags: np.ndarray) -> np.ndarray:
    return read_only(np.asarray(flags, dtype=bool).view(np.int8))


def _doubled(array: np.ndarray) -> np.ndarray:
    return _with_room(array, len(array) + 1)


def _with_room(array: np.ndarray, needed: int) -> np.ndarray:
    """Return the array, or a copy of twice its length or more, with room for ``needed``."""
    if needed <= len(array):
        return array
    length = len(array)
    while length < needed:
        length *= 2
    grown = np.zeros((length, *array.shape[1:]), dtype=array.dtype)
    grown[: len(array)] = array
    return grown
