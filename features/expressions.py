"""Column expressions: what request, derived and aggregated values are made of.

A user combines ``Formula`` objects (``hr.col("amount") / 100``); inside is a frozen tree of
``Expression`` nodes, equal when written equally, with a canonical text that fingerprints use.
``evaluate`` computes a tree over whole columns with numpy: only operations whose result for a
row cannot depend on the rows around it (docs/adr/0003). Knows nothing of sources and schemas.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.features.errors import ExpressionError, Location, refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    ColumnValues = NDArray[np.generic] | pa.Array

# What a value is. "int" is a whole number that float64 holds exactly, "long" may lie beyond 2**53,
# "time" is epoch milliseconds.
ValueType = Literal["bool", "int", "long", "float", "string", "bytes", "time"]
NUMERIC: frozenset[str] = frozenset({"bool", "int", "long", "float"})

EXACT_INTEGER_MAX = 2**53
_HOUR_MS = 3_600_000
_DAY_MS = 86_400_000
_THURSDAY = 3  # 1970-01-01, with Monday as 0.


class Expression:
    """A node of an expression's tree."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Column(Expression):
    """A column of the event."""

    name: str

    def __str__(self) -> str:
        return f"col({self.name!r})"


@dataclass(frozen=True, slots=True)
class Feature(Expression):
    """A feature by its full name, ``view__feature``."""

    name: str

    def __str__(self) -> str:
        return f"feature({self.name!r})"


@dataclass(frozen=True, slots=True)
class Constant(Expression):
    """A number, a boolean or a text."""

    value: bool | int | float | str

    def __str__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True, slots=True)
class Operation(Expression):
    """An operator or function over other expressions; ``name`` is a key of the table below."""

    name: str
    arguments: tuple[Expression, ...]

    def __str__(self) -> str:
        if self.name in OPERATORS and len(self.arguments) == 2:
            return f"({self.arguments[0]} {self.name} {self.arguments[1]})"
        return f"{self.name}({', '.join(map(str, self.arguments))})"


# --- What users write -------------------------------------------------------------------------


class Formula:
    """What ``hr.col`` returns: operators on it build an expression instead of computing."""

    __slots__ = ("location", "node")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, node: Expression, location: Location | None) -> None:
        self.node = node
        self.location = location

    def __repr__(self) -> str:
        return str(self.node)

    def __bool__(self) -> bool:
        raise refuse(
            self.location,
            "an expression",
            "not be asked whether it is true while it is defined",
            str(self.node),
            "and, or, not, if, or a chain such as 1 < x < 5",
            "write & for and, | for or, ~ for not, hr.where for if",
        )

    def __add__(self, other: object) -> Formula:
        return _operation("+", self, other)

    def __radd__(self, other: object) -> Formula:
        return _operation("+", other, self)

    def __sub__(self, other: object) -> Formula:
        return _operation("-", self, other)

    def __rsub__(self, other: object) -> Formula:
        return _operation("-", other, self)

    def __mul__(self, other: object) -> Formula:
        return _operation("*", self, other)

    def __rmul__(self, other: object) -> Formula:
        return _operation("*", other, self)

    def __truediv__(self, other: object) -> Formula:
        return _operation("/", self, other)

    def __rtruediv__(self, other: object) -> Formula:
        return _operation("/", other, self)

    def __neg__(self) -> Formula:
        return _operation("negate", self)

    def __lt__(self, other: object) -> Formula:
        return _operation("<", self, other)

    def __le__(self, other: object) -> Formula:
        return _operation("<=", self, other)

    def __gt__(self, other: object) -> Formula:
        return _operation(">", self, other)

    def __ge__(self, other: object) -> Formula:
        return _operation(">=", self, other)

    def __eq__(self, other: object) -> Formula:  # type: ignore[override]
        return _operation("==", self, other)

    def __ne__(self, other: object) -> Formula:  # type: ignore[override]
        return _operation("!=", self, other)

    def __and__(self, other: object) -> Formula:
        return _operation("&", self, other)

    def __rand__(self, other: object) -> Formula:
        return _operation("&", other, self)

    def __or__(self, other: object) -> Formula:
        return _operation("|", self, other)

    def __ror__(self, other: object) -> Formula:
        return _operation("|", other, self)

    def __invert__(self) -> Formula:
        return _operation("~", self)


def col(name: str) -> Formula:
    """Return the event's column ``name`` for use in an expression."""
    return Formula(Column(_name(name, "column")), caller())


