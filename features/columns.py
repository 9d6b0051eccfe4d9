"""From Arrow to what stages use: an event's columns, checked row by row, and the values of rings.

The same code takes decoded batches on the stream and tables in history, so that a row is refused,
replaced or read alike on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.features.errors import ColumnError, did_you_mean
from headrace.features.expressions import columns_of, evaluate, features_of
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from headrace.features.plan import ColumnKind, ColumnPlan, SourcePlan, StagePlan

# Why a row is bad input, by ``check_rows``' codes; 0 is a good row. The first that applies counts.
REJECT_REASONS = (
    "",
    "null_time",
    "negative_time",
    "future_time",
    "null_key",
    "not_finite",
    "out_of_range",
)

# The exact sums' domain (docs/adr/0008).
VALUE_LIMIT = float(2**40)
# The year 10000: beyond it no arithmetic on times is safe, whatever the source allows.
TIME_MS_LIMIT = 253_402_300_800_000

_NULL_TIME, _NEGATIVE_TIME, _FUTURE_TIME, _NULL_KEY, _NOT_FINITE, _OUT_OF_RANGE = range(1, 7)

_ARROW: dict[ColumnKind, pa.DataType] = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "bytes": pa.binary(),
}

# What else than the kind's own type is read as it: the same values in another width or layout.
_TAKEN: dict[ColumnKind, tuple[Callable[[pa.DataType], bool], ...]] = {
    "int64": (pa.types.is_integer,),
    "float64": (pa.types.is_floating, pa.types.is_decimal, pa.types.is_integer),
    "bool": (),
    "string": (pa.types.is_large_string, pa.types.is_string_view),
    "bytes": (pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view),
}


@dataclass(slots=True)
class EventColumns:
    """Events of one source: the plan's columns, each of its plan's type.

    ``columns`` holds Arrow arrays by name (int64, float64, bool, string or binary; times are int64
    epoch ms). ``event_time_ms`` and ``known_at_ms`` (the event time where the source has none) are
    0 where null: ``check_rows`` refuses those rows.
    """

    source: SourcePlan
    length: int
    event_time_ms: NDArray[np.int64]
    known_at_ms: NDArray[np.int64]
    columns: dict[str, pa.Array]


def event_columns(batch: pa.RecordBatch | pa.Table, source: SourcePlan) -> EventColumns:
    """Return the columns of a source that its pipeline reads, cast to the plan's types.

    Under the policy ``not_finite="null"`` NaN and infinity in aggregated columns become null here.

    Raises:
        ColumnError: If a column is missing or of a type that the schema does not allow.

    """
    names = batch.schema.names
    columns = {c.name: _column(batch, names, c, source) for c in source.columns}
    if source.not_finite == "null":
        for name in _finite_columns(source):
            columns[name] = _finite_or_null(columns[name])
    event_time_ms = _integers(columns[source.event_time])
    return EventColumns(
        source=source,
        length=batch.num_rows,
        event_time_ms=event_time_ms,
        known_at_ms=_integers(columns[source.known_at]) if source.known_at else event_time_ms,
        columns=columns,
    )


def take(events: EventColumns, indices: NDArray[np.integer]) -> EventColumns:
    """Return the events at ``indices``, in that order."""
    rows = pa.array(indices, pa.int64())
    event_time_ms = events.event_time_ms[indices]
    same = events.known_at_ms is events.event_time_ms
    return EventColumns(
        source=events.source,
        length=len(indices),
        event_time_ms=event_time_ms,
        known_at_ms=event_time_ms if same else events.known_at_ms[indices],
        columns={name: column.take(rows) for name, column in events.columns.items()},
    )


def check_rows(
    events: EventColumns, arrival_time_ms: NDArray[np.int64] | None
) -> NDArray[np.uint8]:
    """Return for each row 0, or the index into ``REJECT_REASONS`` of why it is bad input.

    Args:
        events: The rows.
        arrival_time_ms: The broker's timestamps, or None where there are none: then only times
            beyond the year 10000 are in the future.

    Cost: about 10 ns a row where all is well.

    """
    reasons = np.zeros(events.length, np.uint8)
    for reason, bad in _faults(events, arrival_time_ms):
        reasons[bad & (reasons == 0)] = reason
    return reasons


def value_matrix(
    stage: StagePlan,
    source: str,
    events: EventColumns,
    features: Mapping[str, NDArray[np.float64]] | None = None,
) -> NDArray[np.float64]:
    """Return what the stage's rings store of these events; NaN for null and other sources' values.

    A value that is made of features cannot be checked at ingest: beyond the range of exact sums it
    is null.

    Args:
        stage: The stage.
        source: Whose events these are.
        events: Checked rows.
        features: Features of earlier stages by full name, for values that read them.

    Shape: (events.length, len(stage.values)).

    """
    matrix = np.full((events.length, len(stage.values)), np.nan)
    for index, value in enumerate(stage.values):
        if value.source != source:
            continue
        columns = events.columns if features is None else {**events.columns, **features}
        column = evaluate(value.expression, columns, events.length)
        if features_of(value.expression):
            column = np.where(np.abs(column) < VALUE_LIMIT, column, np.nan)
        matrix[:, index] = column
    return matrix


# --- Reading Arrow ------------------------------------------------------------------------------


def _column(
    batch: pa.RecordBatch | pa.Table, names: list[str], plan: ColumnPlan, source: SourcePlan
) -> pa.Array:
    where = f"events of source {source.name}"
    if plan.name not in names:
        hint = did_you_mean(plan.name, names)
        raise ColumnError(explain(f"column {plan.name}", "be there", names, where, hint))
    array = batch.column(names.index(plan.name))
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()
    if array.type == _ARROW[plan.kind]:
        return array
    try:
        cast = _cast(array, plan.kind)
    except pa.ArrowInvalid as error:
        message = f"column {plan.name} of {where} must hold {plan.kind}; {error}"
        raise ColumnError(message) from error
    if cast is None:
        rule = f"hold {plan.kind}"
        raise ColumnError(explain(f"column {plan.name}", rule, str(array.type), where))
    return cast


def _cast(array: pa.Array, kind: ColumnKind) -> pa.Array | None:
    """Return the array as the plan's kind, None where that would change its meaning."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    given, wanted = array.type, _ARROW[kind]
    if given == wanted:
        return array
    if pa.types.is_null(given):
        return array.cast(wanted)
    if kind == "int64" and pa.types.is_temporal(given):
        return _time_ms(array)
    if not any(allowed(given) for allowed in _TAKEN[kind]):
        return None
    # Whole numbers beyond 2**53 are rounded, as everywhere in float64.
    return array.cast(wanted, safe=kind != "float64")


