"""LightGBM's own library behind the port ``Model``. It trusts a text: check and probe it first.

Its C interface is called without its Python package, whose import takes 1 s (pandas, scipy,
scikit-learn) and whose ``predict`` costs 16 us a call more.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from headrace.runtime.errors import explain
from headrace.scoring.errors import ModelRefusedError

_LIBRARIES = ("lib_lightgbm.so", "lib_lightgbm.dylib", "lib_lightgbm.dll")
_FLOAT64: Final = 1
_ROW_MAJOR: Final = 1
_PREDICT_NORMAL: Final = 0
_PREDICT_RAW: Final = 1
_PREDICT_CONTRIBUTIONS: Final = 3
_FROM_FIRST_TREE, _ALL_TREES = 0, -1
# More threads than one would fight the broker's client for the cores (DESIGN 4.2).
_PARAMETERS = b"num_threads=1"

_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


def _discard(_: bytes) -> None:
    """Take what the library would print: standard output belongs to the command."""


# Kept here: the library calls it for as long as it is loaded.
_DISCARD = _LogCallback(_discard)


@dataclass(frozen=True, slots=True)
class NativeModel:
    """A loaded model; ``width`` is its number of features."""

    lightgbm: ctypes.CDLL
    handle: ctypes.c_void_p
    width: int

    def predict(self, vector: np.ndarray) -> np.ndarray:
        """Return the score of each row.

        Shape: C-contiguous float64 (n, width) -> float64 (n,).
        """
        return self._predict(vector, _PREDICT_NORMAL, 1)[:, 0]

    def raw_scores(self, vector: np.ndarray) -> np.ndarray:
        """Return the sum of the trees for each row, before the objective's transformation.

        Shape: C-contiguous float64 (n, width) -> float64 (n,).
        """
        return self._predict(vector, _PREDICT_RAW, 1)[:, 0]

    def contributions(self, vector: np.ndarray) -> np.ndarray:
        """Return each feature's part of each raw score (exact TreeSHAP), and last the mean score.

        Shape: C-contiguous float64 (n, width) -> float64 (n, width + 1).
        """
        return self._predict(vector, _PREDICT_CONTRIBUTIONS, self.width + 1)

    def _predict(self, vector: np.ndarray, kind: int, columns: int) -> np.ndarray:
        # The library reads as many bytes as it is told of.
        assert vector.shape[1] == self.width, vector.shape
        assert vector.dtype == np.float64, vector.dtype
        assert vector.flags.c_contiguous
        scores = np.empty((vector.shape[0], columns))
        length = ctypes.c_int64()
        status = self.lightgbm.LGBM_BoosterPredictForMat(
            self.handle,
            ctypes.c_void_p(vector.ctypes.data),
            _FLOAT64,
            ctypes.c_int32(vector.shape[0]),
            ctypes.c_int32(self.width),
            _ROW_MAJOR,
            kind,
            _FROM_FIRST_TREE,
            _ALL_TREES,
            _PARAMETERS,
            ctypes.byref(length),
            ctypes.c_void_p(scores.ctypes.data),
        )
        assert status == 0, _error(self.lightgbm)
        assert length.value == scores.size, length.value
        return scores

    def __del__(self) -> None:
        self.lightgbm.LGBM_BoosterFree(self.handle)


def load_native(text: bytes) -> NativeModel:
    """Return the model that ``text`` holds.

    Raises:
        ModelRefusedError: If LightGBM refuses it. A text that was not checked may do worse.
    """
    library = _library()
    handle, trees, width = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    if library.LGBM_BoosterLoadModelFromString(text, ctypes.byref(trees), ctypes.byref(handle)):
        message = explain("model", "be loaded by LightGBM", _error(library), "its text")
        raise ModelRefusedError(message, "structure")
    status = library.LGBM_BoosterGetNumFeature(handle, ctypes.byref(width))
    assert status == 0, _error(library)
    return NativeModel(library, handle, width.value)


def framework_version() -> str:
    """Return the installed LightGBM's version."""
    return importlib.metadata.version("lightgbm")


@functools.cache
def _library() -> ctypes.CDLL:
    package = importlib.util.find_spec("lightgbm")
    folders = [] if package is None else [Path(p) for p in package.submodule_search_locations or ()]
    for folder in folders:
        for path in (folder / "lib" / name for name in _LIBRARIES):
            if path.is_file():
                library = ctypes.CDLL(str(path))
                library.LGBM_GetLastError.restype = ctypes.c_char_p
                library.LGBM_RegisterLogCallback(_DISCARD)
                return library
    message = explain("lightgbm", "be installed with its library", folders, "this interpreter")
    raise ModelRefusedError(message, "probe")


def _error(library: ctypes.CDLL) -> str:
    text: bytes = library.LGBM_GetLastError()
    return text.decode(errors="replace")
