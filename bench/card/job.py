"""What the card job reads and computes: the events, the model, the project in our terms.

The events equal those of the peers' own generator bit for bit, and the model is trained as theirs,
so that every contender reads the same topic and gives the same scores.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fastavro
import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

EVENT_COUNT = 1_000_000
CUSTOMER_COUNT = 50_000
TERMINAL_COUNT = 10_000
PARTITION_COUNT = 4
START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
COUNTRIES = ("BE", "FR", "DE", "NL", "US", "GB")
SEED = 7

#: The model's inputs in order, as the peers call them.
FEATURES = ("amount", "hour_of_day", "c1", "c7", "c30", "m1", "m7", "m30")

SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "T",
    "fields": [
        {"name": "transaction_id", "type": "long"},
        {"name": "ts", "type": "long"},
        {"name": "customer_id", "type": "string"},
        {"name": "terminal_id", "type": "string"},
        {"name": "amount", "type": "double"},
        {"name": "country", "type": "string"},
    ],
}


@dataclass(frozen=True, slots=True)
class Events:
    """The job's events in the order in which they are produced; the row number is the id."""

    ts_ms: NDArray[np.int64]
    customer: NDArray[np.int64]
    terminal: NDArray[np.int64]
    amount: NDArray[np.float64]
    country: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ts_ms)


def make_events(count: int = EVENT_COUNT) -> Events:
    """Draw the events: customers by zipf 1.3, 60 days, 2 % up to an hour out of order.

    The draws and their order are those of the peers' generator; with the same count the columns
    are the same bits.
    """
    rng = np.random.default_rng(SEED)
    customer = rng.zipf(1.3, count) % CUSTOMER_COUNT
    terminal = rng.integers(0, TERMINAL_COUNT, count)
    amount = np.round(rng.lognormal(3.5, 1, count), 2)
    in_order_ms = np.sort(rng.integers(0, 60 * DAY_MS, count))
    back_ms = (rng.random(count) < 0.02) * rng.integers(0, HOUR_MS, count)
    country = rng.integers(0, len(COUNTRIES), count)
    return Events(START_MS + in_order_ms - back_ms, customer, terminal, amount, country)


def customer_name(number: int) -> str:
    """Return the key of a customer."""
    return f"C{number:07d}"


def encode(events: Events, cache: Path) -> pa.BinaryArray:
    """Return the events' Avro bodies, without a header, in order; kept in a file once made.

    fastavro writes them, as in the peers' generator: nothing of ours has a part in the input.
    """
    if cache.exists():
        with pa.memory_map(str(cache)) as source:
            return pa.ipc.open_file(source).read_all()["body"].combine_chunks()
    schema = fastavro.parse_schema(SCHEMA)
    bodies = []
    buffer = io.BytesIO()
    columns = (events.ts_ms, events.customer, events.terminal, events.amount, events.country)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for number, (ts_ms, customer, terminal, amount, country) in enumerate(rows):
        buffer.seek(0)
        buffer.truncate()
        row = {
            "transaction_id": number,
            "ts": ts_ms,
            "customer_id": customer_name(customer),
            "terminal_id": f"T{terminal:06d}",
            "amount": amount,
            "country": COUNTRIES[country],
        }
        fastavro.schemaless_writer(buffer, schema, row)
        bodies.append(buffer.getvalue())
    table = pa.table({"body": pa.array(bodies, pa.binary())})
    cache.parent.mkdir(parents=True, exist_ok=True)
    part = cache.with_suffix(".part")
    with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    # A run that is broken off leaves no half file behind under the good name.
    part.rename(cache)
    return table["body"].combine_chunks()


def train_model(path: Path) -> Path:
    """Train the job's model, 100 trees of 31 leaves on made-up vectors; kept once made."""
    if path.exists():
        return path
    import lightgbm

    rng = np.random.default_rng(0)
    count = 200_000
    inputs = np.c_[
        rng.lognormal(3.5, 1, count),
        rng.integers(0, 24, count),
        rng.integers(1, 10, count),
        rng.integers(1, 60, count),
        rng.integers(1, 250, count),
        rng.lognormal(3.5, 0.5, (count, 3)),
    ]
    odds = inputs[:, 0] / 60 - 3 + (inputs[:, 2] > 5) * inputs[:, 5] / 60
    label = (rng.random(count) < 1 / (1 + np.exp(-odds))).astype(int)
    parameters = {"objective": "binary", "num_leaves": 31, "verbose": -1, "num_threads": 2}
    booster = lightgbm.train(parameters, lightgbm.Dataset(inputs, label), 100)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    booster.save_model(part)
    part.rename(path)
    return path
