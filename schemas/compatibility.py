"""Which schema can read what another one wrote, and the registry's levels built on that.

The rules are those of Avro's schema resolution, with one more: a logical type may appear or go,
but not change, for the same number in other units is another value and no reader would notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.runtime.errors import explain
from headrace.schemas.avro import AvroField, AvroType, parse
from headrace.schemas.errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Sequence

LEVELS: Final = (
    "NONE",
    "BACKWARD",
    "BACKWARD_TRANSITIVE",
    "FORWARD",
    "FORWARD_TRANSITIVE",
    "FULL",
    "FULL_TRANSITIVE",
)
_PROMOTIONS: Final = frozenset(
    {
        ("int", "long"),
        ("int", "float"),
        ("int", "double"),
        ("long", "float"),
        ("long", "double"),
        ("float", "double"),
        ("string", "bytes"),
        ("bytes", "string"),
    }
)


def incompatibilities(new: str, old: str | Sequence[str], level: str) -> list[str]:
    """Return why ``new`` may not follow the ``old`` schemas under a level; nothing if it may.

    Args:
        new: The schema to be registered, as JSON.
        old: The subject's earlier schema, or all of them, oldest first. Levels that are not
            transitive look at the last one only.
        level: One of ``LEVELS``.

    Raises:
        SchemaRefused: If one of the schemas is not valid.
        SchemaError: If there is no such level.

    """
    if level not in LEVELS:
        raise SchemaError(explain("compatibility level", f"be one of {LEVELS}", level, "subject"))
    earlier = [old] if isinstance(old, str) else list(old)
    proposed = parse(new)
    if not level.endswith("_TRANSITIVE"):
        earlier = earlier[-1:]
    problems = []
    for schema in earlier if level != "NONE" else ():
        previous = parse(schema)
        if level.startswith(("BACKWARD", "FULL")):
            problems += [f"new cannot read old: {text}" for text in unreadable(previous, proposed)]
        if level.startswith(("FORWARD", "FULL")):
            problems += [f"old cannot read new: {text}" for text in unreadable(proposed, previous)]
    return list(dict.fromkeys(problems))


def unreadable(  # noqa: PLR0911 - one return per rule of resolution.
    writer: AvroType, reader: AvroType, path: str = ""
) -> list[str]:
    """Return why some value of ``writer`` cannot be read as ``reader``; nothing if all can."""
    if writer.kind == "union":
        return [text for branch in writer.branches for text in unreadable(branch, reader, path)]
    if reader.kind == "union":
        if any(not unreadable(writer, branch) for branch in reader.branches):
            return []
        return [f"{_at(path)}{writer.describe()} is none of {reader.describe()}"]
    if writer.kind != reader.kind:
        if (writer.kind, reader.kind) in _PROMOTIONS and reader.logical is None:
            return []
        return [f"{_at(path)}{writer.describe()} does not become {reader.describe()}"]
    if writer.kind in {"record", "enum", "fixed"} and not same_name(writer, reader):
        return [f"{_at(path)}{writer.describe()} is not called {reader.name} (add an alias)"]
    if writer.kind == "record":
        return _record_problems(writer, reader, path)
    if writer.items is not None:
        return unreadable(writer.element, reader.element, f"{path}[]")
    return _leaf_problems(writer, reader, path)


def same_name(writer: AvroType, reader: AvroType) -> bool:
    """Return whether two named types are one: by their last names, or by an alias of the reader."""
    names = {_last(reader.name), *(_last(alias) for alias in reader.aliases)}
    return _last(writer.name) in names


def written_field(writer: AvroType, field: AvroField) -> AvroField | None:
    """Return the writer's field that a reader's field is read from, None for its default."""
    written = {candidate.name: candidate for candidate in writer.fields}
    for name in (field.name, *field.aliases):
        if name in written:
            return written[name]
    return None


def _record_problems(writer: AvroType, reader: AvroType, path: str) -> list[str]:
    problems = []
    for field in reader.fields:
        written = written_field(writer, field)
        inner = f"{path}.{field.name}" if path else field.name
        if written is not None:
            problems += unreadable(written.type, field.type, inner)
        elif not field.has_default:
            problems.append(f"{inner}: the writer lacks it and it has no default")
    return problems


def _leaf_problems(writer: AvroType, reader: AvroType, path: str) -> list[str]:
    if writer.kind == "fixed" and writer.size != reader.size:
        return [f"{_at(path)}fixed of {writer.size} bytes is not one of {reader.size}"]
    missing = [symbol for symbol in writer.symbols if symbol not in reader.symbols]
    if missing and reader.default_symbol is None:
        return [f"{_at(path)}symbols {missing} are unknown to the reader, which has no default"]
    scales = (writer.precision, writer.scale) == (reader.precision, reader.scale)
    if writer.logical and reader.logical and (writer.logical != reader.logical or not scales):
        return [f"{_at(path)}{_logical(writer)} is not {_logical(reader)}"]
    return []


def _logical(kind: AvroType) -> str:
    if kind.logical == "decimal":
        return f"decimal({kind.precision}, {kind.scale})"
    return str(kind.logical)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _at(path: str) -> str:
    return f"{path}: " if path else ""
