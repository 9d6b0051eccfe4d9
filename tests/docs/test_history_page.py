"""The page on history: its commands have their options, its causes are the audit's."""

from __future__ import annotations

import inspect
import re
import shlex

import headrace as hr
from headrace.cli.main import COMMANDS, _load
from headrace.lake.audit import CAUSES


def test_the_commands_on_the_page_take_their_options(repository):
    text = (repository / "docs" / "history.md").read_text(encoding="utf-8")
    commands = re.findall(r"^headrace history (.*)$", text, flags=re.MULTILINE)
    command = _load("history", COMMANDS["history"])
    options = {name for parameter in command.params for name in parameter.opts}

    assert len(commands) >= 7
    used = {word for line in commands for word in shlex.split(line) if word.startswith("--")}
    assert used <= options, used - options


def test_the_page_names_the_causes_and_the_arguments(repository):
    text = (repository / "docs" / "history.md").read_text(encoding="utf-8")
    table = text.split("| cause |")[1]
    causes = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    arguments = set(inspect.signature(hr.history).parameters)

    assert causes == list(CAUSES)
    used = set(re.findall(r"`(\w+)=", text))
    assert used <= arguments, used - arguments
