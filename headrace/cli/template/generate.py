"""Make test events: page views of the last hour, in data/views.parquet."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
HOUR_MS = 3_600_000

random = np.random.default_rng(1)
now_ms = np.datetime64("now", "ms").astype(np.int64)
event_time_ms = np.sort(now_ms - random.integers(0, HOUR_MS, COUNT))
# Some visitors come far more often than others.
visitors = random.zipf(1.5, COUNT) % 1_000
pages = np.array(["home", "search", "product", "cart"])
table = pa.table(
    {
        "view_id": pa.array(np.arange(COUNT)),
        "event_time": pa.array(event_time_ms, pa.timestamp("ms", "UTC")),
        "visitor_id": pa.array([f"v{visitor:04d}" for visitor in visitors]),
        "page": pa.array(pages[random.integers(0, len(pages), COUNT)]),
        "seconds": pa.array(np.round(random.gamma(2.0, 15.0, COUNT), 1)),
    }
)
folder = Path(__file__).parent / "data"
folder.mkdir(exist_ok=True)
pq.write_table(table, folder / "views.parquet")
sys.stdout.write(f"{COUNT} views of {len(np.unique(visitors))} visitors in data/views.parquet\n")
