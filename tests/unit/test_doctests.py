"""Every example in a docstring is true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("features", "lake", "runtime", "schemas", "scoring", "serving", "streams", "training")
MODULES = sorted(
    "headrace." + ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    for room in ROOMS
    for path in (REPOSITORY / room).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)

    found = doctest.testmod(module)

    assert found.failed == 0
    # An example that needs files is marked and shows the form only.
    assert found.attempted > 0 or "+SKIP" in Path(module.__file__).read_text(encoding="utf-8")
