"""What must hold of what readers see: nothing lost, nothing twice, in order, bit for bit."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.simulate.broker import Broker, Entry, Place
    from bench.simulate.cases import Case

Output = tuple[str, int, bytes | None, bytes | None]
# Of outputs that are wrong so many are told.
TOLD = 3


class Finding(AssertionError):  # noqa: N818 -- what the simulation is for, not an error of it
    """Something that must hold does not."""


class Reader:
    """A read_committed reader that reads all along and keeps what it has seen."""

    def __init__(self, broker: Broker, places: list[Place]) -> None:
        self._broker = broker
        self._next = dict.fromkeys(places, 0)
        self.seen: dict[Place, list[tuple[int, Entry]]] = {place: [] for place in places}

    def read(self) -> None:
        """Read up to the last stable offset."""
        for place, position in self._next.items():
            log = self._broker.logs[place]
            for offset in range(position, log.stable):
                entry = log.entries[offset]
                if not entry.control and not entry.aborted:
                    self.seen[place].append((offset, entry))
            self._next[place] = max(position, log.stable)

    @property
    def distinct(self) -> int:
        """Count what was seen, what came twice once."""
        return len({(p, e.key, e.value) for p, seen in self.seen.items() for _, e in seen})

    def check(self) -> None:
        """Compare what was seen on the way with what is there in the end.

        Raises:
            Finding: If something vanished or came later at an offset before.

        """
        for place, seen in self.seen.items():
            now = [offset for offset, _ in self._broker.logs[place].committed()]
            before = [offset for offset, _ in seen]
            if now != before:
                message = f"{place}: a reader on the way saw offsets {before}, at the end are {now}"
                raise Finding(message)


def check_outputs(case: Case, broker: Broker, *, exactly_once: bool) -> None:
    """Compare committed outputs with the run without faults.

    Raises:
        Finding: If one is lost, wrong, twice (in exactly-once), or out of its key's order.

    """
    found: list[Output] = [
        (topic, partition, entry.key, entry.value)
        for (topic, partition), log in sorted(broker.logs.items())
        if topic in case.output_topics
        for _, entry in log.committed()
    ]
    counts, right = Counter(found), Counter(case.outputs)
    lost = [output for output in case.outputs if not counts[output]]
    wrong = [output for output in found if not right[output]]
    twice = [output for output, count in counts.items() if count > right[output] > 0]
    first_found, first_right = _by_key(found), _by_key(case.outputs)
    disordered = [key for key in first_right if first_found[key] != first_right[key]]
    faults: dict[str, list[Any]] = {"lost": lost, "wrong": wrong}
    if exactly_once:
        faults["twice"] = twice
    if not lost and not wrong:
        faults["out of order"] = disordered
    told = [
        f"{len(outputs)} {what}: {'; '.join(map(str, outputs[:TOLD]))}"
        for what, outputs in faults.items()
        if outputs
    ]
    if told:
        raise Finding(" | ".join(told))


def _by_key(outputs: list[Output]) -> dict[tuple[str, int, bytes | None], list[bytes | None]]:
    ordered: dict[tuple[str, int, bytes | None], list[bytes | None]] = defaultdict(list)
    for topic, partition, key, value in dict.fromkeys(outputs):
        ordered[topic, partition, key].append(value)
    return ordered
