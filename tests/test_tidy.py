"""The house rules that no linter knows, as tests."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from headrace.cli.main import COMMANDS

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = (
    *("bench", "drift", "features", "lake", "runtime", "schemas"),
    *("scoring", "serving", "streams", "training"),
)
LINKED = tuple(room for room in ROOMS if room != "bench")

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600
BLOB_BYTES_MAX = 200_000
VAGUE_NAMES = {"base", "common", "core", "helper", "helpers", "misc", "util", "utils"}

#: Large for a reason: one line a hash.
LARGE = {"requirements.lock"}
#: Used from outside: users' tests drive a pipeline with it, no module of ours does.
PUBLIC = {"headrace.features.store.memory", "headrace.streams.testing"}

# A path of somebody's machine, or the address of a package index or an inner network.
PRIVATE = re.compile(
    r"(?<![\w.-])/(?:home|root|work|Users|mnt|opt)/\w"
    r"|pypi\.|pythonhosted|artifactory|nexus\.|--(?:extra-)?index-url|--find-links"
    r"|https?://[\w.-]+\.(?:internal|corp|lan|local)\b"
    r"|https?://(?:10|172\.(?:1[6-9]|2\d|3[01])|192\.168)\.",
    re.IGNORECASE,
)


@cache
def tracked() -> tuple[Path, ...]:
    """Return what git knows, or would after an add, without the links to the rooms."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    paths = (REPOSITORY / name for name in output.stdout.split("\0") if name)
    return tuple(path for path in paths if path.is_file() and not path.is_symlink())


@cache
def parsed() -> dict[Path, ast.Module]:
    return {
        path: ast.parse(path.read_text(encoding="utf-8"))
        for path in tracked()
        if path.suffix == ".py"
    }


def named(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without its decorators and its docstring."""
    first = node.body[0]
    lines = node.end_lineno - node.lineno + 1
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return lines - (first.end_lineno - first.lineno + 1 if is_text else 0)


def test_no_function_is_longer_than_a_screen():
    long = {
        f"{named(path)}:{node.lineno} {node.name}": length(node)
        for path, tree in parsed().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and length(node) > FUNCTION_LINES_MAX
    }

    assert long == {}


def test_no_module_is_longer_than_can_be_overlooked():
    long = {
        named(path): lines
        for path in parsed()
        if (lines := path.read_text(encoding="utf-8").count("\n")) > MODULE_LINES_MAX
    }

    assert long == {}


def test_no_module_or_folder_has_a_name_that_says_nothing():
    vague = [named(path) for path in parsed() if VAGUE_NAMES & {path.stem, *path.parent.parts}]

    assert vague == []


def imported(tree: ast.Module) -> set[str]:
    """Return the dotted names that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_rooms_are_imported_by_their_full_names_only():
    bare = {
        named(path): sorted(wrong)
        for path, tree in parsed().items()
        if (wrong := {name for name in imported(tree) if name.split(".")[0] in LINKED})
    }

    assert bare == {}


def test_every_room_has_its_link():
    for room in LINKED:
        link = REPOSITORY / "headrace" / room

        assert link.is_symlink()
        assert str(link.readlink()) == f"../{room}"


def modules() -> dict[str, Path]:
    """Return our modules by import name."""
    found = {}
    for path in parsed():
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        if parts[0] in LINKED:
            parts = ("headrace", *parts)
        if parts[0] == "headrace" and "template" not in parts and parts[-1] != "__init__":
            found[".".join(parts)] = path
    return found


def texts(tree: ast.Module) -> set[str]:
    """Return the string constants of a module: lazy imports and entry points name modules so."""
    return {
        node.value.partition(":")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def is_program(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in tree.body
    )


def test_every_module_is_used_by_the_program_or_is_one():
    used = set()
    for path, tree in parsed().items():
        if path.relative_to(REPOSITORY).parts[0] != "tests":
            used |= imported(tree) | texts(tree)

    programs = {name for name, path in modules().items() if is_program(parsed()[path])}
    assert sorted(set(modules()) - used - PUBLIC - programs) == []


def test_nothing_tracked_is_large():
    large = {
        named(path): size
        for path in tracked()
        if (size := path.stat().st_size) > BLOB_BYTES_MAX and named(path) not in LARGE
    }

    assert large == {}


def test_nothing_tracked_names_a_machine_or_an_inner_address():
    found = {}
    for path in tracked():
        if path == Path(__file__):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if match := PRIVATE.search(text):
            found[named(path)] = match[0]

    assert found == {}


def test_the_lock_holds_what_the_project_asks_for():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)", "\n".join(lines), re.MULTILINE)
    }

    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        asked = Requirement(text)
        assert asked.specifier.contains(locked.get(canonicalize_name(asked.name), "none")), text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_in_the_help_is_there(name):
    module, _, attribute = COMMANDS[name].target.partition(":")

    assert callable(getattr(importlib.import_module(module), attribute))


USERS_FOLDER = """
import sys
import headrace as hr
import headrace.runtime.settings, headrace.schemas.avro, headrace.streams.batch
import headrace.scoring.deployments, headrace.training, headrace.serving, headrace.lake

assert hr.Source("a", key="b", event_time="c").name == "a"
for room in {rooms!r}:
    module = __import__(room)
    assert module.OWNER == "the user", room
    assert not any(name == room or name.startswith(room + ".") for name in sys.modules
                   if sys.modules[name] is not module), room
print("both")
"""


def test_a_users_modules_named_like_our_rooms_and_ours_do_not_meet(tmp_path):
    for room in ROOMS:
        (tmp_path / f"{room}.py").write_text('OWNER = "the user"\n')
    (tmp_path / "main.py").write_text(USERS_FOLDER.format(rooms=ROOMS))

    for command in (["main.py"], ["-c", "import main"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )

        assert (done.stdout, done.stderr) == ("both\n", "")