def feature(name: str) -> Formula:
    """Return the feature ``view__feature``; null as long as the feature is."""
    return Formula(Feature(_name(name, "feature")), caller())


def hour(column: str | Formula) -> Formula:
    """Return the hour of the day, 0 to 23 UTC, of a column that holds a time."""
    return _operation("hour", _column(column))


def weekday(column: str | Formula) -> Formula:
    """Return the day of the week, Monday 0 to Sunday 6 UTC, of a column that holds a time."""
    return _operation("weekday", _column(column))


def floor(value: object) -> Formula:
    """Return the greatest whole number that is not above ``value``."""
    return _operation("floor", value)


def absolute(value: object) -> Formula:
    """Return the distance of ``value`` from zero."""
    return _operation("abs", value)


def minimum(left: object, right: object) -> Formula:
    """Return the lesser of two values; null if one is null."""
    return _operation("minimum", left, right)


def maximum(left: object, right: object) -> Formula:
    """Return the greater of two values; null if one is null."""
    return _operation("maximum", left, right)


def where(condition: object, value: object, otherwise: object) -> Formula:
    """Return ``value`` where the condition holds, else ``otherwise``; null if it is null."""
    return _operation("where", condition, value, otherwise)


def is_null(value: str | Formula) -> Formula:
    """Return whether a column or expression is missing; itself never null."""
    return _operation("is_null", _column(value))


def caller() -> Location | None:
    """Return where the nearest frame outside ``headrace`` stands: the user's line."""
    frame = sys._getframe(1)  # noqa: SLF001 - the only way to a caller's line
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if not module.startswith("headrace."):
            return Location(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _name(name: object, what: str) -> str:
    if not isinstance(name, str) or not name:
        raise refuse(caller(), f"a {what}", "be named by a text", name, f"hr.{what[:3]}")
    return name


def _column(column: object) -> Formula:
    return column if isinstance(column, Formula) else col(cast("str", column))


def node_of(value: object, location: Location | None = None) -> Expression:
    """Return the tree of a formula or constant; anything else is a definition error."""
    if isinstance(value, Formula):
        return value.node
    if isinstance(value, bool | str):
        return Constant(value)
    if isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2.0**1023:
        return Constant(value)
    raise refuse(
        location or caller(),
        "an operand",
        "be a column, a feature, a finite number, a boolean or a text",
        value,
        "an expression",
        "write hr.col('name') for a column",
    )


def _operation(name: str, *arguments: object) -> Formula:
    location = next((a.location for a in arguments if isinstance(a, Formula)), None) or caller()
    return Formula(Operation(name, tuple(node_of(a, location) for a in arguments)), location)


# --- Looking into a tree ----------------------------------------------------------------------


def walk(expression: Expression) -> Iterator[Expression]:
    """Yield the node and all below it."""
    yield expression
    if isinstance(expression, Operation):
        for argument in expression.arguments:
            yield from walk(argument)


def columns_of(expression: Expression) -> tuple[str, ...]:
    """Return the names of the event columns that the expression reads, each once, in order."""
    return tuple(dict.fromkeys(n.name for n in walk(expression) if isinstance(n, Column)))


def features_of(expression: Expression) -> tuple[str, ...]:
    """Return the full names of the features that the expression reads, each once, in order."""
    return tuple(dict.fromkeys(n.name for n in walk(expression) if isinstance(n, Feature)))


def to_data(expression: Expression) -> object:
    """Return the tree as plain data for JSON."""
    match expression:
        case Column(name):
            return {"col": name}
        case Feature(name):
            return {"feature": name}
        case Constant(value):
            return {"constant": value}
        case Operation(name, arguments):
            return {name: [to_data(a) for a in arguments]}
    raise AssertionError(expression)


def from_data(data: object) -> Expression:
    """Return the tree that ``to_data`` wrote."""
    assert isinstance(data, dict), data
    ((key, value),) = data.items()
    if key == "col":
        return Column(value)
    if key == "feature":
        return Feature(value)
    if key == "constant":
        return Constant(value)
    assert key in _COMPUTE, key
    return Operation(key, tuple(from_data(v) for v in value))


# --- Types ------------------------------------------------------------------------------------

OPERATORS = frozenset({"+", "-", "*", "/", "<", "<=", ">", ">=", "==", "!=", "&", "|"})
_ARITHMETIC = frozenset({"+", "-", "*", "/"})
_COMPARISONS = frozenset({"<", "<=", ">", ">=", "==", "!="})
_LOGIC = frozenset({"&", "|", "~"})


def type_of(
    expression: Expression,
    lookup: Callable[[Column | Feature], ValueType],
    location: Location | None = None,
) -> ValueType:
    """Return what the expression's values are.

    Args:
        expression: The tree.
        lookup: Gives a column's or feature's type; raises the caller's error for an unknown one.
        location: Where the definition stands, for the message.

    Raises:
        ExpressionError: If an operator is given what it cannot take.

    """
    if isinstance(expression, Column | Feature):
        return lookup(expression)
    if isinstance(expression, Constant):
        return _constant_type(expression.value)
    assert isinstance(expression, Operation), expression
    types = [type_of(a, lookup, location) for a in expression.arguments]
    result = _result_type(expression.name, types)
    if result is None:
        got = ", ".join(f"{a}: {t}" for a, t in zip(expression.arguments, types, strict=True))
        error = refuse(
            location,
            f"operands of {expression.name!r}",
            _NEEDS.get(expression.name, "be numbers"),
            got,
            str(expression),
            _type_hint(expression.name, types),
        )
        raise ExpressionError(str(error)) from None
    return result


_NEEDS = {
    "hour": "be a column that holds a time",
    "weekday": "be a column that holds a time",
    "&": "be booleans",
    "|": "be booleans",
    "~": "be booleans",
    "==": "be of one kind",
    "!=": "be of one kind",
    "where": "be a boolean and two numbers",
}


def _type_hint(name: str, types: list[ValueType]) -> str:
    if name in _LOGIC:
        return "put parentheses around comparisons: (a > 1) & (b > 2)"
    if "time" in types:
        return "take hr.hour or hr.weekday of a time"
    if "string" in types:
        return "a text can only be compared by == and !="
    return ""


def _constant_type(value: bool | float | str) -> ValueType:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int):
        return "int" if abs(value) <= EXACT_INTEGER_MAX else "long"
    return "float"


