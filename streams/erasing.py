"""Carrying out an erasure from request to receipt: states, the online store, the lake, in order.

Each step waits until the one before has taken effect everywhere: the workers' states first, since
they would write to the others again.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, TopicPartition

from headrace.features.errors import did_you_mean
from headrace.lake.erasure import count_rows, delete_rows, rows_of_key
from headrace.lake.tables import Lake, predictions_table, snapshots_table
from headrace.runtime import topics
from headrace.runtime.errors import explain
from headrace.runtime.kafka import admin, end_offsets, partition_counts, topic_ids
from headrace.streams.environment import HINT
from headrace.streams.erasure_feed import TIMEOUT_S, ErasureLog
from headrace.streams.erasures import ErasureRequest, typed_key
from headrace.streams.errors import ErasureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from headrace.features.plan import PipelinePlan, StagePlan
    from headrace.lake.erasure import KeyRows
    from headrace.runtime.clock import Clock
    from headrace.streams.environment import Environment

    #: Told what is being waited for, how much of it is there, and how much there must be.
    Progress = Callable[[str, int, int], None]

POLL_S = 0.2


@dataclass(slots=True)
class ErasureReceipt:
    """What was erased where.

    ``states`` holds, by pipeline, how many partitions of the entity's stage have forgotten the key;
    ``keys`` how many of them had it. ``lake_rows`` are the rows deleted by table. ``online`` counts
    the keys deleted from the online store; None: nothing is served. ``left`` says what remains.
    """

    id: str
    entity: str
    key: str
    at_ms: int
    states: dict[str, int] = field(default_factory=dict)
    keys: int = 0
    online: int | None = None
    lake_rows: dict[str, int] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


class Erasing:
    """One erasure, step by step."""

    def __init__(
        self,
        environment: Environment,
        entity: str,
        key: str,
        clock: Clock,
        progress: Progress = lambda _what, _done, _of: None,
    ) -> None:
        """Prepare to erase ``key`` (spelled as in predictions) of ``entity``; nothing is done yet.

        Raises:
            ErasureError: If no pipeline has such an entity, or it cannot have such a key.

        """
        self._environment = environment
        self._clock = clock
        self._progress = progress
        self._client = environment.client
        self._lake = Lake(environment.project.settings.lake.folder)
        self._entity, self._key = entity, key
        plans = environment.plan.pipelines
        self._plans = [p for p in plans if any(s.entity == entity for s in p.stages)]
        if not self._plans:
            known = sorted({stage.entity for plan in plans for stage in plan.stages})
            rule = "be one of the project's"
            hint = did_you_mean(entity, known)
            raise ErasureError(explain("an entity", rule, entity, "erase", hint))
        for _, stage in self._stages():
            typed_key(key, stage.key_kind)

    def _stages(self) -> list[tuple[PipelinePlan, StagePlan]]:
        return [(p, s) for p in self._plans for s in p.stages if s.entity == self._entity]

    # --- Looking ----------------------------------------------------------------------------------

    def preview(self) -> dict[str, int]:
        """Return how many rows of the key the lake would lose, by table."""
        request = self._new_request()
        found = self._lake_rows(request)
        return {rows.table: count_rows(self._lake, rows) for rows in found}

    # --- Erasing ----------------------------------------------------------------------------------

    def run(self, wait_s: float) -> ErasureReceipt:
        """Erase the key and return what was done.

        Args:
            wait_s: How long to wait for workers and lake to come as far, each.

        Raises:
            ErasureError: If they do not. The request stands; another call erases what is left.
            LakeError: If a table stays busy.
            KafkaUnavailableError: If the broker does not answer.

        """
        topic = topics.erasures(self._environment.plan.project)
        if topic not in partition_counts(admin(self._client), [topic]):
            raise ErasureError(explain("topic", "exist", "none", topic, HINT))
        log = ErasureLog(self._client, topic)
        try:
            log.read_to_end()
            request = self._new_request()
            log.write(request)
            receipt = ErasureReceipt(request.id, self._entity, self._key, request.at_ms)
            self._wait_for_states(log, request, receipt, wait_s)
        finally:
            log.close()
        self._wait_for_outputs(request, wait_s)
        self._erase_online(receipt)
        for rows in self._lake_rows(request):
            self._progress(f"deleting from {rows.table}", 0, 1)
            receipt.lake_rows[rows.table] = delete_rows(self._lake, rows)
            self._progress(f"deleting from {rows.table}", 1, 1)
        receipt.left = self._left()
        return receipt

    def _new_request(self) -> ErasureRequest:
        names = list(dict.fromkeys(s.topic for p in self._plans for s in p.sources))
        counts = self._environment.partitions(names)
        ids = topic_ids(admin(self._client), names)
        ends = end_offsets(self._client, _partitions(counts))
        bounds = {t: (ids[t], [ends[t, n] for n in range(count)]) for t, count in counts.items()}
        number = uuid.uuid4().hex[:12]
        return ErasureRequest(number, self._entity, self._key, self._clock.now_ms(), bounds)

    def _places(self) -> list[tuple[str, str, str, int]]:
        """Return (pipeline, topic, topic id, partition) of every state that may hold the key."""
        stages = self._stages()
        names = list(dict.fromkeys(stage.topic for _, stage in stages))
        counts, ids = self._environment.partitions(names), topic_ids(admin(self._client), names)
        return [
            (plan.name, stage.topic, ids[stage.topic], partition)
            for plan, stage in stages
            for partition in range(counts[stage.topic])
        ]

    def _wait_for_states(
        self, log: ErasureLog, request: ErasureRequest, receipt: ErasureReceipt, wait_s: float
    ) -> None:
        places = self._places()
        deadline_s = time.monotonic() + wait_s
        while True:
            log.catch_up()
            done = {p: log.book.done.get((request.id, *p)) for p in places}
            missing = [place for place, keys in done.items() if keys is None]
            self._progress("states", len(places) - len(missing), len(places))
            if not missing:
                break
            if time.monotonic() > deadline_s:
                pipelines = sorted({place[0] for place in missing})
                got = (
                    f"{len(missing)} of {len(places)} partitions have not ({', '.join(pipelines)})"
                )
                hint = (
                    "the request stands: workers carry it out when they come; then run this again"
                )
                raise ErasureError(
                    explain("states", f"forget the key within {wait_s:g} s", got, "erase", hint)
                )
            time.sleep(POLL_S)
        for pipeline, *_ in places:
            receipt.states[pipeline] = receipt.states.get(pipeline, 0) + 1
        receipt.keys = sum(keys or 0 for keys in done.values())

    def _wait_for_outputs(self, request: ErasureRequest, wait_s: float) -> None:
        """Wait until nothing that was on its way at the request can still come to the lake."""
        for plan in self._plans:
            group = topics.group(plan.project, plan.name)
            bounds = {s.topic: request.bounds[s.topic][1] for s in plan.sources}
            self._wait_committed(group, bounds, wait_s)
            for stage in plan.stages:
                if not stage.direct:
                    self._wait_committed(group, self._ends([stage.topic]), wait_s)
        wanted: dict[str, dict[str, list[int]]] = {}
        for plan in self._plans:
            for source in plan.sources:
                wanted[source.name] = {source.topic: request.bounds[source.topic][1]}
            for table, topic in (
                (predictions_table(plan.name), topics.predictions(plan.name)),
                (snapshots_table(plan.name), topics.snapshots(plan.name)),
            ):
                wanted[table] = self._ends([topic])
        self._wait_for_lake(wanted, wait_s)

    def _ends(self, names: Iterable[str]) -> dict[str, list[int]]:
        counts = self._environment.partitions(names)
        ends = end_offsets(self._client, _partitions(counts))
        return {t: [ends[t, n] for n in range(count)] for t, count in counts.items()}

    def _wait_committed(self, group: str, wanted: Mapping[str, list[int]], wait_s: float) -> None:
        consumer = Consumer({**self._client, "group.id": group, "enable.auto.commit": False})
        asked = [TopicPartition(t, n) for t, ends in wanted.items() for n in range(len(ends))]
        rows = sum(map(sum, wanted.values()))

        def left() -> int:
            found = consumer.committed(asked, timeout=TIMEOUT_S)
            return sum(max(0, wanted[p.topic][p.partition] - max(0, p.offset)) for p in found)

        try:
            self._wait(f"workers of {group}", left, rows, wait_s)
        finally:
            consumer.close()

    def _wait_for_lake(self, wanted: Mapping[str, dict[str, list[int]]], wait_s: float) -> None:
        present = {name: given for name, given in wanted.items() if self._lake.has(name)}
        names = [topic for given in present.values() for topic in given]
        ids = topic_ids(admin(self._client), names)
        for name, given in present.items():
            ((topic, ends),) = given.items()

            def left(name: str = name, topic: str = topic, ends: list[int] = ends) -> int:
                table = self._lake.table(name)
                return sum(
                    max(0, end - (table.next_offset(ids[topic], n) or 0))
                    for n, end in enumerate(ends)
                )

            self._wait(f"the lake's {name}", left, sum(ends), wait_s)

    def _wait(self, what: str, left: Callable[[], int], total: int, wait_s: float) -> None:
        deadline_s = time.monotonic() + wait_s
        while rows := left():
            self._progress(what, total - rows, total)
            if time.monotonic() > deadline_s:
                rule = f"come as far as the request within {wait_s:g} s"
                hint = "the key's states are gone; let it catch up and run this again"
                raise ErasureError(explain(what, rule, f"{rows:,} records behind", "erase", hint))
            time.sleep(POLL_S)
        self._progress(what, total, total)

    def _erase_online(self, receipt: ErasureReceipt) -> None:
        """Delete the key from the store where no state had it, so that no worker did."""
        settings = self._environment.project.settings
        if not settings.online.enabled:
            return
        receipt.online = receipt.keys
        if receipt.keys:
            return
        from headrace.features.store.redis_store import RedisOnlineStore
        from headrace.features.store.views import online_entities

        store = RedisOnlineStore(self._environment.endpoints.redis_url)
        try:
            for served in online_entities(self._environment.plan).values():
                for entity in served.values():
                    if entity.entity == self._entity:
                        key = typed_key(self._key, entity.key_kind)
                        receipt.online += store.delete(entity, key)
        finally:
            store.close()

    def _lake_rows(self, request: ErasureRequest) -> list[KeyRows]:
        kind = self._stages()[0][1].key_kind
        key = typed_key(self._key, kind)
        return rows_of_key(self._lake, self._plans, self._entity, key, self._key, request.bounds)

    def _left(self) -> list[str]:
        names = sorted({s.topic for p in self._plans for s in p.sources})
        outputs = sorted(
            name
            for p in self._plans
            for name in (topics.predictions(p.name), topics.snapshots(p.name))
        )
        rekeyed = sorted({s.topic for p in self._plans for s in p.stages if not s.direct})
        raw = f"{', '.join(names)} (and their .dlq and .late)"
        return [
            f"the raw records, in Kafka, as long as their topics keep them: {raw}",
            "what was made of them, in Kafka, likewise: " + ", ".join([*rekeyed, *outputs]),
            "models that were trained with them, and training sets that were written to files",
            f"the request itself, which names the key: {topics.erasures(self._plans[0].project)}",
        ]


def _partitions(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return [(topic, number) for topic, count in counts.items() for number in range(count)]
