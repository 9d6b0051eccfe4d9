"""./dev: what it says, and that it does nothing twice."""

from __future__ import annotations

import shutil
import subprocess

import pytest

VERBS = ("demo", "test", "check", "parity", "bench", "simulate", "chaos", "shell", "lock")
TOOLS = ("cat", "cksum", "dirname", "rm", "sed", "sh")


@pytest.fixture
def clone(tmp_path, repository):
    """Return a folder with what ./dev reads, and a path without any Python."""
    for name in ("dev", "pyproject.toml", "requirements.lock"):
        shutil.copy(repository / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return tmp_path


def dev(folder, *arguments):
    return subprocess.run(
        [folder / "dev", *arguments],
        env={"PATH": str(folder / "bin"), "HOME": str(folder / "home"), "SHELL": "/bin/sh"},
        capture_output=True,
        text=True,
        check=False,
    )


def checksum(path):
    command = [shutil.which("cksum")]
    done = subprocess.run(command, input=path.read_bytes(), capture_output=True, check=True)
    return done.stdout.decode()


def test_alone_it_lists_its_verbs(clone):
    done = dev(clone)

    assert done.returncode == 0
    assert [line.split()[1] for line in done.stdout.splitlines()] == list(VERBS)


def test_an_unknown_verb_is_refused_with_the_known_ones(clone):
    done = dev(clone, "deploy")

    assert done.returncode == 2
    assert "no verb 'deploy'" in done.stderr
    assert "./dev demo" in done.stderr


def test_without_a_fitting_python_it_says_which_one_it_needs_and_leaves_nothing(clone):
    done = dev(clone, "shell", "-c", "echo ready")

    assert done.returncode == 1
    assert done.stdout == ""
    assert "needs Python 3.11 or 3.12" in done.stderr
    assert not (clone / ".venv").exists()


def test_once_prepared_it_installs_nothing_and_needs_no_network(clone):
    # Without any Python or uv in reach, a second preparation would fail.
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".locked").write_text(checksum(clone / "requirements.lock"))
    project = checksum(clone / "pyproject.toml").strip()
    (clone / ".venv" / ".installed").write_text(f"{project} {clone}\n")

    done = dev(clone, "shell", "-c", 'echo "$VIRTUAL_ENV"')

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{clone}/.venv\n"


@pytest.mark.parametrize("changed", ["requirements.lock", "pyproject.toml"])
def test_a_change_of_what_is_asked_for_is_installed(clone, changed):
    test_once_prepared_it_installs_nothing_and_needs_no_network(clone)
    with (clone / changed).open("a") as file:
        file.write("# changed\n")

    assert dev(clone, "shell", "-c", "echo ready").stdout == ""
