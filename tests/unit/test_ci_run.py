"""What CI's script does around the developer's own commands."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from compose_file import REPOSITORY

DEV = """#!/bin/sh
echo "dev $*" >> calls
echo "of $1"
echo "librdkafka's noise" >&2
if [ "$1" = "$FAILING" ]; then
    mkdir -p .pytest_cache/v/cache
    echo '{"tests/test_sums.py::test_one": true}' > .pytest_cache/v/cache/lastfailed
    exit 3
fi
[ "$1" != test ] || echo "12 passed in 3 s"
"""
APT = """#!/bin/sh
echo "apt-get $*" >> calls
if [ "$1" = install ] && [ -e mirror-away ]; then rm mirror-away; exit 100; fi
"""
UPDATE = "apt-get update"
INSTALL = "apt-get install --yes --no-install-recommends chromium"


def program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def place(tmp_path):
    """Return a folder with the script, and programs of ours where it looks for the machine's."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(REPOSITORY / ".ci" / "run", tmp_path / ".ci" / "run")
    program(tmp_path / "dev", DEV)
    program(tmp_path / "bin" / "apt-get", APT)
    program(tmp_path / "bin" / "id", "#!/bin/sh\necho 0\n")
    for name in ("dirname", "mktemp", "rm", "cat", "tail", "mkdir"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    return tmp_path


def run(place, failing=""):
    done = subprocess.run(
        [shutil.which("sh"), str(place / ".ci" / "run")],
        env={"PATH": str(place / "bin"), "FAILING": failing},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, (place / "calls").read_text().splitlines()


def test_a_missing_browser_is_installed_once_and_the_summary_is_the_last_line(place):
    done, calls = run(place)

    assert calls == [UPDATE, INSTALL, "dev check", "dev test"]
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "12 passed in 3 s"
    assert "apt" not in done.stdout


def test_a_mirror_that_is_away_is_asked_twice(place):
    (place / "mirror-away").touch()

    done, calls = run(place)

    assert calls == [UPDATE, INSTALL, UPDATE, INSTALL, "dev check", "dev test"]
    assert done.returncode == 0


def test_a_browser_that_is_there_stays(place):
    program(place / "bin" / "chromium", "#!/bin/sh\n")

    assert run(place)[1] == ["dev check", "dev test"]


def test_who_is_not_root_installs_nothing(place):
    program(place / "bin" / "id", "#!/bin/sh\necho 1000\n")

    assert run(place)[1] == ["dev check", "dev test"]


@pytest.mark.parametrize("failing", ["check", "test"])
def test_a_failure_is_the_script_s_own_and_its_noise_is_shown(place, failing):
    done, calls = run(place, failing)

    assert done.returncode == 3
    assert calls[-1] == f"dev {failing}"
    assert "librdkafka's noise" in done.stderr


def test_which_tests_failed_is_the_last_that_is_said(place):
    done, _ = run(place, "test")

    assert "tests/test_sums.py::test_one" in done.stderr.splitlines()[-1]
