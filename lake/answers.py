"""What was asked and what was found, slice of asks by slice: in memory, or in files when many.

Asks are answered in the order of keys and read in the order of asks; beyond memory the answers go
through files, a pair for each slice, so that no more than one slice is in memory at a time.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from headrace.features.columns import EventColumns, take

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from headrace.features.plan import SourcePlan

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

NOT_ASKED: Final = -1
_ASK: Final = "ask"
_TIME: Final = "event_time_ms"
_COLUMN: Final = "column:"


@dataclass(slots=True)
class Asks:
    """What is asked, in the order of the answers: events by position, or bare keys and times.

    ``position``: rows of the scored source, each once, each with what came up to and with it. None:
    ``bare`` holds the keys' columns, and each ask takes all events up to its time.
    """

    event_time_ms: Integers
    position: Integers | None
    bare: EventColumns | None
    _sorted: Integers = field(init=False)
    _ask: Integers | None = field(init=False)

    def __post_init__(self) -> None:
        self._sorted, self._ask = np.zeros(0, np.int64), None
        if self.position is not None:
            self._sorted = self.position
            if (self.position[1:] <= self.position[:-1]).any():
                self._ask = np.argsort(self.position)
                self._sorted = self.position[self._ask]

    def __len__(self) -> int:
        return len(self.event_time_ms)

    def find(self, position: Integers) -> Integers:
        """Return which ask each row of the scored source is, ``NOT_ASKED`` for none."""
        if not len(self._sorted):
            return np.full(len(position), NOT_ASKED, dtype=np.int64)
        places = np.searchsorted(self._sorted, position)
        places[places == len(self._sorted)] = 0
        hit = self._sorted[places] == position
        asks = places if self._ask is None else self._ask[places]
        return np.where(hit, asks, NOT_ASKED)


@dataclass(slots=True)
class AnswerSlice:
    """Answers of the asks from ``start`` to ``start + len(answered)``.

    ``numbers`` by name: features, ages (``<view>__age_ms``) and columns that came as they are, NaN
    for null, one an ask. ``events`` holds the columns of the events that were found, and
    ``event_row`` where each ask's lies in it, -1 for none (int64, one an ask).
    """

    start: int
    numbers: dict[str, Floats]
    events: EventColumns | None
    event_row: Integers
    answered: NDArray[np.bool_]

    def events_at(self, rows: Integers) -> EventColumns:
        """Return the columns of the events of some asks of the slice, which all have one."""
        assert self.events is not None, "an event is asked for that was found"
        places = self.event_row[rows]
        if len(places) and (np.diff(places) == 1).all():
            return sliced(self.events, int(places[0]), len(places))
        return take(self.events, places)


class Answers:
    """Takes numbers and events in any order, gives them back in slices of asks."""

    def __init__(self, asks: Asks, slice_rows: int, folder: Path | None) -> None:
        """Hold the answers to ``asks``; more than ``slice_rows`` go through ``folder``."""
        self._asks = asks
        self._rows = max(1, len(asks) if folder is None else min(slice_rows, len(asks)))
        self._folder = folder if len(asks) > self._rows else None
        self._names: dict[str, tuple[str, ...]] = {}
        self._matrices: dict[str, Floats] = {}
        self._events: dict[int, list[pa.RecordBatch]] = {}
        self._source: SourcePlan | None = None
        self.answered = np.ones(len(asks), bool)
        self.rejected: Counter[tuple[str, str]] = Counter()
        self.incomplete = 0

    def add_numbers(self, group: str, names: Sequence[str], ask: Integers, values: Floats) -> None:
        """Add a group's numbers for some asks; an ask that never comes is NaN in all of them.

        Shape: ask (k,), values (k, len(names)).
        """
        self.declare(group, names)
        if self._folder is None:
            self._matrices[group][ask] = values
            return
        for number, rows in self._by_slice(ask):
            with self._path(group, number, "asks").open("ab") as file:
                file.write(np.ascontiguousarray(ask[rows]).tobytes())
            with self._path(group, number, "values").open("ab") as file:
                file.write(np.ascontiguousarray(values[rows]).tobytes())

    def declare(self, group: str, names: Sequence[str]) -> None:
        """Make a group known whose numbers may all be missing."""
        if group in self._names:
            return
        self._names[group] = tuple(names)
        if self._folder is None:
            self._matrices[group] = np.full((len(self._asks), len(names)), np.nan)

    def add_events(self, ask: Integers, events: EventColumns) -> None:
        """Add the columns of the events that asks name."""
        self._source = events.source
        batch = pa.RecordBatch.from_pydict(
            {
                _ASK: pa.array(ask),
                _TIME: pa.array(events.event_time_ms),
                **{f"{_COLUMN}{name}": column for name, column in events.columns.items()},
            }
        )
        if self._folder is None:
            self._events.setdefault(0, []).append(batch)
            return
        for number, rows in self._by_slice(ask):
            path = self._path(f"events-{len(self._events.setdefault(number, []))}", number, "arrow")
            part = batch.take(pa.array(rows))
            with pa.ipc.new_file(str(path), part.schema) as writer:
                writer.write_batch(part)
            # An empty batch stands for the file.
            self._events[number].append(part.slice(0, 0))

    def slices(self) -> Iterator[AnswerSlice]:
        """Yield the answers in the order of the asks; what went to files is gone afterwards."""
        count = len(self._asks)
        for number in range(max(1, -(-count // self._rows))):
            start = number * self._rows
            stop = min(start + self._rows, count)
            numbers: dict[str, Floats] = {}
            for group, names in self._names.items():
                matrix = self._matrix(group, number, start, stop)
                numbers |= {name: matrix[:, place] for place, name in enumerate(names)}
            events, event_row = self._slice_events(number, start, stop)
            yield AnswerSlice(start, numbers, events, event_row, self.answered[start:stop])

    def _matrix(self, group: str, number: int, start: int, stop: int) -> Floats:
        if self._folder is None:
            return self._matrices[group]
        width = len(self._names[group])
        matrix = np.full((stop - start, width), np.nan)
        asks, values = (self._path(group, number, kind) for kind in ("asks", "values"))
        if asks.exists():
            matrix[np.fromfile(asks, np.int64) - start] = np.fromfile(values).reshape(-1, width)
            asks.unlink()
            values.unlink()
        return matrix

    def _slice_events(
        self, number: int, start: int, stop: int
    ) -> tuple[EventColumns | None, Integers]:
        count = stop - start
        if self._source is None:
            bare = self._asks.bare
            return (None if bare is None else sliced(bare, start, count)), np.arange(count)
        batches = self._events.pop(number, [])
        if self._folder is not None:
            batches = [
                self._take_file(self._path(f"events-{place}", number, "arrow"))
                for place in range(len(batches))
            ]
        event_row = np.full(count, -1)
        if not batches:
            return None, event_row
        events, ask = _joined(batches, self._source)
        event_row[ask - start] = np.arange(len(ask))
        return events, event_row

    @staticmethod
    def _take_file(path: Path) -> pa.RecordBatch:
        # Read, not mapped: the file goes before its rows do.
        with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
            batch = reader.get_batch(0)
        path.unlink()
        return batch

    def _by_slice(self, ask: Integers) -> Iterator[tuple[int, Integers]]:
        """Yield each slice that some of the asks lie in, and which of them do."""
        number = ask // self._rows
        if len(number) and (number == number[0]).all():
            yield int(number[0]), np.arange(len(ask))
            return
        order = np.argsort(number, kind="stable")
        found, starts = np.unique(number[order], return_index=True)
        yield from zip(found.tolist(), np.split(order, starts[1:]), strict=True)

    def _path(self, group: str, number: int, kind: str) -> Path:
        assert self._folder is not None, "answers in memory have no files"
        return self._folder / f"{group}-{number:05}.{kind}"


def sliced(events: EventColumns, start: int, length: int) -> EventColumns:
    """Return some events that follow each other."""
    part = slice(start, start + length)
    times = events.event_time_ms[part]
    return dataclasses.replace(
        events,
        length=len(times),
        event_time_ms=times,
        known_at_ms=events.known_at_ms[part],
        columns={name: column.slice(start, length) for name, column in events.columns.items()},
    )


def _joined(batches: list[pa.RecordBatch], source: SourcePlan) -> tuple[EventColumns, Integers]:
    """Return events in the order of their asks, and the asks."""
    table = pa.Table.from_batches(batches)
    ask = table.column(_ASK).to_numpy()
    if (ask[1:] < ask[:-1]).any():
        order = np.argsort(ask, kind="stable")
        ask, table = ask[order], table.take(pa.array(order))
    times = table.column(_TIME).to_numpy()
    columns = {
        name.removeprefix(_COLUMN): table.column(name).combine_chunks()
        for name in table.schema.names
        if name.startswith(_COLUMN)
    }
    return EventColumns(source, table.num_rows, times, times, columns), ask
