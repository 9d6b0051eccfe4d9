"""What every kind of test may ask for."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

# Before Feast: its import turns a client that is loaded later to its mode for many processes.
import prometheus_client  # noqa: F401
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What Feast's import leaves in the environment: workers that are started later would obey it.
_FEAST_VARIABLES = ("PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR")
_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _environment_without_feast() -> Iterator[None]:
    yield
    for name in _FEAST_VARIABLES:
        os.environ.pop(name, None)


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


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Return a function that returns once a condition holds, and fails if that takes too long.

    For what happens in other processes. A test never sleeps for a time that it hopes is enough.
    """

    def wait(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s"
            time.sleep(0.01)

    return wait
