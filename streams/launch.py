"""Putting a worker together: all wiring of the room is here."""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import CollectorRegistry

from headrace.features.output_schemas import output_schemas
from headrace.features.store.views import online_entities
from headrace.lake.tables import Lake
from headrace.runtime import topics
from headrace.runtime.clock import process_clock
from headrace.runtime.errors import KafkaUnavailableError, explain
from headrace.runtime.health import HealthServer
from headrace.runtime.kafka import admin, partition_counts, topic_ids
from headrace.runtime.logging import get_logger
from headrace.runtime.memory import MemoryReturn, share_allocator
from headrace.runtime.settings import duration_ms
from headrace.schemas.codec import RecordEncoder
from headrace.schemas.errors import RegistryUnavailableError
from headrace.schemas.wire import WireDecoder
from headrace.scoring.engine import engine_version
from headrace.streams.app import StreamApp, build_app, run
from headrace.streams.checkpoint_feed import CheckpointFeed
from headrace.streams.checkpoint_files import checkpoint_root
from headrace.streams.checkpoint_storage import object_store
from headrace.streams.checkpoint_writer import CheckpointWriter
from headrace.streams.context import ProcessorContext
from headrace.streams.cutover import check_cut_over, check_partition_counts
from headrace.streams.deployments import DeploymentFollower, LiveModels
from headrace.streams.environment import HINT, Environment, open_environment
from headrace.streams.erasure_feed import ErasureFeed, ErasureLog
from headrace.streams.errors import CheckpointError, NotAppliedError
from headrace.streams.flow import feeds_of
from headrace.streams.handover import TICKETS_MAX
from headrace.streams.identity import WorkerIdentity, identify
from headrace.streams.online import TIMEOUT_S, OnlineWriter
from headrace.streams.online_feed import OnlineFeed
from headrace.streams.partition_watch import PartitionWatch
from headrace.streams.preparing import follow
from headrace.streams.processors import build, input_topics
from headrace.streams.refill import LakeRefill
from headrace.streams.restore import Lineage
from headrace.streams.source import Source
from headrace.streams.source_options import Route, SourceOptions
from headrace.streams.telemetry import Telemetry
from headrace.streams.tickets import ProcessorTable
from headrace.streams.warmup import warm_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from headrace.features.plan import PipelinePlan, SourcePlan
    from headrace.features.store.views import OnlineEntity
    from headrace.runtime.clock import Clock
    from headrace.streams.companions import Companion, Restorer
    from headrace.streams.positions import Mismatch
    from headrace.streams.preparing import Followed
    from headrace.streams.tickets import Ticket

log = get_logger(__name__)

Answer = TypeVar("Answer")

