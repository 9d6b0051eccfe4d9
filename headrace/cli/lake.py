"""``headrace lake``: keep the lake's tables up with the topics."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import AsJson, Folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.features.plan import ProjectPlan
    from headrace.lake.process import LakeProcess
    from headrace.runtime.dev.stack import Endpoints
    from headrace.runtime.settings import Settings

_WAIT_S = 1.0
_DEFINITIONS_EVERY_S = 30.0


def lake(
    *,
    once: Annotated[
        bool, typer.Option("--once", help="Read up to where the topics end now, and stop.")
    ] = False,
    compact: Annotated[
        bool,
        typer.Option("--compact", help="Only put small files together and wipe old ones, now."),
    ] = False,
    metrics_host: Annotated[str, typer.Option(help="Where /metrics listens.")] = "127.0.0.1",
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="0: any free one. Default: no page.")
    ] = None,
    as_json: AsJson = False,
    project: Folder = Path(),
) -> None:
    """Append every event, prediction and snapshot to the lake's tables, each exactly once."""
    from headrace.runtime.logging import configure
    from headrace.runtime.settings import load_settings

    configure()
    settings = load_settings(project)
    if compact:
        _compact(settings, as_json)
        return
    _run(settings, project, once, metrics_host, metrics_port)
    if once:
        _tell(settings, as_json)


def _run(settings: Settings, project: Path, once: bool, host: str, port: int | None) -> None:
    from prometheus_client import CollectorRegistry

    from headrace.lake.process import LakeOptions, LakeProcess
    from headrace.lake.telemetry import LakeTelemetry
    from headrace.runtime.clock import SystemClock
    from headrace.runtime.health import HealthServer
    from headrace.runtime.kafka import client_properties
    from headrace.schemas.registry import SchemaRegistry

    stopping = _Stopping()
    registry = CollectorRegistry()
    telemetry = LakeTelemetry(registry)
    # Before anything is waited for: 'headrace up' asks this page whether the process is there.
    health = (
        None
        if port is None
        else HealthServer(host, port, registry, lambda: True, lambda: telemetry.is_ready)
    )
    try:
        found = _endpoints(settings, project, once, stopping)
        if found is None:
            return
        options = LakeOptions(
            settings.project,
            client_properties(settings, found.bootstrap_servers),
            settings.lake,
            settings.stream.max_record_bytes,
            once,
        )
        with SchemaRegistry(found.registry_url) as schemas:
            process = LakeProcess(
                options, _applied_plan(settings, project, once), schemas, telemetry, SystemClock()
            )
            stopping.process = process
            if stopping.asked:
                return
            page = "" if health is None else f", metrics {health.url}/metrics"
            if not once:
                typer.echo(f"lake ready: {settings.lake.folder}{page}")
            process.run()
    finally:
        if health is not None:
            health.close()


class _Stopping:
    """Turns the signals to end into a clean stop of what runs by then."""

    def __init__(self) -> None:
        self.asked = False
        self.process: LakeProcess | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self.asked = True
        if self.process is not None:
            self.process.stop()


def _endpoints(
    settings: Settings, project: Path, once: bool, stopping: _Stopping
) -> Endpoints | None:
    """Return where the infrastructure is, once it is there; None if a stop was asked for before."""
    from headrace.runtime.dev.stack import endpoints
    from headrace.runtime.errors import EmbeddedError
    from headrace.runtime.logging import get_logger

    while not stopping.asked:
        try:
            return endpoints(settings, project)
        except EmbeddedError as error:
            if once:
                raise
            get_logger(__name__).warning("waiting_for_infrastructure", error=str(error))
            time.sleep(_WAIT_S)
    return None


def _applied_plan(
    settings: Settings, project: Path, once: bool
) -> Callable[[], ProjectPlan | None]:
    """Return how to learn what is read: what was applied here, else what the definitions say.

    A definition that is being edited must not stop the lake: what was applied is what there is.
    """
    from headrace.cli.applied import AppliedError, read_applied
    from headrace.features.compiler import compile_project
    from headrace.features.project import load_project
    from headrace.runtime.errors import HeadraceError
    from headrace.runtime.logging import get_logger

    log = get_logger(__name__)
    compiled_s: float | None = None
    plan: ProjectPlan | None = None

    def applied() -> ProjectPlan | None:
        nonlocal compiled_s, plan
        try:
            found = read_applied(settings).plan
        except AppliedError as error:
            if once:
                raise
            log.warning("applied_not_readable", error=str(error))
            return plan
        if found is not None:
            return found
        now_s = time.monotonic()
        if compiled_s is None or now_s - compiled_s > _DEFINITIONS_EVERY_S:
            compiled_s = now_s
            try:
                plan = compile_project(load_project(project), settings.topics.partitions)
            except HeadraceError as error:
                if once:
                    raise
                log.info("nothing_to_read_yet", reason=str(error))
        return plan

    return applied


def _compact(settings: Settings, as_json: bool) -> None:
    from rich.console import Console
    from rich.progress import track

    from headrace.lake.maintenance import Maintained, maintain
    from headrace.lake.tables import Lake
    from headrace.runtime.clock import SystemClock
    from headrace.runtime.settings import duration_ms

    retention = settings.lake.retention
    done: list[Maintained] = [
        maintain(
            settings.lake.folder,
            name,
            retention_ms=None if retention is None else duration_ms(retention),
            now_ms=SystemClock().now_ms(),
            files_min=2,
        )
        for name in track(
            Lake(settings.lake.folder).names(),
            "compacting",
            console=Console(stderr=True),
            transient=True,
        )
    ]
    if as_json:
        typer.echo(json.dumps({"tables": [dataclasses.asdict(one) for one in done]}))
        return
    for one in done:
        typer.echo(
            f"{one.table}: {one.files_before} -> {one.files_after} files, "
            f"{one.size_bytes / 1e6:.1f} MB, {one.wiped_files} old files wiped"
        )
    if not done:
        typer.echo(f"no tables below {settings.lake.folder}")


def _tell(settings: Settings, as_json: bool) -> None:
    from headrace.lake.tables import Lake

    tables = Lake(settings.lake.folder)
    rows = {name: tables.table(name).count_rows() for name in tables.names()}
    if as_json:
        typer.echo(json.dumps({"folder": str(settings.lake.folder), "rows": rows}))
        return
    for name, count in rows.items():
        typer.echo(f"{name:<40} {count:>12,} rows")
    if not rows:
        typer.echo("nothing to read: no topic is there yet; run 'headrace apply'")
