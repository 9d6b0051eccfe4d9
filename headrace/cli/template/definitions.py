"""How busy each visitor is, at every page view."""

import headrace as hr

views = hr.Source(
    "views",
    key="visitor_id",
    event_time="event_time",
    event_id="view_id",
    partitioner="murmur2",
)
visitor = hr.Entity("visitor", key="visitor_id")

activity = hr.FeatureView(
    "visitor",
    entity=visitor,
    source=views,
    features=[
        hr.count(over=["5m", "1h", "1d"]),
        hr.mean("seconds", over=["1h", "1d"]),
    ],
)

traffic = hr.Pipeline(
    "traffic",
    source=views,
    views=[activity],
    request={"seconds": hr.col("seconds"), "hour_of_day": hr.hour("event_time")},
    derived={"vs_usual": hr.col("seconds") / hr.feature("visitor__seconds_mean_1d")},
)