# Critical: at its own level a client writes a line for each attempt to find a broker that is away.
KAFKA_LOG_LEVEL = 2
MODELS_WAIT_S = 60.0
START_WAIT_S_MAX = 2.0
# Who prepares ends when all is kept: then it should not take long.
PREPARED_INTERVAL_MS = 2_000
# The source's and the worker's thread hand over to each other many times a second; the default of
# 5 ms is how long one waits for the other's pure Python.
SWITCH_INTERVAL_S = 0.0005


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What the command line decides; None takes the setting."""

    pipeline: str | None = None
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    mismatch: Mismatch = "stop"
    drain: bool = False
    prepare: bool = False


def run_worker(folder: Path, options: WorkerOptions, say: Callable[[str], None]) -> int:
    """Run a worker until it is stopped and return the process's exit code.

    One that drains or prepares ends by itself.

    Args:
        folder: The project's folder.
        options: What the command line decides.
        say: Told one line when the worker is ready.

    Raises:
        HeadraceError: If it cannot start.

    """
    environment = _quiet(open_environment(folder))
    plan = environment.pipeline(options.pipeline)
    models = LiveModels()
    group = _group(plan, options)
    identity = _identity(environment, group)
    _patiently(lambda: _check(environment, plan, options))
    context = _patiently(lambda: _context(environment, plan, models, options))
    followed = _patiently(lambda: _followed(environment, plan, context))
    registry = CollectorRegistry()
    url = ""

    def ready(partitions: int) -> None:
        say(f"worker ready: pipeline {plan.name}, group {group}, {partitions} partitions{url}")

    clock = process_clock()
    telemetry = Telemetry(registry, plan.name, clock, ready)
    health = _health(environment, options, registry, telemetry)
    if health is not None:
        url = f", metrics {health.url}/metrics"
    follower = DeploymentFollower(
        environment.client,
        topics.deployments(plan.project),
        {plan.name: plan},
        models,
        telemetry,
    )
    follower.start()
    writer = _online_writer(environment, context, telemetry, clock)
    try:
        if not follower.wait_until_caught_up(MODELS_WAIT_S):
            log.warning("deployments_not_read_yet", waited_s=MODELS_WAIT_S)
        encoders = _patiently(lambda: _encoders(environment, plan))
        _warm_up(plan, context, encoders, clock)
        _tune_process()
        online = None
        if writer is not None:
            writer.start()
            online = OnlineFeed(plan, context.online, writer, clock)
        erasures = _patiently(lambda: _erasures(environment, plan, context, online))
        lineage = _lineage(context, followed, options)
        keeper, checkpoints = _checkpoints(environment, plan, telemetry, clock, lineage)
        counts = _source_counts(plan, context)
        watch = PartitionWatch(environment.client, counts, telemetry.broker_answers)
        companions = [one for one in (online, erasures, checkpoints, watch) if one is not None]
        worker = None if identity is None else identity.name
        app = _app(
            environment,
            plan,
            context,
            options,
            telemetry,
            companions,
            worker,
            LakeRefill(checkpoints, _lake(environment), plan, context.partition_counts, encoders),
            group,
            followed,
            lambda: say(_last_words(plan, followed, options)),
        )
        return _run(app, keeper, watch)
    finally:
        if identity is not None:
            identity.release()
        if writer is not None:
            writer.stop()
        follower.stop()
        environment.registry.close()
        if health is not None:
            health.close()


def _group(plan: PipelinePlan, options: WorkerOptions) -> str:
    group = topics.group(plan.project, plan.name)
    # Who prepares is no worker of the pipeline: those go on beside it.
    return topics.preparing(group) if options.prepare else group


def _check(environment: Environment, plan: PipelinePlan, options: WorkerOptions) -> None:
    if options.prepare:
        check_partition_counts(environment.client, plan)
    else:
        check_cut_over(environment.client, plan)


def _last_words(plan: PipelinePlan, followed: Followed, options: WorkerOptions) -> str:
    if options.prepare:
        rows = sum(followed.sources().values())
        return f"prepared: pipeline {plan.name}, the state of {rows} rows is kept for its workers"
    return f"drained: pipeline {plan.name}, all that its sources held is scored and committed"


def _quiet(environment: Environment) -> Environment:
    """Let Kafka's clients write nothing themselves: what troubles them is in the worker's log."""
    client = {"log_level": KAFKA_LOG_LEVEL, **environment.client}
    return dataclasses.replace(environment, client=client)


def _run(app: StreamApp, keeper: CheckpointWriter | None, watch: PartitionWatch) -> int:
    memory = MemoryReturn()
    watch.start()
    memory.start()
    try:
        return run(app)
    finally:
        memory.stop()
        watch.stop()
        if keeper is not None:
            keeper.stop()


def _identity(environment: Environment, group: str) -> WorkerIdentity | None:
    """Return which of a group's workers this is; None where it does not matter."""
    settings = environment.project.settings
    if settings.stream.guarantee == "at_least_once":
        return None
    identity = identify(settings.state_folder / "workers", group, settings.stream.ordinal)
    log.info("worker_identified", transactional_id=identity.name)
    return identity


def _online_writer(
    environment: Environment, context: ProcessorContext, telemetry: Telemetry, clock: Clock
) -> OnlineWriter | None:
    """Return who keeps Redis; None where nothing is served."""
    if not context.online:
        return None
    # Not at the top: a worker that serves nothing needs no Redis client.
    from headrace.features.store.redis_store import RedisOnlineStore

    store = RedisOnlineStore(environment.endpoints.redis_url, TIMEOUT_S)
    return OnlineWriter(store, telemetry.online, clock)


