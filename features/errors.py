"""What can be wrong with definitions, projects and the columns of events."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.runtime.errors import HeadraceError, explain

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Location:
    """The file and line where a user wrote a definition; ``line`` 0 stands for the whole file."""

    file: str
    line: int

    def __str__(self) -> str:
        name = self.file.replace("\\", "/").rsplit("/", 1)[-1]
        return f"{name}:{self.line}" if self.line else name


class FeatureError(HeadraceError):
    """The root of this room's errors."""


class DefinitionError(FeatureError):
    """A definition breaks a rule; the message names the line, the rule and a hint.

    Attributes:
        location: Where the definition stands, None when it was made outside a file.

    """

    def __init__(self, message: str, location: Location | None = None) -> None:
        super().__init__(f"{location}: {message}" if location else message)
        self.location = location


class ExpressionError(DefinitionError):
    """An expression breaks a rule of types, or reads what is not there."""


class ProjectError(FeatureError):
    """A project folder lacks something, or its ``definitions.py`` cannot be imported."""


class PlanFormatError(FeatureError):
    """A stored plan cannot be read by this version."""


class ColumnError(FeatureError):
    """Events lack a column that the plan reads, or hold it in a type that cannot be read."""


def refuse(
    location: Location | None, what: str, rule: str, got: object, where: str, hint: str = ""
) -> DefinitionError:
    """Return the error, in the house form, with which a definition is refused."""
    return DefinitionError(explain(what, rule, got, where, hint), location)


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "there are") -> str:
    """Return a hint: the nearest of ``known``, or the list of them.

    Examples:
        >>> did_you_mean("amuont", ["amount", "country"])
        "did you mean 'amount'?"
        >>> did_you_mean("x", ["amount", "country"])
        'there are amount, country'

    """
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"{otherwise} {', '.join(names)}" if names else "there are none"
