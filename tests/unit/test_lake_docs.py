"""The page on the lake lists what the metrics page has."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from headrace.lake.telemetry import LakeTelemetry


def test_every_metric_is_in_the_docs_with_its_text(repository):
    registry = CollectorRegistry()
    LakeTelemetry(registry)
    text = (repository / "docs" / "lake.md").read_text(encoding="utf-8")

    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"| `{name}` | {family.documentation} |" in text
