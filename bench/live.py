"""A small project on the real broker, and `headrace worker` as a process: for tests and chaos."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import fastavro
import httpx
import numpy as np
import yaml
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from headrace.features.kernels.keys import murmur2_partitions
from headrace.features.output_schemas import output_schemas
from headrace.runtime import topics
from headrace.runtime.kafka import admin, ensure_topics
from headrace.streams.environment import Environment, open_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confluent_kafka import Message

    from headrace.features.plan import PipelinePlan

DEFINITIONS = """
import headrace as hr

payments = hr.Source(
    "payments",
    key="customer_id",
    event_time="event_time",
    event_id="payment_id",
    partitioner="murmur2",
)
customer = hr.Entity("customer", key="customer_id")
spending = hr.FeatureView(
    "customer",
    entity=customer,
    source=payments,
    features=[hr.count(over=["1h", "1d"]), hr.mean("amount", over=["1h", "1d"])],
)
spend = hr.Pipeline(
    "spend",
    source=payments,
    views=[spending],
    request={"amount": hr.col("amount")},
)
"""
TWO_ENTITIES = """
import headrace as hr

payments = hr.Source(
    "payments",
    key="customer_id",
    event_time="event_time",
    event_id="payment_id",
    partitioner="murmur2",
)
customer, shop = hr.Entity("customer", key="customer_id"), hr.Entity("shop", key="shop")
spending = hr.FeatureView(
    "customer", entity=customer, source=payments, features=[hr.count(over="1h")]
)
takings = hr.FeatureView(
    "shop",
    entity=shop,
    source=payments,
    features=[hr.count(over="1h"), hr.sum("amount", over="1h")],
)
spend = hr.Pipeline(
    "spend",
    source=payments,
    views=[spending, takings],
    request={"amount": hr.col("amount")},
    alignment="0s",
)
"""
SHOP: dict[str, object] = {"name": "shop", "type": "long"}
PAYMENT = {
    "type": "record",
    "name": "Payment",
    "fields": [
        {"name": "payment_id", "type": "long"},
        {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "customer_id", "type": ["null", "string"], "default": None},
        {"name": "amount", "type": "double"},
    ],
}
# A first run compiles the kernels.
READY_S = 240.0
READ_S = 60.0
# Installed programs have their bytecode; compiling all modules anew costs each start two seconds.
_PYTHON = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": str(Path(__file__).resolve().parents[1] / ".bench" / "bytecode"),
}


@dataclass
class LiveProject:
    """A project folder with one direct stage, applied: topics and schemas exist."""

    folder: Path
    environment: Environment
    schema_id: int
    partitions: int = 4
    _parsed: Any = field(default_factory=lambda: fastavro.parse_schema(PAYMENT))

    @property
    def bootstrap_servers(self) -> str:
        """Where Kafka is."""
        return self.environment.endpoints.bootstrap_servers

    @property
    def plan(self) -> PipelinePlan:
        """The project's one pipeline."""
        return self.environment.plan.pipelines[0]

    def close(self) -> None:
        """Let the registry's connections go."""
        self.environment.registry.close()

    def topic(self, name: str) -> str:
        """Return a topic's name: of payments, dlq, late, predictions or snapshots."""
        return {
            "payments": self.plan.source_plan(self.plan.source).topic,
            "dlq": topics.dlq(self.plan.source_plan(self.plan.source).topic),
            "late": topics.late(self.plan.source_plan(self.plan.source).topic),
            "predictions": topics.predictions(self.plan.name),
            "snapshots": topics.snapshots(self.plan.name),
        }[name]

    def record(self, *row: object) -> dict[str, object]:
        """Return a payment as fastavro takes it; ``row`` holds the fields in their order."""
        return {f["name"]: value for f, value in zip(self._parsed["fields"], row, strict=True)}

    def payment(self, *row: object) -> bytes:
        """Return a payment in wire format."""
        body = io.BytesIO()
        body.write(struct.pack(">bI", 0, self.schema_id))
        fastavro.schemaless_writer(body, self._parsed, self.record(*row))
        return body.getvalue()

    def place(self, key: bytes | None) -> int:
        """Return the partition that a key belongs to."""
        return 0 if key is None else int(murmur2_partitions([key], self.partitions)[0])

    def send(self, rows: list[tuple[bytes | None, bytes | None]], **properties: object) -> None:
        """Send keys and values to the source, each where its key belongs."""
        producer = Producer(
            {
                # A retry to a topic that was just made must not reorder what is compared.
                "enable.idempotence": True,
                "bootstrap.servers": self.bootstrap_servers,
                "linger.ms": 5,
                "message.max.bytes": 64 << 20,
                "queue.buffering.max.kbytes": 1 << 20,
                "queue.buffering.max.messages": 1_000_000,
                **properties,
            }
        )
        failed: list[str] = []
        for key, value in rows:
            producer.produce(
                self.topic("payments"),
                value,
                key,
                self.place(key),
                on_delivery=lambda error, _: failed.append(error.str()) if error else None,
            )
            producer.poll(0)
        assert producer.flush(60) == 0
        assert not failed, failed[0]

    def read(self, name: str, count: int, timeout_s: float = READ_S) -> list[Message]:
        """Return a topic's messages once there are ``count``, or what there is at the timeout."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": "reader",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.message.max.bytes": 64 << 20,
            }
        )
        topic = self.topic(name)
        consumer.assign([TopicPartition(topic, p, 0) for p in range(self.partitions)])
        messages: list[Message] = []
        deadline_s = time.monotonic() + timeout_s
        while len(messages) < count and time.monotonic() < deadline_s:
            for message in consumer.consume(10_000, 0.2):
                error = message.error()
                assert error is None or error.code() == KafkaError._PARTITION_EOF, error
                if error is None:
                    messages.append(message)
        consumer.close()
        return messages

    def records(self, name: str, count: int, timeout_s: float = READ_S) -> list[dict[str, Any]]:
        """Decode a topic's messages with fastavro through the registry."""
        return [
            self.decode(message.value() or b"") for message in self.read(name, count, timeout_s)
        ]

    def decode(self, value: bytes) -> dict[str, Any]:
        """Return a record with its schema from the registry."""
        schema_id = struct.unpack(">I", value[1:5])[0]
        schema = fastavro.parse_schema(json.loads(self.environment.registry.schema(schema_id)))
        record: Any = fastavro.schemaless_reader(io.BytesIO(value[5:]), schema, None)
        return dict(record)

    def committed(self) -> int:
        """Return the sum of the group's committed offsets on the source."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": topics.group(self.plan.project, self.plan.name),
            }
        )
        wanted = [TopicPartition(self.topic("payments"), p) for p in range(self.partitions)]
        found = consumer.committed(wanted, timeout=10)
        consumer.close()
        return sum(max(0, int(one.offset)) for one in found)

    def commit(self, offset: int, metadata: str) -> None:
        """Commit an offset for each partition of the source, as a worker of another time would."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": topics.group(self.plan.project, self.plan.name),
            }
        )
        topic = self.topic("payments")
        offsets = [
            TopicPartition(topic, p, offset, metadata=metadata) for p in range(self.partitions)
        ]
        consumer.commit(offsets=offsets, asynchronous=False)
        consumer.close()


