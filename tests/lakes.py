"""Pieces that the tests of the lake share: messages, a registry, and the process itself."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import fastavro
import httpx

from headrace.lake.tables import OFFSET, PARTITION, TOPIC_ID, Lake
from headrace.runtime.settings import load_settings
from headrace.schemas.errors import RegistryUnavailableError, UnknownSchemaError

if TYPE_CHECKING:
    from pathlib import Path

READY_S = 120.0


def record(*fields, name="Event"):
    """Return the schema of a record, as JSON; fields are (name, type) or (name, type, default)."""
    made = [
        {"name": one[0], "type": one[1], **({"default": one[2]} if len(one) > 2 else {})}
        for one in fields
    ]
    return json.dumps({"type": "record", "name": name, "fields": made})


def wire(schema: str, schema_id: int, row: dict) -> bytes:
    """Return a record in Confluent's wire format."""
    body = io.BytesIO()
    body.write(struct.pack(">bI", 0, schema_id))
    fastavro.schemaless_writer(body, fastavro.parse_schema(json.loads(schema)), row)
    return body.getvalue()


@dataclass
class Schemas:
    """A registry in memory; ``is_away`` makes it give no answer."""

    by_id: dict[int, str] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)
    is_away: bool = False

    def add(self, subject: str, schema: str) -> int:
        number = len(self.by_id) + 1
        self.by_id[number] = schema
        self.newest[subject] = number
        return number

    def _answer(self) -> None:
        if self.is_away:
            text = "schema registry must answer; got nothing"
            raise RegistryUnavailableError(text)

    def schema(self, schema_id: int) -> str:
        self._answer()
        if schema_id not in self.by_id:
            text = f"schema id {schema_id} must be registered"
            raise UnknownSchemaError(text)
        return self.by_id[schema_id]

    def latest(self, subject: str) -> tuple[int, str] | None:
        self._answer()
        number = self.newest.get(subject)
        return None if number is None else (number, self.by_id[number])


@dataclass(frozen=True)
class Message:
    """A consumed message."""

    at: int
    content: bytes | None
    name: bytes | None = b"k"
    arrival_time_ms: int = 1_700_000_000_000

    def offset(self):
        return self.at

    def value(self):
        return self.content

    def key(self):
        return self.name

    def timestamp(self):
        return 2, self.arrival_time_ms


def places(lake: Lake, table: str) -> list[tuple[str, int, int]]:
    """Return where the rows of a table stood, sorted; with what stands there twice."""
    if not lake.has(table):
        return []
    rows = lake.table(table).delta.to_pyarrow_table(columns=[TOPIC_ID, PARTITION, OFFSET])
    return sorted(tuple(row.values()) for row in rows.to_pylist())


class LiveLake:
    """`headrace lake` as a process of its own; a context manager that leaves none behind."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.lake = Lake(load_settings(folder).lake.folder)
        self.log = folder / f"lake-{time.monotonic_ns()}.log"
        self._stderr = self.log.open("wb")
        self.process = subprocess.Popen(
            [*command(folder), "--metrics-port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.url = ""

    def __enter__(self) -> Self:
        self.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._stderr.close()

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        deadline_s = time.monotonic() + READY_S
        line = b""
        while b"\n" not in line:
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline_s, self.output()
            line += self.process.stdout.read() or b""
            time.sleep(0.02)
        assert line.startswith(b"lake ready"), line
        self.url = line.decode().strip().rpartition("metrics ")[2]

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def terminate(self, timeout_s: float = 60.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def rows(self, table: str) -> int:
        return self.lake.table(table).count_rows() if self.lake.has(table) else 0

    def is_ready(self) -> bool:
        return httpx.get(self.url.replace("/metrics", "/ready"), timeout=10).status_code == 200

    def metrics(self) -> dict[str, float]:
        """Return the metrics page as samples by name with labels."""
        lines = httpx.get(self.url, timeout=10).text.splitlines()
        samples = [line.rpartition(" ") for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in samples}


def command(folder: Path, *arguments: str) -> list[str]:
    """Return how to start the lake of a project."""
    python = [sys.executable, "-m", "headrace.cli.main", "lake", "--project", str(folder)]
    return [*python, *arguments]


def run_once(folder: Path) -> dict[str, int]:
    """Run `headrace lake --once` and return the rows by table that it tells."""
    done = subprocess.run(
        command(folder, "--once", "--json"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["rows"]