def _erasures(
    environment: Environment,
    plan: PipelinePlan,
    context: ProcessorContext,
    online: OnlineFeed | None,
) -> ErasureFeed | None:
    """Return who follows erasures; None in a project that was applied before there were any."""
    topic = topics.erasures(plan.project)
    if topic not in partition_counts(admin(environment.client), [topic]):
        log.warning("no_erasures_topic", topic=topic, hint=HINT)
        return None
    return ErasureFeed(plan, ErasureLog(environment.client, topic), context.topic_ids, online)


def _checkpoints(
    environment: Environment,
    plan: PipelinePlan,
    telemetry: Telemetry,
    clock: Clock,
    lineage: Lineage,
) -> tuple[CheckpointWriter | None, CheckpointFeed | None]:
    """Return who writes checkpoints, already at work, and who says when; None if nobody does."""
    settings = environment.project.settings
    given = settings.stream.checkpoints
    prepares = lineage.follows is not None
    if not given.enabled and prepares:
        hint = "set stream.checkpoints.enabled"
        rule = "be on where states are prepared, since they are what is prepared"
        raise CheckpointError(explain("checkpoints", rule, "false", "headrace.yaml", hint))
    if not given.enabled:
        return None, None
    root = checkpoint_root(settings)
    store = None if given.url is None else object_store(given.url)
    writer = CheckpointWriter(root, engine_version(), clock, telemetry.checkpoints, store)
    writer.start()
    feed = CheckpointFeed(
        root,
        topics.group(plan.project, plan.name),
        plan.fingerprint,
        writer,
        clock,
        PREPARED_INTERVAL_MS if prepares else duration_ms(given.interval),
        telemetry.checkpoints,
        lineage,
        store,
    )
    return writer, feed


def _lineage(context: ProcessorContext, followed: Followed, options: WorkerOptions) -> Lineage:
    sources = followed.sources()
    return Lineage(context.topic_ids, sources, sources if options.prepare else None)


def _followed(environment: Environment, plan: PipelinePlan, context: ProcessorContext) -> Followed:
    """Return what the pipeline's group has committed of what the plan reads."""
    places = [
        (topic, partition)
        for topic in input_topics(plan)
        for partition in range(context.partition_counts[topic])
    ]
    relays = frozenset(input_topics(plan)) - frozenset(_sources(plan))
    return follow(environment.client, topics.group(plan.project, plan.name), places, relays)


def _patiently(ask: Callable[[], Answer]) -> Answer:
    """Ask until broker and registry answer: a worker may start before them."""
    wait_s = 1.0
    while True:
        try:
            return ask()
        except (KafkaUnavailableError, RegistryUnavailableError) as error:
            log.warning("waiting_for_infrastructure", error=str(error), retry_in_s=wait_s)
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, START_WAIT_S_MAX)


def _context(
    environment: Environment, plan: PipelinePlan, models: LiveModels, options: WorkerOptions
) -> ProcessorContext:
    inputs = input_topics(plan)
    predictions, snapshots = topics.predictions(plan.name), topics.snapshots(plan.name)
    kept = [name(topic) for topic in _sources(plan) for name in (topics.dlq, topics.late)]
    counts = environment.partitions([*inputs, predictions, snapshots, *kept])
    for stage in plan.stages:
        if not stage.direct and counts[stage.topic] != plan.partitions:
            rule = f"have {plan.partitions} partitions, as the plan says"
            message = explain("re-key topic", rule, counts[stage.topic], stage.topic, HINT)
            raise NotAppliedError(message)

    def decoder(source: SourcePlan) -> WireDecoder:
        return WireDecoder(source.schema, environment.registry.schema)

    expected = output_schemas(plan)

    def encoder(topic: str) -> RecordEncoder:
        schema_id, schema = environment.registered(topic)
        if options.drain or options.prepare:
            # Others may be the newest by now; the same schema keeps its id.
            schema = expected[topic]
            schema_id = environment.registry.register(f"{topic}-value", schema)
        if json.loads(schema)["fields"] != json.loads(expected[topic])["fields"]:
            rule = "have the fields that the definitions give"
            message = explain("the registered schema", rule, f"id {schema_id}", topic, HINT)
            raise NotAppliedError(message)
        return RecordEncoder(schema, schema_id)

    return ProcessorContext(
        topic_ids=topic_ids(admin(environment.client), inputs),
        partition_counts=counts,
        decoder=decoder,
        predictions=encoder(predictions),
        snapshots=encoder(snapshots),
        models=models,
        max_record_bytes=environment.project.settings.stream.max_record_bytes,
        app_version=version("headrace"),
        engine=engine_version(),
        online={} if options.prepare else _online(environment, plan),
        scores=not options.prepare,
    )


