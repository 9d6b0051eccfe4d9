"""The tutorial runs: its shell blocks, in order, in one shell, as a newcomer would type them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pages import shell_blocks, typed

if TYPE_CHECKING:
    from pathlib import Path

EXPECTED = (
    "visitor__count_5m",  # plan, online and history name the features
    "no_model",  # the predictions
    "FRESH",  # Redis
    "'count_1h': [",  # ... as Feast reads it
    "traffic_snapshots",  # the lake's tables
    "5,000 rows in set.parquet",
    "the same bytes",  # the rebuilt set
    "5,000 with a snapshot, 5,000 equal",  # the audit
    "visitor__seconds_max_1d",  # the added feature in the second plan
)


@pytest.mark.timeout(420)
def test_a_newcomer_can_type_the_tutorial(repository: Path, tmp_path: Path) -> None:
    page = repository / "docs" / "first-project.md"

    said = typed(shell_blocks(page), tmp_path, 400)

    assert [word for word in EXPECTED if word not in said] == []
