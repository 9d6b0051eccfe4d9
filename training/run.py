"""Opens a training run: project, plan, data and periods, from what the command line says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.features.compiler import compile_project
from headrace.features.project import load_project
from headrace.lake.dataset import SetRequest
from headrace.lake.events import Span
from headrace.lake.opening import open_readers
from headrace.lake.request import as_of_from, plans_for
from headrace.lake.spine import event_times
from headrace.runtime.errors import explain
from headrace.runtime.settings import duration_ms
from headrace.training.datasets import read_source, read_training_set, source_period
from headrace.training.errors import TrainingError
from headrace.training.split import Period, TimeSplit, default_period, split_by_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pyarrow as pa

    from headrace.features.plan import PipelinePlan
    from headrace.lake.request import Request
    from headrace.training.datasets import TrainingSet


@dataclass(frozen=True, slots=True)
class Training:
    """Everything that a run needs.

    ``tables`` by source, from files; empty where the events come from the lake by ``request``.
    """

    plan: PipelinePlan
    tables: Mapping[str, pa.Table]
    split: TimeSplit
    registry_folder: Path
    request: Request | None = None
    as_of: str = "event"

    def read_lake(
        self, period: Period, progress: Callable[[int, int], None] | None = None
    ) -> TrainingSet:
        """Return the set of a period from the lake."""
        assert self.request is not None, "the events come from files"
        span = Span(period.start_ms, period.end_ms - 1)
        asked = SetRequest(self.plan, as_of=self.as_of, span=span, label=True)
        return read_training_set(asked, self.request, progress)


def open_training(
    folder: Path,
    pipeline: str | None,
    data: Iterable[str],
    *,
    start: int | None = None,
    end: int | None = None,
    test: str = "7d",
    as_of: str = "event",
    from_lake: bool = False,
) -> Training:
    """Return a run's plan, tables and split.

    Args:
        folder: The project's folder.
        pipeline: Which one; None names the only one.
        data: Folders with ``<source>.parquet`` files, or ``name=path``; over the settings' files.
        start: Where training begins, epoch ms; None: a default that fits the data.
        end: Where the test ends, epoch ms; None: when the last labels are in.
        test: How long the test is.
        as_of: As in ``hr.history``; other than ``event`` only the lake can answer.
        from_lake: Take the lake even where the settings name files. It is taken in any case where
            neither they nor ``data`` do.

    Raises:
        HeadraceError: If the project or the data are not in order.
    """
    project = load_project(folder)
    settings = project.settings
    plan = choose_pipeline(compile_project(project, settings.topics.partitions).pipelines, pipeline)
    if plan.label is None:
        hint = "give hr.Pipeline a label=hr.Label(source, column, on=…, delay=…)"
        raise TrainingError(explain("pipeline", "have a label", None, plan.name, hint))
    names = [source.name for source in plan.sources]
    files = _files(data, names)
    if not files and (from_lake or not settings.history or as_of != "event"):
        tables: dict[str, pa.Table] = {}
        request = plans_for(plan, project, "lake", as_of_from(as_of))
        whole = _lake_period(plan, request)
    else:
        tables, request = _read_files({**settings.history, **files}, plan), None
        if as_of != "event":
            rule = "be event where the events come from files"
            raise TrainingError(explain("--as-of", rule, as_of, f"pipeline {plan.name}"))
        whole = source_period(tables[plan.source], plan.source_plan(plan.source))
    try:
        test_ms = duration_ms(test)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    gap_ms = plan.label.delay_ms
    usual = default_period(whole, gap_ms=gap_ms, reach_ms=_reach_ms(plan), test_ms=test_ms)
    chosen = Period(
        usual.start_ms if start is None else start, usual.end_ms if end is None else end
    )
    split = split_by_time(chosen.start_ms, chosen.end_ms, gap_ms=gap_ms, test_ms=test_ms)
    return Training(plan, tables, split, settings.registry_folder, request, as_of)


def _read_files(files: Mapping[str, Path], plan: PipelinePlan) -> dict[str, pa.Table]:
    missing = [source.name for source in plan.sources if source.name not in files]
    if missing:
        hint = f"give --data {missing[0]}=FILE, or name it in headrace.yaml under history:"
        message = explain(
            "history", "hold every source", f"none of {missing}", f"pipeline {plan.name}", hint
        )
        raise TrainingError(message)
    return {source.name: read_source(files[source.name], source) for source in plan.sources}


def _lake_period(plan: PipelinePlan, request: Request) -> Period:
    """Return the period that the scored source's events span in the lake."""
    source = plan.source_plan(plan.source)
    _, times = event_times(source, open_readers(plan, request, label=True)[plan.source])
    if not len(times):
        raise TrainingError(explain("the lake", "hold events", 0, f"source {source.name}"))
    return Period(int(times.min()), int(times.max()) + 1)


def choose_pipeline(plans: Sequence[PipelinePlan], name: str | None) -> PipelinePlan:
    """Return the pipeline of this name; None names the only one.

    Raises:
        TrainingError: If there is none of this name, or several to choose from.
    """
    names = [plan.name for plan in plans]
    if name is None and len(plans) == 1:
        return plans[0]
    if name not in names:
        hint = f"there are: {', '.join(names)}"
        raise TrainingError(explain("pipeline", "be one of the project's", name, "this run", hint))
    return plans[names.index(name)]


def _files(data: Iterable[str], names: Sequence[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in data:
        name, sign, path = text.partition("=")
        if sign and name in names:
            files[name] = Path(path)
            continue
        folder = Path(text)
        found = {name: folder / f"{name}.parquet" for name in names}
        present = {name: path for name, path in found.items() if path.exists()}
        if not present:
            message = explain(
                "--data", f"be name=path or hold {sorted(found)} as .parquet", text, "training"
            )
            raise TrainingError(message)
        files |= present
    return files


def _reach_ms(plan: PipelinePlan) -> int:
    """Return how far back the longest window of the plan reaches."""
    return max(
        (window.delay_ms + window.length_ms for stage in plan.stages for window in stage.windows),
        default=0,
    )
