"""Every command that a page names is there, with the options that it is given."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.main import COMMANDS, _load

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    *("README.md", "CONTRIBUTING.md", "examples/fraud/README.md", "docker-compose.yml"),
    "headrace/cli/template/README.md",
    *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(headrace [^`]+)`")
# Up to the end of a command: a comment, a pipe, another command, a closing bracket.
CALL = re.compile(r"(?<![\w/.-])headrace ([a-z][a-z-]*)([^\n|&;#)>]*)")
NO_COMMANDS = {"python", "py", "json", "yaml"}


def calls(text: str) -> list[tuple[str, str]]:
    """Return the verbs, each with what follows it, in a page's blocks and inline code."""
    places = [body for language, body in FENCE.findall(text) if language not in NO_COMMANDS]
    places += INLINE.findall(FENCE.sub("", text))
    # Inside a block in the shell a program can stand, which imports us.
    return [call for body in places for call in CALL.findall(body) if call[0] != "as"]


@cache
def command(verb: str) -> Any:
    return _load(verb, COMMANDS[verb])


def options(verb: str, words: list[str]) -> set[str]:
    found = command(verb)
    for word in words:
        found = getattr(found, "commands", {}).get(word, found)
    return {"--help", *(name for parameter in found.params for name in parameter.opts)}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_on_a_page_exists_and_takes_its_options(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    if page.endswith(".yml"):
        text = f"```\n{text}\n```"

    wrong = []
    for verb, rest in calls(text):
        words = re.sub(r"\"[^\"]*\"?|'[^']*'?|`.*", " ", rest)
        used = {word for word in words.split() if re.match(r"--?[a-z]", word)}
        if verb not in COMMANDS or not used <= options(verb, shlex.split(words)):
            wrong.append(f"headrace {verb}{rest}")

    assert wrong == []


def test_pages_are_looked_at_as_they_are_written() -> None:
    page = (
        "Run `headrace drift --html x.html`, then `headrace dlq list`.\n"
        "```sh\nuntil headrace sql 'x' --csv | grep 5; do sleep 1; done\n```\n"
        "```python\nimport headrace as hr\n```\n"
    )

    assert [verb for verb, _ in calls(page)] == ["sql", "drift", "dlq"]
    assert "--csv" in options("sql", [])
    assert "--max" in options("dlq", ["list"]) | options("tail", [])
    assert "--nonsense" not in options("drift", [])


@pytest.mark.parametrize("folder", ["docs"])
def test_every_page_is_linked_from_the_front(folder: str) -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")

    missing = [
        path.name
        for path in sorted((REPOSITORY / folder).glob("*.md"))
        if f"docs/{path.name}" not in readme
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    path = REPOSITORY / page
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    named = re.findall(r"`(docs/[\w./-]+\.(?:md|svg))`", path.read_text(encoding="utf-8"))

    broken = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    broken += [name for name in named if not (REPOSITORY / name).exists()]
    assert broken == []
