"""Rows of one key deleted from the lake's tables, files and all, beside the running writer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from headrace.lake.errors import LakeError
from headrace.lake.tables import (
    OFFSET,
    PARTITION,
    TOPIC_ID,
    predictions_table,
    rejected_table,
    snapshots_table,
)
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from headrace.features.plan import PipelinePlan
    from headrace.lake.tables import Lake, LakeTable

#: How often a deletion is tried that the writer's own commits came in between.
TRIES_MAX = 20


@dataclass(frozen=True, slots=True)
class KeyRows:
    """Where a table holds rows of the key: a predicate in SQL."""

    table: str
    predicate: str


def rows_of_key(
    lake: Lake,
    plans: Iterable[PipelinePlan],
    entity: str,
    key: pa.Array,
    key_text: str,
    bounds: Mapping[str, tuple[str, list[int]]],
) -> list[KeyRows]:
    """Return where the lake holds events of a key, and what was made of them.

    Args:
        lake: The lake.
        plans: The pipelines with the entity.
        entity: The entity.
        key: The one key, in the type that its stages keep.
        key_text: The key as predictions spell it.
        bounds: Rows from these offsets on are new and stay. By topic of a source: its id, and
            where its partitions ended.

    """
    found: dict[tuple[str, str], KeyRows] = {}
    for plan in plans:
        scored = plan.source_plan(plan.source).topic
        outputs = _older("source_topic_id", "source_partition", "source_offset", *bounds[scored])
        for name in (predictions_table(plan.name), snapshots_table(plan.name)):
            same = f'"{entity}_key" = {_literal(pa.array([key_text]))}'
            found[name, entity] = KeyRows(name, f"{same} AND {outputs}")
        for stage in plan.stages:
            if stage.entity != entity:
                continue
            for given in stage.inputs:
                topic = plan.source_plan(given.source).topic
                older = _older(TOPIC_ID, PARTITION, OFFSET, *bounds[topic])
                same = f'"{given.key}" = {_literal(key)}'
                found[given.source, given.key] = KeyRows(given.source, f"{same} AND {older}")
                if given.key == plan.source_plan(given.source).key:
                    # What could not be decoded is known by its Kafka key, as text, alone.
                    raw = key if pa.types.is_binary(key.type) else pa.array([key_text.encode()])
                    name = rejected_table(given.source)
                    found[name, given.key] = KeyRows(name, f'"key" = {_literal(raw)} AND {older}')
    return [rows for rows in found.values() if lake.has(rows.table)]


def count_rows(lake: Lake, rows: KeyRows) -> int:
    """Return how many rows there are; reads the columns that the predicate names."""
    import duckdb

    files = lake.table(rows.table).files()
    if not files:
        return 0
    query = f"SELECT count(*) FROM read_parquet($1, union_by_name = true) WHERE {rows.predicate}"  # noqa: S608 - literals are quoted
    with duckdb.connect() as connection:
        counted = connection.execute(query, [files]).fetchone()
    return 0 if counted is None else int(counted[0])


def delete_rows(lake: Lake, rows: KeyRows, progress: Callable[[str], None] = lambda _: None) -> int:
    """Delete rows, and the files that held them; return how many rows there were.

    Readers of an older version of the table lose its files under their hands: they open it again.

    Raises:
        LakeError: If the writer's commits came in between each time.

    """
    from deltalake.exceptions import CommitFailedError

    for _ in range(TRIES_MAX):
        table = lake.table(rows.table)
        try:
            deleted = int(table.delta.delete(rows.predicate)["num_deleted_rows"])
        except CommitFailedError:
            progress(rows.table)
            continue
        if deleted:
            _vacuum(lake.table(rows.table))
        return deleted
    rule = f"be free for a deletion within {TRIES_MAX} tries"
    hint = "run it again; or stop 'headrace lake' meanwhile"
    raise LakeError(explain("a table", rule, "another commit each time", rows.table, hint))


def _vacuum(table: LakeTable) -> None:
    """Remove the files that no version since needs; not those that a writer has not committed."""
    table.delta.vacuum(
        retention_hours=0, dry_run=False, enforce_retention_duration=False, full=False
    )


def _older(
    topic_name: str, partition_name: str, offset_name: str, topic_id: str, ends: list[int]
) -> str:
    """Return the condition that a row is older than the bounds; of another topic all are."""
    within = [
        f'("{partition_name}" = {partition} AND "{offset_name}" < {end})'
        for partition, end in enumerate(ends)
    ]
    return f"(\"{topic_name}\" <> '{topic_id}' OR {' OR '.join(within)})"


def _literal(key: pa.Array) -> str:
    """Return an array's one key as SQL spells it."""
    value = key[0].as_py()
    if isinstance(value, bytes):
        return f"X'{value.hex()}'"
    if isinstance(value, int):
        return str(value)
    quoted = value.replace("'", "''")
    return f"'{quoted}'"
