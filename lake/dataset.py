"""Training sets as files: Parquet of equal bytes for equal offsets, and a receipt beside it.

The receipt says what was asked, by which definitions, of which offsets of which topics. Rows that
are appended later, compaction and changed definitions do not touch what a rebuild reads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.features.compiler import plan_from_json, plan_to_json
from headrace.features.encoding import canonical_json
from headrace.features.plan import PipelinePlan
from headrace.lake.errors import HistoryError
from headrace.lake.events import FileEvents, Span, open_events, open_files
from headrace.lake.history import ROWS_IN_MEMORY, spine_of, take_labels, with_spine
from headrace.lake.opening import open_readers, open_served
from headrace.lake.question import Question
from headrace.lake.replay import Limits
from headrace.lake.request import Request, as_of_from
from headrace.lake.stored import LakeEvents, OffsetRange
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from headrace.features.project import Project
    from headrace.lake.events import EventReader
    from headrace.lake.stored import TopicChoice
    from headrace.lake.tables import Lake

    Progress = Callable[[int, int], None]

FORMAT: Final = 1
RECEIPT_SUFFIX: Final = ".receipt.json"
_ROW_GROUP: Final = 131_072
_BLOCK: Final = 1 << 20
#: Libraries whose versions can change a byte of the file.
_ENGINE: Final = ("headrace", "numpy", "pyarrow")


@dataclass(frozen=True, slots=True)
class SetRequest:
    """What a set is asked for: ``span`` of events, or ``spine``, a file of rows; neither: all."""

    plan: PipelinePlan
    names: tuple[str, ...] | None = None
    as_of: str = "event"
    span: Span | None = None
    spine: Path | None = None
    event_id: str | Literal[False] | None = None
    time: str | None = None
    label: bool = False
    ages: bool = False
    replayed: bool = False
    topics: TopicChoice = "current"
    rows_in_memory: int = ROWS_IN_MEMORY


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a set was made of: JSON values by name. ``id`` is a sha256 over all the others."""

    content: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The training set's id."""
        return hashlib.sha256(canonical_json(self.content).encode()).hexdigest()

    @property
    def sha256(self) -> str:
        """The hash of the Parquet file."""
        return str(self.content["parquet"]["sha256"])

    @property
    def rows(self) -> int:
        """How many rows the set has."""
        return int(self.content["parquet"]["rows"])

    @property
    def plan(self) -> PipelinePlan:
        """The definitions."""
        plan = plan_from_json(json.dumps(self.content["plan"]))
        assert isinstance(plan, PipelinePlan), "a receipt holds one pipeline"
        return plan

    def dump(self) -> bytes:
        """Return the receipt as JSON for a file."""
        return (json.dumps({"id": self.id, **self.content}, indent=1) + "\n").encode()


def read_receipt(path: Path) -> Receipt:
    """Return the receipt in a file.

    Raises:
        HistoryError: If it is none, or was changed.

    """
    try:
        content = json.loads(path.read_bytes())
        told = content.pop("id")
        receipt = Receipt(content)
        known = content["format"] == FORMAT
        same = receipt.id == told
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        rule = "be a receipt that 'headrace history' or 'headrace train' wrote"
        raise HistoryError(explain("a receipt", rule, str(error), str(path))) from error
    if not known:
        rule = f"be of format {FORMAT}"
        raise HistoryError(
            explain("a receipt", rule, content["format"], str(path), "upgrade headrace")
        )
    if not same:
        rule = f"have the id of its content, {receipt.id[:12]}…"
        raise HistoryError(explain("a receipt", rule, told, str(path), "it was changed"))
    return receipt


def receipt_path(out: Path) -> Path:
    """Return where the receipt of a set lies: ``set.parquet`` has ``set.receipt.json``."""
    return out.with_name(out.stem + RECEIPT_SUFFIX)


def write_set(
    asked: SetRequest, request: Request, out: Path, progress: Progress | None = None
) -> Receipt:
    """Write a set and its receipt.

    Args:
        asked: What is asked.
        request: Where the events are; see ``plans_for``.
        out: The Parquet file; a file that is there is replaced when the new one is whole.
        progress: Told how many rows of how many are done.

    Raises:
        HistoryError: If the sources do not allow it.

    """
    return _write(asked, request, out, progress, None)


