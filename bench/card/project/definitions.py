"""The card job in our terms: windows of whole hours, as the peers count them."""
# ruff: noqa: INP001 - a project is a folder, not a package.

import headrace as hr

events = hr.Source(
    "card_events",
    key="customer_id",
    event_time="ts",
    event_id="transaction_id",
    partitioner="murmur2",
)
customer = hr.Entity("customer", key="customer_id")
spending = hr.FeatureView(
    "customer",
    entity=customer,
    source=events,
    grain="1h",
    features=[
        hr.count(over=["1d", "7d", "30d"]),
        hr.mean("amount", over=["1d", "7d", "30d"]),
    ],
)
card = hr.Pipeline(
    "card",
    source=events,
    views=[spending],
    request={"amount": hr.col("amount"), "hour_of_day": hr.hour("ts")},
)
