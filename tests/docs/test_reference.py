"""The reference pages name every setting, reason and metric, and nothing that is not there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from headrace.features.columns import REJECT_REASONS
from headrace.runtime.clock import SystemClock
from headrace.runtime.settings import Settings
from headrace.schemas.codec import REASONS
from headrace.streams.duplicates import ID_CONFLICT
from headrace.streams.telemetry import Telemetry

if TYPE_CHECKING:
    from pathlib import Path


def _first_column(page: Path, heading: str | None = None) -> set[str]:
    text = page.read_text(encoding="utf-8")
    if heading is not None:
        text = text.split(f"## {heading}")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE))


def _setting_names(model: type[BaseModel], prefix: str = "") -> set[str]:
    names: set[str] = set()
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names |= _setting_names(kind, f"{prefix}{name}.")
        else:
            names.add(prefix + name)
    return names


def test_every_setting_is_documented(repository: Path) -> None:
    assert _first_column(repository / "docs" / "settings.md") == _setting_names(Settings)


def test_every_reason_is_documented(repository: Path) -> None:
    documented = _first_column(repository / "docs" / "topics.md", "Reasons in the DLQ")

    assert documented == {*REASONS, *filter(None, REJECT_REASONS), ID_CONFLICT}


def test_every_metric_is_documented(repository: Path) -> None:
    registry = CollectorRegistry()
    Telemetry(registry, "fraud", SystemClock(), lambda _count: None)
    names = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in registry.collect()
    }

    assert _first_column(repository / "docs" / "topics.md", "Metrics") == names


@pytest.mark.parametrize("page", ["README.md", "docs/first-project.md", "CONTRIBUTING.md"])
def test_every_verb_in_the_docs_exists(repository: Path, page: str) -> None:
    text = (repository / page).read_text(encoding="utf-8")
    verbs = set(re.findall(r"\./dev ([a-z]+)", text))

    known = re.findall(r"^([a-z]+)\)", (repository / "dev").read_text(), re.MULTILINE)
    assert verbs <= set(known), page
