"""The table of topics."""

from __future__ import annotations

from headrace.runtime import topics


def specs(**changes):
    given = {"partitions": 4, "replication": 1} | changes
    return {
        spec.name: spec
        for spec in topics.topic_specs(
            "shop",
            ["transactions", "reports", "transactions"],
            {"fraud": [topics.rekey("fraud", "terminal", "0a1b2c3d")], "churn": []},
            **given,
        )
    }


def test_every_topic_of_a_project_is_made_once():
    assert sorted(specs()) == [
        "churn.predictions",
        "churn.snapshots",
        "fraud.predictions",
        "fraud.rekey.terminal.0a1b2c3d",
        "fraud.snapshots",
        "reports",
        "reports.dlq",
        "reports.late",
        "shop.deployments",
        "shop.erasures",
        "transactions",
        "transactions.dlq",
        "transactions.late",
    ]


def test_logs_that_state_is_rebuilt_from_are_kept_for_ever_and_carry_the_brokers_time():
    for name in ("transactions", "reports", "fraud.rekey.terminal.0a1b2c3d"):
        config = specs()[name].config

        assert config["retention.ms"] == "-1"
        assert config["message.timestamp.type"] == "LogAppendTime"


def test_refused_records_keep_their_own_time_and_may_be_larger_than_any_reader_takes():
    for name in ("transactions.dlq", "transactions.late"):
        config = specs()[name].config

        assert "message.timestamp.type" not in config
        assert config["retention.ms"] == "-1"
        assert int(config["max.message.bytes"]) > 10_000_000


def test_deployments_are_one_compacted_partition():
    spec = specs(partitions=12)["shop.deployments"]

    assert spec.partitions == 1
    assert spec.config["cleanup.policy"] == "compact"


def test_a_site_may_set_its_own_topic_settings_for_sources_only():
    made = specs(source_config={"compression.type": "zstd"})

    assert made["transactions"].config["compression.type"] == "zstd"
    assert "compression.type" not in made["fraud.rekey.terminal.0a1b2c3d"].config
