"""Avro schemas as a checked tree: names resolved, limits enforced, defaults turned into values.

Schemas that let a few bytes stand for unbounded work (recursive types, array items of zero bytes)
are refused here, so nothing that is built on the tree has to defend against them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import fastavro
from fastavro.schema import SchemaParseException, UnknownType

from headrace.runtime.errors import explain
from headrace.schemas.errors import SchemaRefused

PRIMITIVES: Final = frozenset(
    {"null", "boolean", "int", "long", "float", "double", "bytes", "string"}
)
# A type that is named in many places counts once for each: the decoder's program is a tree.
MAX_NODES: Final = 4096
MAX_DEPTH: Final = 32
MAX_SCHEMA_CHARS: Final = 1 << 20
MAX_BRANCHES: Final = 127
MAX_DECIMAL_PRECISION: Final = 76

_LOGICAL_OF: Final = {
    "int": frozenset({"date", "time-millis"}),
    "long": frozenset(
        {
            "time-micros",
            "timestamp-millis",
            "timestamp-micros",
            "timestamp-nanos",
            "local-timestamp-millis",
            "local-timestamp-micros",
            "local-timestamp-nanos",
        }
    ),
    "string": frozenset({"uuid"}),
    "bytes": frozenset({"decimal"}),
    "fixed": frozenset({"decimal"}),
}
_MIN_BYTES: Final = {"null": 0, "float": 4, "double": 8}


@dataclass(frozen=True, slots=True, eq=False)
class AvroField:
    """A field of a record; ``default`` is the JSON value as written, if ``has_default``."""

    name: str
    type: AvroType
    has_default: bool
    default: object
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class AvroType:
    """One node of a schema. ``logical`` is set only where it is known and valid for ``kind``.

    ``min_bytes`` is the size of the smallest encoding; ``nodes`` counts the tree below, itself
    included. ``items`` are an array's items or a map's values.
    """

    kind: str
    min_bytes: int
    nodes: int = 1
    logical: str | None = None
    precision: int = 0
    scale: int = 0
    name: str = ""
    aliases: tuple[str, ...] = ()
    size: int = 0
    symbols: tuple[str, ...] = ()
    default_symbol: str | None = None
    fields: tuple[AvroField, ...] = ()
    items: AvroType | None = None
    branches: tuple[AvroType, ...] = ()

    @property
    def element(self) -> AvroType:
        """The items of an array or the values of a map."""
        assert self.items is not None, self.kind
        return self.items

    @property
    def null_branch(self) -> int:
        """Index of the null branch of a union, -1 if it has none."""
        return next((i for i, branch in enumerate(self.branches) if branch.kind == "null"), -1)

    @property
    def optional(self) -> AvroType | None:
        """The type T of a union of null and T, None for everything else."""
        if self.kind != "union" or len(self.branches) != 2 or self.null_branch < 0:
            return None
        return self.branches[1 - self.null_branch]

    def describe(self) -> str:
        """Return a short name for messages."""
        if self.kind == "union":
            return "[" + ", ".join(branch.describe() for branch in self.branches) + "]"
        if self.items is not None:
            return f"{self.kind} of {self.items.describe()}"
        return f"{self.kind} {self.name}" if self.name else (self.logical or self.kind)


def parse(schema: str) -> AvroType:
    """Return the checked tree of a schema given as JSON.

    Raises:
        SchemaRefused: If it is not valid Avro, is recursive, has array items or map values that
            can take zero bytes, or is too large or too deep.

    """
    if len(schema) > MAX_SCHEMA_CHARS:
        raise _refused("have at most 1 MiB of text", f"{len(schema)} characters")
    try:
        tree = json.loads(schema)
        fastavro.parse_schema(tree)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _refused("be valid Avro", _first_line(error)) from error
    except (SchemaParseException, UnknownType) as error:
        raise _refused("be valid Avro", _first_line(error)) from error
    return _Parser().parse(tree, "", 0)


def parse_record(schema: str) -> AvroType:
    """Return the checked tree of a schema whose top must be a record with at least one field.

    Raises:
        SchemaRefused: As ``parse``, or if the top is not such a record.

    """
    top = parse(schema)
    if top.kind != "record" or not top.fields:
        raise _refused("be a record with at least one field", top.describe())
    return top


def without_logical_types(schema: str) -> str:
    """Return the schema with every ``logicalType`` taken out, so that readers give raw values."""
    return json.dumps(_strip(json.loads(schema)))


def canonical(kind: AvroType) -> str:
    """Return a text that is equal for two types if and only if they decode to equal columns."""
    return json.dumps(_shape(kind), separators=(",", ":"))


def default_value(kind: AvroType, default: object) -> object:
    """Return a field's JSON default as the raw value that a decoder would give.

    Bytes and fixed come as ``bytes``, unions as their first branch's value, records as dicts.

    Raises:
        SchemaRefused: If the default does not fit the type.

    """
    if kind.kind == "union":
        return default_value(kind.branches[0], default)
    if kind.kind == "record" and isinstance(default, dict):
        return {field.name: _field_default(field, default) for field in kind.fields}
    if kind.kind == "array" and isinstance(default, list):
        return [default_value(kind.element, item) for item in default]
    if kind.kind == "map" and isinstance(default, dict):
        return {key: default_value(kind.element, item) for key, item in default.items()}
    value = _scalar_default(kind, default)
    if value is _MISFIT:
        rule = f"have a default that is a {kind.describe()}"
        raise _refused(rule, default)
    return value


_MISFIT: Final = object()
_INTEGER_BITS: Final = {"int": 31, "long": 63}


def _scalar_default(kind: AvroType, default: object) -> object:  # noqa: PLR0911 - one per kind.
    if kind.kind == "null":
        return None if default is None else _MISFIT
    if kind.kind == "boolean":
        return default if isinstance(default, bool) else _MISFIT
    if kind.kind in _INTEGER_BITS:
        bound = 1 << _INTEGER_BITS[kind.kind]
        whole = isinstance(default, int) and not isinstance(default, bool)
        return default if whole and -bound <= default < bound else _MISFIT  # type: ignore[operator]
    if kind.kind in {"float", "double"}:
        number = isinstance(default, (int, float)) and not isinstance(default, bool)
        return float(default) if number else _MISFIT  # type: ignore[arg-type]
    if not isinstance(default, str):
        return _MISFIT
    if kind.kind == "string":
        return default
    if kind.kind == "enum":
        return default if default in kind.symbols else _MISFIT
    if kind.kind in {"bytes", "fixed"} and all(ord(letter) < 256 for letter in default):
        raw = default.encode("latin-1")
        return raw if kind.kind == "bytes" or len(raw) == kind.size else _MISFIT
    return _MISFIT


def _field_default(field: AvroField, given: dict[str, object]) -> object:
    if field.name in given:
        return default_value(field.type, given[field.name])
    if field.has_default:
        return default_value(field.type, field.default)
    rule = f"give a default for field {field.name!r}"
    raise _refused(rule, given)


class _Parser:
    """Walks the JSON once; keeps the named types seen so far and those being defined."""

    def __init__(self) -> None:
        self._named: dict[str, AvroType] = {}
        self._open: set[str] = set()

    def parse(self, tree: Any, namespace: str, depth: int) -> AvroType:
        if depth > MAX_DEPTH:
            rule = f"nest at most {MAX_DEPTH} levels"
            raise _refused(rule, depth)
        made = self._parse(tree, namespace, depth)
        if made.nodes > MAX_NODES:
            rule = f"have at most {MAX_NODES} nodes"
            raise _refused(rule, made.nodes)
        return made

    def _parse(self, tree: Any, namespace: str, depth: int) -> AvroType:
        if isinstance(tree, str):
            return _primitive(tree) if tree in PRIMITIVES else self._reference(tree, namespace)
        if isinstance(tree, list):
            return self._union(tree, namespace, depth)
        kind = tree["type"]
        if isinstance(kind, (dict, list)):
            return self.parse(kind, namespace, depth + 1)
        if kind in {"record", "error", "enum", "fixed"}:
            return self._definition(tree, namespace, depth)
        if kind in {"array", "map"}:
            return self._container(tree, namespace, depth)
        if kind not in PRIMITIVES:
            return self._reference(kind, namespace)
        return _primitive(kind, **_logical(kind, 0, tree))

    def _reference(self, name: str, namespace: str) -> AvroType:
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        if full not in self._named and full not in self._open:
            full = name
        if full in self._open:
            hint = "give the nested record a name of its own, or flatten it"
            raise _refused("not contain itself", full, hint)
        if full not in self._named:
            raise _refused("define a type before its use", full)
        return self._named[full]

    def _union(self, tree: list[Any], namespace: str, depth: int) -> AvroType:
        branches = tuple(self.parse(branch, namespace, depth + 1) for branch in tree)
        if not branches or len(branches) > MAX_BRANCHES:
            rule = f"have unions of 1 to {MAX_BRANCHES} types"
            raise _refused(rule, len(branches))
        return AvroType(
            "union",
            1 + min(branch.min_bytes for branch in branches),
            1 + sum(branch.nodes for branch in branches),
            branches=branches,
        )

    def _container(self, tree: dict[str, Any], namespace: str, depth: int) -> AvroType:
        kind = tree["type"]
        items = self.parse(tree["items" if kind == "array" else "values"], namespace, depth + 1)
        if kind == "array" and items.min_bytes == 0:
            hint = "an array of them lets a few bytes declare a billion items"
            raise _refused("have array items of at least one byte", items.describe(), hint)
        return AvroType(kind, 1, 2 + items.nodes, items=items)

    def _definition(self, tree: dict[str, Any], namespace: str, depth: int) -> AvroType:
        full, space = _full_name(tree["name"], tree.get("namespace", namespace))
        aliases = tuple(_full_name(alias, space)[0] for alias in tree.get("aliases", ()))
        if full in self._named or full in self._open:
            raise _refused("define each name once", full)
        if tree["type"] == "enum":
            made = AvroType(
                "enum",
                1,
                name=full,
                aliases=aliases,
                symbols=tuple(tree["symbols"]),
                default_symbol=tree.get("default"),
            )
        elif tree["type"] == "fixed":
            size = tree["size"]
            if not isinstance(size, int) or not 0 <= size <= MAX_SCHEMA_CHARS:
                raise _refused("have fixed types of 0 to 2**20 bytes", size)
            logical = _logical("fixed", size, tree)
            made = AvroType("fixed", size, name=full, aliases=aliases, size=size, **logical)
        else:
            self._open.add(full)
            made = self._record(tree, full, aliases, space, depth)
            self._open.discard(full)
        self._named[full] = made
        return made

    def _record(
        self, tree: dict[str, Any], full: str, aliases: tuple[str, ...], space: str, depth: int
    ) -> AvroType:
        fields = tuple(
            AvroField(
                field["name"],
                self.parse(field["type"], space, depth + 1),
                "default" in field,
                field.get("default"),
                tuple(field.get("aliases", ())),
            )
            for field in tree["fields"]
        )
        if len({field.name for field in fields}) != len(fields):
            raise _refused("have fields of different names", [field.name for field in fields])
        for field in fields:
            if field.has_default:
                default_value(field.type, field.default)
        return AvroType(
            "record",
            sum(field.type.min_bytes for field in fields),
            1 + sum(field.type.nodes for field in fields),
            name=full,
            aliases=aliases,
            fields=fields,
        )


def _primitive(kind: str, **logical: Any) -> AvroType:
    return AvroType(kind, _MIN_BYTES.get(kind, 1), **logical)


def _logical(kind: str, size: int, tree: dict[str, Any]) -> dict[str, Any]:
    """Return the logical type's fields; an unknown or invalid one is ignored, as Avro demands."""
    logical = tree.get("logicalType")
    if not isinstance(logical, str) or logical not in _LOGICAL_OF.get(kind, frozenset()):
        return {}
    if logical != "decimal":
        return {"logical": logical}
    precision, scale = tree.get("precision"), tree.get("scale", 0)
    if not isinstance(precision, int) or not isinstance(scale, int):
        return {}
    if not (0 < precision <= MAX_DECIMAL_PRECISION and 0 <= scale <= precision):
        return {}
    if kind == "fixed" and 10**precision - 1 > (1 << (8 * size - 1)) - 1:
        return {}
    return {"logical": logical, "precision": precision, "scale": scale}


