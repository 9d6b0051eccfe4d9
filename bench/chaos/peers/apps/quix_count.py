"""Quix Streams: one stateful apply; counts events by key and writes the count of each event.

Started as ``python quix_count.py``. The settings come from the environment.
"""

from __future__ import annotations

import os
from typing import Any

from quixstreams import Application  # type: ignore[import-not-found]

app = Application(
    broker_address=os.environ["BOOTSTRAP"],
    consumer_group=os.environ["GROUP"],
    auto_offset_reset="earliest",
    state_dir=os.environ["STATE_DIR"],
    processing_guarantee="exactly-once",
    consumer_extra_config={"session.timeout.ms": int(float(os.environ["SESSION_S"]) * 1000)},
)
events = app.topic(os.environ["IN"], key_deserializer="str", value_deserializer="json")
counted = app.topic(os.environ["OUT"], key_serializer="str", value_serializer="json")


def count(value: dict[str, Any], key: Any, _timestamp: Any, _headers: Any, state: Any) -> Any:
    """Return an event with the count of its key, this event included."""
    total = state.get("count", 0) + 1
    state.set("count", total)
    return {"key": key, "seq": value["seq"], "count": total}


if __name__ == "__main__":
    app.dataframe(events).apply(count, stateful=True, metadata=True).to_topic(counted)
    app.run()
