"""The fraud example served by a real worker, and a lake of what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import yaml
from confluent_kafka import Consumer, TopicPartition
from deltalake import CommitProperties, Transaction, write_deltalake

from examples.fraud.generate import make_world, simulate, write
from headrace.features.compiler import compile_project
from headrace.features.project import load_project
from headrace.lake.tables import (
    RECORD_FIELDS,
    Lake,
    predictions_table,
    progress_id,
    snapshots_table,
)
from headrace.runtime import topics
from headrace.runtime.kafka import admin, end_offsets, partition_counts, topic_ids
from headrace.schemas.registry import SchemaRegistry
from headrace.schemas.wire import WireDecoder
from headrace.scoring.artefact import Canary, write_artefact
from headrace.scoring.scorer import FeatureColumn
from headrace.training.fit import fit
from headrace.training.registry import FileRegistry

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.features.plan import PipelinePlan

START_MS = 1_767_225_600_000


@dataclass
class Served:
    """A project folder whose worker has served events."""

    folder: Path
    unique: str
    servers: str
    registry_url: str

    @property
    def plan(self) -> PipelinePlan:
        loaded = load_project(self.folder)
        return compile_project(loaded, loaded.settings.topics.partitions).pipelines[0]

    @property
    def lake(self) -> Lake:
        return Lake(load_project(self.folder).settings.lake.folder)

    @property
    def registry(self) -> FileRegistry:
        return FileRegistry(load_project(self.folder).settings.registry_folder)

    @property
    def client(self) -> dict[str, Any]:
        return {"bootstrap.servers": self.servers}

    def locate(self, model: str, version: str) -> Path:
        """Return where the registry keeps a model."""
        return self.registry.resolve(f"{model}/{version}").folder

    def headrace(
        self, *arguments: str, code: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the project's folder."""
        done = subprocess.run(
            [sys.executable, "-m", "headrace.cli.main", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "COLUMNS": "160", "NO_COLOR": "1", **environment},
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def written(self, topic: str) -> int:
        """Return how many records a topic holds."""
        counts = partition_counts(admin(self.client), [topic])
        wanted = [(topic, p) for p in range(counts[topic])]
        return sum(end_offsets(self.client, wanted).values())

    def add_model(self, seed: int) -> str:
        """Register a model fitted to made-up vectors; return its name and version."""
        plan, random = self.plan, np.random.default_rng(seed)
        names = [column.name for column in plan.vector]
        vector = random.gamma(2.0, 5.0, (400, len(names)))
        labels = (vector[:, seed % len(names)] > 10.0).astype(np.float64)
        model = fit({"num_leaves": 4, "n_estimators": 8}, vector, labels, names)
        draft = self.folder / f"draft-{seed}"
        write_artefact(
            draft,
            model.text,
            model=plan.name,
            pipeline=plan.name,
            framework_version=model.framework_version,
            columns=[FeatureColumn(column.name, column.dtype) for column in plan.vector],
            fingerprint=plan.fingerprint,
            training_set_id=f"made up {seed}",
            created_at_ms=START_MS,
            canary=Canary(vector[:8], model.predict(vector[:8])),
            metrics={},
            parameters={},
        )
        entry = self.registry.add(draft)
        return f"{entry.model}/{entry.version}"


def make_fraud(folder: Path, example: Path, unique: str, endpoints: Any, days: int) -> Served:
    """Write the example's project under names of its own, with simulated events."""
    (folder / "schemas").mkdir(parents=True)
    text = (example / "definitions.py").read_text()
    for name in ("transactions", "reports", "fraud"):
        text = text.replace(f'"{name}",\n', f'"{unique}_{name}",\n')
    for name in ("transactions", "reports"):
        schema = (example / "schemas" / f"{name}.avsc").read_text()
        (folder / "schemas" / f"{unique}_{name}.avsc").write_text(schema)
    (folder / "definitions.py").write_text(text)
    write(simulate(make_world(120, 150), START_MS, days), folder / "data")
    settings = {
        "project": unique,
        "kafka": {"bootstrap_servers": endpoints.bootstrap_servers},
        "redis": {"url": endpoints.redis_url},
        "registry": {"url": endpoints.registry_url},
        "topics": {"partitions": 3},
        "history": {
            f"{unique}_{name}": f"data/{name}.parquet" for name in ("transactions", "reports")
        },
    }
    (folder / "headrace.yaml").write_text(yaml.safe_dump(settings))
    return Served(folder, unique, endpoints.bootstrap_servers, endpoints.registry_url)


def fill_lake(served: Served) -> None:
    """Write the tables as the lake's process does: a row a record, with the next offsets."""
    plan = served.plan
    names = {source.topic: source.name for source in plan.sources}
    names[topics.predictions(plan.name)] = predictions_table(plan.name)
    names[topics.snapshots(plan.name)] = snapshots_table(plan.name)
    ids = topic_ids(admin(served.client), names)
    with SchemaRegistry(served.registry_url) as registry:
        for topic, table in names.items():
            found = registry.latest(f"{topic}-value")
            assert found is not None, topic
            decoder = WireDecoder(found[1], registry.schema)
            _append(served, topic, ids[topic], served.lake.folder / table, decoder)


def _append(served: Served, topic: str, topic_id: str, path: Path, decoder: WireDecoder) -> None:
    messages = read_all(served.client, topic)
    decoded = decoder.decode([message.value() for message in messages], 1 << 20)
    assert not decoded.rejected, decoded.rejected[:3]
    columns = [
        [topic_id] * len(messages),
        [message.partition() for message in messages],
        [message.offset() for message in messages],
        [1000 * message.timestamp()[1] for message in messages],
    ]
    table = pa.Table.from_batches([decoded.batch])
    for field, values in zip(RECORD_FIELDS, columns, strict=True):
        table = table.append_column(field, pa.array(values, field.type))
    ends: dict[int, int] = {}
    for message in messages:
        ends[message.partition()] = max(ends.get(message.partition(), 0), message.offset() + 1)
    progress = [Transaction(progress_id(topic_id, p), end) for p, end in ends.items()]
    write_deltalake(
        str(path),
        table,
        mode="append",
        commit_properties=CommitProperties(app_transactions=progress),
    )


def read_all(client: dict[str, Any], topic: str) -> list[Any]:
    """Return all messages of a topic."""
    counts = partition_counts(admin(client), [topic])
    ends = end_offsets(client, [(topic, p) for p in range(counts[topic])])
    consumer = Consumer(
        {**client, "group.id": "receipts.test", "auto.offset.reset": "earliest"}
        | {"enable.auto.commit": False}
    )
    consumer.assign([TopicPartition(topic, p, 0) for p in range(counts[topic])])
    messages: list[Any] = []
    try:
        while len(messages) < sum(ends.values()):
            found = consumer.consume(10_000, 20.0)
            assert found, f"{topic}: {len(messages)} of {ends}"
            assert not any(message.error() for message in found)
            messages += found
    finally:
        consumer.close()
    return messages


def as_json(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout)
