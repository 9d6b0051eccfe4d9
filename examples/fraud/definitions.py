"""Card fraud: how a customer spends, how risky a terminal is, and a score for each transaction."""

import headrace as hr

transactions = hr.Source(
    "transactions",
    key="customer_id",
    event_time="event_time",
    event_id="transaction_id",
    partitioner="murmur2",
)
reports = hr.Source(
    "reports",
    key="transaction_id",
    event_time="event_time",
    known_at="known_at",
    event_id="report_id",
)

customer = hr.Entity("customer", key="customer_id")
terminal = hr.Entity("terminal", key="terminal_id")

spending = hr.FeatureView(
    "customer",
    entity=customer,
    source=transactions,
    features=[
        hr.count(over=["1d", "7d", "30d"]),
        hr.mean("amount", over=["1d", "7d", "30d"]),
    ],
)
# A fraud is known within a week, so the windows end a week back: every transaction in them is
# either reported by now or honest.
risk = hr.FeatureView(
    "terminal",
    entity=terminal,
    source=transactions,
    delay="7d",
    features=[
        hr.count(over=["1d", "7d", "30d"]),
        hr.ratio(
            hr.count(source=reports),
            hr.count(),
            name="risk",
            over=["1d", "7d", "30d"],
            default=0.0,
        ),
    ],
)

fraud = hr.Pipeline(
    "fraud",
    source=transactions,
    views=[spending, risk],
    request={
        "amount": hr.col("amount"),
        "during_weekend": hr.weekday("event_time") >= 5,
        "during_night": hr.hour("event_time") <= 6,
    },
    label=hr.Label(reports, "is_fraud", on="transaction_id", delay="7d"),
    # Chosen on the weeks before those of the published figures: python -m bench.choose_lightgbm
    model=hr.LightGBM(num_leaves=15, learning_rate=0.05, n_estimators=200, min_child_samples=50),
)
