"""Column expressions: what request, derived and aggregated values are made of.

A frozen tree of nodes, equal when written equally; users build it with
``headrace.features.formulas``. ``evaluate`` computes a tree over whole columns with numpy: only
operations whose result for a row cannot depend on the rows around it (docs/adr/0003). Knows
nothing of sources and schemas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.features.errors import ExpressionError, refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from headrace.features.errors import Location

    Floats: TypeAlias = NDArray[np.float64]
    # A numpy array, or a pyarrow.Array, which has no types.
    ColumnValues: TypeAlias = Any

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
    """Return the type of an operation's result, None for operands that it does not take."""
    if name == "is_null":
        return "bool"
    if name in {"hour", "weekday"}:
        return "int" if types == ["time"] else None
    if name in _LOGIC:
        return "bool" if set(types) == {"bool"} else None
    if name in {"==", "!="} and set(types) == {"string"}:
        return "bool"
    if not NUMERIC.issuperset(types) or (name == "where" and types[0] != "bool"):
        return None
    if name in _COMPARISONS:
        return "bool"
    return _number_type(name, types)


def _number_type(name: str, types: list[ValueType]) -> ValueType:
    if name == "where":
        return _widest(types[1:])
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
    if isinstance(expression, Operation):
        with np.errstate(all="ignore"):
            values = _evaluate(expression, columns, length)
    else:
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
    # Not %: numpy divides by a constant with multiplications, but takes remainders one by one.
    if name == "hour":
        units, length = integers // _HOUR_MS, 24
    else:
        units, length = integers // _DAY_MS + _THURSDAY, 7
    result = (units - units // length * length).astype(np.float64)
    return result if null is None else np.where(null, np.nan, result)


def _divide(left: Floats, right: Floats) -> Floats:
    return np.where(right == 0.0, np.nan, left / right)


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


# Every operation there is. A new one needs its entry here, its type in ``_result_type``, a function
# in ``formulas``, and to be a function of one row alone by IEEE arithmetic only: no sums, and no
# exp or log, whose results differ between libraries and vector widths.
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