class LiveWorker:
    """`headrace worker` as a process of its own; a context manager that leaves none behind."""

    def __init__(
        self, folder: Path, *options: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = folder / f"worker-{time.monotonic_ns()}.log"
        self._stderr = self.log.open("wb")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "headrace.cli.main",
                "worker",
                "--project",
                str(folder),
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **_PYTHON, **(environment or {})},
        )
        self.url = ""

    def __enter__(self) -> Self:
        self.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the process if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._stderr.close()

    def wait_ready(self) -> None:
        """Return when the worker has said that it is ready; at once if it has said so before."""
        if self.url:
            return
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        deadline_s = time.monotonic() + READY_S
        line = b""
        while b"\n" not in line:
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline_s, self.output()
            line += self.process.stdout.read() or b""
            time.sleep(0.02)
        assert line.startswith(b"worker ready"), line
        self.url = line.decode().strip().rpartition("metrics ")[2]

    def output(self) -> str:
        """Return what the worker has logged so far."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """Kill the process: nothing is drained."""
        self.process.kill()
        self.process.wait()

    def terminate(self, timeout_s: float = 30.0) -> int:
        """Ask the process to end and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def metrics(self) -> dict[str, float]:
        """Return the metrics page as samples by name with labels."""
        lines = httpx.get(self.url, timeout=10).text.splitlines()
        samples = [line.rpartition(" ") for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in samples}

    def wait_for(self, prefix: str, value: float, timeout_s: float = 30.0) -> None:
        """Wait until some sample whose name starts with ``prefix`` is at least ``value``."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            found = [v for name, v in self.metrics().items() if name.startswith(prefix)]
            if any(one >= value for one in found):
                return
            assert time.monotonic() < deadline_s, (prefix, found, self.output())
            time.sleep(0.05)

    def rss_mb(self) -> float:
        """Return the most memory that the process has had, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024


