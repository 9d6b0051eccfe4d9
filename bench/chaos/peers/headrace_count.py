"""Headrace as a contender of its own kill test: the count of a key as the one feature."""

from __future__ import annotations

import io
import json
import shutil
import struct
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

import fastavro

from bench.chaos.peers.contenders import PARTITION_COUNT, SESSION_S, Contender
from bench.measure import BenchError, stop_process
from bench.project import environment, make_project
from headrace.runtime import topics
from headrace.schemas.registry import SchemaRegistry

if TYPE_CHECKING:
    from pathlib import Path

    from bench.project import Project
    from headrace.runtime.dev.stack import Endpoints

READY_TIMEOUT_S = 300.0
POLL_S = 0.1
START_MS = 1_750_000_000_000
DEFINITIONS = """
import headrace as hr

events = hr.Source(
    "{run}_events", key="key", event_time="event_time", event_id="event_id", partitioner="murmur2"
)
key = hr.Entity("key", key="key")
counts = hr.FeatureView("key", entity=key, source=events, features=[hr.count(over="30d")])
counted = hr.Pipeline("{run}", source=events, views=[counts])
"""
SCHEMA = {
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "event_id", "type": "string"},
        {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "key", "type": ["null", "string"], "default": None},
    ],
}


def headrace(work: Path, endpoints: Endpoints, run: str) -> Contender:
    """Return a worker with ``stream.guarantee: exactly_once`` and else the defaults."""
    run = run.replace("-", "_")
    template = work / "peers" / f"template-{run}"
    shutil.rmtree(template, ignore_errors=True)
    (template / "schemas").mkdir(parents=True)
    (template / "definitions.py").write_text(DEFINITIONS.format(run=run))
    (template / "schemas" / f"{run}_events.avsc").write_text(json.dumps(SCHEMA))
    settings = {
        "project": run,
        "topics": {"partitions": PARTITION_COUNT},
        "stream": {"guarantee": "exactly_once"},
    }
    project = make_project(work / "peers" / f"run-{run}", template, endpoints, settings)
    project.run("apply")
    compile_kernels(project, work)
    (feature,) = [column.name for column in project.plan(run).vector]
    with SchemaRegistry(endpoints.registry_url) as registry:
        latest = registry.latest(f"{run}_events-value")
        assert latest is not None, run
        snapshots = registry.latest(f"{topics.snapshots(run)}-value")
    assert snapshots is not None, run
    header = struct.pack(">bI", 0, latest[0])
    written = fastavro.parse_schema(SCHEMA)
    read = fastavro.parse_schema(json.loads(snapshots[1]))

    def encode(key: str, seq: int, number: int) -> bytes:
        body = io.BytesIO()
        body.write(header)
        row = {"event_id": f"{key}:{seq}", "event_time": START_MS + number, "key": key}
        fastavro.schemaless_writer(body, written, row)
        return body.getvalue()

    def decode(value: bytes) -> tuple[str, int, int]:
        content = fastavro.schemaless_reader(io.BytesIO(value[5:]), read, None)
        assert isinstance(content, dict)
        key, _, seq = str(content["event_id"]).rpartition(":")
        return key, int(seq), int(content[feature])

    return Contender(
        "Headrace exactly_once",
        f"headrace {version('headrace')}",
        f"defaults, kernels compiled before; session timeout {SESSION_S:g} s (its default)",
        f"{run}_events",
        topics.snapshots(run),
        project.command("worker"),
        environment(),
        project.folder,
        encode,
        decode,
    )


def compile_kernels(project: Project, work: Path) -> None:
    """Start a worker and stop it once it is ready: a first start ever compiles for a minute.

    Raises:
        BenchError: If it does not get ready.

    """
    log = work / "peers" / "warm.log"
    log.unlink(missing_ok=True)
    process = project.start_worker(log)
    try:
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while "worker ready" not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline_s:
                message = f"the worker must get ready within {READY_TIMEOUT_S:g} s; see {log}"
                raise BenchError(message)
            time.sleep(POLL_S)
    finally:
        stop_process(process)
