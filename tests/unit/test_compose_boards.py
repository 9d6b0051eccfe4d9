"""The board and the alerts ask for metrics that the code has, and link to what is written."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
import yaml
from compose_file import REPOSITORY
from prometheus_client import CollectorRegistry

from headrace.lake.telemetry import LakeTelemetry
from headrace.runtime.clock import SystemClock
from headrace.streams.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = REPOSITORY / "deploy"
BOARD = json.loads((DEPLOY / "grafana" / "boards" / "headrace.json").read_text(encoding="utf-8"))
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
_NAME = re.compile(r"\bheadrace_\w+")
_GROUPED = re.compile(r"\b(?:by|on|group_left)\s*\(([^)]*)\)")
_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
#: What Prometheus adds to every sample, and what a histogram's buckets have.
_ADDED = {"instance", "job", "le"}


def families() -> CollectorRegistry:
    registry = CollectorRegistry()
    Telemetry(registry, "fraud", SystemClock(), lambda _count: None)
    LakeTelemetry(registry)
    return registry


def samples() -> dict[str, set[str]]:
    """Return the series that our processes show, and the labels of each."""
    registry = families()
    labels = {
        name: set(getattr(collector, "_labelnames", ()))
        for collector, names in registry._collector_to_names.items()
        for name in names
    }
    return {
        family.name + suffix: labels.get(family.name + suffix, labels.get(family.name, set()))
        for family in registry.collect()
        for suffix in _SUFFIXES[family.type]
    }


def expressions() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for note in BOARD["annotations"]["list"]:
        yield note["name"], note["expr"]
    for variable in BOARD["templating"]["list"]:
        yield variable["name"], variable["definition"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_what_is_asked_for_is_shown_by_the_code(where, expression):
    known = samples()
    asked = set(_NAME.findall(expression))

    assert asked or re.search(r"\bup\{|\bALERTS\{", expression), where
    assert asked <= set(known)
    grouped = {
        label.strip() for found in _GROUPED.findall(expression) for label in found.split(",")
    } - {""}
    assert grouped <= _ADDED.union(*(known[name] for name in asked))


def test_every_metric_of_the_code_is_on_the_board():
    asked = {
        name for panel in PANELS for one in panel["targets"] for name in _NAME.findall(one["expr"])
    }
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked}

    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in samples()} - shown == {
        "headrace_lake_gathered_bytes",  # Bounded by the code; of use to its developers only.
    }


def test_counters_are_asked_for_their_rate():
    for where, expression in expressions():
        for name in re.findall(r"headrace_\w+_(?:total|bucket|sum|count)\b", expression):
            assert re.search(
                rf"(rate|increase)\({name}|label_values\({name}|{name} offset|"
                rf"sum by \([^)]*\) \({name}\)",
                expression,
            ), (where, expression)


def test_percentiles_are_taken_over_summed_buckets():
    for where, expression in expressions():
        assert expression.count("histogram_quantile") == expression.count("_bucket["), where
        if "histogram_quantile" in expression:
            assert "sum by (le" in expression, where


def test_panels_lie_beside_each_other_and_have_what_a_reader_needs():
    taken = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)


def test_the_board_s_source_is_provisioned():
    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    asked = {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}

    assert asked == {source["uid"]}


def anchors() -> set[str]:
    text = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_and_where_its_runbook_is(rule):
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")

    assert page == "docs/operations.md"
    assert anchor in anchors()
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"]["summary"]
    # A label in the text that the expression does not keep would be empty.
    named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    grouped = {label.strip() for one in _GROUPED.findall(rule["expr"]) for label in one.split(",")}
    assert named <= grouped


def test_alerts_have_names_of_their_own():
    names = [rule["alert"] for rule in RULES]

    assert len(names) == len(set(names))
