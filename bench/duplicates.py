"""What remembering event ids costs, a row and an id: ``python -m bench.duplicates``.

A day of ids, hour by hour, in batches: first all new, then a tenth of them a second time.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import pyarrow as pa

from headrace.features.duplicates import HOUR_MS, IdMemory, RowIds
from headrace.features.kernels.ids import DUPLICATE
from headrace.features.kernels.keys import hash_keys

START_MS = 1_700_000_000_000


def measure(per_second: int, batch_rows: int, hours: int) -> dict[str, float]:
    """Return the costs with ``per_second`` new ids for ``hours`` of event time."""
    memory = IdMemory(24 * HOUR_MS, HOUR_MS)
    rng = np.random.default_rng(1)
    seconds, rows, worst = 0.0, 0, 0.0
    ids, times = RowIds(*(np.zeros(0, kind) for kind in ("u8", "?", "u4"))), np.zeros(0, np.int64)
    hour_rows = per_second * 3_600
    for hour in range(hours):
        for start in range(0, hour_rows, batch_rows):
            count = min(batch_rows, hour_rows - start)
            first = hour * hour_rows + start
            hashes = hash_keys(pa.array(np.arange(first, first + count)))
            ids = RowIds(hashes, np.ones(count, bool), np.zeros(count, np.uint32))
            times = np.sort(rng.integers(0, HOUR_MS, count)) + START_MS + hour * HOUR_MS
            if hour == hours - 1:
                before = time.perf_counter()
                memory.judge(ids, times)
                took = time.perf_counter() - before
                seconds, rows, worst = seconds + took, rows + count, max(worst, took)
            else:
                memory.judge(ids, times)
        memory.advance(START_MS + hour * HOUR_MS)
    again = memory.judge(ids, times)
    assert (again == DUPLICATE).all(), "all of these had come"
    return {
        "new_ids_per_second": per_second,
        "batch_rows": batch_rows,
        "ids": memory.id_count,
        "bytes_per_id": round(memory.nbytes / memory.id_count, 1),
        "megabytes": round(memory.nbytes / 1e6, 1),
        "ns_per_row": round(seconds / rows * 1e9),
        "slowest_batch_ms": round(worst * 1e3, 2),
    }


def main() -> None:
    """Measure at the rates asked for and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-second", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--batch-rows", type=int, nargs="+", default=[100, 5_000])
    parser.add_argument("--hours", type=int, default=25)
    given = parser.parse_args()
    measure(1, 100, 2)
    for per_second in given.per_second:
        for batch_rows in given.batch_rows:
            print(json.dumps(measure(per_second, batch_rows, given.hours)), flush=True)


if __name__ == "__main__":
    main()
