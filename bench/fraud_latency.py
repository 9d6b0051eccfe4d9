"""The fraud example's payments at a fixed rate, for the measure of latency over two hops."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bench.card import topics as bench_topics
from bench.fraud import PARTITION_COUNT, PIPELINE, START_MS, TEMPLATE
from bench.latency import RATE_PER_S, Playable
from bench.project import make_project
from examples.fraud.generate import TIME, make_world, simulate, write
from headrace.cli.applied import target_of
from headrace.features.project import load_project
from headrace.runtime import topics
from headrace.schemas.codec import RecordEncoder
from headrace.schemas.registry import SchemaRegistry

if TYPE_CHECKING:
    from pathlib import Path

    from bench.project import Project
    from headrace.runtime.dev.stack import Endpoints

SOURCE = "transactions"
# What a model can be trained on.
TRAINING_DAYS = 32
DAY_MS = 24 * 3_600_000


class FraudEvents:
    """Payments that follow each other at the rate at which they are played, and a trained model.

    No report comes meanwhile, and the states are empty at first. Who pays where, and how much, is
    the simulation's.
    """

    def __init__(self, work: Path, endpoints: Endpoints, count: int) -> None:
        """Train the model in ``work``; ``count`` events will be played."""
        self._endpoints = endpoints
        self._folder = work / "fraud-latency"
        world = make_world(seed=7)
        simulation = simulate(world, START_MS, TRAINING_DAYS)
        project = make_project(
            work / "fraud-trained", TEMPLATE, endpoints, self._settings("fraud_trained")
        )
        write(simulation, project.folder / "data")
        project.run("apply")
        project.run("train")
        self._models = project.folder / "models"
        days = 1 + count // (simulation.transactions.num_rows // TRAINING_DAYS)
        # A few more, for days differ.
        live = simulate(world, START_MS, days + 2, first_day=TRAINING_DAYS).transactions
        self._payments = at_rate(live.slice(0, count), START_MS + TRAINING_DAYS * DAY_MS)

    def playable(self, guarantee: str, number: int) -> Playable:
        """Make topics and a project anew; ``number`` tells runs of a guarantee apart."""
        settings = self._settings(f"fraud_{guarantee}_{number}", guarantee)
        servers = self._endpoints.bootstrap_servers
        project = make_project(self._folder, TEMPLATE, self._endpoints, settings)
        bench_topics.delete(servers, *_all_topics(project))
        shutil.copytree(self._models, project.folder / "models")
        project.run("apply")
        project.run("deploy", PIPELINE)
        with SchemaRegistry(self._endpoints.registry_url) as registry:
            latest = registry.latest(f"{SOURCE}-value")
        assert latest is not None, SOURCE
        schema_id, schema = latest
        (batch,) = self._payments.combine_chunks().to_batches()
        values = RecordEncoder(schema, schema_id).encode(batch)
        keys = [customer.encode() for customer in self._payments["customer_id"].to_pylist()]
        predictions = topics.predictions(PIPELINE)
        return Playable(project, PARTITION_COUNT, SOURCE, predictions, keys, values)

    def _settings(self, name: str, guarantee: str = "at_least_once") -> dict[str, object]:
        return {
            "project": name,
            "topics": {"partitions": PARTITION_COUNT},
            "history": {one: f"data/{one}.parquet" for one in (SOURCE, "reports")},
            "stream": {"guarantee": guarantee},
        }


def at_rate(payments: pa.Table, start_ms: int) -> pa.Table:
    """Return payments numbered from 0, as far apart in event time as they are played."""
    numbers = np.arange(payments.num_rows)
    times = pa.array(start_ms + numbers * 1000 // RATE_PER_S).cast(TIME)
    return payments.set_column(0, "transaction_id", pa.array(numbers)).set_column(
        1, "event_time", times
    )


def _all_topics(project: Project) -> list[str]:
    return [spec.name for spec in target_of(load_project(project.folder)).topics]
