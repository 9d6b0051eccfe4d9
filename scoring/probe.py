"""Loads a model and scores its canary in a fresh interpreter, so that only a child can die.

``python -P -m headrace.scoring.probe FOLDER`` prints one JSON object. ``run_probe`` starts it.
Never by fork: a copy of a process with librdkafka's and numba's threads may hang for ever.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson

from headrace.runtime.errors import HeadraceError, explain
from headrace.scoring.errors import ModelRefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.scoring.lightgbm_text import TextModel

# A busy machine may start an interpreter slowly; a model that hangs burns its CPU seconds first.
TIMEOUT_S = 60.0
_CPU_S = 20
# Address space, not memory in use: with a model of 100 trees the child reserves 0.6 GiB.
_ADDRESS_SPACE_BYTES = 4 << 30
_EDGE_ROWS = 512
_OUTPUT_BYTES_MAX = 16 << 20
# A probe gets what an interpreter needs to start, and none of the worker's secrets.
_ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
)


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What the probe saw.

    ``edge_scores`` are LightGBM's scores of ``edge_rows(...)``, by which our own kernel is judged.
    """

    framework_version: str
    canary_scores: np.ndarray
    edge_scores: np.ndarray
    load_seconds: float
    score_seconds: float


def run_probe(folder: Path, *, timeout_s: float = TIMEOUT_S) -> ProbeReport:
    """Load the artefact in a child process and return what it reports.

    Raises:
        ModelRefusedError: If the child dies, takes too long, or refuses the model.
    """
    command = [sys.executable, "-P", "-m", "headrace.scoring.probe", str(folder)]
    try:
        done = subprocess.run(
            command,
            env=probe_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        message = explain("probe", f"end within {timeout_s:g} s", "no end", str(folder))
        raise ModelRefusedError(message, "probe") from error
    if done.returncode != 0 or len(done.stdout) > _OUTPUT_BYTES_MAX:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        message = explain(
            "probe", "end well", f"exit {done.returncode}", str(folder), "; ".join(last)
        )
        raise ModelRefusedError(message, "probe")
    return _report(done.stdout, folder)


def probe_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of an environment that the child gets."""
    kept = {name: environment[name] for name in _ENVIRONMENT if name in environment}
    # One thread each: pools of threads would reserve address space by the number of cores.
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def edge_rows(model: TextModel, canary_rows: np.ndarray) -> np.ndarray:
    """Return rows at which a scorer that differs from LightGBM would show it.

    Canary rows whose entries are replaced, by turns, by the model's thresholds, their two
    neighbours, null, zeros and infinities. The same for the same model.

    Shape: float64 (k, n_features).
    """
    random = np.random.default_rng(0)
    special = np.array([np.nan, 0.0, -0.0, np.inf, -np.inf, 1e-35, -1e-35, 1e-36])
    rows = np.resize(canary_rows, (_EDGE_ROWS, canary_rows.shape[1])).copy()
    for feature in range(rows.shape[1]):
        levels = [t.threshold[t.split_feature == feature] for t in model.trees]
        at = np.concatenate([*levels, [0.0]])
        near = np.concatenate([at, np.nextafter(at, np.inf), np.nextafter(at, -np.inf), special])
        replaced = random.random(_EDGE_ROWS) < 0.5
        rows[replaced, feature] = random.choice(near, int(replaced.sum()))
    return rows


def probe(folder: Path) -> dict[str, object]:
    """Verify, load and score the artefact in this process; only the child calls it."""
    from headrace.scoring.artefact import read_artefact
    from headrace.scoring.lightgbm_text import check_model_text

    artefact = read_artefact(folder)
    names = [column.name for column in artefact.manifest.columns]
    model = check_model_text(artefact.model_text, names)
    started = time.perf_counter()
    from headrace.scoring.lightgbm_native import framework_version, load_native

    native = load_native(artefact.model_text)
    loaded = time.perf_counter()
    canary = artefact.manifest.canary
    scores = native.predict(canary.rows)
    edges = native.predict(edge_rows(model, canary.rows))
    return {
        "framework_version": framework_version(),
        "canary_scores": [x.hex() for x in scores.tolist()],
        "edge_scores": [x.hex() for x in edges.tolist()],
        "load_seconds": loaded - started,
        "score_seconds": time.perf_counter() - loaded,
    }


def _report(output: bytes, folder: Path) -> ProbeReport:
    try:
        data = orjson.loads(output)
        if "refused" in data:
            raise ModelRefusedError(str(data["refused"]), str(data["reason"]))
        return ProbeReport(
            framework_version=str(data["framework_version"]),
            canary_scores=np.array([float.fromhex(x) for x in data["canary_scores"]]),
            edge_scores=np.array([float.fromhex(x) for x in data["edge_scores"]]),
            load_seconds=float(data["load_seconds"]),
            score_seconds=float(data["score_seconds"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        message = explain("probe", "print its report", output[:80], str(folder))
        raise ModelRefusedError(message, "probe") from error


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(arguments: list[str]) -> int:
    """Probe the folder that the arguments name; print the report, or why it was refused."""
    _limit()
    # Whatever the library prints goes to standard error; the report alone to standard output.
    report_handle = os.dup(1)
    os.dup2(2, 1)
    try:
        report = probe(Path(arguments[0]))
    except ModelRefusedError as error:
        report = {"refused": str(error), "reason": error.reason}
    except HeadraceError as error:
        report = {"refused": str(error), "reason": "structure"}
    with os.fdopen(report_handle, "wb") as out:
        out.write(orjson.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