def _result_type(name: str, types: list[ValueType]) -> ValueType | None:
    numeric = NUMERIC.issuperset(types)
    if name == "is_null":
        return "bool"
    if name in {"hour", "weekday"}:
        return "int" if types == ["time"] else None
    if name in _LOGIC:
        return "bool" if set(types) == {"bool"} else None
    if name in {"==", "!="} and set(types) == {"string"}:
        return "bool"
    if name == "where":
        if types[0] != "bool" or not numeric:
            return None
        return _widest(types[1:])
    if not numeric:
        return None
    if name in _COMPARISONS:
        return "bool"
    if name in {"minimum", "maximum"}:
        return _widest(types)
    if name in {"abs", "negate", "floor"}:
        return "int" if types[0] == "bool" else types[0]
    return "float"


def _widest(types: list[ValueType]) -> ValueType:
    order: list[ValueType] = ["bool", "int", "long", "float"]
    return max(types, key=order.index)


# --- Values -----------------------------------------------------------------------------------


def evaluate(
    expression: Expression, columns: Mapping[str, ColumnValues], length: int
) -> NDArray[np.float64]:
    """Return the expression's value for every row; NaN stands for null, 0 and 1 for booleans.

    Row i of the result is a function of row i of the columns alone: the same bits however a log
    is cut into batches. Null operands give null, but for ``is_null``, ``where`` and the logic of
    ``&`` and ``|`` (false & null is false). Dividing by zero gives null. Whole numbers beyond
    2**53 are rounded to float64.

    Args:
        expression: The tree; its types were checked when the plan was compiled.
        columns: The event's columns and, for derived expressions, features by full name.
        length: Number of rows.

    Shape: (length,). The result may share memory with a column: do not write to it.

    """
    with np.errstate(all="ignore"):
        values = _evaluate(expression, columns, length)
        missing = np.isnan(values)
        if missing.any():
            # One NaN: which of two operands gives its bits to a sum is up to the instruction.
            values = np.where(missing, np.nan, values)
    return values


def _evaluate(expression: Expression, columns: Mapping[str, ColumnValues], length: int) -> Floats:
    if isinstance(expression, Column | Feature):
        return as_floats(columns[expression.name])
    if isinstance(expression, Constant):
        return np.full(length, float(expression.value))
    assert isinstance(expression, Operation), expression
    name, arguments = expression.name, expression.arguments
    if name in {"==", "!="} and (texts := _texts(arguments, columns)) is not None:
        equal = as_floats(pc.equal(*texts))
        return equal if name == "==" else 1.0 - equal
    if name == "is_null" and isinstance(arguments[0], Column | Feature):
        return _missing(columns[arguments[0].name])
    if name in {"hour", "weekday"}:
        assert isinstance(arguments[0], Column), expression
        return _calendar(name, columns[arguments[0].name])
    return _COMPUTE[name](*(_evaluate(a, columns, length) for a in arguments))


