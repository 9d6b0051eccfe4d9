"""The embedded infrastructure of one project: Kafka, Redis, the schema registry; and its lake."""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from headrace.runtime.dev.processes import (
    POLL_S,
    ProcessRecord,
    alive,
    free_ports,
    port_answers,
    port_is_free,
    stop,
)
from headrace.runtime.errors import EmbeddedError, explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from headrace.runtime.dev.lake import LakeServer
    from headrace.runtime.settings import Settings

Service = Literal["kafka", "redis", "registry", "lake"]

#: The infrastructure, which has endpoints. The lake's process is a client of it.
SERVICES: tuple[Service, ...] = ("kafka", "redis", "registry")
_ALL: tuple[Service, ...] = (*SERVICES, "lake")
_PORT_COUNT: Mapping[Service, int] = {"kafka": 2, "redis": 1, "registry": 1, "lake": 1}
_STATE_FILE = "stack.json"
_STOP_TIMEOUT_S: Mapping[Service, float] = {
    "kafka": 30.0,
    "redis": 10.0,
    "registry": 10.0,
    "lake": 30.0,
}
_LOCK_TIMEOUT_S = 120.0
_SETTLE_TIMEOUT_S = 60.0
_START_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the infrastructure is."""

    bootstrap_servers: str
    redis_url: str
    registry_url: str


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What a service is doing now. ``address`` is where it is, or was when it last ran."""

    name: str
    state: Literal["running", "starting", "stopped", "external"]
    address: str | None
    pid: int | None
    log: str | None


@dataclass(slots=True)
class _State:
    """What the state file holds: ports are kept over a stop, so that addresses stay the same."""

    processes: dict[Service, ProcessRecord] = field(default_factory=dict)
    ports: dict[Service, list[int]] = field(default_factory=dict)


class _PortTakenError(EmbeddedError):
    """Another program took the port between our look and the server's start."""


