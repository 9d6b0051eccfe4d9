"""The best JVM peer on the same topic: Kafka Streams, at-least-once, as in ``../shared/peers``.

The peers are not part of the project. Without them, a JDK or Maven there is no figure, and the
bench says so and goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.measure import BenchError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

BUILD_TIMEOUT_S = 600
RUN_TIMEOUT_S = 580


@dataclass(frozen=True, slots=True)
class PeerRun:
    """What the peer's own harness measured, by the same rules as ours."""

    name: str
    outputs: int
    rate: float
    cpu_s_per_million: float
    rss_mib_max: float
    check: str


def missing(peers: Path) -> str | None:
    """Return why the peer cannot run here, or None when it can."""
    if not (peers / "run.sh").is_file():
        return f"no peers in {peers}"
    for tool in ("javac", "java", "mvn"):
        if shutil.which(tool) is None:
            return f"no {tool} on this machine"
    return None


def build(peers: Path, work: Path) -> None:
    """Resolve the peer's libraries and compile it, once.

    Raises:
        BenchError: If Maven or the compiler fails.

    """
    _run([str(peers / "build-java.sh"), "kstreams"], work, BUILD_TIMEOUT_S, {})


def kafka_streams(
    peers: Path,
    work: Path,
    bootstrap_servers: str,
    topic: str,
    model: Path,
    reference: NDArray[np.float64],
) -> PeerRun:
    """Drain the topic with Kafka Streams and check its outputs against our reference.

    Raises:
        BenchError: If it gives no figure.

    """
    runs = work / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    # The layout that the peers' harness compares with: id, late, then the outputs' columns.
    ids = np.arange(len(reference), dtype=np.float64)
    np.save(runs / "ref.npy", np.column_stack([ids, np.zeros(len(ids)), reference]))
    environment = {
        "BOOTSTRAP": bootstrap_servers,
        "MODEL": str(model),
        "PY": sys.executable,
        "BENCH_WORK": str(runs),
    }
    command = [str(peers / "run.sh"), "drain", "kstreams", "--input", topic, "-n", str(len(ids))]
    output = _run(command, work, RUN_TIMEOUT_S, environment)
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        msg = f"Kafka Streams gave no figure; got {output[-500:]!r}"
        raise BenchError(msg)
    figures: dict[str, Any] = json.loads(lines[-1])
    return PeerRun(
        name="Kafka Streams",
        outputs=figures["out"],
        rate=figures["rate"],
        cpu_s_per_million=figures["cpu_s_per_M"],
        rss_mib_max=figures["peak_rss_mb"],
        check=figures["check"],
    )


def _run(command: list[str], work: Path, timeout_s: float, environment: dict[str, str]) -> str:
    try:
        finished = subprocess.run(
            [shutil.which("bash") or "bash", *command],
            env={**os.environ, **environment, "BENCH_PEERS": str(work)},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        msg = f"{command[0]} must end within {timeout_s:.0f} s"
        raise BenchError(msg) from error
    if finished.returncode != 0:
        msg = f"{' '.join(command)} failed: {(finished.stdout + finished.stderr)[-1000:]}"
        raise BenchError(msg)
    return finished.stdout