def make_project(
    folder: Path,
    extra_settings: str = "",
    *,
    definitions: str = DEFINITIONS,
    fields: tuple[dict[str, object], ...] = (),
    replication: int = 1,
) -> LiveProject:
    """Write the definitions into a project folder, under names of its own, and apply them.

    ``fields`` come after those of ``PAYMENT``.
    """
    schema = {**PAYMENT, "fields": [*PAYMENT["fields"], *fields]}
    settings = folder / "headrace.yaml"
    settings.write_text(settings.read_text() + textwrap.dedent(extra_settings))
    unique = yaml.safe_load(settings.read_text())["project"]
    text = definitions.replace('"payments"', f'"payments_{unique}"')
    (folder / "definitions.py").write_text(text.replace('"spend"', f'"spend_{unique}"'))
    (folder / "schemas" / f"payments_{unique}.avsc").write_text(json.dumps(schema))
    environment = open_environment(folder)
    ids = apply(environment, replication)
    source = environment.plan.pipelines[0].source
    parsed = fastavro.parse_schema(schema)
    partitions = environment.project.settings.topics.partitions
    return LiveProject(folder, environment, ids[source], partitions, _parsed=parsed)


def apply(environment: Environment, replication: int = 1) -> dict[str, int]:
    """Make topics and schemas as `headrace apply` does, and return the sources' schema ids."""
    settings = environment.project.settings
    specs = topics.topic_specs(
        environment.plan.project,
        [source.topic for source in environment.sources()],
        {
            plan.name: [s.topic for s in plan.stages if not s.direct]
            for plan in environment.plan.pipelines
        },
        partitions=settings.topics.partitions,
        replication=replication,
        source_config={name: str(value) for name, value in settings.topics.properties.items()},
    )
    ensure_topics(admin(environment.client), specs)
    registry = environment.registry
    for plan in environment.plan.pipelines:
        for topic, schema in output_schemas(plan).items():
            registry.register(f"{topic}-value", schema)
    return {s.name: registry.register(f"{s.topic}-value", s.schema) for s in environment.sources()}


def payments(
    project: LiveProject, count: int, start_ms: int, seed: int, first_id: int = 0
) -> tuple[list[tuple[bytes | None, bytes | None]], list[tuple[int, int, str, float]]]:
    """Return ``count`` payments of 50 customers, 100 ms apart: keys, values, and the plain rows."""
    random = np.random.default_rng(seed)
    customers = random.integers(0, 50, count)
    amounts = np.round(random.gamma(2.0, 20.0, count), 2)
    rows = [
        (first_id + i, start_ms + 100 * i, f"c{customers[i]}", float(amounts[i]))
        for i in range(count)
    ]
    messages: list[tuple[bytes | None, bytes | None]] = [
        (row[2].encode(), project.payment(*row)) for row in rows
    ]
    return messages, rows
