"""The page on changing definitions runs: its shell blocks, in order, in one shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pages import shell_blocks, typed

if TYPE_CHECKING:
    from pathlib import Path

EXPECTED = (
    "drained: pipeline traffic",
    "unchanged (keeps its numbers): visitor__count_1h, page__count_1h",
    "new (whole from its first event: the log is replayed): visitor__count_1d",
    "3000 rows of the sources are read again in silence",
    "is finished, and may be deleted",
    "false,3000",
    "true,500",
    "prepared: pipeline traffic, the state of 3500 rows is kept for its workers",
    "checkpoint_restored",
    "false,3500",
)


@pytest.mark.timeout(420)
def test_a_pipeline_of_two_entities_gets_a_feature(repository: Path, tmp_path: Path) -> None:
    page = repository / "docs" / "changing-definitions.md"

    said = typed(shell_blocks(page), tmp_path, 400)

    assert [word for word in EXPECTED if word not in said] == [], said[-4000:]
