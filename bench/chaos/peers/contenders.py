"""Who is tested: how each is installed, started and read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measure import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace.runtime.dev.stack import Endpoints

APPS = Path(__file__).parent / "apps"
ROOT = Path(__file__).parents[3]
PARTITION_COUNT = 4
# The group takes a dead member for dead after this; the peers' defaults are 60 s and 45 s.
SESSION_S = 6.0
PACKAGES = {
    "faust": ("faust-streaming==0.15.3", "faust-streaming-rocksdb==0.9.3"),
    "quix": ("quixstreams==3.28.1",),
}
INSTALL_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Contender:
    """A program under test.

    ``encode`` makes an event's value of (key, seq, number among all events), ``decode`` reads
    (key, seq, count) from an output.
    """

    name: str
    version: str
    conditions: str
    topic_in: str
    topic_out: str
    command: list[str]
    environment: dict[str, str]
    folder: Path
    encode: Callable[[str, int, int], bytes]
    decode: Callable[[bytes], tuple[str, int, int]]


def installed(peer: str, work: Path) -> Path:
    """Return the Python of a peer's own environment; it is made and filled once.

    Raises:
        BenchError: If its packages cannot be had.

    """
    folder = work / "peers" / peer
    python = folder / "bin" / "python"
    done = folder / ".installed"
    wanted = " ".join(PACKAGES[peer])
    if done.is_file() and done.read_text() == wanted:
        return python
    uv = str(Path(sys.executable).parent / "uv")
    commands = [
        [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "--quiet", "--python", str(python), *PACKAGES[peer]],
    ]
    for command in commands:
        try:
            subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
            )
        except (OSError, subprocess.SubprocessError) as error:
            message = f"{wanted} could not be installed: {getattr(error, 'stderr', '') or error}"
            raise BenchError(message) from error
    done.write_text(wanted)
    return python


def faust(work: Path, endpoints: Endpoints, run: str, store: str = "rocksdb://") -> Contender:
    """Return the Faust program, with its tables in RocksDB as its documentation recommends."""
    python = installed("faust", work)
    name = "Faust exactly_once" if store.startswith("rocksdb") else "Faust exactly_once, memory"
    command = [str(python), str(APPS / "faust_count.py"), "worker", "-l", "warn", "--without-web"]
    return _peer(
        name,
        PACKAGES["faust"][0].replace("==", " "),
        f"tables in {store.rstrip(':/')}, commits every 2.8 s (its default)",
        command,
        {"STORE": store},
        work,
        endpoints,
        run,
    )


def quix(work: Path, endpoints: Endpoints, run: str) -> Contender:
    """Return the Quix Streams program."""
    python = installed("quix", work)
    return _peer(
        "Quix exactly-once",
        PACKAGES["quix"][0].replace("==", " "),
        "state in RocksDB with changelog topics, commits every 5 s (its default)",
        [str(python), str(APPS / "quix_count.py")],
        {},
        work,
        endpoints,
        run,
    )


def _peer(
    name: str,
    version: str,
    conditions: str,
    command: list[str],
    settings: Mapping[str, str],
    work: Path,
    endpoints: Endpoints,
    run: str,
) -> Contender:
    folder = work / "peers" / f"run-{run}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    topic_in, topic_out = f"{run}.events", f"{run}.counted"
    environment = {
        **os.environ,
        **settings,
        "BOOTSTRAP": endpoints.bootstrap_servers,
        "GROUP": run,
        "IN": topic_in,
        "OUT": topic_out,
        "PARTITIONS": str(PARTITION_COUNT),
        "SESSION_S": f"{SESSION_S:g}",
        "STATE_DIR": str(folder / "state"),
        "PYTHONUNBUFFERED": "1",
    }
    conditions = f"{conditions}; session timeout {SESSION_S:g} s"
    return Contender(
        name,
        version,
        conditions,
        topic_in,
        topic_out,
        command,
        environment,
        folder,
        lambda _key, seq, _number: json.dumps({"seq": seq}).encode(),
        _counted,
    )


def _counted(value: bytes) -> tuple[str, int, int]:
    content: dict[str, Any] = json.loads(value)
    return content["key"], content["seq"], content["count"]
