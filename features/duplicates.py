"""Duplicates by event id: what identifies a row, and which ids were seen (docs/adr/0027).

A row whose id was seen within the source's ``dedupe`` of event time does not count: it is a
duplicate, or, with other content, a conflict. The verdicts are a function of the rows so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from headrace.features.kernels.ids import (
    NO_BLOCK,
    find_ids,
    insert_ids,
    judge_rows,
    move_ids,
)
from headrace.features.kernels.keys import hash_keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from headrace.features.columns import EventColumns
    from headrace.features.plan import SourcePlan

HOUR_MS: Final = 3_600_000
BYTES_PER_ID: Final = 22
"""Of a full block on the average: 12 bytes a place, of which between 3/8 and 3/4 are taken."""
_BLOCKS_MAX: Final = 24
_FIRST_PLACES: Final = 256
_NEVER: Final = -(1 << 62)
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)


@dataclass(slots=True)
class RowIds:
    """What identifies rows, columns of one length.

    ``hashes`` uint64: of the typed event id, never 0; ``known`` bool: whether there is an id;
    ``payload`` uint32: a hash of the other columns that the pipeline reads.
    """

    hashes: NDArray[np.uint64]
    known: NDArray[np.bool_]
    payload: NDArray[np.uint32]

    def take(self, indices: NDArray[np.integer]) -> RowIds:
        """Return the rows at ``indices``, in that order."""
        return RowIds(self.hashes[indices], self.known[indices], self.payload[indices])


def row_ids(events: EventColumns) -> RowIds:
    """Return what identifies each event; the source must have an event id.

    Two events have equal content when every column that the pipeline reads is equal, bit for bit:
    neither the version of the schema that they were written with counts, nor a column that nobody
    reads.

    Cost: some 10 µs a column and batch, and 5 ns a value.
    """
    source = events.source
    assert source.event_id is not None, source.name
    ids = events.columns[source.event_id]
    known = ids.is_valid().to_numpy(zero_copy_only=False)
    content = np.zeros(events.length, np.uint64)
    for column in source.columns:
        if column.name != source.event_id:
            content = content * _MIX + _column_hashes(events.columns[column.name])
            content ^= content >> np.uint64(29)
    return RowIds(
        np.maximum(hash_keys(ids), np.uint64(1)),
        known,
        (content >> np.uint64(32)).astype(np.uint32),
    )


def _column_hashes(column: pa.Array) -> NDArray[np.uint64]:
    if pa.types.is_floating(column.type):
        column = column.view(pa.int64())
    elif pa.types.is_boolean(column.type):
        column = column.cast(pa.int64())
    hashes: NDArray[np.uint64] = hash_keys(column)
    return hashes


@dataclass(slots=True)
class _Block:
    """The ids of some event time. ``saved`` is the table before the open transaction grew it."""

    table: NDArray[np.uint64]
    payloads: NDArray[np.uint32]
    count: int = 0
    is_new: bool = False
    saved: tuple[NDArray[np.uint64], NDArray[np.uint32]] | None = None
    saved_count: int = 0


class IdMemory:
    """The ids of one source that one stage partition has seen, by the time of their rows.

    Blocks of an hour or more; one is dropped when no row that is not late can match it any more:
    when its end lies ``dedupe + lateness`` behind the stream's time.
    """

    def __init__(self, window_ms: int, lateness_ms: int) -> None:
        """Remember ids for ``window_ms`` of event time, of rows at most ``lateness_ms`` late."""
        assert window_ms > 0, window_ms
        self._window_ms = window_ms
        self._keep_ms = window_ms + lateness_ms
        self._block_ms = max(HOUR_MS, -(-self._keep_ms // _BLOCKS_MAX))
        self._blocks: dict[int, _Block] = {}
        self._stream_ms = self._saved_stream_ms = _NEVER
        self._open = False
        # What the open transaction put into tables that were there at its begin.
        self._places: list[tuple[_Block, NDArray[np.int64]]] = []

    @classmethod
    def of(cls, source: SourcePlan) -> IdMemory:
        """Return an empty memory as the source declares it."""
        return cls(source.dedupe_ms, source.lateness_ms)

    @property
    def id_count(self) -> int:
        """How many ids are remembered."""
        return sum(block.count for block in self._blocks.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(b.table.nbytes + b.payloads.nbytes for b in self._blocks.values())

    def judge(self, ids: RowIds, time_ms: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the verdict on each row (``kernels.ids``), and remember the ids that count.

        Args:
            ids: The rows, in the order of the log.
            time_ms: int64[n], epoch ms: the time that lateness is about.

        Cost: a probe into each live block, 25 of them at most.
        """
        count = len(time_ms)
        verdict = np.zeros(count, np.uint8)
        if not count:
            return verdict
        found = np.full(count, NO_BLOCK, np.int64)
        found_payload = np.zeros(count, np.uint32)
        # The newest first: an older block may hold the id from before the window.
        for number in sorted(self._blocks, reverse=True):
            block = self._blocks[number]
            find_ids(block.table, block.payloads, number, ids.hashes, found, found_payload)
        latest = np.full(1 << int(2 * count).bit_length(), -1, np.int64)
        into = np.empty(count, np.int64)
        judge_rows(
            ids.hashes,
            ids.known,
            ids.payload,
            np.ascontiguousarray(time_ms),
            found,
            found_payload,
            self._block_ms,
            self._window_ms,
            self._first_block(self._stream_ms),
            latest,
            verdict,
            into,
        )
        for number in np.unique(into[into != NO_BLOCK]).tolist():
            self._insert(number, ids, np.flatnonzero(into == number))
        return verdict

    def advance(self, stream_ms: int) -> None:
        """Move the stream's time on: rows to come are judged by it."""
        self._stream_ms = max(self._stream_ms, stream_ms)
        if not self._open:
            self._drop()

    def begin(self) -> None:
        """Remember the state, for ``abort``."""
        assert not self._open, "a transaction is open already"
        self._open = True
        self._saved_stream_ms = self._stream_ms

    def commit(self) -> None:
        """Keep what has come since ``begin``."""
        self._close()
        self._drop()

    def abort(self) -> None:
        """Go back to the state at ``begin``; costs the rows since."""
        for number in [number for number, block in self._blocks.items() if block.is_new]:
            del self._blocks[number]
        for block in self._blocks.values():
            if block.saved is not None:
                (block.table, block.payloads), block.count = block.saved, block.saved_count
        # Nothing that was there before lies behind what came later: it can go in any order.
        for block, places in self._places:
            block.table[places] = 0
            block.count -= len(places)
        self._stream_ms = self._saved_stream_ms
        self._close()

    def dump(self) -> dict[str, np.ndarray | int | bytes | str]:
        """Return all that is remembered, as ``load`` takes it."""
        numbers = sorted(self._blocks)
        blocks = [self._blocks[number] for number in numbers]
        taken = [np.flatnonzero(block.table) for block in blocks]
        nothing = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)]
        pairs = list(zip(blocks, taken, strict=True))
        return {
            "stream_ms": self._stream_ms,
            "blocks": np.array(numbers, np.int64),
            "counts": np.array([len(places) for places in taken], np.int64),
            "hashes": np.concatenate([b.table[p] for b, p in pairs] or nothing[0]),
            "payloads": np.concatenate([b.payloads[p] for b, p in pairs] or nothing[1]),
        }

    def load(self, dumped: Mapping[str, np.ndarray | int | bytes | str]) -> None:
        """Remember what ``dump`` returned, and nothing else; no transaction may be open."""
        assert not self._open, "a transaction is open"
        self._blocks = {}
        stream_ms = dumped["stream_ms"]
        assert isinstance(stream_ms, int), stream_ms
        self._stream_ms = stream_ms
        hashes, payloads = np.asarray(dumped["hashes"]), np.asarray(dumped["payloads"])
        ids = RowIds(hashes, np.ones(len(hashes), bool), payloads)
        start = 0
        numbers, counts = (np.asarray(dumped[name]).tolist() for name in ("blocks", "counts"))
        for number, count in zip(numbers, counts, strict=True):
            self._insert(number, ids, np.arange(start, start + count))
            start += count

    def _first_block(self, stream_ms: int) -> int:
        """Return the oldest block that a row may still match."""
        return (stream_ms - self._keep_ms) // self._block_ms

    def _insert(self, number: int, ids: RowIds, rows: NDArray[np.int64]) -> None:
        block = self._blocks.get(number)
        if block is None:
            block = _Block(*_tables(_FIRST_PLACES), is_new=self._open)
            self._blocks[number] = block
        needed = block.count + len(rows)
        if 4 * needed > 3 * len(block.table):
            self._grow(block, needed)
        places = np.empty(len(rows), np.int64)
        insert_ids(block.table, block.payloads, ids.hashes, ids.payload, rows, places)
        block.count = needed
        if self._open and not block.is_new and block.saved is None:
            self._places.append((block, places))

    def _grow(self, block: _Block, needed: int) -> None:
        length = len(block.table)
        while 4 * needed > 3 * length:
            length *= 2
        table, payloads = _tables(length)
        move_ids(block.table, block.payloads, table, payloads)
        if self._open and not block.is_new and block.saved is None:
            block.saved, block.saved_count = (block.table, block.payloads), block.count
        block.table, block.payloads = table, payloads

    def _close(self) -> None:
        assert self._open, "no transaction is open"
        self._open = False
        self._places = []
        for block in self._blocks.values():
            block.is_new, block.saved = False, None

    def _drop(self) -> None:
        first = self._first_block(self._stream_ms)
        for number in [number for number in self._blocks if number < first]:
            del self._blocks[number]


def _tables(places: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    return np.zeros(places, np.uint64), np.zeros(places, np.uint32)
