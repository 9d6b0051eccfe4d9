"""The structural check of LightGBM's text format, before LightGBM itself sees a byte of it.

LightGBM 4.7 trusts the text: a cut file ends the process (SIGABRT, SIGSEGV), a node that is its own
child makes ``predict`` run for ever, a large feature index reads foreign memory. So only what its
own writer would write passes here: known lines, each once, arrays of the right length, trees that
are trees. What passes is also returned, parsed, for ``headrace.scoring.forest``.

Does not load a model. Source: LightGBM ``src/boosting/gbdt_model_text.cpp``, ``src/io/tree.cpp``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headrace.runtime.errors import explain
from headrace.scoring.errors import ModelTextError

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = "v4"
TREES_MAX = 100_000
LEAVES_MAX = 131_072
FEATURES_MAX = 100_000
# Leaves beyond this make no sense and would overflow in sums of many trees.
VALUE_MAX = 1e300

CATEGORICAL_BIT = 1
DEFAULT_LEFT_BIT = 2
MISSING_NONE, MISSING_ZERO, MISSING_NAN = 0, 1, 2

# One score per row: what a prediction holds. Softmax and ranking models give something else.
OBJECTIVES = {
    "binary": r"binary sigmoid:(?P<sigmoid>[0-9.e+-]+)",
    "regression": "regression",
    "regression_sqrt": "regression sqrt",
    "regression_l1": "regression_l1",
    "huber": "huber",
    "fair": "fair",
    "poisson": "poisson",
    "quantile": "quantile",
    "mape": "mape",
    "gamma": "gamma",
    "tweedie": "tweedie",
    "cross_entropy": "cross_entropy",
}

_HEADER_KEYS = (
    "version",
    "num_class",
    "num_tree_per_iteration",
    "label_index",
    "max_feature_idx",
    "objective",
    "average_output",
    "feature_names",
    "monotone_constraints",
    "feature_infos",
    "tree_sizes",
)
_OPTIONAL_HEADER_KEYS = {"average_output", "monotone_constraints"}
_INT32_MAX = 2**31 - 1
_DECISION_TYPE_MAX = 15
_MISSING_UNKNOWN = 3

_INTEGER = re.compile(r"-?[0-9]{1,10}")
_REAL = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]{1,3})?")
_NAME = re.compile(r"[!-<>-~]+")
_INFO = re.compile(r"none|\[[0-9.e+:naif-]+\]|-?[0-9]+(:-?[0-9]+)*")
_PARAMETER = re.compile(r"\[[a-z0-9_]+: [ -~]*\]")
_IMPORTANCE = re.compile(r"[!-<>-~]+=[0-9]+")
_PANDAS = re.compile(r"pandas_categorical:(null|\[\])")


@dataclass(frozen=True, slots=True)
class TextTree:
    """One tree. Children >= 0 are nodes, a child c < 0 is the leaf ~c; node 0 is the root.

    Shape: node arrays (n_leaves - 1,), ``leaf_value`` (n_leaves,).
    """

    split_feature: np.ndarray
    threshold: np.ndarray
    decision_type: np.ndarray
    left_child: np.ndarray
    right_child: np.ndarray
    leaf_value: np.ndarray
    depth: int


@dataclass(frozen=True, slots=True)
class TextModel:
    """A model's text that passed the check."""

    feature_names: tuple[str, ...]
    objective: str
    sigmoid: float
    average_output: bool
    trees: tuple[TextTree, ...]


def check_model_text(text: bytes, feature_names: Sequence[str] | None = None) -> TextModel:
    """Return the parsed model if LightGBM can load and run it without harm.

    Args:
        text: What ``Booster.save_model`` writes.
        feature_names: The names, in order, that the text must have.

    Raises:
        ModelTextError: If anything in it is not as LightGBM's own writer would write it.

    Cost: about 0.3 s per million nodes.
    """
    lines = _Lines(text)
    header = _header(lines)
    names = _features(header, lines)
    if feature_names is not None and names != tuple(feature_names):
        raise lines.error("feature_names", f"be the manifest's {list(feature_names)}", list(names))
    objective, sigmoid = _objective(header["objective"], lines)
    sizes = _Values(header["tree_sizes"], "tree_sizes", lines).integers(None, 1, len(text))
    if len(sizes) > TREES_MAX:
        raise lines.error("tree_sizes", f"name at most {TREES_MAX} trees", len(sizes))
    trees = tuple(_tree(lines, i, int(size), len(names)) for i, size in enumerate(sizes))
    _trailer(lines)
    return TextModel(names, objective, sigmoid, "average_output" in header, trees)


