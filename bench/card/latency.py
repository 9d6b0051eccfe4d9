"""The card job's events at a fixed rate, for the measure of latency on one hop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.card import ours, topics
from bench.card.job import PARTITION_COUNT, customer_name, encode, make_events, train_model
from bench.card.reference import reference_rows
from bench.latency import LatencyRun, Playable, play
from headrace.schemas.registry import SchemaRegistry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from bench.card.job import Events
    from headrace.runtime.dev.stack import Endpoints

CANARY_COUNT = 16
# The reference is made for whole runs of events.
EVENTS_MIN = 100_000


class CardEvents:
    """The first events of the job and its model, on a running stack."""

    def __init__(self, work: Path, endpoints: Endpoints, count: int) -> None:
        """Make what is not there yet in ``work``; ``count`` events will be played."""
        self._work = work
        self._endpoints = endpoints
        self._events = make_events(max(count, EVENTS_MIN))
        size = len(self._events)
        bodies = encode(self._events, work / f"card-events-{size}.arrow")
        self._model = train_model(work / "card-model.txt")
        rows = reference_rows(self._events, self._model, work / f"card-reference-{size}.npy")
        self._canary_rows = rows[:CANARY_COUNT, 1:]
        # The schema gets its id with the first application.
        ours.prepare(work / "latency", "card_latency", endpoints)
        with SchemaRegistry(endpoints.registry_url) as registry:
            latest = registry.latest(f"{ours.SOURCE}-value")
        assert latest is not None, ours.SOURCE
        self._values = topics.framed(bodies, latest[0])

    def playable(self, guarantee: str, number: int) -> Playable:
        """Make topics and a project anew; ``number`` tells runs of a guarantee apart."""
        name = f"card_latency_{guarantee}_{number}"
        return _playable(
            name,
            guarantee,
            self._work,
            self._endpoints,
            self._model,
            self._canary_rows,
            self._events,
            self._values,
        )


def measure_latency(
    endpoints: Endpoints,
    work: Path,
    model: Path,
    canary_rows: NDArray[np.float64],
    events: Events,
    values: Sequence[bytes],
    broker_pid: int,
) -> LatencyRun:
    """Play the first events into an empty topic that a worker reads, at least once.

    The source's topic and the outputs are made anew: whatever was in them is gone afterwards.
    """
    played = _playable(
        "card_latency", "at_least_once", work, endpoints, model, canary_rows, events, values
    )
    return play(played, work / "worker-latency.log", broker_pid)


def _playable(
    name: str,
    guarantee: str,
    work: Path,
    endpoints: Endpoints,
    model: Path,
    canary_rows: NDArray[np.float64],
    events: Events,
    values: Sequence[bytes],
) -> Playable:
    servers = endpoints.bootstrap_servers
    topics.delete(servers, ours.SOURCE, ours.PREDICTIONS, ours.SNAPSHOTS)
    project = ours.prepare(work / "latency", name, endpoints, guarantee)
    ours.deploy(project, model, canary_rows)
    keys = [customer_name(number).encode() for number in events.customer.tolist()]
    return Playable(project, PARTITION_COUNT, ours.SOURCE, ours.PREDICTIONS, keys, values)