def _full_name(name: str, namespace: str | None) -> tuple[str, str]:
    """Return the full name and the namespace that encloses what is inside."""
    if "." in name:
        return name, name.rpartition(".")[0]
    return (f"{namespace}.{name}", namespace) if namespace else (name, "")


def _shape(kind: AvroType) -> object:
    if kind.kind == "union":
        return [_shape(branch) for branch in kind.branches]
    if kind.kind == "record":
        return ["record", kind.name, [[field.name, _shape(field.type)] for field in kind.fields]]
    if kind.items is not None:
        return [kind.kind, "of", _shape(kind.items)]
    logical = [kind.logical or "", kind.precision, kind.scale]
    return [kind.kind, kind.name, kind.size, list(kind.symbols), logical]


def _strip(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_strip(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kept = {key: value for key, value in tree.items() if key not in {"logicalType", "default"}}
    for key in ("type", "items", "values"):
        if key in kept:
            kept[key] = _strip(kept[key])
    if "fields" in kept:
        kept["fields"] = [_strip_field(field) for field in kept["fields"]]
    elif "default" in tree:
        kept["default"] = tree["default"]
    return kept


def _strip_field(field: dict[str, Any]) -> dict[str, Any]:
    return {**field, "type": _strip(field["type"])}


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _refused(rule: str, got: object, hint: str = "") -> SchemaRefused:
    return SchemaRefused(explain("schema", rule, got, "Avro", hint))
