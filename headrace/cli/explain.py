"""``headrace explain``: how a prediction came about, from its event to its score."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.options import AsJson, Folder

if TYPE_CHECKING:
    from datetime import datetime

    from headrace.features.plan import PipelinePlan
    from headrace.features.project import Project
    from headrace.lake.receipts import OutputRows
    from headrace.lake.tables import Lake
    from headrace.schemas.outputs import PredictionId
    from headrace.scoring.explain import Contributions
    from headrace.scoring.receipts import Receipt


@dataclass(frozen=True, slots=True)
class FeatureLine:
    """A column of the vector: what it was, what it is, and what it did to the score.

    ``note`` says that a value is a default or null; ``contribution`` is None without a model.
    """

    name: str
    value: float | int | None
    note: str
    age_ms: int | None
    contribution: float | None
    definition: str
    line: str | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """A receipt with all that can be said of it.

    ``why_not`` says why there are no contributions. ``related`` are other predictions about events
    of the same id, ``times_emitted`` counts this one's rows. ``notes`` are for the reader.
    """

    receipt: Receipt
    features: tuple[FeatureLine, ...]
    contributions: Contributions | None
    why_not: str
    related: tuple[PredictionId, ...]
    times_emitted: int
    notes: tuple[str, ...]


def explain(
    prediction: Annotated[
        str | None, typer.Argument(help="A prediction id, as 'headrace tail' shows it.")
    ] = None,
    *,
    event: Annotated[str | None, typer.Option(help="Instead: the event's own id.")] = None,
    pipeline: Annotated[str | None, typer.Option(help="Which one, if there are several.")] = None,
    project: Folder = Path(),
    as_json: AsJson = False,
) -> None:
    """Show a prediction's event, features, ages, model and what each feature did to the score."""
    import orjson
    from rich.console import Console

    from headrace.cli.receipt_page import receipt_page
    from headrace.features.compiler import compile_project
    from headrace.features.project import load_project
    from headrace.lake.tables import Lake

    if (prediction is None) == (event is None):
        message = "name a prediction by its id, or an event with --event"
        raise typer.BadParameter(message)
    loaded = load_project(project)
    plans = compile_project(loaded, loaded.settings.topics.partitions).pipelines
    plan = _pipeline(plans, pipeline)
    lake = Lake(loaded.settings.lake.folder)
    explained = explain_prediction(
        loaded, plan, lake, _id_of(loaded, plan, lake, prediction, event)
    )
    if as_json:
        content = _plain(dataclasses.asdict(explained))
        content["receipt"]["id"] = str(explained.receipt.id)
        content["related"] = [str(one) for one in explained.related]
        typer.echo(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())
    else:
        Console().print(receipt_page(explained))


def _pipeline(plans: tuple[PipelinePlan, ...], name: str | None) -> PipelinePlan:
    names = [plan.name for plan in plans]
    if name is None and len(plans) == 1:
        return plans[0]
    if name not in names:
        message = f"name one pipeline with --pipeline: {', '.join(names)}"
        raise typer.BadParameter(message)
    return plans[names.index(name)]


def _id_of(
    project: Project, plan: PipelinePlan, lake: Lake, prediction: str | None, event: str | None
) -> PredictionId:
    from headrace.lake.errors import LakeError
    from headrace.lake.receipts import ids_of_event
    from headrace.schemas.outputs import PredictionId

    if prediction is not None:
        try:
            return PredictionId.parse(prediction)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    assert event is not None
    found = ids_of_event(lake, plan.name, event)
    if not found:
        lag = lake_lag(project, plan, lake)
        message = f"no prediction of pipeline {plan.name} is about event {event!r}; {lag}"
        raise LakeError(message)
    return found[-1]


# --- Finding out ----------------------------------------------------------------------------------


def explain_prediction(
    project: Project, plan: PipelinePlan, lake: Lake, one: PredictionId
) -> Explanation:
    """Return all that can be said of a prediction.

    Raises:
        LakeError: If the lake does not hold it; with what it does hold, and how far it has come.

    """
    from headrace.lake.errors import LakeError
    from headrace.lake.receipts import find_event, find_outputs, ids_of_event
    from headrace.lake.tables import ARRIVAL_TIME
    from headrace.scoring.receipts import make_receipt

    outputs = find_outputs(lake, plan.name, [one])
    # Of a prediction that was sent twice the newest: another model may have been live by then.
    last = outputs.predictions.num_rows - 1
    if last < 0 or outputs.snapshot_of[last] < 0:
        raise LakeError(_not_there(project, plan, lake, one, outputs))
    prediction = outputs.predictions.slice(last, 1).to_pylist()[0]
    snapshot = outputs.snapshots.slice(int(outputs.snapshot_of[last]), 1).to_pylist()[0]
    event = find_event(lake, prediction["source"], one)
    receipt = make_receipt(
        plan,
        prediction,
        snapshot,
        None if event is None else {k: v for k, v in event.items() if not k.startswith("_")},
        arrival_time_ms=None if event is None else _ms(event[ARRIVAL_TIME]),
        predicted_at_ms=_ms(prediction[ARRIVAL_TIME]),
    )
    notes = []
    if receipt.fingerprint != plan.fingerprint:
        notes.append(
            f"made by plan {receipt.fingerprint}; the words beside the features are those of "
            f"today's {plan.fingerprint}"
        )
    if event is None:
        notes.append(f"the lake does not hold the event (table {prediction['source']})")
    parts, why_not = _contributions(project, receipt, snapshot)
    related = []
    if receipt.event_id is not None:
        related = [i for i in ids_of_event(lake, plan.name, receipt.event_id) if i != one]
    return Explanation(
        receipt=receipt,
        features=_feature_lines(project, plan, receipt, parts),
        contributions=parts,
        why_not=why_not,
        related=tuple(related),
        times_emitted=outputs.predictions.num_rows,
        notes=tuple(notes),
    )


