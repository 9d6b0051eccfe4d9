"""A real Kafka cluster of several nodes on the loopback, of which each can be brought down alone.

For tests and `./dev chaos`: a node can be stopped, killed and frozen, and comes back with its data
at the same address. Every node is broker and controller; topics, offsets and transactions have a
copy on each of the first three, of which two must have taken a write. One node is no cluster: that
is what ``Stack`` runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from headrace.runtime.dev.kafka import Broker, Seat, new_cluster_id
from headrace.runtime.dev.processes import (
    POLL_S,
    ProcessRecord,
    alive,
    kill,
    steady_ports,
    stop,
)
from headrace.runtime.errors import EmbeddedError, explain

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_STATE_FILE = "cluster.json"
_STOP_TIMEOUT_S = 30.0
_SYNC_TIMEOUT_S = 60.0
_ASK_TIMEOUT_S = 1.0
_ANSWER_TIMEOUT_S = 60.0
_COPIES = 3
_OFFSETS, _TRANSACTIONS = "__consumer_offsets", "__transaction_state"


def _properties(nodes: int) -> dict[str, str]:
    copies = str(min(_COPIES, nodes))
    acks = str(min(2, nodes))
    return {
        "default.replication.factor": copies,
        "min.insync.replicas": acks,
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": acks,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": acks,
    }


@dataclass(slots=True)
class _State:
    """What the state file holds: ports and the cluster's id are kept for good."""

    cluster: str
    ports: dict[int, list[int]]
    processes: dict[int, ProcessRecord] = field(default_factory=dict)