class _Lines:
    """A cursor over the text's lines that knows its byte offset."""

    def __init__(self, text: bytes) -> None:
        try:
            decoded = text.decode("ascii")
        except UnicodeDecodeError as error:
            message = explain("model text", "be ASCII", error.object[error.start], "model.txt")
            raise ModelTextError(message) from error
        self.lines = decoded.split("\n")
        self.index = 0
        self.offset = 0

    def peek(self) -> str:
        if self.index >= len(self.lines):
            raise self.error("model text", "go on", "its end")
        return self.lines[self.index]

    def take(self) -> str:
        line = self.peek()
        self.index += 1
        self.offset += len(line) + 1
        return line

    def expect(self, wanted: str) -> None:
        line = self.take()
        if line != wanted:
            raise self.error("line", f"be {wanted!r}", line)

    def take_blank(self) -> None:
        while self.index < len(self.lines) and not self.lines[self.index]:
            self.take()

    def take_while(self, pattern: re.Pattern[str]) -> int:
        count = 0
        while self.index < len(self.lines) and pattern.fullmatch(self.lines[self.index]):
            self.take()
            count += 1
        return count

    def pair(self) -> tuple[str, str]:
        line = self.take()
        key, sign, value = line.partition("=")
        if not sign:
            raise self.error("line", "be a key=value", line)
        return key, value

    def error(self, what: str, rule: str, got: object) -> ModelTextError:
        shown = got if not isinstance(got, str) or len(got) <= 80 else got[:80] + "…"
        return ModelTextError(
            explain(what, rule, shown, f"line {self.index} of the model's text"),
            self.index,
        )


@dataclass(frozen=True, slots=True)
class _Values:
    """A space-separated array of one line."""

    text: str
    name: str
    lines: _Lines

    def integers(self, count: int | None, low: int, high: int) -> np.ndarray:
        tokens = self._tokens(count)
        bad = next((t for t in tokens if not _INTEGER.fullmatch(t)), None)
        if bad is not None:
            raise self.lines.error(self.name, "hold integers", bad)
        values = np.array([int(t) for t in tokens], np.int64)
        outside = (values < low) | (values > high)
        if outside.any():
            raise self.lines.error(
                self.name, f"lie in {low}..{high}", int(values[np.argmax(outside)])
            )
        return values

    def reals(self, count: int | None, also: str | None = None) -> np.ndarray:
        tokens = self._tokens(count)
        bad = next((t for t in tokens if t != also and not _REAL.fullmatch(t)), None)
        if bad is not None:
            raise self.lines.error(self.name, "hold finite numbers", bad)
        values = np.array([float(t) for t in tokens], np.float64)
        outside = ~(np.abs(values) <= VALUE_MAX) & np.array([t != also for t in tokens], bool)
        if outside.any():
            raise self.lines.error(
                self.name, f"lie within ±{VALUE_MAX}", tokens[int(np.argmax(outside))]
            )
        return values

    def _tokens(self, count: int | None) -> list[str]:
        tokens = self.text.split(" ") if self.text else []
        if count is not None and len(tokens) != count:
            raise self.lines.error(self.name, f"hold {count} values", len(tokens))
        return tokens


def _header(lines: _Lines) -> dict[str, str]:
    lines.expect("tree")
    header: dict[str, str] = {}
    for key in _HEADER_KEYS:
        line = lines.peek()
        if line == "average_output" == key:
            lines.take()
            header[key] = ""
        elif line.partition("=")[0] == key:
            header[key] = lines.pair()[1]
        elif key not in _OPTIONAL_HEADER_KEYS:
            raise lines.error("header", f"go on with {key!r}", line)
    lines.expect("")
    for key, wanted in (
        ("version", VERSION),
        ("num_class", "1"),
        ("num_tree_per_iteration", "1"),
        ("label_index", "0"),
    ):
        if header[key] != wanted:
            raise lines.error(key, f"be {wanted}", header[key])
    return header


def _features(header: dict[str, str], lines: _Lines) -> tuple[str, ...]:
    last = int(
        _Values(header["max_feature_idx"], "max_feature_idx", lines).integers(
            1, 0, FEATURES_MAX - 1
        )[0]
    )
    names = header["feature_names"].split(" ")
    bad = next((name for name in names if not _NAME.fullmatch(name)), None)
    if bad is not None or len(names) != last + 1 or len(set(names)) != len(names):
        raise lines.error("feature_names", f"hold {last + 1} different names", names)
    infos = header["feature_infos"].split(" ")
    bad = next((info for info in infos if not _INFO.fullmatch(info)), None)
    if bad is not None or len(infos) != last + 1:
        raise lines.error("feature_infos", f"hold {last + 1} ranges", bad or len(infos))
    if "monotone_constraints" in header:
        _Values(header["monotone_constraints"], "monotone_constraints", lines).integers(
            last + 1, -1, 1
        )
    return tuple(names)


def _objective(text: str, lines: _Lines) -> tuple[str, float]:
    for name, pattern in OBJECTIVES.items():
        match = re.fullmatch(pattern, text)
        if match is None:
            continue
        if name != "binary":
            return name, 0.0
        sigmoid = float(_Values(match["sigmoid"], "sigmoid", lines).reals(1)[0])
        if sigmoid > 0:
            return name, sigmoid
    raise lines.error("objective", f"be one of {sorted(OBJECTIVES)}", text)


