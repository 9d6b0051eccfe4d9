"""The how-tos run: programs are saved under their names, shell blocks typed in their order."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest
from pages import typed

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK = re.compile(r"^```(sh|python (\w+\.py))\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Also when a step fails nothing is left behind.
LEAVE = """
set -em
trap 'kill $(jobs -p) 2>/dev/null; cd "$SHOP"; headrace down >/dev/null 2>&1' EXIT
"""
START = """
headrace init shop
cd shop
SHOP=$PWD
headrace up
headrace apply
headrace worker &
"""


def script(page: Path) -> str:
    """Return a page's blocks as one shell script."""
    parts = []
    for language, name, body in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "sh":
            parts.append(body)
        else:
            parts.append(f"cat > {name} <<'END_OF_PROGRAM'\n{body}END_OF_PROGRAM\n")
    assert parts, page
    return "".join(parts)


@pytest.mark.timeout(300)
def test_a_team_can_send_events_and_another_can_use_the_predictions(
    repository: Path, tmp_path: Path
) -> None:
    docs = repository / "docs"
    text = LEAVE + START + script(docs / "howto-producers.md") + script(docs / "howto-consumers.md")

    said = typed(text, tmp_path, 280)

    assert "1000 events sent" in said
    assert '"visitor__count_1h"' in said
    assert re.search(r"views\s+bad_magic\s+1\b", said), said
    assert re.search(r"views\s+future_time\s+1\b", said), said
    assert said.count("1000 records, 1000 predictions") == 2


@pytest.mark.timeout(400)
def test_a_data_scientist_goes_from_a_definition_to_a_live_model_and_back(
    repository: Path, tmp_path: Path
) -> None:
    shutil.copytree(
        repository / "examples" / "fraud",
        tmp_path / "fraud",
        ignore=shutil.ignore_patterns("data", "models", ".headrace", "__pycache__"),
    )
    page = script(repository / "docs" / "howto-data-scientists.md")

    said = typed(LEAVE + "cd fraud\nSHOP=$PWD\n" + page, tmp_path, 380)

    assert "customer__count_7d" in said
