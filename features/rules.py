"""The checks that definitions share: arguments, names, kinds, durations, each with its hint."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.features.durations import duration_hint, duration_ms
from headrace.features.errors import DefinitionError, did_you_mean, refuse
from headrace.features.formulas import caller

if TYPE_CHECKING:
    from headrace.features.errors import Location

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def checked_arguments(function: F, what: str, own: int = 0) -> F:
    """Return the function with wrong arguments refused in our words, with a hint."""
    signature = inspect.signature(function)
    names = [p for p in list(signature.parameters)[own:] if p != "parameters"]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())

    @functools.wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        for name in options:
            if name not in names and not open_ended:
                hint = did_you_mean(name, names, "it takes")
                raise refuse(caller(), "an option", "be known", name, what, hint)
        try:
            signature.bind(*arguments, **options)
        except TypeError as error:
            message = f"{what} must be given what it needs; {error}; it takes {', '.join(names)}"
            raise DefinitionError(message, caller()) from None
        return function(*arguments, **options)

    return checked  # type: ignore[return-value]


def definition(cls: type[T]) -> type[T]:
    """Return the class with what its constructor is given checked."""
    name = cls.__name__
    setattr(cls, "__init__", checked_arguments(cls.__init__, f"hr.{name}", own=1))  # noqa: B010
    return cls


def verb(function: F) -> F:
    """Return the function with what it is given checked."""
    return checked_arguments(function, f"hr.{function.__name__.rstrip('_')}")


def assign(target: object, **values: object) -> None:
    """Set fields of a frozen definition while it is made."""
    for name, value in values.items():
        object.__setattr__(target, name, value)


def check_name(name: object, what: str, location: Location | None) -> None:
    """Refuse what is no name, or could not be told apart inside ``view__feature``."""
    if not isinstance(name, str) or not IDENTIFIER.fullmatch(name) or "__" in name:
        rule = "be letters, digits and single underscores, starting with a letter"
        hint = re.sub(r"[^A-Za-z0-9]+", "_", str(name)).strip("_")
        hint = f"did you mean {hint!r}?" if IDENTIFIER.fullmatch(hint) else ""
        raise refuse(location, f"the name of a {what}", rule, name, what, hint)


def check_text(value: object, option: str, what: str, location: Location | None) -> None:
    """Refuse anything but a text."""
    if not isinstance(value, str) or not value:
        raise refuse(location, option, "be a text", value, what)


def check_one_of(
    value: object, known: Sequence[str], option: str, where: str, at: Location | None
) -> None:
    """Refuse a choice that there is not."""
    if value not in known:
        rule = f"be one of {', '.join(known)}"
        raise refuse(at, option, rule, value, where, did_you_mean(value, known))


def check_instance(value: object, kind: type, option: str, where: str, at: Location | None) -> None:
    """Refuse anything but a definition of the right kind."""
    if not isinstance(value, kind):
        rule = f"be an hr.{kind.__name__}"
        hint = "pass the object, not its name" if isinstance(value, str) else ""
        plain = value is None or isinstance(value, str | int | float)
        raise refuse(at, option, rule, value if plain else type(value).__name__, where, hint)


def milliseconds(value: object, option: str, where: str, location: Location | None) -> int:
    """Return the length of a duration that a user wrote."""
    result = duration_ms(value)
    if result is None:
        rule = "be a duration like '30s', '5m', '1h' or '90d'"
        raise refuse(location, option, rule, value, where, duration_hint(value))
    return result


def optional_milliseconds(
    value: object, option: str, where: str, at: Location | None
) -> int | None:
    """Return the length of a duration, None where none is given."""
    return None if value is None else milliseconds(value, option, where, at)


def check_number(value: object, where: str, at: Location | None) -> float | None:
    """Return a default as a float, None where none is given."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2.0**53:
        raise refuse(at, "default", "be a number", value, where)
    return float(value)