def _online(environment: Environment, plan: PipelinePlan) -> Mapping[int, OnlineEntity]:
    if not environment.project.settings.online.enabled:
        return {}
    return online_entities(environment.plan)[plan.name]


def _encoders(environment: Environment, plan: PipelinePlan) -> dict[str, RecordEncoder]:
    """Return by source who writes its records as its newest schema says."""
    encoders = {}
    for source in plan.sources:
        schema_id, schema = environment.registered(source.topic)
        encoders[source.name] = RecordEncoder(schema, schema_id)
    return encoders


def _warm_up(
    plan: PipelinePlan,
    context: ProcessorContext,
    encoders: Mapping[str, RecordEncoder],
    clock: Clock,
) -> None:
    schema_ids = {name: encoder.schema_id for name, encoder in encoders.items()}
    scored = warm_up(plan, replace(context, scores=True), schema_ids, clock.now_ms())
    log.info("warmed_up", scored=scored)


def _lake(environment: Environment) -> Lake:
    return Lake(environment.project.settings.lake.folder)


def _source_counts(plan: PipelinePlan, context: ProcessorContext) -> dict[str, int]:
    return {topic: context.partition_counts[topic] for topic in _sources(plan)}


def _sources(plan: PipelinePlan) -> list[str]:
    return [source.topic for source in plan.sources]


def _app(
    environment: Environment,
    plan: PipelinePlan,
    context: ProcessorContext,
    options: WorkerOptions,
    telemetry: Telemetry,
    companions: Sequence[Companion],
    worker: str | None,
    restorer: Restorer,
    group: str,
    followed: Followed,
    drained: Callable[[], None],
) -> StreamApp:
    settings = environment.project.settings.stream
    staged = {stage.topic for stage in plan.stages}
    routes = {
        topic: Route("stage" if topic in staged else "router", rank)
        for rank, topic in enumerate(input_topics(plan))
    }
    source_options = SourceOptions(
        group=group,
        routes=routes,
        topic_ids=context.topic_ids,
        consumer=environment.client,
        producer=environment.client,
        commit_interval_ms=settings.commit_interval_ms,
        batch_budget_ms=settings.batch_budget_ms,
        batch_rows_max=settings.batch_rows,
        mismatch=options.mismatch,
        worker=worker,
        feeds=feeds_of(plan),
        partition_counts=context.partition_counts,
        drained=drained if options.drain or options.prepare else None,
        followed=followed if options.prepare else None,
    )
    table = ProcessorTable(undoes=worker is not None)

    def start_source(submit: Callable[[Ticket], None]) -> Source:
        return Source(
            source_options,
            table,
            lambda topic, partition: build(plan, topic, partition, context),
            submit,
            telemetry,
            companions,
            restorer,
        )

    kinds = sorted({route.kind for route in routes.values()})
    return build_app(f"headrace.{group}", kinds, table, start_source, TICKETS_MAX + len(kinds))


def _health(
    environment: Environment,
    options: WorkerOptions,
    registry: CollectorRegistry,
    telemetry: Telemetry,
) -> HealthServer | None:
    port = options.metrics_port
    if port is None:
        port = environment.project.settings.stream.metrics_port
    if port is None:
        return None
    return HealthServer(
        options.metrics_host,
        port,
        registry,
        is_live=lambda: True,
        is_ready=lambda: telemetry.is_ready,
    )


def _tune_process() -> None:
    """Leave what was loaded out of collections, collect rarely, hand the interpreter over soon.

    From here on there is one allocator.
    """
    share_allocator()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
