"""Compile every kernel that a worker calls, into numba's cache: the image's build runs this.

python -P warm_kernels.py PROJECT… (folders with a headrace.yaml)

Without it a container's first start compiles for a minute before it is ready. Nothing is sent and
no broker is needed: it is the worker's own warm-up, on made-up records.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import lightgbm
import numpy as np
import pyarrow as pa
from numba.core.caching import NullCache
from numba.core.dispatcher import Dispatcher

from headrace.features.compiler import compile_project
from headrace.features.duplicates import IdMemory, RowIds
from headrace.features.kernels.keys import crc32_partitions, murmur2_partitions
from headrace.features.project import load_project
from headrace.features.state import EntityState
from headrace.runtime.clock import SystemClock
from headrace.scoring.forest import compile_forest
from headrace.scoring.lightgbm_text import check_model_text
from headrace.streams.testing import Driver
from headrace.streams.warmup import warm_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.features.plan import StagePlan

_PARTITIONS = 4
_UNUSED = {"commit_journal", "abort_journal"}  # Of transactions, which no worker opens yet.
_KEYS = 20_000  # More than a new state has room for, so that its tables grow.


def warm_project(folder: Path) -> int:
    """Run the warm-up of all pipelines of a project and return how many records were scored."""
    scored = 0
    for plan in compile_project(load_project(folder), _PARTITIONS).pipelines:
        schema_ids = {source.name: number for number, source in enumerate(plan.sources, start=1)}
        context = Driver(plan, partitions=_PARTITIONS).context
        scored += warm_up(plan, context, schema_ids, SystemClock().now_ms())
        for stage in plan.stages:
            warm_state(stage)
    return scored


def warm_state(stage: StagePlan) -> None:
    """Give a stage many new keys, of each kind that an entity may have."""
    numbers = np.arange(_KEYS)
    names = [b"%d" % number for number in numbers]
    for keys in (pa.array(numbers), pa.array(names), pa.array(names).cast(pa.string())):
        state = EntityState(stage)
        applied = state.apply(
            keys=keys,
            inputs=np.zeros(_KEYS, dtype=np.int8),
            event_time_ms=numbers,
            known_at_ms=numbers,
            values=np.ones((_KEYS, len(stage.values))),
            scored=np.ones(_KEYS, dtype=bool),
        )
        assert state.key_count == _KEYS
        state.probe(state.distinct(applied.slots))
        state.open_capture(whole=True)
        records = state.capture()
        while state.captures.is_open:
            records += state.capture()
        EntityState(stage).restore(records, _KEYS)
    for place in (murmur2_partitions, crc32_partitions):
        place(names, _PARTITIONS)


def warm_ids() -> None:
    """Remember so many event ids, each twice, that the tables grow, in a transaction and out."""
    hashes = np.arange(1, _KEYS + 1, dtype=np.uint64)
    ids = RowIds(hashes, np.ones(_KEYS, bool), hashes.astype(np.uint32))
    memory = IdMemory(window_ms=3_600_000, lateness_ms=0)
    for _ in range(2):
        memory.begin()
        memory.judge(ids, np.zeros(_KEYS, np.int64))
        memory.commit()
    assert memory.id_count == _KEYS


def warm_forest() -> int:
    """Score with a small model, by the row and by the batch, and return the number of trees."""
    rows = np.random.default_rng(0).normal(size=(1_000, 3))
    data = lightgbm.Dataset(rows, (rows.sum(axis=1) > 0).astype(float))
    options = {"objective": "binary", "num_leaves": 7, "num_threads": 1, "verbosity": -1}
    booster = lightgbm.train(options, data, num_boost_round=5)
    forest = compile_forest(check_model_text(booster.model_to_string().encode()))
    assert forest is not None
    for part in (rows[:1], rows):
        assert np.array_equal(forest.predict(np.ascontiguousarray(part)), booster.predict(part))
    return booster.num_trees()


def cold_kernels() -> set[str]:
    """Return the kernels of features that were not called, and so not compiled."""
    return {
        f"{name}.{attribute}"
        for name, module in sys.modules.items()
        if name.startswith("headrace.features.kernels.")
        for attribute, value in vars(module).items()
        if isinstance(value, Dispatcher) and value.__module__ == name
        if not isinstance(value._cache, NullCache) and not value.signatures  # noqa: SLF001
    }


def main(folders: Sequence[str]) -> None:
    """Warm everything and say what was done; a kernel that was not called fails the build."""
    scored = sum(warm_project(Path(folder)) for folder in folders)
    assert scored, folders
    warm_ids()
    trees = warm_forest()
    cold = {name for name in cold_kernels() if name.rpartition(".")[2] not in _UNUSED}
    assert not cold, f"a worker would compile these beside its first events: {sorted(cold)}"
    sys.stdout.write(f"kernels are warm: {scored} records, {trees} trees\n")


if __name__ == "__main__":
    main(sys.argv[1:])