def _time_ms(array: pa.Array) -> pa.Array | None:
    given = array.type
    if pa.types.is_timestamp(given):
        per_ms = {"s": 0.001, "ms": 1, "us": 1_000, "ns": 1_000_000}[given.unit]
        # The same bits under another type: a cast costs 20 us, which small batches would notice.
        ticks = array.view(pa.int64())
    elif pa.types.is_date64(given):
        per_ms, ticks = 1, array.view(pa.int64())
    elif pa.types.is_date32(given):
        return pc.multiply(array.cast(pa.int32()).cast(pa.int64()), 86_400_000)
    else:
        return None
    if per_ms == 1:
        return ticks
    if per_ms < 1:
        return pc.multiply_checked(ticks, 1_000)
    # Down, not towards zero: the millisecond that the instant lies in.
    floored = _integers(ticks) // int(per_ms)
    missing = ticks.is_null().to_numpy(zero_copy_only=False) if ticks.null_count else None
    return pa.array(floored, pa.int64(), mask=missing)


def _integers(array: pa.Array) -> NDArray[np.int64]:
    if array.null_count:
        array = array.fill_null(0)
    integers: NDArray[np.int64] = array.to_numpy(zero_copy_only=False)
    return integers


# --- Checks -------------------------------------------------------------------------------------


def _faults(
    events: EventColumns, arrival_time_ms: NDArray[np.int64] | None
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Yield (reason, rows that have it) for what is found, in the order of ``REJECT_REASONS``."""
    source = events.source
    if events.length == 0:
        return
    times = [(source.event_time, events.event_time_ms)]
    if source.known_at:
        times.append((source.known_at, events.known_at_ms))
    for name, _ in times:
        if events.columns[name].null_count:
            yield _NULL_TIME, _is_null(events.columns[name])
    for _, time_ms in times:
        if time_ms.min() < 0:
            yield _NEGATIVE_TIME, time_ms < 0
    for _, time_ms in times:
        if time_ms.max() >= TIME_MS_LIMIT:
            yield _FUTURE_TIME, time_ms >= TIME_MS_LIMIT
        if arrival_time_ms is not None:
            ahead = time_ms > arrival_time_ms + source.max_ahead_ms
            if ahead.any():
                yield _FUTURE_TIME, ahead
    if source.null_key == "dlq" and events.columns[source.key].null_count:
        yield _NULL_KEY, _is_null(events.columns[source.key])
    yield from _number_faults(events)


def _number_faults(events: EventColumns) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    source = events.source
    outside: list[NDArray[np.bool_]] = []
    for name in _finite_columns(source):
        values = _numbers(events.columns[name])
        with np.errstate(invalid="ignore"):
            inside = np.abs(values) < VALUE_LIMIT
        if inside.all():
            continue
        finite = np.isfinite(values)
        yield _NOT_FINITE, ~finite
        if name in source.checked:
            outside.append(finite & ~inside)
    for expression in source.checked_expressions:
        values = evaluate(expression, events.columns, events.length)
        outside.append(np.abs(values) >= VALUE_LIMIT)
    for bad in outside:
        yield _OUT_OF_RANGE, bad


def _finite_columns(source: SourcePlan) -> list[str]:
    """Return the number columns that aggregates read, directly or through an expression."""
    read = [*source.checked]
    for expression in source.checked_expressions:
        read += columns_of(expression)
    kinds = {column.name: column.kind for column in source.columns}
    return [n for n in dict.fromkeys(read) if kinds[n] in {"float64", "int64"}]


def _numbers(array: pa.Array) -> NDArray[np.float64]:
    """Return a number column as float64, null as 0."""
    if array.null_count:
        array = array.fill_null(0)
    values: NDArray[np.generic] = array.to_numpy(zero_copy_only=False)
    return values.astype(np.float64, copy=False)


def _finite_or_null(array: pa.Array) -> pa.Array:
    if not pa.types.is_floating(array.type) or np.isfinite(_numbers(array)).all():
        return array
    return pc.if_else(pc.is_finite(array), array, pa.scalar(None, array.type))


def _is_null(array: pa.Array) -> NDArray[np.bool_]:
    missing: NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False)
    return missing
