"""No text that LightGBM could die of passes; what passes, it can run."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import lightgbm
import numpy as np
import orjson
import pytest

from headrace.scoring.errors import ModelTextError
from headrace.scoring.forest import compile_forest
from headrace.scoring.lightgbm_text import check_model_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = ["amount", "count_1d", "mean_1d", "risk_7d"]
SEED = 20260101
ROWS = 400

# Loads and runs every text of a folder; only a child may do that with texts that are not sound.
RUN_ALL = """
import sys, pathlib, lightgbm, numpy, json
rows = numpy.load(sys.argv[2])
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.txt")):
    try:
        booster = lightgbm.Booster(model_str=path.read_text())
        scores = [x.hex() for x in booster.predict(rows, num_threads=1).tolist()]
    except lightgbm.basic.LightGBMError:
        scores = None
    print(json.dumps([path.name, scores]), flush=True)
"""


def make_rows(count: int = ROWS) -> np.ndarray:
    random = np.random.default_rng(SEED)
    rows = random.normal(size=(count, len(NAMES)))
    rows[random.random(rows.shape) < 0.1] = np.nan
    return rows


def make_text(trees: int = 8, categorical: tuple[int, ...] = (), **parameters: object) -> str:
    rows = make_rows(2000)
    signal = np.nan_to_num(rows[:, 0] * rows[:, 1]) + np.nan_to_num(rows[:, 3])
    if categorical:
        rows[:, categorical] = np.abs(rows[:, categorical] * 20).round()
        signal += np.nan_to_num(rows[:, categorical] % 3).sum(axis=1)
    labels = (signal > np.median(signal)).astype(int)
    data = lightgbm.Dataset(rows, labels, feature_name=NAMES, categorical_feature=list(categorical))
    chosen = {"objective": "binary", "num_leaves": 7, "verbosity": -1, **parameters}
    return lightgbm.train(chosen, data, trees).model_to_string()


@pytest.fixture(scope="module")
def text() -> str:
    return make_text()


def cuts(text: str) -> Iterator[str]:
    for percent in range(100):
        yield text[: len(text) * percent // 100]


def bit_flips(text: str, count: int) -> Iterator[str]:
    random = np.random.default_rng(SEED)
    raw = text.encode()
    for _ in range(count):
        at, bit = int(random.integers(len(raw))), int(random.integers(8))
        mutant = bytearray(raw)
        mutant[at] ^= 1 << bit
        yield mutant.decode("latin-1")


def replaced(text: str, key: str, change: dict[int, str], tree: int = 0) -> str:
    """Return the text with values of one array of a tree replaced and tree_sizes put right."""
    pattern = rf"(Tree={tree}\n(?:(?!\n\n)[\s\S])*?(?<=\n){key}=)([^\n]*)"
    match = re.search(pattern, text)
    assert match is not None, key
    values = match[2].split(" ")
    for index, value in change.items():
        values[index] = value
    return with_sizes(text[: match.start(2)] + " ".join(values) + text[match.end(2) :])


def with_sizes(text: str) -> str:
    body = text[text.index("Tree=0") : text.index("end of trees")]
    starts = [match.start() for match in re.finditer("Tree=", body)] + [len(body)]
    sizes = " ".join(str(b - a) for a, b in itertools.pairwise(starts))
    return re.sub("tree_sizes=[^\n]*", f"tree_sizes={sizes}", text)


HOSTILE = {
    "a node that is its own left child": ("left_child", {1: "1"}),
    "a node that is its own right child": ("right_child", {2: "2"}),
    "a child that leads back to the root": ("left_child", {3: "0"}),
    "a cycle of two nodes": ("right_child", {4: "2"}),
    "a leaf that is reached twice": ("left_child", {5: "-1"}),
    "a child beyond the nodes": ("left_child", {0: "6"}),
    "a child far beyond the nodes": ("right_child", {0: "2147483647"}),
    "a leaf beyond the leaves": ("left_child", {5: "-8"}),
    "a leaf far beyond the leaves": ("left_child", {5: "-2147483648"}),
    "a child that overflows": ("left_child", {0: "4294967297"}),
    "a feature that does not exist": ("split_feature", {0: "4"}),
    "a feature far out": ("split_feature", {0: "2147483647"}),
    "a negative feature": ("split_feature", {0: "-1"}),
    "a leaf that is nan": ("leaf_value", {0: "nan"}),
    "a leaf that is infinite": ("leaf_value", {0: "inf"}),
    "a leaf out of all bounds": ("leaf_value", {0: "1e308"}),
    "a leaf that overflows": ("leaf_value", {0: "1e999"}),
    "a leaf in hex": ("leaf_value", {0: "0x1p3"}),
    "a threshold that is nan": ("threshold", {0: "nan"}),
    "a threshold below everything": ("threshold", {0: "-inf"}),
    "a split by a category without bit sets": ("decision_type", {0: "1"}),
    "an unknown kind of missing value": ("decision_type", {0: "12"}),
    "a decision type out of range": ("decision_type", {0: "127"}),
    "one leaf too many": ("num_leaves", {0: "8"}),
    "one leaf too few": ("num_leaves", {0: "6"}),
    "a billion leaves": ("num_leaves", {0: "1000000000"}),
    "no leaf": ("num_leaves", {0: "0"}),
    "bit sets that are not there": ("num_cat", {0: "1"}),
    "leaves with linear models": ("is_linear", {0: "1"}),
    "an empty array": ("left_child", {0: "", 1: "", 2: "", 3: "", 4: "", 5: ""}),
    "a value too many": ("leaf_value", {0: "0.1 0.2"}),
    "two blanks": ("leaf_value", {0: "0.1 "}),
}

HOSTILE_LINES = {
    "no trees": (r"tree_sizes=[^\n]*", "tree_sizes="),
    "a tree size that is too large": (r"tree_sizes=\d+", "tree_sizes=99999999999"),
    "a tree size that is too small": (r"tree_sizes=\d+", "tree_sizes=12"),
    "a tree size that is negative": (r"tree_sizes=\d+", "tree_sizes=-1"),
    "two classes": ("num_class=1", "num_class=2"),
    "no classes": ("num_class=1", "num_class=0"),
    "trees per iteration": ("num_tree_per_iteration=1", "num_tree_per_iteration=3"),
    "more features than names": ("max_feature_idx=3", "max_feature_idx=4"),
    "a negative number of features": ("max_feature_idx=3", "max_feature_idx=-2"),
    "an objective that is not known": ("objective=[^\n]*", "objective=multiclass num_class:3"),
    "a sigmoid of zero": ("sigmoid:1", "sigmoid:0"),
    "another version": ("version=v4", "version=v3"),
    "a second header line": ("num_class=1", "num_class=1\nnum_class=1"),
    "a line that LightGBM does not know": ("num_class=1", "num_class=1\nbackdoor=1"),
    "no end of trees": ("end of trees\n", ""),
    "linear trees by parameter": (r"\[linear_tree: 0\]", "[linear_tree: 1]"),
    "categories of pandas": ("pandas_categorical:null", 'pandas_categorical:[["a"]]'),
    "more after the end": ("pandas_categorical:null", "pandas_categorical:null\nTree=9"),
    "Windows line ends": ("\n", "\r\n"),
    "a NUL": ("num_class=1", "num_class=1\0"),
}


def hostile_texts(text: str) -> dict[str, str]:
    texts = {name: replaced(text, *change) for name, change in HOSTILE.items()}
    texts |= {name: re.sub(*change, text) for name, change in HOSTILE_LINES.items()}
    return texts


def test_a_text_of_lightgbms_own_is_read_in_full(text: str) -> None:
    model = check_model_text(text.encode(), NAMES)

    assert model.feature_names == tuple(NAMES)
    assert (model.objective, model.sigmoid) == ("binary", 1.0)
    assert len(model.trees) == 8
    assert all(len(tree.leaf_value) == 7 for tree in model.trees)
    assert all(2 < tree.depth < 7 for tree in model.trees)


@pytest.mark.parametrize(
    "parameters",
    [
        {"boosting": "dart", "drop_rate": 0.9},
        {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
        {"objective": "regression"},
        {"objective": "regression", "reg_sqrt": True},
        {"objective": "cross_entropy"},
        {"objective": "quantile"},
        {"zero_as_missing": True},
        {"use_missing": False},
        {"monotone_constraints": [1, 0, -1, 0]},
        {"min_data_in_leaf": 1999},
        {"num_leaves": 200, "min_data_in_leaf": 1},
        {"sigmoid": 0.25},
    ],
    ids=str,
)
def test_every_kind_of_model_that_gives_one_score_a_row_passes(parameters: dict) -> None:
    assert check_model_text(make_text(**parameters).encode(), NAMES).trees


def test_categorical_splits_pass_and_their_bit_sets_must_be_whole() -> None:
    text = make_text(categorical=(1,))
    assert "\ncat_threshold=" in text

    assert check_model_text(text.encode(), NAMES).trees
    for key, change in (
        ("cat_boundaries", {0: "1"}),
        ("cat_boundaries", {-1: "99999"}),
        ("cat_threshold", {0: "4294967296"}),
        ("cat_threshold", {0: "-1"}),
        ("num_cat", {0: "99"}),
    ):
        number = next(
            match[1]
            for match in re.finditer(r"Tree=(\d+)\nnum_leaves=\d+\nnum_cat=(\d+)", text)
            if match[2] != "0"
        )
        with pytest.raises(ModelTextError):
            check_model_text(replaced(text, key, change, int(number)).encode(), NAMES)


def test_a_split_of_null_from_all_else_has_an_infinite_threshold() -> None:
    rows = make_rows(2000)
    data = lightgbm.Dataset(rows, np.isnan(rows[:, 1]).astype(int), feature_name=NAMES)
    booster = lightgbm.train({"objective": "binary", "verbosity": -1}, data, 1)
    text = booster.model_to_string()
    assert "threshold=inf" in text

    forest = compile_forest(check_model_text(text.encode(), NAMES))

    assert forest is not None
    rows[:3] = np.inf
    assert booster.predict(rows).tobytes() == forest.predict(rows).tobytes()


def test_linear_trees_are_refused_by_name() -> None:
    text = make_text(objective="regression", linear_tree=True)

    with pytest.raises(ModelTextError, match="is_linear"):
        check_model_text(text.encode(), NAMES)


@pytest.mark.parametrize("name", [*HOSTILE, *HOSTILE_LINES])
def test_a_hostile_text_is_refused(text: str, name: str) -> None:
    mutant = hostile_texts(text)[name]
    assert mutant != text

    with pytest.raises(ModelTextError):
        check_model_text(mutant.encode(), NAMES)


def test_a_cycle_beside_the_tree_is_refused(text: str) -> None:
    # Every node and every leaf has one parent all the same: the last node's parent and one of its
    # own leaves change places.
    tree = check_model_text(text.encode(), NAMES).trees[0]
    last = len(tree.left_child) - 1
    assert tree.left_child[last] < 0
    side = "left_child" if last in tree.left_child else "right_child"
    parent = int(np.flatnonzero(getattr(tree, side) == last)[0])
    mutant = replaced(text, side, {parent: str(tree.left_child[last])})
    mutant = replaced(mutant, "left_child", {last: str(last)})

    with pytest.raises(ModelTextError, match="numbered above their node"):
        check_model_text(mutant.encode(), NAMES)


def test_a_refusal_names_the_line_the_rule_and_the_value(text: str) -> None:
    mutant = replaced(text, "split_feature", {0: "2147483647"})

    with pytest.raises(ModelTextError, match=r"split_feature must lie in 0..3; got 2147483647"):
        check_model_text(mutant.encode(), NAMES)


def test_a_text_cut_anywhere_is_refused(text: str) -> None:
    for percent, mutant in enumerate(cuts(text)):
        with pytest.raises(ModelTextError):
            check_model_text(mutant.encode(), NAMES)
        assert percent < 100


def test_lightgbm_itself_dies_of_a_cut_text(text: str, tmp_path: Path) -> None:
    # Why the check exists. When this fails, a newer LightGBM reads more carefully.
    (tmp_path / "cut.txt").write_text(text[: len(text) * 30 // 100])
    np.save(tmp_path / "rows.npy", make_rows())
    done = run_all(tmp_path)

    assert done.returncode < 0, done.stderr


def test_what_passes_after_bit_flips_runs_and_scores_as_lightgbm_does(
    text: str, tmp_path: Path
) -> None:
    flipped = [mutant for mutant in bit_flips(text, 1500) if mutant.isascii()]
    whole = [m for m in flipped if "\nTree=0" in m and "\nend of trees" in m]
    texts = flipped + [with_sizes(mutant) for mutant in whole]
    models = {}
    for index, mutant in enumerate(dict.fromkeys(texts)):
        try:
            models[f"{index:04}.txt"] = check_model_text(mutant.encode(), NAMES)
        except ModelTextError:
            continue
        (tmp_path / f"{index:04}.txt").write_text(mutant)
    rows = make_rows()
    np.save(tmp_path / "rows.npy", rows)
    done = run_all(tmp_path)
    scores = dict(orjson.loads(line) for line in done.stdout.splitlines() if line[:2] == b'["')

    assert done.returncode == 0, done.stderr
    assert set(scores) == set(models)
    # Flips in digits leave a sound, if other, model; some parameters LightGBM refuses by itself.
    ran = {name: theirs for name, theirs in scores.items() if theirs is not None}
    assert len(ran) > 100
    for name, theirs in ran.items():
        forest = compile_forest(models[name])
        assert forest is not None
        assert [x.hex() for x in forest.predict(rows).tolist()] == theirs


def run_all(folder: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-P", "-c", RUN_ALL, str(folder), str(folder / "rows.npy")]
    return subprocess.run(command, capture_output=True, timeout=120, check=False)
