"""A real Apache Kafka node (KRaft) on the loopback, with its data in a folder.

Alone it is the embedded broker; with a ``Seat`` it is one of a cluster (``cluster.py``).
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import time
import uuid
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from headrace.runtime.dev.processes import (
    POLL_S,
    ProcessRecord,
    alive,
    died,
    port_answers,
    spawn,
)
from headrace.runtime.errors import EmbeddedError, explain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_READY_TIMEOUT_S = 60.0
_FORMAT_TIMEOUT_S = 60.0

# Short-lived small heap, one-core collector, and the first compiler only: the broker shares two
# cores with what it serves, and a start costs less than half (prototypes/embedded_kafka.py).
_JVM = ("-XX:+UseSerialGC", "-Djava.awt.headless=true")
_FIRST_COMPILER = "-XX:TieredStopAtLevel=1"
_LOG = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
)

_PROPERTIES: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "num.partitions": "4",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    # A dead worker's open transaction blocks readers until the broker looks: look every second.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    # Workers in tests and demos die on purpose: let a group notice within seconds.
    "group.min.session.timeout.ms": "1000",
    # Event times lie in the past: retention by time would delete a replayed topic.
    "log.retention.ms": "-1",
    "log.retention.bytes": "-1",
    # After a kill the controller waits for the old session's end before it lets the broker in.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # A consumer group that rests over a holiday keeps its place.
    "offsets.retention.minutes": "525600",
    "log.cleaner.dedupe.buffer.size": "4194304",
}


@dataclass(frozen=True, slots=True)
class Seat:
    """A node's place in a cluster whose nodes all vote.

    Attributes:
        node: Its id.
        cluster: The cluster's id, the same for all of its nodes.
        voters: The controllers' ports by node id.
        properties: The cluster's settings, over those of a node that is alone.

    """

    node: int
    cluster: str
    voters: Mapping[int, int]
    properties: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def new_cluster_id() -> str:
    """Return an id as Kafka makes them: 16 random bytes in base64."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class Broker:
    """How to run the broker; the running one is a ``ProcessRecord``. Without a seat it is alone.

    A ``compiled`` one has all of Java's compilers, as in production: after minutes of work it needs
    half of the time for each request, and until then more.
    """

    folder: Path
    java: Path
    class_path: tuple[Path, ...]
    heap: str = "512m"
    seat: Seat | None = None
    compiled: bool = False

    @property
    def data(self) -> Path:
        """Return the log folder. It exists only once it was formatted completely."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """Return the file with the broker's output."""
        return self.folder / "kafka.log"

    def format(self) -> None:
        """Format the log folder, unless that was done before; data is never touched.

        The tool writes into a folder beside, which becomes the log folder by a rename: a kill
        at any moment leaves either nothing or a complete log folder (E6).

        Raises:
            EmbeddedError: If the tool fails, or the folder that is there is not a formatted one.

        """
        if self.data.exists():
            if not (self.data / "meta.properties").is_file():
                message = explain(
                    "Kafka's log folder",
                    "hold meta.properties",
                    sorted(path.name for path in self.data.iterdir())[:5],
                    str(self.data),
                    "restore it, or remove the folder to begin anew",
                )
                raise EmbeddedError(message)
            return
        if "," in str(self.folder):
            message = explain(
                "folder",
                "have no comma in its path",
                str(self.folder),
                "Kafka's data",
                "set state_folder",
            )
            raise EmbeddedError(message)
        unfinished = self.folder / "data.formatting"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
        properties = self._write_properties(unfinished, 1, 2, name="format.properties")
        cluster = new_cluster_id() if self.seat is None else self.seat.cluster
        # Joined by "=": one id of 64 begins with a dash, which alone would be taken for an option.
        tool = [
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={cluster}",
            "-c",
            str(properties),
        ]
        done = subprocess.run(
            [*self._java(), *tool],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_FORMAT_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            output = done.stdout.decode(errors="replace").strip()
            msg = f"Kafka's log folder must be formattable; {output[-2000:]}"
            raise EmbeddedError(msg)
        _sync(unfinished)
        unfinished.rename(self.data)
        _sync(self.folder)

    def start(self, port: int, controller_port: int) -> ProcessRecord:
        """Start the broker in a session of its own; ``wait_ready`` says when it serves."""
        properties = self._write_properties(
            self.data, port, controller_port, name="server.properties"
        )
        return spawn([*self._java(), "kafka.Kafka", str(properties)], self.log, self.folder)

    def wait_ready(self, record: ProcessRecord, port: int) -> None:
        """Return once the broker answers a metadata request as the cluster of this folder.

        Raises:
            EmbeddedError: If it ends, does not answer in time, or another broker has its port.

        """
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not port_answers(port):
            self._check(record, deadline)
            time.sleep(POLL_S)
        client = AdminClient(
            {
                "bootstrap.servers": f"127.0.0.1:{port}",
                "reconnect.backoff.ms": 10,
                "reconnect.backoff.max.ms": 100,
                "log_level": 0,
            }
        )
        found = None
        node = 1 if self.seat is None else self.seat.node
        while found is None:
            try:
                metadata = client.list_topics(timeout=1.0)
            except KafkaException:
                self._check(record, deadline)
                continue
            # A node of a cluster answers before the controller lets it serve.
            if node in metadata.brokers:
                found = str(metadata.cluster_id)
            else:
                self._check(record, deadline)
                time.sleep(POLL_S)
        if found != self.cluster_id():
            message = explain(
                "port", f"serve cluster {self.cluster_id()}", found, f"127.0.0.1:{port}"
            )
            raise EmbeddedError(message)

    def cluster_id(self) -> str:
        """Return the id that formatting gave to this folder."""
        for line in (self.data / "meta.properties").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            if name == "cluster.id":
                return value
        raise AssertionError(self.data)

    def _check(self, record: ProcessRecord, deadline: float) -> None:
        if not alive(record):
            raise died("Kafka", self.log)
        if time.monotonic() > deadline:
            message = explain(
                "Kafka",
                f"answer within {_READY_TIMEOUT_S:.0f} s",
                "nothing",
                "its start",
                f"see {self.log}",
            )
            raise EmbeddedError(message)

    def _java(self) -> list[str]:
        class_path = os.pathsep.join(str(path) for path in self.class_path)
        compilers = () if self.compiled else (_FIRST_COMPILER,)
        return [str(self.java), f"-Xmx{self.heap}", *_JVM, *compilers, *_LOG, "-cp", class_path]

    def _write_properties(self, data: Path, port: int, controller_port: int, *, name: str) -> Path:
        """Write a properties file.

        The controller is named here and not in the formatted folder (no ``--standalone``), so
        that a restart may take other ports.
        """
        listener = f"PLAINTEXT://127.0.0.1:{port}"
        seat = self.seat or Seat(1, "", {1: controller_port})
        voters = (f"{node}@127.0.0.1:{at}" for node, at in sorted(seat.voters.items()))
        properties = {
            **_PROPERTIES,
            **seat.properties,
            "node.id": str(seat.node),
            "controller.quorum.voters": ",".join(voters),
            "listeners": f"{listener},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": listener,
            "log.dirs": str(data),
        }
        path = self.folder / name
        path.write_text(
            "".join(f"{key}={_escape(value)}\n" for key, value in properties.items()),
            encoding="utf-8",
        )
        return path


def _escape(value: str) -> str:
    """Return the value as a Java properties file needs it: ASCII, the rest as UTF-16 escapes."""
    return "".join(
        character
        if " " <= character <= "~" and character != "\\"
        else "".join(f"\\u{unit:04x}" for unit in _utf16(character))
        for character in value
    )


def _utf16(character: str) -> list[int]:
    data = character.encode("utf-16-be")
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]


def _sync(folder: Path) -> None:
    """Make what was written below ``folder`` survive a power cut."""
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
