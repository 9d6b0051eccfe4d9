"""``python -m bench.time_gap``: how far Feast's historical read is from ``hr.history``, by feature.

At the times of events they are equal. Between them Feast repeats the last row until it is older
than the view's ttl, while windows go on losing events. This asks both at random times, on real
transactions, and prints the table of docs/time-and-parity.md.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import headrace as hr
from examples.fraud.handbook import convert
from headrace.features.feast_repo.objects import EVENT_TIME, repo_objects
from headrace.features.feast_repo.repository import repository_of
from headrace.lake.backfill import backfill

if TYPE_CHECKING:
    from headrace.features.project import Project

REPOSITORY: Final = Path(__file__).resolve().parent.parent
DATA: Final = REPOSITORY.parent / "shared" / "data" / "fraud"
TRANSACTIONS: Final = 400_000
ASKED: Final = 5_000
DAY_MS: Final = 86_400_000
#: The longest window with its delay is full by then.
FIRST_DAY: Final = 37
SEED: Final = 7


@dataclass(frozen=True)
class Handbook:
    """The fraud example on real transactions, backfilled and applied to Feast."""

    project: Project
    transactions: pa.Table
    folder: Path

    @property
    def feast_folder(self) -> Path:
        """Return Feast's repository."""
        return repository_of(self.project.settings).folder


def prepare(folder: Path, data: Path = DATA, transactions: int = TRANSACTIONS) -> Handbook:
    """Return the example's project in ``folder``, with its tables and Feast's registry."""
    example = REPOSITORY / "examples" / "fraud"
    for name in ("definitions.py", "headrace.yaml"):
        shutil.copy(example / name, folder / name)
    shutil.copytree(example / "schemas", folder / "schemas")
    raw = pq.read_table(data / "raw.parquet").slice(0, transactions)
    rows, reports = convert(raw, data / "customer_tie_order.json")
    (folder / "data").mkdir()
    pq.write_table(rows, folder / "data" / "transactions.parquet")
    pq.write_table(reports, folder / "data" / "reports.parquet")
    project = hr.load(folder)
    # An apply writes down where Redis is, and needs none.
    repository_of(project.settings).apply(repo_objects(project), "redis://127.0.0.1:6379")
    backfill(project)
    return Handbook(project, rows, folder)


def random_spine(handbook: Handbook, asked: int = ASKED, seed: int = SEED) -> pa.Table:
    """Return keys and times that nobody chose: between ``FIRST_DAY`` and the last event."""
    rng = np.random.default_rng(seed)
    times = handbook.transactions["event_time"].cast(pa.int64()).to_numpy()
    first_ms = int(times[0]) // DAY_MS * DAY_MS + FIRST_DAY * DAY_MS
    columns = {
        name: handbook.transactions[name]
        .unique()
        .sort()
        .take(
            pa.array(rng.integers(0, pc.count_distinct(handbook.transactions[name]).as_py(), asked))
        )
        for name in ("customer_id", "terminal_id")
    }
    at = pa.array(rng.integers(first_ms, int(times[-1]), asked), pa.timestamp("ms", "UTC"))
    return pa.table({**columns, "event_time": at})


def ask_history(handbook: Handbook, spine: pa.Table) -> pa.Table:
    """Return ``hr.history``'s features at bare keys and times, row by row."""
    views = list(handbook.project.views)
    found = hr.history(spine, views, project=handbook.project, event_id=False)
    return found.select(_features(found))


def ask_feast(handbook: Handbook, spine: pa.Table) -> pa.Table:
    """Return Feast's features at the same keys and times, row by row."""
    import feast

    entities: Any = spine.rename_columns(
        [EVENT_TIME if name == "event_time" else name for name in spine.schema.names]
    ).append_column("row", pa.array(range(spine.num_rows)))
    store = feast.FeatureStore(repo_path=str(handbook.feast_folder))
    with warnings.catch_warnings():
        # Feast's SQL layer calls DuckDB by an old name.
        warnings.filterwarnings("ignore", "fetch_arrow_table", DeprecationWarning)
        found = store.get_historical_features(
            entity_df=entities.to_pandas(),
            features=store.get_feature_service("fraud"),
            full_feature_names=True,
        ).to_arrow()
    return found.sort_by("row").select(_features(found))


def _features(table: pa.Table) -> list[str]:
    return [name for name in table.schema.names if "__" in name]


def differing(ours: pa.Table, theirs: pa.Table) -> dict[str, int]:
    """Return by feature in how many rows the two differ in any bit; null is a value of its own."""
    assert ours.num_rows == theirs.num_rows, "row by row"
    return {
        name: int(np.sum(_bits(ours[name]) != _bits(theirs[name]))) for name in ours.schema.names
    }


def _bits(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """Return the values' bits; null is a pattern that no value here has."""
    floats = column.combine_chunks().cast(pa.float64(), safe=False)
    values = floats.fill_null(float("nan")).to_numpy(zero_copy_only=False)
    bits: np.ndarray[Any, Any] = values.view(np.uint64)
    return bits


def markdown(found: dict[str, int], asked: int) -> str:
    """Return the table of the page."""
    lines = ["| feature | differs |", "|---|---|"]
    lines += [f"| `{name}` | {count / asked:.1%} |" for name, count in found.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Feast against history between events.")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-gap-") as name:
        handbook = prepare(Path(name), options.data)
        spine = random_spine(handbook)
        found = differing(ask_history(handbook, spine), ask_feast(handbook, spine))
    print(markdown(found, spine.num_rows))


if __name__ == "__main__":
    main()
