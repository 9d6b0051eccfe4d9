"""Keeping tables quick to read: few large files, no old ones, nothing beyond the retention.

All of it is commits of their own that move no row and no position. A reader that has a version
open can go on reading it for ``KEEP_HOURS``: files are deleted so long after they left the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from headrace.lake.errors import TableBusyError
from headrace.lake.tables import ARRIVAL_TIME, Lake, file_actions
from headrace.lake.writer import first_line, parquet_properties

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MIB: Final = 1 << 20
#: Small files become ones of the first size, these become ones of the next: each row is written
#: again about once a size, however small the appends are.
TARGET_BYTES: Final = (8 * MIB, 128 * MIB)
#: So many files below half of a size are put together.
FILES_MIN: Final = 16
KEEP_HOURS: Final = 12


@dataclass(frozen=True, slots=True)
class Maintained:
    """What was done to a table: files before and after, rows deleted by age, files wiped."""

    table: str
    files_before: int
    files_after: int
    size_bytes: int
    deleted_rows: int = 0
    wiped_files: int = 0


def file_sizes(delta: Any) -> list[int]:
    """Return the size of each file of a table, bytes."""
    return [int(size) for size in file_actions(delta).column("size_bytes").to_pylist()]


def compact(delta: Any, files_min: int = FILES_MIN, targets: Sequence[int] = TARGET_BYTES) -> bool:
    """Put small files together where there are enough of them; return whether any were.

    Raises:
        TableBusyError: If it did not go through; nothing has changed.

    """
    from deltalake.exceptions import DeltaError

    done = False
    for target in targets:
        small = sum(1 for size in file_sizes(delta) if size < target // 2)
        if small < max(2, files_min):
            continue
        try:
            delta.optimize.compact(
                target_size=target,
                # One at a time: the next rows come to the same process, and memory is bounded.
                max_concurrent_tasks=1,
                writer_properties=parquet_properties(),
            )
        except (DeltaError, OSError) as error:
            message = f"table must be compactable; got {first_line(error)!r}"
            raise TableBusyError(message) from error
        done = True
    return done


def delete_older(delta: Any, retention_ms: int, now_ms: int) -> int:
    """Delete the rows that arrived more than ``retention_ms`` ago; return how many.

    Raises:
        TableBusyError: If it did not go through; nothing has changed.

    """
    from deltalake.exceptions import DeltaError

    cut = datetime.fromtimestamp((now_ms - retention_ms) / 1000, UTC)
    predicate = f"{ARRIVAL_TIME} < '{cut:%Y-%m-%dT%H:%M:%S.%fZ}'"
    if not _may_hold_older(delta, cut):
        return 0
    try:
        done = delta.delete(predicate, writer_properties=parquet_properties())
    except (DeltaError, OSError) as error:
        message = f"rows beyond the retention must be deletable; got {first_line(error)!r}"
        raise TableBusyError(message) from error
    return int(done["num_deleted_rows"] or 0)


def _may_hold_older(delta: Any, cut: datetime) -> bool:
    actions = file_actions(delta)
    name = f"min.{ARRIVAL_TIME}"
    if name not in actions.schema.names:
        return bool(actions.num_rows)
    oldest = [value for value in actions.column(name).to_pylist() if value is not None]
    return bool(oldest) and bool(min(oldest) < cut)


def wipe_old_files(delta: Any, keep_hours: int = KEEP_HOURS) -> int:
    """Delete files that left the table ``keep_hours`` ago, or never came to be in it.

    Raises:
        TableBusyError: If it did not go through.

    """
    from deltalake.exceptions import DeltaError

    try:
        wiped = delta.vacuum(
            retention_hours=keep_hours, dry_run=False, enforce_retention_duration=False, full=True
        )
    except (DeltaError, OSError) as error:
        message = f"old files must be deletable; got {first_line(error)!r}"
        raise TableBusyError(message) from error
    return len(wiped)


def maintain(
    folder: Path,
    name: str,
    *,
    retention_ms: int | None,
    now_ms: int,
    files_min: int = FILES_MIN,
    wipe: bool = True,
) -> Maintained:
    """Do all of it to one table, on a handle of its own.

    Raises:
        TableBusyError: If the disk does not take it, or the table changed too often meanwhile.

    """
    delta = Lake(folder).table(name).delta
    before = len(file_sizes(delta))
    deleted = 0 if retention_ms is None else delete_older(delta, retention_ms, now_ms)
    compact(delta, files_min)
    wiped = wipe_old_files(delta) if wipe else 0
    sizes = file_sizes(delta)
    return Maintained(name, before, len(sizes), sum(sizes), deleted, wiped)