class Cluster:
    """Nodes 1 to n below one folder. As a context manager: all up, and all down at the end.

    A borrower (``with``) that is killed leaves no node behind: a guard process notices. One thread
    may call at a time.

    Args:
        folder: Data, logs and the state file go below it.
        nodes: How many there are.
        heap: Each node's.
        maven_mirror: Where Kafka's jars come from; None: Maven Central.

    """

    def __init__(
        self, folder: Path, *, nodes: int = 3, heap: str = "256m", maven_mirror: str | None = None
    ) -> None:
        self.folder = folder.absolute()
        self.nodes = tuple(range(1, nodes + 1))
        self._heap = heap
        self._maven_mirror = maven_mirror
        self._guard: subprocess.Popen[bytes] | None = None
        self._brokers: dict[int, Broker] = {}
        self._client: AdminClient | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._guard = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "headrace.runtime.dev.guard",
                "cluster",
                str(self.folder),
            ],
            stdin=subprocess.PIPE,
            cwd=self.folder,
            start_new_session=True,
        )
        try:
            self.up()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client = None
        self.down()
        guard, self._guard = self._guard, None
        if guard is not None and guard.stdin is not None:
            guard.stdin.close()
            guard.wait()

    @property
    def bootstrap_servers(self) -> str:
        """Return the addresses of all nodes, of those too that are down."""
        return ",".join(f"127.0.0.1:{self.port(node)}" for node in self.nodes)

    def port(self, node: int) -> int:
        """Return where a node's clients find it."""
        return self._read().ports[node][0]

    def pid(self, node: int) -> int:
        """Return a running node's process id."""
        record = self._read().processes.get(node)
        assert record is not None, node
        assert alive(record), node
        return record.pid

    def running(self) -> tuple[int, ...]:
        """Return the nodes whose processes are there; a frozen one is."""
        state = self._read()
        return tuple(node for node in self.nodes if alive(state.processes.get(node)))

    def up(self) -> None:
        """Start the nodes that do not run and return once all serve and have caught up.

        Raises:
            DownloadError: If Kafka is not in the cache and cannot be downloaded.
            EmbeddedError: If a node does not start.

        """
        self.start(*(set(self.nodes) - set(self.running())))
        self.wait_in_sync()

    def start(self, *nodes: int, wait: bool = True) -> None:
        """Start nodes that are down; with ``wait``, return once they serve.

        Raises:
            EmbeddedError: If a node does not start.

        """
        state = self._read()
        for node in sorted(nodes):
            broker = self._broker(node, state)
            broker.format()
            state.processes[node] = broker.start(*state.ports[node])
            # At once: a kill of this process must not lose it.
            self._write(state)
        if wait:
            for node in sorted(nodes):
                self.wait_ready(node)

    def wait_ready(self, node: int) -> None:
        """Return once a started node serves.

        Raises:
            EmbeddedError: If it ends, or does not in time.

        """
        state = self._read()
        broker = self._broker(node, state)
        broker.wait_ready(state.processes[node], state.ports[node][0])

    def stop(self, node: int) -> bool:
        """Stop a node in order: it hands its partitions over. Return whether it ended by itself."""
        return stop(self._read().processes.get(node), _STOP_TIMEOUT_S)

    def kill(self, *nodes: int) -> None:
        """End nodes by SIGKILL, all at the same moment."""
        for node in nodes:
            os.kill(self.pid(node), signal.SIGKILL)
        for node in nodes:
            kill(self._read().processes.get(node))

    def freeze(self, node: int) -> None:
        """Stop a node's clock (SIGSTOP): its connections stay open, and nothing answers."""
        os.kill(self.pid(node), signal.SIGSTOP)

    def thaw(self, node: int) -> None:
        """Let a frozen node go on."""
        os.kill(self.pid(node), signal.SIGCONT)

    def down(self) -> None:
        """Kill all nodes at once; data stay.

        In order the last ones could not end: what they would ask for leave is gone.
        """
        if (self.folder / _STATE_FILE).is_file():
            for record in self._read().processes.values():
                kill(record)

    def controller(self) -> int:
        """Return the node that leads the quorum, as its voters have it on disk.

        Clients are told of any node in its place (they may ask any).
        """
        newest = (-1, 0)
        for node in self.running():
            path = self.folder / f"node-{node}" / "data/__cluster_metadata-0/quorum-state"
            content = json.loads(path.read_text(encoding="utf-8"))
            newest = max(newest, (content["leaderEpoch"], content["leaderId"]))
        return int(newest[1])

    def leader(self, topic: str, partition: int) -> int:
        """Return the node that leads a partition; -1: none does."""
        return int(self._topic(topic).partitions[partition].leader)

    def transaction_coordinator(self, transactional_id: str) -> int:
        """Return the node that decides a transactional id's transactions; -1: none does."""
        return self._coordinator(_TRANSACTIONS, transactional_id)

    def group_coordinator(self, group: str) -> int:
        """Return the node that leads a consumer group; -1: none does."""
        return self._coordinator(_OFFSETS, group)

    def wait_in_sync(self, timeout_s: float = _SYNC_TIMEOUT_S) -> None:
        """Return once every partition has a leader and all of its copies are caught up.

        Raises:
            EmbeddedError: If that takes longer.

        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            behind = self._behind()
            if not behind:
                return
            if time.monotonic() > deadline_s:
                where = ", ".join(behind[:5])
                message = explain("every copy", "be caught up", where, str(self.folder))
                raise EmbeddedError(message)
            time.sleep(5 * POLL_S)

    def log_of(self, node: int) -> Path:
        """Return the file with a node's output."""
        return self.folder / f"node-{node}" / "kafka.log"

    def _behind(self) -> list[str]:
        metadata = self._metadata()
        absent = [f"node {node}" for node in self.nodes if node not in metadata.brokers]
        return absent + [
            f"{name}[{number}]"
            for name, topic in metadata.topics.items()
            for number, partition in topic.partitions.items()
            if partition.leader < 0 or set(partition.isrs) != set(partition.replicas)
        ]

    def _topic(self, topic: str) -> Any:
        """Ask until a node knows the topic: one that is behind hears of a new one later."""
        deadline_s = time.monotonic() + _ANSWER_TIMEOUT_S
        while (found := self._metadata().topics.get(topic)) is None:
            if time.monotonic() > deadline_s:
                raise EmbeddedError(explain("a node", "know the topic", topic, str(self.folder)))
            time.sleep(POLL_S)
        return found

    def _metadata(self) -> Any:
        """Ask until a node answers: the client may have chosen a frozen one, which it gives up."""
        deadline_s = time.monotonic() + _ANSWER_TIMEOUT_S
        while True:
            try:
                return self._admin().list_topics(timeout=_ASK_TIMEOUT_S)
            except KafkaException as error:
                if time.monotonic() > deadline_s:
                    message = explain("a node", "answer", error.args[0].str(), str(self.folder))
                    raise EmbeddedError(message) from error

    def _coordinator(self, topic: str, name: str) -> int:
        partitions = self._topic(topic).partitions
        return int(partitions[java_hash(name) % len(partitions)].leader)

    def _admin(self) -> AdminClient:
        if self._client is None:
            self._client = AdminClient(
                {
                    "bootstrap.servers": self.bootstrap_servers,
                    "reconnect.backoff.ms": 20,
                    "reconnect.backoff.max.ms": 200,
                    "socket.timeout.ms": int(1000 * _ASK_TIMEOUT_S),
                    "log_level": 0,
                }
            )
        return self._client

    def _broker(self, node: int, state: _State) -> Broker:
        if node not in self._brokers:
            from headrace.runtime.dev import jars
            from headrace.runtime.dev.java import executable

            voters = {one: ports[1] for one, ports in state.ports.items()}
            seat = Seat(node, state.cluster, voters, _properties(len(self.nodes)))
            files = jars.fetch(self._maven_mirror)
            folder = self.folder / f"node-{node}"
            self._brokers[node] = Broker(folder, executable(), files, self._heap, seat)
        return self._brokers[node]

    def _new_state(self) -> _State:
        """Return the state of a new cluster, with ports that are free now, and write it down."""
        ports = steady_ports(2 * len(self.nodes))
        pairs = {node: ports[2 * at : 2 * at + 2] for at, node in enumerate(self.nodes)}
        state = _State(new_cluster_id(), pairs)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(state)
        return state

    def _read(self) -> _State:
        if not (self.folder / _STATE_FILE).is_file():
            return self._new_state()
        content = json.loads((self.folder / _STATE_FILE).read_text(encoding="utf-8"))
        return _State(
            content["cluster"],
            {int(node): ports for node, ports in content["ports"].items()},
            {int(node): ProcessRecord(**one) for node, one in content["processes"].items()},
        )

    def _write(self, state: _State) -> None:
        content = {
            "cluster": state.cluster,
            "ports": state.ports,
            "processes": {
                node: {"pid": record.pid, "birth": record.birth}
                for node, record in state.processes.items()
            },
        }
        partial = self.folder / f"{_STATE_FILE}.partial"
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        partial.replace(self.folder / _STATE_FILE)


def java_hash(text: str) -> int:
    """Return Java's hash of a string as Kafka takes it, never negative.

    It says which partition of an internal topic a group or a transactional id lives in.
    """
    value = 0
    for unit in memoryview(text.encode("utf-16-le")).cast("H"):
        value = (31 * value + unit) & 0xFFFFFFFF
    signed = value - (1 << 32) if value >= 1 << 31 else value
    return 0 if signed == -(1 << 31) else abs(signed)
