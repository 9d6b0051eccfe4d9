"""Every artefact that is not in order is refused, with the step that saw it, and harms nobody."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import orjson
import pytest

from headrace.scoring.artefact import (
    MANIFEST_FILE,
    MODEL_FILE,
    Canary,
    read_artefact,
    write_artefact,
)
from headrace.scoring.deployments import Deployment
from headrace.scoring.errors import ModelRefusedError
from headrace.scoring.forest import Forest
from headrace.scoring.lightgbm_native import NativeModel
from headrace.scoring.loaders import examine, load_with_suspicion
from headrace.scoring.probe import probe_environment, run_probe
from headrace.scoring.scorer import FeatureColumn, ScorerIdentity

SEED = 7
COLUMNS = [FeatureColumn(name, "float64") for name in ("amount", "count_1d", "mean_1d", "risk_7d")]
MUTANTS = 500


@functools.cache
def train_booster(**parameters: Any) -> tuple[lightgbm.Booster, np.ndarray]:
    random = np.random.default_rng(SEED)
    rows = random.normal(size=(1500, len(COLUMNS)))
    rows[random.random(rows.shape) < 0.1] = np.nan
    labels = (np.nan_to_num(rows[:, 0] + rows[:, 3]) > 0.2).astype(int)
    data = lightgbm.Dataset(rows, labels, feature_name=[column.name for column in COLUMNS])
    chosen = {"objective": "binary", "num_leaves": 7, "verbosity": -1, **parameters}
    return lightgbm.train(chosen, data, 10), rows


def write(folder: Path, booster: lightgbm.Booster, rows: np.ndarray, **changes: Any) -> None:
    canary = rows[:20]
    given: dict[str, Any] = {
        "model": "fraud",
        "pipeline": "fraud",
        "framework_version": lightgbm.__version__,
        "columns": COLUMNS,
        "fingerprint": "0123456789abcdef",
        "training_set_id": "t",
        "created_at_ms": 0,
        "canary": Canary(canary, booster.predict(canary, num_threads=1)),
        "metrics": {},
        "parameters": {},
    }
    write_artefact(folder, booster.model_to_string().encode(), **{**given, **changes})


def rewrite(folder: Path, text: bytes) -> None:
    """Put another text into an artefact and make the manifest fit it, as a forger would."""
    manifest = read_artefact(folder).manifest
    fields = {
        field.name: getattr(manifest, field.name)
        for field in dataclasses.fields(manifest)
        if field.name not in {"sha256", "size", "profile"}
    }
    for name in (MODEL_FILE, MANIFEST_FILE):
        (folder / name).unlink()
    folder.rmdir()
    write_artefact(folder, text, **fields)


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    write(tmp_path / "3", *train_booster())
    return tmp_path / "3"


def refused(folder: Path, columns: list[FeatureColumn] = COLUMNS, **options: Any) -> str:
    with pytest.raises(ModelRefusedError) as caught:
        load_with_suspicion(folder, columns, **options)
    return caught.value.reason


def test_a_sound_artefact_scores_as_the_booster_did(artefact: Path) -> None:
    booster, rows = train_booster()
    identity = ScorerIdentity("fraud", "3", "ab", "champion", 7)
    scorer = load_with_suspicion(artefact, COLUMNS, identity=identity)

    assert isinstance(scorer.loaded, Forest)
    assert (scorer.model, scorer.version, scorer.role, scorer.revision) == (
        "fraud",
        "3",
        "champion",
        7,
    )
    assert booster.predict(rows, num_threads=1).tobytes() == scorer.score(rows).tobytes()


def test_without_an_identity_the_manifest_and_the_folder_give_it(artefact: Path) -> None:
    scorer = load_with_suspicion(artefact, COLUMNS)

    sha256 = read_artefact(artefact).sha256
    assert ScorerIdentity("fraud", "3", sha256, "champion", 0) == scorer.identity


def test_what_our_kernel_does_not_do_lightgbm_does(tmp_path: Path) -> None:
    booster, rows = train_booster(boosting="rf", bagging_freq=1, bagging_fraction=0.5)
    write(tmp_path / "rf", booster, rows)
    scorer = load_with_suspicion(tmp_path / "rf", COLUMNS)

    assert isinstance(scorer.loaded, NativeModel)
    assert booster.predict(rows, num_threads=1).tobytes() == scorer.score(rows).tobytes()


def test_every_mutant_of_the_file_is_refused_by_its_hash(artefact: Path) -> None:
    random = np.random.default_rng(SEED)
    path = artefact / MODEL_FILE
    text = path.read_bytes()
    mutants = [text[: len(text) * percent // 100] for percent in range(100)]
    while len(mutants) < MUTANTS:
        mutant = bytearray(text)
        mutant[random.integers(len(text))] ^= 1 << random.integers(8)
        mutants.append(bytes(mutant))
    for mutant in mutants:
        path.write_bytes(mutant)
        assert refused(artefact) == "artefact"


def test_a_forged_manifest_does_not_help_a_hostile_text(artefact: Path) -> None:
    text = (artefact / MODEL_FILE).read_bytes()
    rewrite(artefact, text[: len(text) // 2])

    assert refused(artefact) == "structure"


def test_a_sound_text_that_scores_otherwise_fails_the_canary(artefact: Path) -> None:
    other, _ = train_booster(learning_rate=0.2)
    rewrite(artefact, other.model_to_string().encode())

    # Seen by the probe already: nothing of it was loaded here.
    with pytest.raises(ModelRefusedError, match="for the probe") as caught:
        load_with_suspicion(artefact, COLUMNS)
    assert caught.value.reason == "canary"


def test_one_bit_of_one_leaf_fails_the_canary(artefact: Path) -> None:
    text = (artefact / MODEL_FILE).read_text()
    start = text.index("leaf_value=") + len("leaf_value=")
    leaf = text[start : text.index(" ", start)]
    next_leaf = repr(math.nextafter(float(leaf), math.inf))
    sizes = text[text.index("tree_sizes=") :].split("\n", 1)[0]
    first = int(sizes.removeprefix("tree_sizes=").split(" ")[0])
    changed = text.replace(
        sizes, sizes.replace(str(first), str(first + len(next_leaf) - len(leaf)), 1)
    ).replace(leaf, next_leaf, 1)
    rewrite(artefact, changed.encode())

    assert refused(artefact) == "canary"


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ([COLUMNS[1], COLUMNS[0], *COLUMNS[2:]], "order differs"),
        (COLUMNS[:3], "no 'risk_7d'"),
        ([*COLUMNS, FeatureColumn("more", "float64")], "does not know 'more'"),
        ([dataclasses.replace(COLUMNS[0], name="price"), *COLUMNS[1:]], "no 'amount'"),
        ([dataclasses.replace(COLUMNS[0], dtype="int64"), *COLUMNS[1:]], "'amount' is float64"),
    ],
    ids=["swapped", "dropped", "added", "renamed", "retyped"],
)
def test_a_model_of_other_columns_is_refused_and_they_are_named(
    artefact: Path, columns: list[FeatureColumn], named: str
) -> None:
    with pytest.raises(ModelRefusedError, match=named) as caught:
        examine(artefact, columns)

    assert caught.value.reason == "features"


def test_a_text_whose_names_differ_from_its_manifest_is_refused(tmp_path: Path) -> None:
    swapped = [COLUMNS[1], COLUMNS[0], *COLUMNS[2:]]
    write(tmp_path / "a", *train_booster(), columns=swapped)

    assert refused(tmp_path / "a", swapped) == "structure"


def test_a_model_of_another_plan_is_refused_unless_that_is_waived(artefact: Path) -> None:
    assert refused(artefact, fingerprint="fedcba9876543210") == "plan"
    examine(artefact, COLUMNS, fingerprint="0123456789abcdef")
    examine(artefact, COLUMNS, fingerprint=None)


def test_an_artefact_other_than_the_deployed_one_is_refused(artefact: Path) -> None:
    assert refused(artefact, sha256="0" * 64) == "artefact"


def test_another_framework_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", *train_booster(), framework="pickle")

    assert refused(tmp_path / "a") == "artefact"


def test_a_probe_that_does_not_end_is_killed_and_the_model_refused(artefact: Path) -> None:
    with pytest.raises(ModelRefusedError, match=r"end within 0\.01 s") as caught:
        run_probe(artefact, timeout_s=0.01)

    assert caught.value.reason == "probe"


def test_the_probe_reports_on_one_line_whatever_the_library_prints(artefact: Path) -> None:
    command = [sys.executable, "-P", "-m", "headrace.scoring.probe", str(artefact)]
    done = subprocess.run(command, capture_output=True, check=True)

    assert orjson.loads(done.stdout)["framework_version"] == lightgbm.__version__


def test_a_users_own_files_do_not_shadow_what_the_probe_imports(
    artefact: Path, tmp_path: Path
) -> None:
    for name in ("features", "scoring", "lightgbm", "numpy", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')\n")
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert run_probe(artefact).framework_version == lightgbm.__version__
    finally:
        os.chdir(before)


def test_the_probe_sees_none_of_the_workers_secrets() -> None:
    worker = {"PATH": "/bin", "HOME": "/root", "HEADRACE__KAFKA__PROPERTIES": "{}", "AWS_KEY": "x"}

    assert {"PATH", "HOME", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"} == set(
        probe_environment(worker)
    )


def test_a_worker_of_forests_never_loads_lightgbm(artefact: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from headrace.scoring.loaders import load_with_suspicion\n"
        "from headrace.scoring.scorer import FeatureColumn\n"
        f"names = {[column.name for column in COLUMNS]}\n"
        "columns = [FeatureColumn(name, 'float64') for name in names]\n"
        "load_with_suspicion(pathlib.Path(sys.argv[1]), columns)\n"
        "print('lightgbm' in sys.modules)\n"
    )
    command = [sys.executable, "-P", "-c", program, str(artefact)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)

    assert done.stdout.strip() == "False"


def test_a_deployment_names_its_folder_by_address(artefact: Path) -> None:
    event = Deployment(
        "fraud", "fraud", "3", artefact.as_uri(), read_artefact(artefact).sha256, "champion", 7, 0
    )

    assert artefact == event.folder