def _tree(lines: _Lines, number: int, size: int, feature_count: int) -> TextTree:
    start = lines.offset
    lines.expect(f"Tree={number}")
    leaves = int(_next(lines, "num_leaves").integers(1, 1, LEAVES_MAX)[0])
    categories = int(_next(lines, "num_cat").integers(1, 0, LEAVES_MAX)[0])
    nodes = leaves - 1
    split_feature = _next(lines, "split_feature").integers(nodes, 0, feature_count - 1)
    _next(lines, "split_gain").reals(nodes)
    # Infinity splits null from everything else.
    threshold = _next(lines, "threshold").reals(nodes, also="inf")
    decision_type = _next(lines, "decision_type").integers(nodes, 0, _DECISION_TYPE_MAX)
    left = _next(lines, "left_child").integers(nodes, -leaves, nodes - 1)
    right = _next(lines, "right_child").integers(nodes, -leaves, nodes - 1)
    leaf_value = _next(lines, "leaf_value").reals(leaves)
    # A tree that is one leaf is written without its weight, and at times without its count.
    _next(lines, "leaf_weight").reals(leaves if nodes else None)
    _next(lines, "leaf_count").integers(leaves if nodes else None, 0, _INT32_MAX)
    _next(lines, "internal_value").reals(nodes)
    _next(lines, "internal_weight").reals(nodes)
    _next(lines, "internal_count").integers(nodes, 0, _INT32_MAX)
    depth = _check_shape(lines, left, right)
    _check_decisions(lines, decision_type, threshold, categories)
    if categories:
        _check_categories(lines, categories)
    # Linear leaves have arrays of their own to go wrong, and no plan asks for them.
    _next(lines, "is_linear").integers(1, 0, 0)
    _next(lines, "shrinkage").reals(1)
    lines.expect("")
    lines.expect("")
    if lines.offset - start != size:
        raise lines.error("tree_sizes", f"give the tree's {lines.offset - start} bytes", size)
    return TextTree(split_feature, threshold, decision_type, left, right, leaf_value, depth)


def _next(lines: _Lines, key: str) -> _Values:
    found, text = lines.pair()
    if found != key:
        raise lines.error("tree", f"go on with {key!r}", found)
    return _Values(text, key, lines)


def _check_shape(lines: _Lines, left: np.ndarray, right: np.ndarray) -> int:
    """Return the depth of a tree in which every node but the root, and every leaf, has one parent.

    LightGBM numbers nodes as it splits, so a child's number is above its parent's: there is no
    cycle, and with one parent each, every node is reached from the root.
    """
    nodes = len(left)
    children = np.concatenate([left, right])
    inner = np.sort(children[children >= 0])
    leaves = np.sort(~children[children < 0])
    if not np.array_equal(inner, np.arange(1, nodes)):
        raise lines.error("children", "name every node but the root once", inner.tolist()[:20])
    if nodes and not np.array_equal(leaves, np.arange(nodes + 1)):
        raise lines.error("children", "name every leaf once", leaves.tolist()[:20])
    parents = np.concatenate([np.arange(nodes), np.arange(nodes)])
    backward = (children >= 0) & (children <= parents)
    if backward.any():
        node = int(parents[np.argmax(backward)])
        raise lines.error("children", "be numbered above their node", f"node {node}")
    depths = [0] * (nodes + 1)
    deepest = 0
    for node, pair in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        below = depths[node] + 1
        deepest = max(deepest, below)
        for child in pair:
            if child > 0:
                depths[child] = below
    return deepest


def _check_decisions(
    lines: _Lines, decision_type: np.ndarray, threshold: np.ndarray, categories: int
) -> None:
    if ((decision_type >> 2) == _MISSING_UNKNOWN).any():
        raise lines.error("decision_type", "know its kind of missing value", 3)
    categorical = (decision_type & CATEGORICAL_BIT) > 0
    indices = np.sort(threshold[categorical])
    # The threshold of a categorical split is the index of its bit set; each is used once.
    if not np.array_equal(indices, np.arange(categories)):
        raise lines.error("threshold", f"name each of {categories} bit sets once", indices[:20])


def _check_categories(lines: _Lines, categories: int) -> None:
    bounds = _next(lines, "cat_boundaries").integers(categories + 1, 0, _INT32_MAX)
    if bounds[0] != 0 or (np.diff(bounds) <= 0).any():
        raise lines.error("cat_boundaries", "rise from 0", bounds.tolist()[:20])
    words = _next(lines, "cat_threshold")
    words.integers(int(bounds[-1]), 0, 2**32 - 1)


def _trailer(lines: _Lines) -> None:
    """Check what follows the trees; only LightGBM's own sections, in its order."""
    lines.expect("end of trees")
    lines.expect("")
    lines.expect("feature_importances:")
    lines.take_while(_IMPORTANCE)
    lines.take_blank()
    lines.expect("parameters:")
    first = lines.index
    lines.take_while(_PARAMETER)
    if "[linear_tree: 0]" not in lines.lines[first : lines.index]:
        raise lines.error("parameters", "hold [linear_tree: 0]", "none such")
    lines.take_blank()
    lines.expect("end of parameters")
    lines.take_blank()
    if lines.take_while(_PANDAS) != 1:
        raise lines.error("line", "be pandas_categorical:null", lines.peek())
    lines.take_blank()
    if lines.index != len(lines.lines):
        raise lines.error("model text", "end here", lines.peek())
