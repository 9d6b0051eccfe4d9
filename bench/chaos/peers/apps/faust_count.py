"""Faust: one agent, one table; counts events by key and writes the count of each event.

Started as ``python faust_count.py worker``. The settings come from the environment.
"""

from __future__ import annotations

import os
from typing import Any

import faust

app = faust.App(
    os.environ["GROUP"],
    broker=f"kafka://{os.environ['BOOTSTRAP']}",
    store=os.environ["STORE"],
    datadir=os.environ["STATE_DIR"],
    processing_guarantee="exactly_once",
    topic_partitions=int(os.environ["PARTITIONS"]),
    topic_replication_factor=1,
    topic_disable_leader=True,
    consumer_auto_offset_reset="earliest",
    broker_session_timeout=float(os.environ["SESSION_S"]),
    broker_heartbeat_interval=float(os.environ["SESSION_S"]) / 3,
)


class Event(faust.Record):
    """What comes in: the number of an event within its key, from 1."""

    seq: int


class Counted(faust.Record):
    """What goes out: how many events of the key there were, this one included."""

    key: str
    seq: int
    count: int


events = app.topic(os.environ["IN"], key_type=str, value_type=Event)
counted = app.topic(os.environ["OUT"], key_type=str, value_type=Counted)
counts = app.Table("counts", default=int, partitions=int(os.environ["PARTITIONS"]))


@app.agent(events)
async def count(stream: Any) -> None:
    """Count the events of each key."""
    async for key, event in stream.items():
        counts[key] += 1
        await counted.send(key=key, value=Counted(key, event.seq, counts[key]))


if __name__ == "__main__":
    app.main()