def as_floats(values: ColumnValues) -> Floats:
    """Return a numeric or boolean column as float64 with NaN for null, without copy if it is."""
    if isinstance(values, np.ndarray):
        return values.astype(np.float64, copy=False)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    array: NDArray[np.generic] = values.to_numpy(zero_copy_only=False)
    return array.astype(np.float64, copy=False)


def _texts(
    arguments: tuple[Expression, ...], columns: Mapping[str, ColumnValues]
) -> list[object] | None:
    texts: list[object] = []
    for argument in arguments:
        if isinstance(argument, Constant) and isinstance(argument.value, str):
            texts.append(argument.value)
        elif isinstance(argument, Column) and isinstance(columns[argument.name], pa.Array):
            array = columns[argument.name]
            if not pa.types.is_string(array.type):
                return None
            texts.append(array)
        else:
            return None
    if all(isinstance(t, str) for t in texts):
        return None
    return texts


def _missing(values: ColumnValues) -> Floats:
    if isinstance(values, np.ndarray):
        return np.isnan(values).astype(np.float64)
    if pa.types.is_floating(values.type):
        return as_floats(pc.is_null(values, nan_is_null=True))
    return as_floats(pc.is_null(values))


def _calendar(name: str, values: ColumnValues) -> Floats:
    null: NDArray[np.bool_] | None = None
    if isinstance(values, np.ndarray):
        time_ms = values
        if values.dtype.kind == "f":
            null = np.isnan(values)
            time_ms = np.where(null, 0, values)
    else:
        if values.null_count:
            null = pc.is_null(values).to_numpy(zero_copy_only=False)
            values = values.fill_null(0)
        time_ms = values.to_numpy(zero_copy_only=False)
    integers = time_ms.astype(np.int64, copy=False)
    if name == "hour":
        parts = integers // _HOUR_MS % 24
    else:
        parts = (integers // _DAY_MS + _THURSDAY) % 7
    result = parts.astype(np.float64)
    return result if null is None else np.where(null, np.nan, result)


def _divide(left: Floats, right: Floats) -> Floats:
    return cast("Floats", np.where(right == 0.0, np.nan, left / right))


def _compare(function: np.ufunc) -> Callable[[Floats, Floats], Floats]:
    def compared(left: Floats, right: Floats) -> Floats:
        return np.where(np.isnan(left) | np.isnan(right), np.nan, function(left, right))

    return compared


def _choose(function: np.ufunc) -> Callable[[Floats, Floats], Floats]:
    # Not np.minimum: of 0.0 and -0.0 it may take either, by the instruction that the row falls on.
    def chosen(left: Floats, right: Floats) -> Floats:
        result = np.where(function(left, right), left, right)
        return np.where(np.isnan(left), np.nan, result)

    return chosen


def _and(left: Floats, right: Floats) -> Floats:
    result = np.where(np.isnan(left) | np.isnan(right), np.nan, 1.0)
    return np.where((left == 0.0) | (right == 0.0), 0.0, result)


def _or(left: Floats, right: Floats) -> Floats:
    result = np.where(np.isnan(left) | np.isnan(right), np.nan, 0.0)
    return np.where((left == 1.0) | (right == 1.0), 1.0, result)


def _where(condition: Floats, value: Floats, otherwise: Floats) -> Floats:
    result = np.where(condition == 1.0, value, otherwise)
    return np.where(np.isnan(condition), np.nan, result)


# Every operation there is. A new one needs: its entry here, its type in ``_result_type``, a function
# for users above, and to be a function of one row alone (no sums, and no exp or log: their results
# differ between libraries and vector widths).
_COMPUTE: dict[str, Callable[..., Floats]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": _divide,
    "<": _compare(np.less),
    "<=": _compare(np.less_equal),
    ">": _compare(np.greater),
    ">=": _compare(np.greater_equal),
    "==": _compare(np.equal),
    "!=": _compare(np.not_equal),
    "&": _and,
    "|": _or,
    "~": lambda value: 1.0 - value,
    "negate": np.negative,
    "abs": np.abs,
    "floor": np.floor,
    "minimum": _choose(np.less),
    "maximum": _choose(np.greater),
    "where": _where,
    "is_null": lambda value: np.isnan(value).astype(np.float64),
    "hour": lambda value: _calendar("hour", value),
    "weekday": lambda value: _calendar("weekday", value),
}
