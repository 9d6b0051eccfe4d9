"""Visits, and claims about some of them: definitions, rows and a lake of them, for tests."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from lake_files import write_rows

import headrace as hr

TIME = {"type": "long", "logicalType": "timestamp-millis"}
START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def record(name, **fields):
    listed = [{"name": field, "type": kind} for field, kind in fields.items()]
    return {"type": "record", "name": name, "fields": listed}


visits = hr.Source(
    "visits",
    key="guest",
    event_time="at",
    event_id="visit_id",
    schema=record("Visit", visit_id="long", guest="string", place="long", at=TIME, spent="double"),
)
claims = hr.Source(
    "claims",
    key="visit_id",
    event_time="at",
    known_at="seen",
    schema=record("Claim", visit_id="long", place="long", at=TIME, seen=TIME, bad="boolean"),
)
guest, place = hr.Entity("guest", key="guest"), hr.Entity("place", key="place")
habits = hr.FeatureView(
    "guest",
    entity=guest,
    source=visits,
    features=[
        hr.count(over=["1h", "1d"]),
        hr.mean("spent", over="1d"),
        hr.last("spent", over="1d"),
    ],
)
trouble = hr.FeatureView(
    "place",
    entity=place,
    source=visits,
    features=[
        hr.ratio(hr.count(source=claims), hr.count(), name="rate", over="2d", default=0.0),
        hr.sum(hr.feature("guest__count_1d"), over="2d", name="regulars"),
    ],
)
stay = hr.Pipeline(
    "stay",
    source=visits,
    views=[habits, trouble],
    request={"spent": hr.col("spent")},
    derived={"against_mean": hr.col("spent") / hr.feature("guest__spent_mean_1d")},
    label=hr.Label(claims, "bad", on="visit_id", delay="1d"),
)
NAMES = ["spent", "guest__count_1h", "guest__spent_mean_1d", "place__rate_2d", "place__regulars_2d"]


def world(count=600, seed=1):
    """Return visits over ten days with many ties, their places in Kafka, and claims."""
    draw = np.random.default_rng(seed)
    times = START_MS + draw.integers(0, 10 * 24, count) * 3_600_000
    partition = draw.integers(0, 3, count)
    offset = np.zeros(count, np.int64)
    for number in range(3):
        rows = np.flatnonzero(partition == number)
        offset[rows] = draw.permutation(len(rows))
    stamp = pa.timestamp("ms", "UTC")
    table = pa.table(
        {
            "visit_id": draw.permutation(count),
            "guest": [f"g{n}" for n in draw.integers(0, 9, count)],
            "place": draw.integers(0, 5, count),
            "at": pa.array(times).cast(stamp),
            "spent": np.round(draw.gamma(2, 10, count), 2),
        }
    )
    told = np.sort(draw.choice(count, count // 5, replace=False))
    claimed = pa.table(
        {
            "visit_id": table["visit_id"].take(pa.array(told)),
            "place": table["place"].take(pa.array(told)),
            "at": table["at"].take(pa.array(told)),
            "seen": pa.array(times[told] + 5 * HOUR_MS).cast(stamp),
            "bad": pa.array(draw.random(len(told)) < 0.8),
        }
    )
    return table, partition, offset, claimed


def write_world(folder, table, partition, offset, claimed, topic_id="one", late_ms=0, first=0):
    at = table["at"].cast(pa.int64()).to_numpy()
    write_rows(
        folder,
        "visits",
        table,
        topic_id=topic_id,
        partition=partition,
        offset=offset + first,
        arrival_ms=at + late_ms,
    )
    seen = claimed["seen"].cast(pa.int64()).to_numpy()
    write_rows(
        folder,
        "claims",
        claimed,
        topic_id=f"claims-{topic_id}",
        partition=np.zeros(claimed.num_rows),
        offset=np.arange(claimed.num_rows) + first,
        arrival_ms=seen + late_ms,
    )