class Stack:
    """The services below one state folder. As a context manager: up, and down at the end.

    A borrower (``with``) that is killed leaves nothing behind either: a guard process notices.

    Args:
        folder: The project's state folder; data, logs and the state file go below it.
        maven_mirror: Where Kafka's jars come from; None: Maven Central.
        kafka_heap: The broker's heap.
        kafka_compiled: Whether the broker has all of Java's compilers: see ``Broker``.
        external_kafka: Client properties of a Kafka that is there already: then the registry is
            the only one of ours that speaks to it, and no broker is started.
        services: Which ones to start.
        lake_of: The project whose lake's process is started too; None: no lake.

    """

    def __init__(
        self,
        folder: Path,
        *,
        maven_mirror: str | None = None,
        kafka_heap: str = "512m",
        kafka_compiled: bool = False,
        external_kafka: Mapping[str, Any] | None = None,
        services: tuple[Service, ...] = SERVICES,
        lake_of: Path | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self._lake_of = None if lake_of is None else lake_of.absolute()
        self._maven_mirror = maven_mirror
        self._kafka_heap = kafka_heap
        self._kafka_compiled = kafka_compiled
        self._external_kafka = external_kafka
        self._guard: subprocess.Popen[bytes] | None = None
        self._infrastructure = tuple(
            name for name in services if not (name == "kafka" and external_kafka is not None)
        )
        lake: tuple[Service, ...] = () if lake_of is None else ("lake",)
        self._services = (*self._infrastructure, *lake)

    def __enter__(self) -> Endpoints:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._guard = subprocess.Popen(
            [sys.executable, "-P", "-m", "headrace.runtime.dev.guard", "stack", str(self.folder)],
            stdin=subprocess.PIPE,
            cwd=self.folder,
            start_new_session=True,
        )
        try:
            return self.up()
        except BaseException:
            self._release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()
        self._release()

    def _release(self) -> None:
        """Let the guard go: it finds nothing to stop."""
        guard, self._guard = self._guard, None
        if guard is not None and guard.stdin is not None:
            guard.stdin.close()
            guard.wait()

    def up(self, progress: Callable[[str, int, int], None] | None = None) -> Endpoints:
        """Start what does not run yet and return where everything is.

        What runs already is left alone; so it may be called at any time. The services outlive
        this process. If one cannot be started, those started by this call are stopped again.

        Raises:
            DownloadError: If Kafka is not in the cache and cannot be downloaded.
            EmbeddedError: If a service does not start.

        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            for attempt in range(1, _START_ATTEMPTS + 1):
                try:
                    return self._start_missing(progress or (lambda _what, _done, _all: None))
                except _PortTakenError:
                    if attempt == _START_ATTEMPTS:
                        raise
        raise AssertionError(attempt)

    def down(self) -> dict[Service, bool]:
        """Stop what runs; return by service whether it ended by itself when it was asked to."""
        if not self.folder.is_dir():
            return {}
        with self._locked():
            state = self._read()
            ended: dict[Service, bool] = {}
            # The lake and the registry write what they have, so they go first.
            for name in reversed(_ALL):
                record = state.processes.get(name)
                if alive(record):
                    ended[name] = stop(record, _STOP_TIMEOUT_S[name])
            state.processes.clear()
            self._write(state)
            return ended

    def status(self) -> list[ServiceStatus]:
        """Return what each service is doing; reads only."""
        state = self._read()
        return [self._status_of(name, state) for name in self._services]

    def endpoints(self) -> Endpoints:
        """Return where the running infrastructure is; the lake does not matter for it.

        Raises:
            EmbeddedError: If a part of it does not run.

        """
        state = self._read()
        stopped = [name for name in self._infrastructure if not alive(state.processes.get(name))]
        if stopped:
            message = explain(
                "embedded infrastructure",
                "be running",
                f"{', '.join(stopped)} stopped",
                str(self.folder),
                "run 'headrace up'",
            )
            raise EmbeddedError(message)
        return self._endpoints(state)

    def log_of(self, name: Service) -> Path:
        """Return the file with a service's output."""
        # The lake's own folder is for its tables.
        return self.folder / ("" if name == "lake" else name) / f"{name}.log"

    def _status_of(self, name: Service, state: _State) -> ServiceStatus:
        ports = state.ports.get(name)
        record = state.processes.get(name)
        running: Literal["running", "starting", "stopped"] = "stopped"
        if alive(record):
            running = "running" if ports and port_answers(ports[0]) else "starting"
        return ServiceStatus(
            name,
            running,
            _address(name, ports[0]) if ports else None,
            record.pid if record is not None and running != "stopped" else None,
            str(self.log_of(name)),
        )

    def _endpoints(self, state: _State) -> Endpoints:
        addresses = {name: _address(name, ports[0]) for name, ports in state.ports.items()}
        if self._external_kafka is not None:
            addresses["kafka"] = str(self._external_kafka["bootstrap.servers"])
        return Endpoints(*(addresses.get(name, "") for name in SERVICES))

    def _start_missing(self, progress: Callable[[str, int, int], None]) -> Endpoints:
        state = self._read()
        missing: list[Service] = [
            name for name in self._services if not self._answers_or_ends(name, state)
        ]
        if not missing:
            return self._endpoints(state)
        try:
            self._start(missing, state, progress)
        except BaseException:
            # Also on Ctrl-C: nothing that this call started may stay behind half started.
            for name in reversed(missing):
                stop(state.processes.pop(name, None), _STOP_TIMEOUT_S[name])
            self._write(state)
            raise
        return self._endpoints(state)

    def _answers_or_ends(self, name: Service, state: _State) -> bool:
        """Return whether a service runs, once it is sure: it may be about to start, or to end."""
        record = state.processes.get(name)
        deadline = time.monotonic() + _SETTLE_TIMEOUT_S
        while alive(record):
            if port_answers(state.ports[name][0]):
                return True
            if time.monotonic() > deadline:
                message = explain(
                    name, "answer or end", "neither", "its process", f"see {self.log_of(name)}"
                )
                raise EmbeddedError(message)
            time.sleep(POLL_S)
        return False

    def _start(
        self, missing: list[Service], state: _State, progress: Callable[[str, int, int], None]
    ) -> None:
        from headrace.runtime.dev.redis import RedisServer
        from headrace.runtime.dev.registry import RegistryServer

        broker = self._broker(progress) if "kafka" in missing else None
        for name in missing:
            state.ports[name] = _ports(name, state.ports.get(name))
        redis = RedisServer(self.folder / "redis")
        registry = RegistryServer(self.folder / "registry")
        progress("starting", 0, 0)
        # All are started before any is waited for: their starts overlap.
        if broker is not None:
            broker.format()
            self._record(state, "kafka", broker.start(*state.ports["kafka"]))
        if "registry" in missing:
            started = registry.start(state.ports["registry"][0], self._kafka_properties(state))
            self._record(state, "registry", started)
        if "redis" in missing:
            self._record(state, "redis", redis.start(state.ports["redis"][0]))
        for name in missing:
            progress(f"waiting for {name}", 0, 0)
            if name == "lake":
                # The last one: it asks this stack where the others are.
                self._record(state, "lake", self._lake().start(state.ports["lake"][0]))
            record, port = state.processes[name], state.ports[name][0]
            try:
                if name == "kafka" and broker is not None:
                    broker.wait_ready(record, port)
                elif name == "redis":
                    redis.wait_ready(record, port)
                elif name == "registry":
                    registry.wait_ready(record, port)
                else:
                    self._lake().wait_ready(record, port)
            except EmbeddedError as error:
                if not alive(record) and not all(map(port_is_free, state.ports[name])):
                    raise _PortTakenError(str(error)) from error
                raise

    def _lake(self) -> LakeServer:
        from headrace.runtime.dev.lake import LakeServer

        assert self._lake_of is not None, "no project"
        return LakeServer(self._lake_of, self.log_of("lake"))

    def _broker(self, progress: Callable[[str, int, int], None]) -> Any:
        from headrace.runtime.dev import jars
        from headrace.runtime.dev.java import executable
        from headrace.runtime.dev.kafka import Broker

        files = jars.fetch(
            self._maven_mirror, lambda done, all_: progress("downloading Kafka", done, all_)
        )
        folder, heap = self.folder / "kafka", self._kafka_heap
        return Broker(folder, executable(), files, heap, compiled=self._kafka_compiled)

    def _kafka_properties(self, state: _State) -> dict[str, Any]:
        if self._external_kafka is not None:
            return dict(self._external_kafka)
        return {"bootstrap.servers": _address("kafka", state.ports["kafka"][0])}

    def _record(self, state: _State, name: Service, record: ProcessRecord) -> None:
        """Write down a process the moment it was started: a kill of this one must not lose it."""
        state.processes[name] = record
        self._write(state)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock: one ``up`` or ``down`` at a time; a killed holder frees it."""
        path = self.folder / "stack.lock"
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        with path.open("w") as handle:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        message = explain(
                            "stack", "be free", "another 'headrace up' or 'down'", str(path)
                        )
                        raise EmbeddedError(message) from None
                    time.sleep(0.05)
            yield

    def _read(self) -> _State:
        try:
            content = json.loads((self.folder / _STATE_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return _State()
        return _State(
            {name: ProcessRecord(**record) for name, record in content["processes"].items()},
            content["ports"],
        )

    def _write(self, state: _State) -> None:
        content = {
            "processes": {
                name: {"pid": record.pid, "birth": record.birth}
                for name, record in state.processes.items()
            },
            "ports": state.ports,
        }
        partial = self.folder / f"{_STATE_FILE}.partial"
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        partial.replace(self.folder / _STATE_FILE)


def stack_of(settings: Settings, folder: Path) -> Stack:
    """Return the project's stack: only the services that the settings do not name elsewhere."""
    external = _external(settings)
    kafka = external.get("kafka")
    return Stack(
        folder / settings.state_folder,
        maven_mirror=settings.embedded.maven_mirror,
        kafka_heap=settings.embedded.kafka_heap,
        external_kafka=(
            None if kafka is None else {"bootstrap.servers": kafka, **settings.kafka.properties}
        ),
        services=tuple(name for name in SERVICES if name not in external),
        lake_of=folder if settings.lake.enabled else None,
    )


def endpoints(settings: Settings, folder: Path) -> Endpoints:
    """Return where the infrastructure is: what the settings name, else what runs embedded.

    Raises:
        EmbeddedError: If something is neither named nor running.

    """
    external = _external(settings)
    own = stack_of(settings, folder).endpoints()
    return Endpoints(
        external.get("kafka", own.bootstrap_servers),
        external.get("redis", own.redis_url),
        external.get("registry", own.registry_url),
    )


def redis_url(settings: Settings, folder: Path) -> str:
    """Return where Redis is, whether or not the other services run.

    Raises:
        EmbeddedError: If the settings do not name it and it does not run embedded.

    """
    if settings.redis.url is not None:
        return settings.redis.url
    for status in stack_of(settings, folder).status():
        if status.name == "redis" and status.state == "running" and status.address is not None:
            return status.address
    hint = "run 'headrace up'"
    raise EmbeddedError(explain("Redis", "be running", "stopped", str(folder), hint))


def statuses(settings: Settings, folder: Path) -> list[ServiceStatus]:
    """Return what each service is doing; those that the settings name elsewhere are not asked."""
    external = _external(settings)
    own = {status.name: status for status in stack_of(settings, folder).status()}
    infrastructure = [
        own.get(name) or ServiceStatus(name, "external", external.get(name), None, None)
        for name in SERVICES
    ]
    return [*infrastructure, *(own[name] for name in ("lake",) if name in own)]


def _external(settings: Settings) -> dict[Service, str]:
    named: dict[Service, str | None] = {
        "kafka": settings.kafka.bootstrap_servers,
        "redis": settings.redis.url,
        "registry": settings.registry.url,
    }
    return {name: value for name, value in named.items() if value is not None}


def _ports(name: Service, before: list[int] | None) -> list[int]:
    """Return the ports of the last time if they are free, so that addresses stay; else new ones."""
    if before is not None and all(map(port_is_free, before)):
        return before
    return free_ports(_PORT_COUNT[name])


def _address(name: Service, port: int) -> str:
    prefix = {"kafka": "", "redis": "redis://"}.get(name, "http://")
    return f"{prefix}127.0.0.1:{port}"
