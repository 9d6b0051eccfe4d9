"""What a read_committed reader must have seen: each event once, in order, with the right count."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Seen(NamedTuple):
    """One output: where it lies, what it says, when the broker took it and a reader got it."""

    partition: int
    offset: int
    key: str
    seq: int
    total: int
    append_ms: int
    read_ms: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far the outputs are from those of a run without faults.

    ``lost`` and ``duplicated`` count events and surplus outputs, ``reordered`` outputs that lie
    behind a later one of their key, ``wrong`` events of which an output has another count than its
    number within the key. ``unstable`` counts outputs that one of two readers saw alone.
    """

    events: int
    lost: int
    duplicated: int
    reordered: int
    wrong: int
    unstable: int

    @property
    def exact(self) -> bool:
        """Whether nothing is amiss."""
        return not (self.lost or self.duplicated or self.reordered or self.wrong or self.unstable)


def judge(expected: Mapping[str, int], seen: list[Seen], meanwhile: Iterable[Seen]) -> Verdict:
    """Compare outputs with what the events must lead to.

    Args:
        expected: By key how many events there were; they are numbered from 1.
        seen: All outputs at the end, in order per partition.
        meanwhile: What a reader saw that read along.

    """
    copies = Counter((one.key, one.seq) for one in seen)
    wrong = {(one.key, one.seq) for one in seen if one.total != one.seq}
    wanted = {(key, seq) for key, count in expected.items() for seq in range(1, count + 1)}
    newest: dict[tuple[int, str], int] = {}
    reordered, first = 0, set[tuple[str, int]]()
    for one in seen:
        if (one.key, one.seq) in first:
            continue
        first.add((one.key, one.seq))
        place = one.partition, one.key
        reordered += one.seq < newest.get(place, 0)
        newest[place] = max(newest.get(place, 0), one.seq)
    at_end = {(one.partition, one.offset) for one in seen}
    along = {(one.partition, one.offset) for one in meanwhile}
    foreign = sum(count for place, count in copies.items() if place not in wanted)
    return Verdict(
        events=len(wanted),
        lost=len(wanted - copies.keys()),
        duplicated=sum(count - 1 for place, count in copies.items() if place in wanted) + foreign,
        reordered=reordered,
        wrong=len(wrong),
        unstable=len(at_end ^ along),
    )


def recoveries_s(kills_ms: list[int], seen: list[Seen]) -> list[float]:
    """Return for each kill the seconds until a reader got an output that was written after it.

    Args:
        kills_ms: When processes were killed, epoch ms.
        seen: What a reader saw that read along, in the order in which it came.

    """
    found = []
    for kill_ms in kills_ms:
        after = [one.read_ms for one in seen if one.append_ms > kill_ms]
        if after:
            found.append((min(after) - kill_ms) / 1000)
    return found