def _contributions(
    project: Project, receipt: Receipt, snapshot: dict[str, Any]
) -> tuple[Contributions | None, str]:
    """Return the contributions, or None and why there are none."""
    import math

    from headrace.runtime.errors import HeadraceError
    from headrace.scoring.artefact import read_artefact
    from headrace.scoring.explain import contributions
    from headrace.scoring.receipts import load_recorded
    from headrace.training.registry import FileRegistry

    if receipt.model is None or receipt.model_version is None:
        return None, "no model was live"
    registry = FileRegistry(project.settings.registry_folder)

    def locate(model: str, version: str) -> Path:
        return registry.resolve(f"{model}/{version}").folder

    try:
        scorer = load_recorded(receipt.model, receipt.model_version, receipt.model_hash, locate)
        artefact = read_artefact(locate(receipt.model, receipt.model_version))
    except HeadraceError as error:
        return None, str(error)
    values = [snapshot.get(column.name) for column in scorer.columns]
    return contributions(artefact, [math.nan if v is None else float(v) for v in values]), ""


def _feature_lines(
    project: Project, plan: PipelinePlan, receipt: Receipt, parts: Contributions | None
) -> tuple[FeatureLine, ...]:
    """Return a line for each column; those that moved the score most come first."""
    from headrace.features.changes import column_text, features

    words = features(plan)
    lines = _source_lines(project, plan)
    defaults = {f.name: f.default for stage in plan.stages for f in stage.features}
    views = {f.name: f.view for stage in plan.stages for f in stage.features}
    made = []
    for column in plan.vector:
        value = receipt.vector[column.name]
        age_ms = receipt.ages_ms.get(views.get(column.name, ""))
        note = ""
        if value is None:
            note = "null"
        elif age_ms is None and column.name in views and value == defaults[column.name]:
            note = "default: the view had no event"
        made.append(
            FeatureLine(
                name=column.name,
                value=value,
                note=note,
                age_ms=age_ms,
                contribution=None if parts is None else parts.by_column.get(column.name),
                definition=words.get(column.name)
                or ("" if column.expression is None else column_text(column)),
                line=lines.get(column.name),
            )
        )
    made.sort(key=lambda line: -abs(line.contribution or 0.0))
    return tuple(made)


def _source_lines(project: Project, plan: PipelinePlan) -> dict[str, str]:
    """Return where each column of the vector is defined, as ``definitions.py:12``."""
    pipeline = project.pipeline(plan.name)
    lines = {name: str(pipeline.location) for name in (*pipeline.request, *pipeline.derived)}
    named = [f for stage in plan.stages for f in stage.features]
    for view in pipeline.views:
        names = [feature.name for feature in named if feature.view == view.name]
        # A feature stands once for each of its windows, in the order of the definition.
        items = [item for item in view.features for _ in item.over]
        lines |= {
            name: str(item.location or view.location)
            for name, item in zip(names, items, strict=True)
        }
    return lines


# --- Not there ------------------------------------------------------------------------------------


def _not_there(
    project: Project, plan: PipelinePlan, lake: Lake, one: PredictionId, outputs: OutputRows
) -> str:
    held = [
        f"its prediction {'is' if outputs.predictions.num_rows else 'is not'} there",
        f"its snapshot {'is' if outputs.snapshots.num_rows else 'is not'} there",
    ]
    from headrace.lake.receipts import find_event

    event = find_event(lake, plan.source, one)
    held.append(f"its event {'is' if event is not None else 'is not'} in {plan.source}")
    lag = lake_lag(project, plan, lake)
    return f"prediction {one} must be in the lake; {', '.join(held)}; {lag}"


def lake_lag(project: Project, plan: PipelinePlan, lake: Lake) -> str:
    """Return in words how far the lake is behind a pipeline's topics."""
    from headrace.lake.tables import predictions_table, snapshots_table
    from headrace.runtime import topics
    from headrace.runtime.dev.stack import endpoints
    from headrace.runtime.errors import HeadraceError
    from headrace.runtime.kafka import (
        admin,
        client_properties,
        end_offsets,
        partition_counts,
        topic_ids,
    )

    tables = {
        topics.predictions(plan.name): predictions_table(plan.name),
        topics.snapshots(plan.name): snapshots_table(plan.name),
        plan.source_plan(plan.source).topic: plan.source,
    }
    try:
        found = endpoints(project.settings, project.folder)
        client = client_properties(project.settings, found.bootstrap_servers)
        counts = partition_counts(admin(client), tables)
        ids = topic_ids(admin(client), counts)
        ends = end_offsets(client, [(t, p) for t, count in counts.items() for p in range(count)])
    except HeadraceError as error:
        return f"whether the lake is behind cannot be told ({error})"
    behind = []
    for topic, name in tables.items():
        if topic not in counts:
            continue
        table = lake.table(name) if lake.has(name) else None
        left = sum(
            max(0, ends[topic, p] - ((table and table.next_offset(ids[topic], p)) or 0))
            for p in range(counts[topic])
        )
        if left:
            behind.append(f"{left:,} records of {topic}")
    if not behind:
        return "the lake has read all that the topics hold"
    return f"the lake has yet to read {', '.join(behind)}: is 'headrace lake' running?"


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _plain(content: Any) -> Any:
    """Return content that JSON can hold: bytes in hex, what it does not know as text."""
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, bytes):
        return content.hex()
    if content is None or isinstance(content, str | int | float | bool):
        return content
    return content.isoformat() if hasattr(content, "isoformat") else str(content)
