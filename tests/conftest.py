"""What every kind of test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the repository."""
    return _REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return ``../shared/data``, the real data that the project does not carry itself.

    Where it is absent the test is skipped with a reason; in CI it fails, so that a green run
    always means that the real data was seen.
    """
    folder = _REPOSITORY.parent / "shared" / "data"
    if folder.is_dir():
        return folder
    reason = "the real data is not there: put it into ../shared/data, beside the repository"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
