"""Two processes write the same keys in random order: what stands at the end must be the newest.

``python -m bench.redis_writers URL SEED WRITES`` is one of the two.
"""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from bench.measure import BenchError
from headrace.features.store.connection import RedisConnection
from headrace.features.store.layout import Fence, KeyLayout, feature_field, fence_field, read_value
from headrace.features.store.port import EntityRows
from headrace.features.store.redis_store import RedisOnlineStore
from headrace.features.store.resp import command
from headrace.features.store.views import OnlineEntity, OnlineFeature, OnlineView

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS, KEYS_A_WRITE, LINEAGES = 100, 50, 4
DAY_MS = 86_400_000
WRITER_TIMEOUT_S = 600
_FEATURES = tuple(
    OnlineFeature(f"spending__{name}", "spending", name, "float64", None) for name in ("a", "b")
)
ENTITY = OnlineEntity(
    "bench",
    "writers",
    "customer",
    "customer_id",
    "int64",
    (OnlineView("spending", _FEATURES, DAY_MS),),
    2 * DAY_MS,
    shared=False,
)


@dataclass(frozen=True, slots=True)
class Write:
    """Keys that are written at once, with their fence. The value of all is ``number``."""

    lineage: int
    version: int
    keys: tuple[int, ...]

    @property
    def number(self) -> float:
        """What is written: it goes up with (lineage, version)."""
        return self.lineage * 1e9 + self.version


def plan(seed: int, writes: int) -> Iterator[Write]:
    """Yield what one writer writes: each fence once, in random order, to half of the keys."""
    drawn = random.Random(seed)
    versions = writes // KEYS_A_WRITE // LINEAGES
    fences = [(n, version) for n in range(1, LINEAGES + 1) for version in range(versions)]
    drawn.shuffle(fences)
    for lineage, version in fences:
        yield Write(lineage, version, tuple(drawn.sample(range(KEYS), KEYS_A_WRITE)))


@dataclass(frozen=True, slots=True)
class TwoWriters:
    """What came of them. ``writes`` of both; ``wrong`` keys are not the newest, or torn."""

    writes: int
    keys: int
    wrong: int
    refused: int


def run_two(url: str, writes: int) -> TwoWriters:
    """Let two processes write at once and compare what stands there with what they wrote.

    Raises:
        BenchError: If one of them fails.

    """
    arguments = [sys.executable, "-m", "bench.redis_writers", url]
    writers = [
        subprocess.Popen([*arguments, str(seed), str(writes)], stdout=subprocess.PIPE, text=True)
        for seed in (1, 2)
    ]
    accepted = 0
    for writer in writers:
        output, _ = writer.communicate(timeout=WRITER_TIMEOUT_S)
        if writer.returncode:
            msg = f"a writer failed with {writer.returncode}"
            raise BenchError(msg)
        accepted += int(output)
    newest: dict[int, tuple[int, int]] = {}
    count = 0
    for one in (*plan(1, writes), *plan(2, writes)):
        count += len(one.keys)
        for key in one.keys:
            newest[key] = max(newest.get(key, (0, 0)), (one.lineage, one.version))
    wrong = sum(_stored(url, key) != fence for key, fence in newest.items())
    return TwoWriters(count, len(newest), wrong, count - accepted)


def _stored(url: str, key: int) -> tuple[int, int] | None:
    """Return the fence of a key, if its values are those of the fence."""
    name = KeyLayout.of(ENTITY).key(key.to_bytes(8, "little"))
    fields = [fence_field(ENTITY.pipeline), *map(feature_field, _FEATURES)]
    connection = RedisConnection(url)
    reply: list[Any]
    (reply,) = connection.run([command((b"HMGET", name, *fields))], 1)
    connection.close()
    if reply[0] is None:
        return None
    fence = Fence.read(reply[0])
    expected = Write(fence.lineage, fence.version, ()).number
    if any(read_value(value) != expected for value in reply[1:]):
        return None
    return fence.lineage, fence.version


def main() -> int:
    """Be one of the writers: print how many of its writes were taken."""
    url, seed, writes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    store, accepted = RedisOnlineStore(url), 0
    for one in plan(seed, writes):
        count = len(one.keys)
        times = np.full(count, one.version, np.int64)
        values = np.full((count, len(_FEATURES)), one.number)
        rows = EntityRows(pa.array(one.keys, pa.int64()), values, times, times, times)
        accepted += store.write(ENTITY, 0, one.lineage, rows, 0)
    store.close()
    print(accepted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
