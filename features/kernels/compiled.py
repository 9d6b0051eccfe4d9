"""The two ways to compile a kernel, and bare pointers. Nothing else here calls numba's decorators.

numba's on-disk cache knows only the source file of the cached function itself: edit a function in
another module that it calls, and it runs the old machine code for ever. So leaves are ``inner``:
compiled into their caller, never cached. Only entry points are cached, and each is a closure over
``SOURCE_STAMP``: numba hashes closure cells into the cache key, so any edit in this folder makes
all entries compile again.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba
from numba.core import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


def _source_stamp() -> int:
    stamp = 0
    for file in sorted(resources.files(__package__).iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            stamp = zlib.crc32(file.read_bytes(), stamp)
    return stamp


SOURCE_STAMP: int = _source_stamp()


@intrinsic
def _pointer(_typing: Any, array: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    make_pointer: Callable[[Any], Any] = types.CPointer
    return make_pointer(array.dtype)(array), generate


# Inside a kernel: the address of an array's first item, which is indexed like a one-dimensional
# array. numba counts references of arrays at each call and slice, atomically: measured 3.4 us per
# row with arrays in the leaves, against 0.25 with pointers. The caller keeps the array alive.
pointer = cast("Callable[[np.ndarray], np.ndarray]", _pointer)


def inner(function: Function) -> Function:
    """Compile a function that only other kernels call."""
    return cast("Function", numba.njit(nogil=True, error_model="numpy")(function))


def inlined(function: Function) -> Function:
    """Compile a small hot function into each of its callers; the optimiser has no say.

    A call that is not inlined pushes all tables' addresses, some twenty words: measured 2 us a row.
    """
    return cast("Function", numba.njit(nogil=True, error_model="numpy", forceinline=True)(function))


def entry(make: Callable[[int], Function]) -> Function:
    """Compile and cache the function that ``make(SOURCE_STAMP)`` returns.

    The returned function must use its ``stamp`` argument, or it is no closure over it.
    """
    function = make(SOURCE_STAMP)
    assert function.__closure__, "an entry must close over the stamp"
    return cast("Function", numba.njit(nogil=True, cache=True, error_model="numpy")(function))
