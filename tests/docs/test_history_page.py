"""The page on history: its commands and options are there, and its causes are the audit's."""

from __future__ import annotations

import inspect
import re
import shlex

import headrace as hr
from headrace.cli.history import history
from headrace.lake.audit import CAUSES


def test_the_commands_on_the_page_take_their_options(repository):
    text = (repository / "docs" / "history.md").read_text(encoding="utf-8")
    commands = re.findall(r"^headrace history (.*)$", text, flags=re.MULTILINE)
    options = {
        name
        for parameter in inspect.signature(history, eval_str=True).parameters.values()
        for info in parameter.annotation.__metadata__
        for name in getattr(info, "param_decls", ())
    }
    options |= {"--features", "--spine", "--time", "--as-of", "--rebuild", "--label", "--audit"}

    assert len(commands) >= 7
    used = {word for line in commands for word in shlex.split(line) if word.startswith("--")}
    assert used <= options, used - options


def test_the_page_names_the_causes_and_the_arguments(repository):
    text = (repository / "docs" / "history.md").read_text(encoding="utf-8")
    causes = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    arguments = set(inspect.signature(hr.history).parameters)

    assert causes == list(CAUSES)
    assert set(re.findall(r"`(\w+)=", text)) <= arguments
