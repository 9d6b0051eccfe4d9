"""``python -m bench.choose_lightgbm``: the example's LightGBM parameters, chosen on earlier weeks.

The published table is about the week from 2018-08-08. Nothing from 2018-08-01 on is looked at here:
four folds of a training week, the labels' week of delay and a validation week, the last of which
ends with the training week of the table. The parameters with the highest mean AUC are those of
``examples/fraud/definitions.py``; ``tests/parity/test_published_table.py`` holds them to the table.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track
from rich.table import Table

from examples.fraud.handbook import convert
from headrace.features.compiler import compile_project
from headrace.features.project import load_project
from headrace.lake.history import event_vectors
from headrace.training.datasets import TrainingSet, build_training_set
from headrace.training.evaluate import Evaluation, evaluate, unknown_at_day_start
from headrace.training.fit import fit
from headrace.training.split import DAY_MS, Period, TimeSplit, split_by_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "fraud"
WEEK_MS = 7 * DAY_MS
FOLD_STARTS = ("2018-06-20", "2018-06-27", "2018-07-04", "2018-07-11")
GRID: Mapping[str, Sequence[float]] = {
    "num_leaves": (4, 7, 15),
    "learning_rate": (0.03, 0.05, 0.1),
    "n_estimators": (100, 200),
    "min_child_samples": (50, 100),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """Parameters with their figures, one per fold."""

    parameters: dict[str, float]
    folds: tuple[Evaluation, ...]

    @property
    def auc(self) -> float:
        """The mean AUC, by which is chosen."""
        return float(np.mean([fold.auc for fold in self.folds]))


def day_ms(day: str) -> int:
    """Return the first millisecond of a day such as ``2018-07-25`` (UTC)."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)


def week_split(start: str) -> TimeSplit:
    """Return a training week from ``start``, a week of delay, a test week."""
    return split_by_time(day_ms(start), day_ms(start) + 3 * WEEK_MS, gap_ms=WEEK_MS)


def handbook_set(data: Path, start: str, end: str) -> TrainingSet:
    """Return the handbook's transactions of a period with our features and labels.

    Args:
        data: The folder with the handbook's files.
        start: The first day.
        end: The day after the last one; nothing from it on is read.
    """
    raw = pq.read_table(data / "raw.parquet")
    raw = raw.filter(pc.less(raw["TX_DATETIME"].cast("int64"), day_ms(end)))
    transactions, reports = convert(raw, data / "customer_tie_order.json")
    plan = compile_project(load_project(ROOT / "examples" / "fraud")).pipelines[0]
    tables = {"transactions": transactions, "reports": reports}
    return build_training_set(plan, tables, Period(day_ms(start), day_ms(end)), event_vectors)


def fresh_rows(data: TrainingSet, split: TimeSplit) -> np.ndarray:
    """Return the test week's rows without the customers that are known each day.

    Shape: bool (n,).
    """
    since = data.event_time_ms >= split.train.start_ms
    rows = np.zeros(len(since), bool)
    rows[since] = unknown_at_day_start(
        data.keys[since], data.event_time_ms[since], data.positive_known_at_ms[since], split.test
    )
    return rows


def judge(
    parameters: Mapping[str, object],
    data: TrainingSet,
    split: TimeSplit,
    tested: np.ndarray | None = None,
) -> Evaluation:
    """Fit on a split's training week and return the figures of its test week's fresh rows."""
    rows = split.train.mask(data.event_time_ms)
    tested = fresh_rows(data, split) if tested is None else tested
    labels = data.labels(split.label_cutoff_ms)
    fitted = fit(parameters, data.vector[rows], labels[rows], data.names)
    return evaluate(
        fitted.predict(data.vector[tested]),
        data.labels()[tested],
        data.keys[tested],
        data.event_time_ms[tested],
    )


def search(data: TrainingSet, console: Console) -> list[Trial]:
    """Return all trials, the best first."""
    splits = [week_split(start) for start in FOLD_STARTS]
    tested = [fresh_rows(data, split) for split in splits]
    grid = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    trials = [
        Trial(
            parameters,
            tuple(judge(parameters, data, *fold) for fold in zip(splits, tested, strict=True)),
        )
        for parameters in track(grid, "trying parameters", console=console, transient=True)
    ]
    return sorted(trials, key=lambda trial: -trial.auc)


def main() -> int:
    """Search and print the best."""
    console = Console()
    with console.status("features as of each transaction"):
        end = week_split(FOLD_STARTS[-1]).test.end_ms
        last = datetime.fromtimestamp(end / 1000, UTC).strftime("%Y-%m-%d")
        data = handbook_set(DATA, FOLD_STARTS[0], last)
    table = Table("parameters", "AUC", "AP", "precision@100", title=f"before {last}")
    for trial in search(data, console)[:10]:
        means = np.mean(
            [(f.auc, f.average_precision, f.key_precision) for f in trial.folds], axis=0
        )
        shown = ", ".join(f"{name}={value}" for name, value in trial.parameters.items())
        table.add_row(shown, *(f"{mean:.4f}" for mean in means))
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