def rebuild_set(
    receipt: Receipt,
    project: Project,
    lake: Lake,
    out: Path,
    *,
    spine: Path | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Write a receipt's set again, from exactly the same offsets and by the same definitions.

    Args:
        receipt: What to make again.
        project: The project.
        lake: Its lake.
        out: The Parquet file.
        spine: Where the spine lies now; None: where it lay.
        progress: Told how many rows of how many are done.

    Returns:
        The new receipt: equal bytes have an equal ``sha256``.

    Raises:
        HistoryError: If the lake or the files no longer hold what was read.

    """
    content = receipt.content
    period, was = content["period"], content["spine"]
    if was is not None:
        spine = spine or Path(was["path"])
        _check_file(spine, was["sha256"], "the spine")
    asked = SetRequest(
        plan=receipt.plan,
        names=None if content["names"] is None else tuple(content["names"]),
        as_of=content["as_of"],
        span=None if period is None else Span(period["start_ms"], period["end_ms"] - 1),
        spine=spine if was is not None else None,
        event_id=None if was is None else was["event_id"],
        time=None if was is None else was["time"],
        label=content["label"],
        ages=content["ages"],
        replayed=content["replayed"],
    )
    sources, ranges = _sources_of(content)
    served_by = tuple(content["served_by"])
    request = Request((asked.plan,), asked.names, sources, lake, served_by, project)
    return _write(asked, request, out, progress, ranges)


def differences(receipt: Receipt, current: Iterable[PipelinePlan]) -> list[str]:
    """Return what is other than when the set was made: versions and definitions, in words."""
    engine = _engine()
    told = [
        f"made with {name} {then}, this is {engine.get(name)}"
        for name, then in sorted(receipt.content["engine"].items())
        if engine.get(name) != then
    ]
    plan = receipt.plan
    return told + [
        f"made by definitions {plan.fingerprint} of {plan.name}, the project's are now "
        f"{one.fingerprint}; those of the receipt are used"
        for one in current
        if one.name == plan.name and one.fingerprint != plan.fingerprint
    ]


# --- Writing ----------------------------------------------------------------------------------


def _write(
    asked: SetRequest,
    request: Request,
    out: Path,
    progress: Progress | None,
    ranges: Mapping[str, Sequence[OffsetRange]] | None,
) -> Receipt:
    plan, order = asked.plan, as_of_from(asked.as_of)
    if asked.label and plan.label is None:
        hint = "give hr.Pipeline a label=hr.Label(source, column, on=…, delay=…)"
        raise HistoryError(explain("a label", "be defined", None, f"pipeline {plan.name}", hint))
    readers = open_readers(plan, request, topics=asked.topics, ranges=ranges, label=asked.label)
    read = dict(readers)
    labels = take_labels(plan, readers) if asked.label else None
    table = None if asked.spine is None else open_events("spine", asked.spine).read()
    served = order.kind == "served"
    snapshots = open_served(plan, request, readers, ranges) if served else ()
    scored = readers[plan.source]
    question = Question(
        plan,
        readers,
        spine_of(plan, scored, table, asked.span, asked.event_id, asked.time),
        order,
        names=asked.names,
        ages=asked.ages,
        labels=labels,
        replayed=asked.replayed,
        snapshots=snapshots,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="headrace-history-") as folder:
        answers = question.answer(Limits(asked.rows_in_memory, Path(folder)), progress)
        draft = out.with_name(f".{out.name}.{os.getpid()}.draft")
        try:
            rows = _write_parquet(draft, _rows(question, question.tables(answers)))
            content = {
                **_content(asked, request, read),
                "snapshots": {one.reader.name: _ranges_data(one.reader) for one in snapshots},
                "parquet": {
                    "rows": rows,
                    "bytes": draft.stat().st_size,
                    "sha256": file_sha256(draft),
                },
            }
            draft.replace(out)
        finally:
            draft.unlink(missing_ok=True)
    receipt = Receipt(content)
    beside = receipt_path(out)
    draft = beside.with_name(f".{beside.name}.{os.getpid()}.draft")
    draft.write_bytes(receipt.dump())
    draft.replace(beside)
    return receipt


def _rows(question: Question, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the set's rows: streamed where events are asked for, whole where a spine is given."""
    if question.spine.table is None:
        for table in tables:
            yield table.replace_schema_metadata(question.metadata)
        return
    whole = with_spine(question.spine, pa.concat_tables(tables))
    yield whole.replace_schema_metadata(question.metadata)


def _write_parquet(path: Path, tables: Iterator[pa.Table]) -> int:
    """Write row groups of one size, however the rows come cut; return the number of rows."""
    rows, waiting = 0, next(tables)
    options = {"compression": "zstd", "write_statistics": True, "version": "2.6"}
    with pq.ParquetWriter(str(path), waiting.schema, **options) as writer:
        for table in tables:
            rows += _write_groups(writer, waiting, last=False)
            rest = waiting.num_rows % _ROW_GROUP
            waiting = pa.concat_tables([waiting.slice(waiting.num_rows - rest), table])
        rows += _write_groups(writer, waiting, last=True)
    return rows


def _write_groups(writer: Any, table: pa.Table, *, last: bool) -> int:
    count = int(table.num_rows)
    stop = count if last else count - count % _ROW_GROUP
    for start in range(0, stop, _ROW_GROUP):
        group = table.slice(start, min(_ROW_GROUP, stop - start))
        # Pages are cut where chunks end: one chunk, or the bytes would follow how rows came.
        writer.write_table(group.combine_chunks(), row_group_size=_ROW_GROUP)
    return stop


# --- Receipts ---------------------------------------------------------------------------------


def _content(
    asked: SetRequest, request: Request, readers: Mapping[str, EventReader]
) -> dict[str, Any]:
    span, spine = asked.span, None
    if asked.spine is not None:
        spine = {
            "path": str(asked.spine),
            "sha256": file_sha256(asked.spine),
            "event_id": asked.event_id,
            "time": asked.time,
        }
    return {
        "format": FORMAT,
        "fingerprint": asked.plan.fingerprint,
        "plan": json.loads(plan_to_json(asked.plan)),
        "names": None if asked.names is None else list(asked.names),
        "as_of": asked.as_of,
        "label": asked.label,
        "ages": asked.ages,
        "replayed": asked.replayed,
        "period": None if span is None else {"start_ms": span.start_ms, "end_ms": span.end_ms + 1},
        "spine": spine,
        "sources": {name: _source_data(reader) for name, reader in sorted(readers.items())},
        "served_by": list(request.served_by),
        "engine": _engine(),
    }


def _source_data(reader: EventReader) -> dict[str, Any]:
    if isinstance(reader, LakeEvents):
        return _ranges_data(reader)
    assert isinstance(reader, FileEvents), "there are two kinds of readers"
    if reader.table is not None:
        rule = "be files or the lake, so that they can be read again"
        raise HistoryError(
            explain("a set's sources", rule, "a table in memory", f"source {reader.name}")
        )
    return {
        "files": [
            {"path": str(file.absolute()), "sha256": file_sha256(file)} for file in reader.files
        ]
    }


def _ranges_data(reader: LakeEvents) -> dict[str, Any]:
    offsets = [dataclasses.asdict(one) for one in reader.ranges]
    return {"table": reader.table.name, "offsets": offsets}


def _sources_of(
    content: Mapping[str, Any],
) -> tuple[dict[str, Any] | None, dict[str, Sequence[OffsetRange]] | None]:
    """Return a receipt's files by source, or the offsets by table."""
    ranges: dict[str, Sequence[OffsetRange]] = {}
    files: dict[str, Any] = {}
    for name, data in content["sources"].items():
        if "files" in data:
            for one in data["files"]:
                _check_file(Path(one["path"]), one["sha256"], f"source {name}")
            files[name] = open_files(name, tuple(Path(one["path"]) for one in data["files"]))
        else:
            ranges[name] = tuple(OffsetRange(**one) for one in data["offsets"])
    for table, data in content["snapshots"].items():
        ranges[table] = tuple(OffsetRange(**one) for one in data["offsets"])
    return (files, None) if files else (None, ranges)


def _check_file(path: Path, sha256: str, what: str) -> None:
    try:
        found = file_sha256(path)
    except OSError as error:
        rule = "be where it was, to make the set again"
        raise HistoryError(explain(what, rule, str(error), str(path))) from error
    if found != sha256:
        rule = f"have the receipt's sha256 {sha256}"
        raise HistoryError(explain(what, rule, found, str(path), "it was changed"))


def file_sha256(path: Path) -> str:
    """Return the hash of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _engine() -> dict[str, str]:
    return {name: version(name) for name in _ENGINE}
