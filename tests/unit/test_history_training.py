"""A model trained from the lake is the one trained from files, and its set can be made again."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_files import write_rows

from examples.fraud.generate import make_world, simulate, write
from headrace.features.project import load_project
from headrace.lake.dataset import read_receipt, rebuild_set
from headrace.lake.errors import HistoryError
from headrace.lake.history import event_vectors
from headrace.lake.tables import Lake
from headrace.training.errors import TrainingError
from headrace.training.registry import FileRegistry
from headrace.training.run import open_training
from headrace.training.train import train

START_MS = 1_767_225_600_000
DAYS = 40
TEST = "3d"


@pytest.fixture(scope="module")
def project(tmp_path_factory, repository):
    """Return the example's project with its events both in files and in the lake."""
    folder = tmp_path_factory.mktemp("fraud")
    example = repository / "examples" / "fraud"
    (folder / "definitions.py").write_text((example / "definitions.py").read_text())
    (folder / "schemas").mkdir()
    for schema in (example / "schemas").iterdir():
        (folder / "schemas" / schema.name).write_text(schema.read_text())
    (folder / "headrace.yaml").write_text("project: fraud\n")
    write(simulate(make_world(120, 200), START_MS, DAYS), folder / "data")
    for name, known in (("transactions", "event_time"), ("reports", "known_at")):
        table = pq.read_table(folder / "data" / f"{name}.parquet")
        rows = np.arange(table.num_rows)
        stamps = table[known].cast(pa.timestamp("ms", "UTC")).cast(pa.int64())
        write_rows(
            folder / ".headrace" / "lake",
            name,
            table,
            topic_id="one",
            partition=np.zeros(len(rows)),
            offset=rows,
            arrival_ms=stamps,
        )
    return folder


def run(project, registry, data=(), **options):
    training = open_training(project, None, data, test=TEST, **options)
    return train(
        training.plan,
        training.tables,
        training.split,
        event_vectors,
        FileRegistry(registry),
        name="fraud",
        at_ms=START_MS,
        progress=lambda *_: None,
        read_set=None if training.request is None else training.read_lake,
    )


def test_the_lake_and_files_give_the_same_model(project, tmp_path):
    files = run(project, tmp_path / "files", [str(project / "data")])
    lake = run(project, tmp_path / "lake")

    texts = [(one.entry.folder / "model.txt").read_bytes() for one in (files, lake)]
    assert texts[0] == texts[1]
    assert (files.test, files.split) == (lake.test, lake.split)
    assert files.receipt is None
    assert lake.manifest.training_set_id == read_receipt(lake.receipt).id
    assert lake.receipt.parent == tmp_path / "lake" / "training_sets"
    assert FileRegistry(tmp_path / "lake").models() == ["fraud"]


def test_the_set_of_a_model_is_made_again_from_its_receipt(project, tmp_path):
    lake = run(project, tmp_path / "models")
    receipt = read_receipt(lake.receipt)

    again = rebuild_set(
        receipt,
        load_project(project),
        Lake(project / ".headrace" / "lake"),
        tmp_path / "set.parquet",
    )

    assert again.id == lake.manifest.training_set_id
    assert receipt.rows == again.rows > 1_000
    assert json.loads(lake.receipt.read_text())["period"] == {
        "start_ms": lake.split.train.start_ms,
        "end_ms": lake.split.test.end_ms,
    }


def test_what_files_cannot_answer_is_refused_and_an_empty_lake_told(project, tmp_path):
    with pytest.raises(TrainingError, match="--as-of must be event where"):
        open_training(project, None, [str(project / "data")], as_of="served")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("definitions.py", "headrace.yaml"):
        (moved / name).write_text((project / name).read_text())
    (moved / "schemas").symlink_to(project / "schemas")
    with pytest.raises(HistoryError, match="must hold source"):
        open_training(moved, None, [])
